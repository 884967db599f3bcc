"""Rewrites of operators whose bits depend on the batch, as operators whose bits do not.

A graph that gives the same bits in every batch stays as it is. Otherwise the operators of the table `REWRITES` are
rewritten where their sizes say that bits can be lost, and the graph is measured again; then wherever a rewrite is
possible. If bits are still lost, the graph stays as it is, and `losses` names the first operator that loses them.
"""

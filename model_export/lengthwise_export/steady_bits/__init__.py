"""Rewrites of operators whose bits depend on the batch, as operators whose bits do not.

The *bits* of an operator depend on the batch if it gives the same row other floats in another batch, with another
number of rows or another width. The cause is the order in which a sum is added, which onnxruntime's kernels choose by
the sizes. A *rewrite* replaces such a node by nodes that add in one order. `rewriting.py` measures whether a graph
loses bits, and rewrites it; `operators.py` and `convolutions.py` have the rewrites; `replacement.py` has what they
share.
"""

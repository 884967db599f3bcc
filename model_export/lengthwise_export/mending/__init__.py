"""Mends a graph that was written without lengths: rewrites it, operator by operator, so that padding reaches no answer.

    original        The graph before the mend. What it answers to a *lone* sequence (one row, no padding) is right.
    mended graph    Gives each row of a padded batch what the original gives that sequence alone: it gets an input with
                    the lengths, replaces the padding of `x` by 0, sums, and divides by each row's own length.

`mend.py` is the way through a graph, `engine.py` applies the rules, `rules/` has a module for each family of operators,
and `proof.py` compares the mended graph with the original. The words of the rules are those of `values.py`.
"""

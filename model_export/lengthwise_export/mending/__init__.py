"""Mends a graph that was written without lengths: rewrites it, operator by operator, so that padding reaches no answer.

`mend.py` is the way through a graph, `rules/` has a module for each family of operators, `proof.py` compares the mended
graph with the original. The words of this package, by the example `x.mean(1)` with `x` of `[rows, time, 8]`:

    original        The graph before the mend. What it answers to a *lone* sequence (one row, no padding) is right.
    mended graph    Gives each row of a padded batch what the original gives that sequence alone: it gets an input with
                    the lengths, replaces the padding of `x` by 0, sums, and divides by each row's own length.
    axis, dim       An axis of the original's tensor; a dim of the tensor in the mended graph that stands for it.
    group           The sizes of the dims that one axis consists of, mostly one. The original's `x.reshape(-1, 8)` has
                    two axes; the mended graph keeps `[rows, time, 8]`: the groups are `(rows, time)` and `(8,)`, and
                    the first axis is *merged*.
    rows, time,     The three kinds of sizes: the number of sequences in the batch; a size that depends on the length,
    fixed           such as `length // 2` after a stride of 2; a size that is the same at every length.
    table           `[2, lengths, *shape]`: what a tensor is in the original at each length of a range, with one row and
                    with `MANY_ROWS`. Behind a stride of 2 a dim of time has, for the lengths 2 to 6, the table
                    `[[1, 1, 2, 2, 3], [1, 1, 2, 2, 3]]`.
    KnownTensor     Numbers that are known for each length: a constant, or computed from sizes (a mean's divisor).
    DataTensor      A tensor that depends on the values of the sequences, or that is as long as they are.
    added rows      The dim 0 of a tensor that the original has once, but each row has its own, such as the divisor
                    `[rows]`. It belongs to no axis.
    own size        Of a row, along a dim of time: the size that the original has for this sequence alone. What lies
                    after it is *padding*.
    mask            Bool `[rows, size]`: true up to each row's own size.
    cause           The text that says how padding reached an operator's output; an operator with one is *changed*.
    refuse          To end the mend with `UnmendableError`, because an operator cannot be mended.
"""

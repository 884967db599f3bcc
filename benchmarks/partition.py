"""The cheapest batches when all sequences are known in advance.

For a cost that does not fall with the width, some cheapest partition of the sequences into batches is contiguous in
order of length, so a dynamic program over that order finds it exactly (Fang et al., TurboTransformers, PPoPP 2021):

    best[i] = min over j < i of best[j] + seconds(i - j rows, width of the i-th)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lengthwise.batching.cost import CostTable
from lengthwise.padding import Steps, rounded_width


def partition(
    sequences: Sequence[Steps], table: CostTable, *, multiple: int, rows: int, cost_steps: int | None = None
) -> list[list[Steps]]:
    """The cheapest partition, by length.

    Args:
        sequences: In any order.
        table: What a batch costs.
        multiple: Of which every width is one.
        rows: Most of a batch.
        cost_steps: Most of a batch of several rows; None where only rows are limited.
    """
    ordered = sorted(sequences, key=len)
    best = np.zeros(len(ordered) + 1)
    start = np.zeros(len(ordered) + 1, dtype=np.int64)
    for end, steps in enumerate(ordered, start=1):
        width = rounded_width(len(steps), multiple)
        most = rows if cost_steps is None else max(1, min(rows, cost_steps // width))
        first = max(0, end - most)
        # Candidates by where the last batch starts: the earlier, the more rows.
        totals = best[first:end] + np.array(table.column(width, rows).seconds[end - first : 0 : -1])
        cut = int(totals.argmin())
        best[end], start[end] = totals[cut], first + cut
    groups = []
    end = len(ordered)
    while end:
        groups.append(ordered[start[end] : end])
        end = int(start[end])
    return groups[::-1]

"""The next batch in order of arrival, where a row costs its own steps only: `arrival_batch`.

Where the queue is cut does not change the order of answers. Small batches answer sooner, large ones save work between
batches, which the cost table does not contain. By the table neither matters over a range of rows: from where a row is
about as cheap as it can be, to where the processor's caches are full. A batch has the rows in the middle of this range,
a power of two: callers are often as many, and the remainder would be a batch of its own.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import islice

from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence


def arrival_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The anchor and the most urgent others: as many as are cheap, within the limits, and in time.

    A batch is in time if its predicted run is within the allowed seconds, and ends before each deadline of its
    sequences, except those that not even a run of the sequence alone would meet.
    """
    seconds = limits.allowed_seconds(anchor, anchor.width, cost, now)
    # 1. How many rows: one runner's share of the queue, but at least those that are enough, and no more than pay.
    near = [anchor, *islice(pending.company(anchor), limits.rows - 1)]
    column = cost.column(sum([waiting.width for waiting in near]) // len(near), limits.rows)
    useful_rows = max(column.enough_rows, min(math.ceil(limits.share * len(pending)), column.balanced_rows))
    # 2. Add the most urgent ones; of each prefix, note its rows, width, valid steps and allowed seconds.
    chosen, prefixes = [anchor], [(1, anchor.width, anchor.width, seconds)]
    width, valid_steps, row_limit = anchor.width, anchor.width, min(limits.most_rows(anchor.width), useful_rows)
    for waiting in near[1:]:
        if waiting.width > width:
            width, row_limit = waiting.width, min(limits.most_rows(waiting.width), useful_rows)
        if len(chosen) >= row_limit:
            break
        slack = (waiting.deadline - now) / cost.drift
        if slack < seconds and cost.seconds_of(1, waiting.width) <= slack:
            seconds = slack
        valid_steps += waiting.width
        chosen.append(waiting)
        prefixes.append((len(chosen), width, valid_steps, seconds))

    def is_late(prefix: tuple[int, int, int, float]) -> bool:
        return cost.seconds_of(*prefix[:3]) > prefix[3]

    # 3. Keep the longest prefix in time: a longer one takes longer, and is allowed no more.
    if is_late(prefixes[-1]):
        del chosen[max(1, bisect_left(prefixes, True, key=is_late)) :]
    return chosen

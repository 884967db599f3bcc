"""Chooses the next batch of one model from its waiting sequences: `plan`.

| word here | meaning |
|---|---|
| anchor | the sequence that the next batch must contain: the most urgent one, or the hurried one |
| hurried sequence | has the earliest deadline that can still be met, and meets it only in the next batch |
| near sequences | the `HORIZON` most urgent ones (see `pending`); only they are chosen |
| allowed seconds | the longest predicted run of the next batch, before the drift (`CostTable.drift`) |

The hurried sequence is the anchor if no fewer deadlines are met then, and those that are due next run with it before
more urgent ones; the others of its request, say, are as hurried. What runs with the anchor is what costs least, by the
measured costs of rows, valid steps and padding (`composition`; on a busy device `by_class`).

In each case the most urgent sequence is left out by at most `MAX_LEFT_OUT` plans in a row; then it is the anchor, and
those that are due next run with it. So a sequence is passed over at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final

from lengthwise.batching.composition import cheapest_batch
from lengthwise.batching.cost import TAIL, CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import (
    HORIZON,
    MAX_PRIORITY,
    PRIORITY_SECONDS,
    WIDTH,
    PendingSequences,
    WaitingSequence,
)

# Who may overtake whom is policy: the same on every processor and device. What a batch gains is in the cost table.
MAX_LEFT_OUT: Final = 4  # plans in a row that may leave out the most urgent sequence, for a hurried one
_MOST_LATE: Final = 64  # so many deadlines that cannot be met are skipped to find one that can


def bypass_bound(seconds: float, horizon: int = HORIZON) -> int:
    """Most batches that run sequences which arrived later, while an earlier one waits.

    While a sequence of rank k in urgency waits, every `MAX_LEFT_OUT` + 1 plans remove at least one of the k - 1 before
    it. Only later sequences with a higher priority can be added before it: `PRIORITY_SECONDS` of work for each level,
    and as many sequences as have this work if each has at least `seconds`.
    """
    return (horizon + int(-(-PRIORITY_SECONDS * MAX_PRIORITY // seconds))) * (MAX_LEFT_OUT + 1)


def plan(pending: PendingSequences, cost: CostTable, limits: BatchLimits, now: float) -> list[WaitingSequence]:
    """The sequences of the next batch, removed from the pending ones; empty if none waits."""
    if (urgent := pending.most_urgent()) is None:
        return []
    if len(pending) == 1:  # every plan of an idle server: nothing to choose from
        chosen = [urgent]
    else:
        pending.hurried = hurried = _hurried_sequence(pending, urgent, cost, limits, now)
        anchor = urgent if hurried is None or pending.left_out >= MAX_LEFT_OUT else hurried
        chosen = cheapest_batch(pending, anchor, cost, limits, now)
        pending.hurried = None
        if anchor is hurried:
            # The batch of the hurried sequence runs first, if this makes no more sequences of both batches late.
            later = cheapest_batch(pending, urgent, cost, limits, now)
            if _count_in_time(chosen, later, cost, now) < _count_in_time(later, chosen, cost, now):
                chosen = later
        pending.work += cost.seconds_of(len(chosen), max(map(WIDTH, chosen)), sum(map(WIDTH, chosen)))
    pending.take_planned(chosen)
    pending.left_out = pending.left_out + 1 if urgent in pending else 0
    return chosen


def _hurried_sequence(
    pending: PendingSequences, urgent: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> WaitingSequence | None:
    """The sequence with the earliest deadline that can still be met, if only the next batch meets it; else None.

    None in three cases: no deadline can be met; a batch with the most urgent sequence may run before; the sequence is
    the most urgent one itself, or is not near.
    """
    # 1. The earliest deadline that a run of this sequence alone would meet.
    candidates = islice(pending.by_deadline(), _MOST_LATE)
    feasible = (waiting for waiting in candidates if cost.predict(1, waiting.width) <= waiting.deadline - now)
    hurried = next(feasible, None)
    if hurried is None or hurried is urgent or not pending.is_near(hurried):
        return None
    # 2. The longest batch that the most urgent sequence may get, before the drift.
    width = max(pending.alike)[0]  # others may be wider than the most urgent one
    rows = limits.most_rows(width)
    batch_seconds = min(cost.seconds_of(rows, width), limits.longest_seconds(width, cost, tail=TAIL)) * cost.drift
    # 3. Whether the deadline passes if that batch runs before it.
    return hurried if hurried.deadline - now < cost.predict(1, hurried.width) + batch_seconds else None


def _count_in_time(
    first: Sequence[WaitingSequence], second: Sequence[WaitingSequence], cost: CostTable, now: float
) -> int:
    """How many sequences meet their deadlines if `first` runs before `second`; a sequence in both batches runs once."""
    in_time, ran, end = 0, set[WaitingSequence](), now
    for batch in (first, second):
        widths = [*map(WIDTH, batch)]
        end += cost.predict(len(batch), max(widths), sum(widths))
        in_time += sum(end <= waiting.deadline for waiting in batch if waiting not in ran)
        ran.update(batch)
    return in_time

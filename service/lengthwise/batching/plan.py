"""Chooses the next batch of one model from its waiting sequences: `plan`.

| word here | meaning |
|---|---|
| anchor | the sequence that the next batch must contain: the most urgent one, or the hurried one |
| hurried sequence | has the earliest deadline that can still be met, and meets it only in the next batch |
| near sequences | the `HORIZON` most urgent ones (see `pending`); only they are chosen |
| allowed seconds | the longest predicted run of the next batch, before the drift (`CostTable.drift`) |

The hurried sequence is the anchor if no fewer deadlines are met then. What runs with the anchor depends on the kernels
(`CostTable.valid_steps_only`) and on the device (`Column.rows_nearly_free`):

| a row costs | the batch | by |
|---|---|---|
| its own steps | the anchor and the most urgent others, as many as are cheapest within the limits | `by_arrival` |
| the steps of the longest row, too | the part with the anchor, of a cheapest partition by length | `by_length` |
| next to nothing, on a busy device | the anchor and others of its class | `by_class` |

In each case the most urgent sequence is left out by at most `MAX_LEFT_OUT` plans in a row. So a sequence is passed over
at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from lengthwise.batching.by_arrival import arrival_batch
from lengthwise.batching.by_class import class_batch
from lengthwise.batching.by_length import length_batch
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import (
    HORIZON,
    MAX_PRIORITY,
    PRIORITY_HEAD_START,
    WIDTH,
    PendingSequences,
    WaitingSequence,
)

# Who may overtake whom is policy: the same on every processor and device. What a batch gains is in the cost table.
MAX_LEFT_OUT: Final = 4  # plans in a row that may leave out the most urgent sequence, for a hurried one
_MOST_LATE: Final = 64  # so many deadlines that cannot be met are skipped to find one that can


def bypass_bound(horizon: int = HORIZON) -> int:
    """Most batches that run sequences which arrived later, while an earlier one waits.

    While a sequence of rank k in urgency waits, every `MAX_LEFT_OUT` + 1 plans remove at least one of the k - 1 before
    it. Only later sequences with a higher priority can be added before it, at most one head start for each level.
    """
    return (horizon + PRIORITY_HEAD_START * MAX_PRIORITY) * (MAX_LEFT_OUT + 1)


def plan(pending: PendingSequences, cost: CostTable, limits: BatchLimits, now: float) -> list[WaitingSequence]:
    """The sequences of the next batch, removed from the pending ones; empty if none waits."""
    if (urgent := pending.most_urgent()) is None:
        return []
    if len(pending) == 1:  # every plan of an idle server: nothing to choose from
        chosen = [urgent]
    else:
        batch_of = _algorithm(pending, cost, limits)
        chosen = batch_of(pending, urgent, cost, limits, now)
        if (hurried := _hurried_sequence(pending, urgent, cost, limits, now)) is not None:
            # The batch of the hurried sequence runs first, if this makes no more sequences of both batches late.
            sooner = batch_of(pending, hurried, cost, limits, now)
            if _count_in_time(sooner, chosen, cost, now) >= _count_in_time(chosen, sooner, cost, now):
                chosen = sooner
        if not cost.valid_steps_only:
            pending.work += cost.seconds_of(len(chosen), max(map(WIDTH, chosen)))
    pending.run(chosen)
    pending.left_out = pending.left_out + 1 if urgent in pending else 0
    return chosen


def _algorithm(
    pending: PendingSequences, cost: CostTable, limits: BatchLimits
) -> Callable[[PendingSequences, WaitingSequence, CostTable, BatchLimits, float], list[WaitingSequence]]:
    """What chooses the batch with an anchor: see the module."""
    if cost.valid_steps_only:
        return arrival_batch
    # Of the widest, as a few steps cost next to nothing on a processor, too
    if pending.refilled and cost.column(max(pending.alike)[0], limits.rows).rows_nearly_free:
        return class_batch
    return length_batch


def _hurried_sequence(
    pending: PendingSequences, urgent: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> WaitingSequence | None:
    """The sequence with the earliest deadline that can still be met, if only the next batch meets it; else None.

    None in four cases: no deadline can be met; a batch with the most urgent sequence may run before; the sequence is
    the most urgent one itself, or is not near; or the most urgent one was left out `MAX_LEFT_OUT` times in a row.
    """
    # 1. The earliest deadline that a run of this sequence alone would meet.
    candidates = islice(pending.by_deadline(), _MOST_LATE)
    feasible = (waiting for waiting in candidates if cost.predict(1, waiting.width) <= waiting.deadline - now)
    hurried = next(feasible, None)
    if hurried is None or hurried is urgent or pending.left_out >= MAX_LEFT_OUT or not pending.is_near(hurried):
        return None
    # 2. The longest batch that the most urgent sequence may get, before the drift.
    if cost.valid_steps_only:  # the others may be longer than the most urgent one
        mean_width = limits.padded_steps // limits.rows or 1
        batch_seconds = min(cost.seconds_of(limits.rows, mean_width), limits.turn_seconds / cost.drift)
    else:
        widest = max(pending.alike)[0]  # others may be wider than the most urgent one
        batch_seconds = cost.seconds_of(limits.most_rows(widest), widest)
    # 3. Whether the deadline passes if that batch runs before it.
    seconds_alone, slack = cost.predict(1, hurried.width), hurried.deadline - now
    return hurried if slack < seconds_alone + min(batch_seconds * cost.drift, limits.seconds) else None


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

"""Which of the waiting sequences run together now: the plan of the next batch, a pure function.

1. The anchor is the most urgent sequence, or one that would otherwise miss its deadline.
2. If the anchor and the next in order of arrival cost hardly more than the least that they can in any batch, they run:
   nobody waits longer because of somebody else's width.
3. Else the window, the waiting sequences with widths around the anchor's, is partitioned into batches with the smallest
   total predicted seconds (`batching.partition`), and the batch with the anchor in it runs.

Removing one batch from a cheapest partition leaves a cheapest partition of the rest, so nothing is lost by deciding one
batch at a time. A plan chooses from the `HORIZON` most urgent sequences, and leaves out the most urgent one at most
`MAX_LEFT_OUT` times in a row, so a sequence is passed over at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from lengthwise.batching.cost import Column, rows_that_count, seconds_of
from lengthwise.batching.partition import Cost, batch_with, rows_within
from lengthwise.batching.pending import HORIZON, MAX_PRIORITY, PRIORITY_HEAD_START, PendingSequences, WaitingSequence

MAX_LEFT_OUT: Final = 4  # plans in a row without the most urgent sequence, for one that would be late
_WINDOW_BATCHES: Final = 1.5  # in good batches, on either side of the anchor: further ones change little
_WINDOW_ROWS: Final = 4  # least rows that a good batch counts as in the size of the window
_WINDOW_ROWS_OF_FULL: Final = 12  # least sequences on either side of the window where batches are full
_HARDLY_MORE: Final = 1.06  # than the least a batch by arrival may cost: more rows make everybody wait
_SHARE_OF_QUEUE: Final = 8  # a batch in order of arrival has at least one of this many waiting sequences
_CHEAP_PADDING: Final = 0.5  # above this cost of a padded step, batches in order of arrival are not tried


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch. A single sequence that exceeds them still runs, unbatched."""

    rows: int = 64  # most sequences
    padded_steps: int = 16_384  # most rows x width
    seconds: float = float("inf")  # longest predicted run
    # the same with more than `Column.enough_rows`, which gain little while others wait
    turn_seconds: float = float("inf")
    multiple: int = 1  # widths are rounded up to a multiple of it

    def most_rows(self, width: int) -> int:
        """Most rows of a batch of this width, in steps; at least 1."""
        return min(self.rows, self.padded_steps // (-(-width // self.multiple) * self.multiple)) or 1

    def at_most(self, rows: int | None) -> BatchLimits:
        """These limits with at most `rows` rows; None for no further limit."""
        return self if rows is None or rows >= self.rows else replace(self, rows=rows)


def bypass_bound(horizon: int = HORIZON) -> int:
    """How many times a sequence can be passed over: it waits while a sequence that arrived later runs.

    While a sequence of rank k in urgency waits, every `MAX_LEFT_OUT` + 1 plans remove at least one of the k - 1 before
    it. Only later sequences with a higher priority can be added before it, at most one head start for each level.
    """
    return (horizon + PRIORITY_HEAD_START * MAX_PRIORITY) * (MAX_LEFT_OUT + 1)


def plan(pending: PendingSequences, cost: Cost, limits: BatchLimits, now: float) -> list[WaitingSequence]:
    """The sequences of the next batch, removed from the pending ones; empty if none waits."""
    urgent = pending.most_urgent()
    if urgent is None:
        return []
    if len(pending) == 1:  # every plan of an idle server: nothing to choose from
        pending.left_out = 0
        return pending.take({urgent.width: 1}, urgent)
    drift = cost.drift
    anchor = _anchor(pending, urgent, cost, drift, limits, now)
    column = cost.column(anchor.width, limits.rows)
    seconds = _allowed_seconds(anchor, column, drift, limits, now)
    batch = None
    if cost.padding <= _CHEAP_PADDING:
        batch = _batch_by_arrival(pending, anchor, cost, limits, seconds)
    if batch is None:
        batch = _batch_around(pending, anchor.width, column, cost, limits, seconds)
    chosen = pending.take(batch, anchor)
    pending.left_out = pending.left_out + 1 if urgent.waits else 0
    return chosen


def _anchor(
    pending: PendingSequences, urgent: WaitingSequence, cost: Cost, drift: float, limits: BatchLimits, now: float
) -> WaitingSequence:
    """The most urgent sequence, or one that meets its deadline only if it runs now."""
    hurried = pending.earliest_deadline()
    if hurried is None or hurried is urgent or pending.left_out >= MAX_LEFT_OUT:
        return urgent
    alone = cost.column(hurried.width, limits.rows).seconds[1] * drift
    batch = cost.column(urgent.width, limits.rows).seconds[limits.most_rows(urgent.width)] * drift
    slack = hurried.deadline - now
    return hurried if alone <= slack < alone + min(batch, limits.seconds) else urgent


def _allowed_seconds(anchor: WaitingSequence, column: Column, drift: float, limits: BatchLimits, now: float) -> float:
    """Longest predicted run before the drift: by the anchor's deadline, and by `turn_seconds` past enough rows."""
    worth = column.seconds[min(column.enough_rows, limits.most_rows(anchor.width))]
    most = min(limits.seconds / drift, max(limits.turn_seconds / drift, worth))
    slack = (anchor.deadline - now) / drift
    return min(most, slack) if slack >= column.seconds[1] else most


def _batch_by_arrival(
    pending: PendingSequences, anchor: WaitingSequence, cost: Cost, limits: BatchLimits, seconds: float
) -> dict[int, int] | None:
    """The anchor and the fewest most urgent sequences that are cheap together, by width; None if none are.

    Cheap is within `_HARDLY_MORE` of the least that they can cost in any batch. Where many wait, the batch has at least
    its share of them (`_SHARE_OF_QUEUE`): that costs them little beside their wait, and there are fewer batches.
    """
    most, padding = limits.rows, cost.padding
    enough = len(pending) // _SHARE_OF_QUEUE
    members: list[int] = []
    cheap = width = valid = 0
    least = 0.0
    times: list[float] = []
    for waiting in chain((anchor,), pending.by_urgency()):
        each = waiting.width
        rows = len(members) + 1
        if members and rows > limits.most_rows(width):
            break
        if (waiting is anchor and members) or (members and rows > limits.most_rows(max(width, each))):
            continue  # it is in the batch, or so wide that the batch would have too many padded steps
        column = cost.column(each, most)
        if each > width:
            width, times = each, column.seconds
        valid += each
        least += column.least_row_seconds
        run_seconds = seconds_of(times, rows_that_count(rows, width, valid, padding))
        if rows > 1 and run_seconds > seconds:
            break
        members.append(each)
        if run_seconds <= _HARDLY_MORE * least:
            cheap = rows
            if rows >= enough:
                break
    return Counter(members[:cheap]) or None


def _batch_around(
    pending: PendingSequences, width: int, column: Column, cost: Cost, limits: BatchLimits, seconds: float
) -> dict[int, int]:
    """The batch with the anchor's width in it, from a cheapest partition of the window: how many of each width.

    Where even the most rows that are allowed are hardly enough to be cheap, batches should be full, also those beside
    the anchor's. So the window then starts and ends where a full batch ends, counted from the widest sequence, because
    a batch that is not full costs most there.
    """
    limit = limits.most_rows(width)
    most = rows_within(column.seconds, limit, seconds)
    rows = column.cheapest_rows[most]
    same = pending.count(width)
    if same >= 2 * rows:  # a full batch without padding, and another after it: nothing is cheaper
        return {width: rows}
    full = 1
    window_rows = _WINDOW_BATCHES * min(rows, max(column.enough_rows, _WINDOW_ROWS))
    if most == limit and rows <= 2 * column.enough_rows:
        full, window_rows = rows, max(window_rows, _WINDOW_ROWS_OF_FULL)
    widths, counts = pending.around(width, window_rows, full)
    if len(widths) == 1:
        return {width: _of_one_width(same, most, column.seconds)}
    return batch_with(width, widths, counts, cost, limits, seconds, full)


def _of_one_width(count: int, most: int, times: list[float]) -> int:
    """How many of `count` sequences of one width run first, if they need one batch or two of `most` rows at most."""
    fewest = -(-count // 2)
    return min(range(min(count, most), fewest - 1, -1), key=lambda rows: times[rows] + times[count - rows])

"""Which of the waiting sequences run together now: the next batch, a pure function.

The anchor is the most urgent sequence, or one that would otherwise miss its deadline. What runs with it depends on the
kernels (`CostTable.valid_steps_only`):

| a row costs | the batch |
|---|---|
| its own steps | the anchor and the most urgent others, as many as the limits allow |
| the steps of the longest row, too | the one with the anchor in it, of a cheapest partition by length |

For a cost that does not fall with the width, some cheapest partition is contiguous in width order, so a dynamic program
finds one: `best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)`, as TurboTransformers (Fang
et al., PPoPP 2021) divides a queue. Here it divides a window around the anchor, cut into blocks. Removing one batch
from a cheapest partition leaves a cheapest partition of the rest, so nothing is lost by deciding one batch at a time.

By length, a plan chooses from the `HORIZON` most urgent sequences. Either way the most urgent one is left out at most
`MAX_LEFT_OUT` times in a row, so a sequence is passed over at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from lengthwise.batching.cost import Column, CostTable
from lengthwise.batching.pending import HORIZON, MAX_PRIORITY, PRIORITY_HEAD_START, PendingSequences, WaitingSequence

MAX_LEFT_OUT: Final = 4  # plans in a row without the most urgent sequence, for one that would be late
_WINDOW_BATCHES: Final = 1.5  # in good batches, on either side of the anchor: further ones change little
_WINDOW_ROWS: Final = 4  # least rows that a good batch counts as in the size of the window
_WINDOW_ROWS_OF_FULL: Final = 12  # least sequences on either side of the window where batches are full
_BLOCK_DIVISOR: Final = 10  # blocks have `1 + n // 10` of the window's n rows: about 10, and one more a width
_BLOCKS_PER_BATCH: Final = 4  # least blocks of a good batch of one width, so that it can be shared with its neighbours


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch. A single sequence that exceeds them still runs, unbatched."""

    rows: int = 64  # most sequences
    padded_steps: int = 16_384  # most rows x width
    seconds: float = float("inf")  # longest predicted run
    turn_seconds: float = float("inf")  # the same past `Column.enough_rows`, which gain little while others wait
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


def plan(pending: PendingSequences, cost: CostTable, limits: BatchLimits, now: float) -> list[WaitingSequence]:
    """The sequences of the next batch, removed from the pending ones; empty if none waits."""
    urgent = pending.most_urgent()
    if urgent is None:
        return []
    if len(pending) == 1:  # every plan of an idle server: nothing to choose from
        chosen = [urgent]
    else:
        anchor = _anchor(pending, urgent, cost, limits, now)
        seconds = _allowed_seconds(anchor, cost, limits, now)
        if cost.valid_steps_only:
            chosen = _by_arrival(pending, anchor, cost, limits, seconds, now)
        else:
            chosen = _by_length(pending, anchor, cost, limits, seconds)
    pending.take(chosen)
    pending.left_out = pending.left_out + 1 if urgent.waits else 0
    return chosen


def _anchor(
    pending: PendingSequences, urgent: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> WaitingSequence:
    """The most urgent sequence, or one that meets its deadline only if it runs now."""
    hurried = pending.earliest_deadline()
    if hurried is None or hurried is urgent or pending.left_out >= MAX_LEFT_OUT or not pending.is_near(hurried):
        return urgent
    alone = cost.column(hurried.width, limits.rows).seconds[1] * cost.drift
    if cost.valid_steps_only:  # the others may be longer than the most urgent one
        most = limits.padded_steps // limits.rows or 1
        batch = min(cost.seconds_of(limits.rows, most), limits.turn_seconds / cost.drift) * cost.drift
    else:
        batch = cost.column(urgent.width, limits.rows).seconds[limits.most_rows(urgent.width)] * cost.drift
    slack = hurried.deadline - now
    return hurried if alone <= slack < alone + min(batch, limits.seconds) else urgent


def _allowed_seconds(anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float) -> float:
    """Longest predicted run before the drift: by the anchor's deadline, and by `turn_seconds` past enough rows."""
    column, drift = cost.column(anchor.width, limits.rows), cost.drift
    worth = column.seconds[min(column.enough_rows, limits.most_rows(anchor.width))]
    most = min(limits.seconds / drift, max(limits.turn_seconds / drift, worth))
    slack = (anchor.deadline - now) / drift
    return min(most, slack) if slack >= column.seconds[1] else most


def _by_arrival(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, seconds: float, now: float
) -> list[WaitingSequence]:
    """The anchor and the most urgent others, as many as keep the limits and the deadlines that can be kept."""
    chosen, shapes = [anchor], [(1, anchor.width, anchor.width, seconds)]  # of each prefix: rows, width, steps, longest
    width = valid = anchor.width
    for waiting in islice(pending.near(), limits.rows):
        if waiting is anchor:
            continue
        width = max(width, waiting.width)
        if len(chosen) >= limits.most_rows(width):
            break
        slack = (waiting.deadline - now) / cost.drift
        if slack < seconds and cost.seconds_of(1, waiting.width) <= slack:
            seconds = slack
        valid += waiting.width
        chosen.append(waiting)
        shapes.append((len(chosen), width, valid, seconds))

    def is_late(shape: tuple[int, int, int, float]) -> bool:
        return cost.seconds_of(*shape[:3]) > shape[3]

    if is_late(shapes[-1]):
        del chosen[max(1, bisect_left(shapes, True, key=is_late)) :]
    return chosen


def _by_length(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, seconds: float
) -> list[WaitingSequence]:
    """The batch with the anchor in it, of a cheapest partition of the window around the anchor.

    Where even the most rows that are allowed are hardly enough to be cheap, batches should be full, also those beside
    the anchor's. So the window then starts and ends where a full batch ends, counted from the widest sequence, because
    a batch that is not full costs most there.
    """
    near, of = list(pending.near()), anchor.width
    widths = sorted([each.width for each in near])
    place = bisect_left(widths, of)
    same = bisect_right(widths, of) - place
    column, limit = cost.column(of, limits.rows), limits.most_rows(of)
    most, rows = _rows_within(column, limit, seconds)
    low, high = place, place + rows  # where it is full without padding, and another after it, nothing is cheaper
    if same < 2 * rows:
        full, reach = 1, math.ceil(_WINDOW_BATCHES * min(rows, max(column.enough_rows, _WINDOW_ROWS)))
        if most == limit and rows <= 2 * column.enough_rows:
            full, reach = rows, max(reach, _WINDOW_ROWS_OF_FULL)
        end = min(len(near), place + same + reach)
        end = len(near) - (len(near) - end) // full * full
        begin = max(0, end - -(-(end - max(0, place - reach)) // full) * full)
        low, high = (begin + cut for cut in _batch_with(place - begin, widths[begin:end], cost, limits, seconds, full))
    left = Counter(widths[low:high])
    left[of] -= 1
    chosen = [anchor]
    for each in near:  # of each width the most urgent
        if left.get(each.width) and each is not anchor:
            left[each.width] -= 1
            chosen.append(each)
            if len(chosen) == high - low:
                break
    return chosen


def _batch_with(
    place: int, widths: Sequence[int], cost: CostTable, limits: BatchLimits, seconds: float, full: int
) -> tuple[int, int]:
    """Where the batch with `widths[place]` in it begins and ends, in a cheapest partition of ascending widths.

    Batches may end at the end of a width, of a block of it, or of a batch of `full` rows.
    """
    # Of every prefix up to a cut, the longest first: its rows, the seconds of its cheapest partition, and where the
    # last batch of that begins.
    prefixes = [(0, 0.0, 0)]
    block, begin = 1 + len(widths) // _BLOCK_DIVISOR, 0
    while begin < len(widths):
        width = widths[begin]
        end = bisect_right(widths, width, begin)
        column, limit = cost.column(width, limits.rows), limits.most_rows(width)
        _, good = _rows_within(column, limit, seconds)
        cuts = {*range(end, begin, -good), *range(end, begin, -min(block, -(-good // _BLOCKS_PER_BATCH)))}
        if full > 1:
            cuts |= {*range(end - (end - len(widths)) % full, begin, -full)}
        for cut in sorted(cuts):
            cheapest, start = math.inf, 0
            for before, best, _ in prefixes:
                rows = cut - before
                if cheapest < math.inf and (rows > limit or column.seconds[rows] > seconds):
                    break
                if best + column.seconds[rows] < cheapest:
                    cheapest, start = best + column.seconds[rows], before
            prefixes.insert(0, (cut, cheapest, start))
        begin = end
    starts = {cut: start for cut, _, start in prefixes}
    high = len(widths)
    while starts[high] > place:
        high = starts[high]
    return starts[high], high


def _rows_within(column: Column, most: int, seconds: float) -> tuple[int, int]:
    """The most rows, at most `most` and at least 1, predicted within `seconds`; and the cheapest of so many at most."""
    times = column.seconds
    if times[most] > seconds:
        most = max(1, bisect_right(times, seconds, 1, most + 1) - 1)
    return most, column.cheapest_rows[most]

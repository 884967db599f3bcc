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
from typing import Final, Protocol

from lengthwise.batching.cost import Column
from lengthwise.batching.pending import HORIZON, MAX_PRIORITY, PRIORITY_HEAD_START, PendingSequences, WaitingSequence

MAX_LEFT_OUT: Final = 4  # plans in a row without the most urgent sequence, for one that would be late
_WINDOW_BATCHES: Final = 1.5  # in good batches, on either side of the anchor: further ones change little
_WINDOW_ROWS: Final = 4  # least rows that a good batch counts as in the size of the window
_WINDOW_ROWS_OF_FULL: Final = 12  # least sequences on either side of the window where batches are full
_BLOCK_DIVISOR: Final = 10  # blocks have `1 + n // 10` of the window's n rows: about 10, and one more a width
_BLOCKS_PER_BATCH: Final = 4  # least blocks of a good batch of one width, so that it can be shared with its neighbours


class Cost(Protocol):
    """The part of a cost table that the planner uses."""

    @property
    def drift(self) -> float:
        """How many times as long a batch takes as the columns say."""

    @property
    def valid_steps_only(self) -> bool:
        """Whether a row costs its own steps, however long the others are."""

    def column(self, width: int, rows: int) -> Column:
        """The predicted seconds of a width, for `rows` rows at least."""

    def seconds_of(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """The predicted seconds of a batch, before the drift."""


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
        chosen = [urgent]
    else:
        anchor = _anchor(pending, urgent, cost, limits, now)
        column = cost.column(anchor.width, limits.rows)
        seconds = _allowed_seconds(anchor, column, cost.drift, limits, now)
        among = _by_arrival if cost.valid_steps_only else _by_length
        chosen = among(pending, anchor, cost, limits, seconds, now)
    pending.take(chosen)
    pending.left_out = pending.left_out + 1 if urgent.waits else 0
    return chosen


def _anchor(
    pending: PendingSequences, urgent: WaitingSequence, cost: Cost, limits: BatchLimits, now: float
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


def _allowed_seconds(anchor: WaitingSequence, column: Column, drift: float, limits: BatchLimits, now: float) -> float:
    """Longest predicted run before the drift: by the anchor's deadline, and by `turn_seconds` past enough rows."""
    worth = column.seconds[min(column.enough_rows, limits.most_rows(anchor.width))]
    most = min(limits.seconds / drift, max(limits.turn_seconds / drift, worth))
    slack = (anchor.deadline - now) / drift
    return min(most, slack) if slack >= column.seconds[1] else most


def _by_arrival(
    pending: PendingSequences, anchor: WaitingSequence, cost: Cost, limits: BatchLimits, seconds: float, now: float
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
    pending: PendingSequences, anchor: WaitingSequence, cost: Cost, limits: BatchLimits, seconds: float, _now: float
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
    column = cost.column(of, limits.rows)
    limit = limits.most_rows(of)
    most = rows_within(column.seconds, limit, seconds)
    rows = column.cheapest_rows[most]
    low, high = place, place + rows  # where it is full without padding, and another after it, nothing is cheaper
    if same < 2 * rows:
        full, reach = 1, math.ceil(_WINDOW_BATCHES * min(rows, max(column.enough_rows, _WINDOW_ROWS)))
        if most == limit and rows <= 2 * column.enough_rows:
            full, reach = rows, max(reach, _WINDOW_ROWS_OF_FULL)
        end = min(len(near), place + same + reach)
        end = len(near) - (len(near) - end) // full * full
        begin = max(0, end - -(-(end - max(0, place - reach)) // full) * full)
        if widths[begin] == widths[end - 1]:
            high = place + _of_one_width(same, most, column.seconds)
        else:
            low, high = (
                begin + cut for cut in _batch_with(place - begin, widths[begin:end], cost, limits, seconds, full)
            )
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


def _of_one_width(count: int, most: int, times: list[float]) -> int:
    """How many of `count` sequences of one width run first, if they need one batch or two of `most` rows at most."""
    fewest = -(-count // 2)
    return min(range(min(count, most), fewest - 1, -1), key=lambda rows: times[rows] + times[count - rows])


def _batch_with(
    place: int, widths: Sequence[int], cost: Cost, limits: BatchLimits, seconds: float, full: int
) -> tuple[int, int]:
    """Where the batch with `widths[place]` in it begins and ends, in a cheapest partition of ascending widths."""
    # Of every prefix up to a cut, the longest first: its rows, the seconds of its cheapest partition, a lower bound of
    # the seconds of any partition, and where the last batch of the cheapest begins.
    prefixes = [(0, 0.0, 0.0, 0)]
    for cut, width in _cuts(widths, cost, limits, seconds, full):
        times, _, _, least = cost.column(width, limits.rows)
        limit = limits.most_rows(width)
        cheapest, start = math.inf, 0
        for before, best, floor, _ in prefixes:
            rows = cut - before
            if cheapest < math.inf and (rows > limit or times[rows] > seconds):
                break
            if best + times[rows] < cheapest:
                cheapest, start = best + times[rows], before
            elif floor + rows * least >= cheapest:  # `least` does not fall with the width: so for all shorter prefixes
                break
        prefixes.insert(0, (cut, cheapest, prefixes[0][2] + (cut - prefixes[0][0]) * least, start))
    starts = {cut: start for cut, _, _, start in prefixes}
    high = len(widths)
    while starts[high] > place:
        high = starts[high]
    return starts[high], high


def _cuts(widths: Sequence[int], cost: Cost, limits: BatchLimits, seconds: float, full: int) -> list[tuple[int, int]]:
    """Where batches may end, and the width there: at the end of a width, of a block of it, or of a full batch."""
    block = 1 + len(widths) // _BLOCK_DIVISOR
    cuts, begin = {*range(len(widths), 0, -full)} if full > 1 else set(), 0
    while begin < len(widths):
        width = widths[begin]
        end = bisect_right(widths, width, begin)
        column = cost.column(width, limits.rows)
        good = column.cheapest_rows[rows_within(column.seconds, limits.most_rows(width), seconds)]
        cuts |= {*range(end, begin, -good), *range(end, begin, -min(block, -(-good // _BLOCKS_PER_BATCH)))}
        begin = end
    return [(cut, widths[cut - 1]) for cut in sorted(cuts)]


def rows_within(times: list[float], most: int, seconds: float) -> int:
    """The most rows, at most `most`, whose predicted `times[rows]` are within `seconds`; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)

"""Which of the waiting sequences run together now: the next batch, a pure function.

The anchor is the most urgent sequence, or one that would otherwise miss its deadline. What runs with it depends on the
kernels (`CostTable.valid_steps_only`):

| a row costs | the batch |
|---|---|
| its own steps | the anchor and the most urgent others: as many as are cheap and the limits allow |
| the steps of the longest row, too | the one with the anchor in it, of a cheapest partition by length |

For a cost that does not fall with the width, some cheapest partition is contiguous in width order, so a dynamic program
finds one: `best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)`, as TurboTransformers (Fang
et al., PPoPP 2021) divides a queue. Here it divides the most urgent sixth of it, or third, while few have passed over
the anchor (none, where batches save little): what came last waits for its turn, so the longest wait stays near that of
batches in order of arrival, for some of the throughput. Who has all sequences beforehand (`scoring.offline`) adds them
in order of their widths, and loses little.

Where only full batches are cheap, as on a device, and as many sequences arrive as run, a partition of those that wait
says little: the next ones fill batches up. There a batch is the one with the most sequences a second that the anchor
can be in, or a wider one that is nearly as good: the overdue of at most its width, then the widest.

Either way the most urgent sequence is left out at most `MAX_LEFT_OUT` times in a row, so one is passed over at most
`bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import add, attrgetter
from typing import Final

from lengthwise.batching.cost import Column, CostTable
from lengthwise.batching.pending import HORIZON, MAX_PRIORITY, PRIORITY_HEAD_START, PendingSequences, WaitingSequence

MAX_LEFT_OUT: Final = 4  # plans in a row without the most urgent sequence, for one that would be late
_MOST_BY_ARRIVAL: Final = 32  # rows, unless more are needed to be cheap: more gain 1 %, and all wait for the batch
_NEAR_SHARE: Final = 6  # by length, one of so many that wait may be chosen: more cost less, with a longer tail
_FEWEST_NEAR: Final = 8
_PAYS: Final = 1.5  # batches save much where a row alone costs so many times as much as in the best batch: there,
_PASSED_SHARE: Final = 0.25  # twice as many may be chosen until the anchor was passed over by so much of the queue
_MOST_NEAR: Final = 64
_FULL_BATCHES: Final = 4  # where only full batches are cheap, the sequences of so many may be chosen
_PARTS_OF_FULL: Final = 32  # and a batch ends at such a part of a full one
_PARTS_OF_NEAR: Final = 64  # or, while as many arrive as run, at such a part of those that may be chosen
_NEARLY_BEST: Final = 0.8  # of the most sequences a second: so much is given for the wide, which would wait else
# Of what one batch could take, which then waits for two, some is left for the next if it is few, or that batch short:
_FEW_LEFT: Final = 0.05  # of those that wait
_SHORT: Final = 0.1  # of the seconds of one batch of all


_WIDTH: Final = attrgetter("width")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch. A single sequence that exceeds them still runs, unbatched."""

    rows: int = 64  # most sequences
    padded_steps: int = 16_384  # most rows x width
    seconds: float = float("inf")  # longest predicted run
    turn_seconds: float = float("inf")  # the same past `Column.enough_rows`, which gain little while others wait
    multiple: int = 1  # widths are rounded up to a multiple of it
    by_table: bool = False  # whether a device's cost table lowers rows and steps (`buckets.lowered`)
    share: float = 1.0  # of what waits, by arrival past `Column.enough_rows`: the rest is for the other runners

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
    pending.run(chosen)
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

    def most_rows(width: int) -> int:
        enough = cost.column(width, limits.rows).enough_rows
        share = min(math.ceil(limits.share * len(pending)), _MOST_BY_ARRIVAL)
        return min(limits.most_rows(width), max(enough, share))

    width, valid, most = anchor.width, anchor.width, most_rows(anchor.width)
    for waiting in islice(pending.near(), limits.rows):
        if waiting is anchor:
            continue
        if waiting.width > width:
            width, most = waiting.width, most_rows(waiting.width)
        if len(chosen) >= most:
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
    """The batch with the anchor in it, of a cheapest partition by length of the most urgent sequences."""
    column, full = cost.column(anchor.width, limits.rows), limits.most_rows(anchor.width)
    one_width = list(islice(pending.near(), 2 * full))
    if all(each.width == anchor.width for each in one_width):
        rows = _of_one_width(len(one_width), rows_within(column.seconds, full, seconds), column)
        return [anchor, *islice((each for each in one_width if each is not anchor), rows - 1)]
    exact = 2 * column.enough_rows < full  # a batch need not be full to be cheap
    if exact:
        count = max(_FEWEST_NEAR, min(len(pending) // _NEAR_SHARE, _MOST_NEAR), column.enough_rows)
    else:
        count = full * max(_FULL_BATCHES, -(-_FEWEST_NEAR // full))
    near = list(islice(pending.near(), count))
    if not exact and pending.refilled:
        return _of_most_a_second(pending, near, anchor, cost, limits, seconds)
    if exact and _may_be_more(near, cost, limits.rows, pending.passed_over(anchor) / len(pending)):
        near = list(islice(pending.near(), 2 * count))
    if anchor not in near:
        near.append(anchor)
    widths = sorted([each.width for each in near])
    low, high = _batch_with(bisect_left(widths, anchor.width), widths, cost, limits, seconds, exact=exact)
    left = Counter(widths[low:high])
    left[anchor.width] -= 1
    chosen = [anchor]
    for each in near:  # of each width the most urgent
        if left[each.width] > 0 and each is not anchor:
            left[each.width] -= 1
            chosen.append(each)
    return chosen


def _of_most_a_second(
    pending: PendingSequences,
    near: Sequence[WaitingSequence],
    anchor: WaitingSequence,
    cost: CostTable,
    limits: BatchLimits,
    seconds: float,
) -> list[WaitingSequence]:
    """The anchor and others up to a width, with nearly the most sequences a second; the narrow cost nothing there."""
    widths = sorted([each.width for each in near])
    count, first = len(widths), max(1, bisect_right(widths, anchor.width))
    shapes: list[tuple[int, int, float]] = []  # ascending widths: rows, width, seconds
    whole = min(count, limits.most_rows(widths[-1]))
    narrowest = widths[whole - 1 - int(_FEW_LEFT * whole)] if 2 * count < 3 * whole else 0
    ends = (*range(count, first, -max(1, count // _PARTS_OF_NEAR)), first)
    for width in sorted({widths[end - 1] for end in ends}):
        times, cheapest, *_ = cost.column(width, limits.rows)
        most = min(bisect_right(widths, width), limits.most_rows(width))
        rows = cheapest[rows_within(times, most, seconds)]
        shapes.append((rows, width, times[rows]))
    short = _SHORT * shapes[-1][2]
    shapes = [shape for shape in shapes if shape[1] >= narrowest or shape[2] <= short]
    least = _NEARLY_BEST * max(rows / took for rows, _, took in shapes)
    rows, width, _ = next(shape for shape in reversed(shapes) if shape[0] / shape[2] >= least)
    others = [each for each in near if each.width <= width and each is not anchor]
    if len(others) >= rows:
        turn = pending.overdue_before
        overdue = [each for each in others if each.turn < turn][: rows - 1]
        rest = [each for each in others if each.turn >= turn]
        others = overdue + sorted(rest, key=_WIDTH, reverse=True) if len(overdue) < rows - 1 else overdue
    return [anchor, *others[: rows - 1]]


def _may_be_more(near: Sequence[WaitingSequence], cost: CostTable, rows: int, passed: float) -> bool:
    """Whether to choose from more, where the anchor was passed over by `passed` of the queue."""
    widest = cost.column(max(each.width for each in near), rows)
    saves_much = widest.seconds[1] >= _PAYS * widest.least_row_seconds
    return passed <= _PASSED_SHARE if saves_much else passed == 0


def _of_one_width(count: int, most: int, column: Column) -> int:
    """How many of `count` sequences of one width run first, at most `most`."""
    rows, times = column.cheapest_rows[most], column.seconds
    if count >= 2 * rows:
        return rows
    return min(range(min(count, most), (count - 1) // 2, -1), key=lambda rows: times[rows] + times[count - rows])


def _batch_with(
    place: int, widths: Sequence[int], cost: CostTable, limits: BatchLimits, seconds: float, *, exact: bool
) -> tuple[int, int]:
    """Where the batch with `widths[place]` in it begins and ends, in a cheapest partition of ascending widths.

    If not `exact`, batches end at the end of a width, or at every few sequences, counted from the widest.
    """
    columns = {width: (cost.column(width, limits.rows).seconds, limits.most_rows(width)) for width in {*widths}}
    step = 1 if exact else max(1, rows_within(*columns[widths[-1]], seconds) // _PARTS_OF_FULL)
    # Of every prefix: its end, the seconds of its cheapest partition, and where the last batch of that begins.
    ends, best, begins, first = [0], [0.0], [0], 0
    of_width = (end for end in range(1, len(widths)) if widths[end - 1] < widths[end])
    for end in sorted({*range(len(widths), 0, -step), *of_width}):
        times, limit = columns[widths[end - 1]]
        least = end - rows_within(times, limit, seconds)
        while ends[first] < least:
            first += 1
        if exact:  # batches may begin anywhere
            seconds_of = [*map(add, best[first:], times[end - first : 0 : -1])]
        else:
            seconds_of = [before + times[end - begin] for before, begin in zip(best[first:], ends[first:], strict=True)]
        best.append(min(seconds_of))
        begins.append(ends[first + seconds_of.index(best[-1])])
        ends.append(end)
    last = len(ends) - 1
    while begins[last] > place:
        last = ends.index(begins[last])
    return begins[last], ends[last]


def rows_within(times: list[float], most: int, seconds: float) -> int:
    """The most rows, at most `most`, whose predicted `times[rows]` are within `seconds`; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)

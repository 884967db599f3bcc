"""Which of the waiting sequences run together now. Pure: time is an argument, and equal input gives an equal plan.

The `Pool` orders what waits by urgency and by width. A plan starts from the most urgent sequence and finds its company:
the widths around it are cut into batches so that all of them together cost the least time, and the batch with the
urgent sequence in it runs. For a cost that does not fall with the width some cheapest partition is contiguous in width
order, so a dynamic program finds one:

    best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)

(the length-ordered partition of TurboTransformers, Fang et al., PPoPP 2021, over parts of equal width and with a lower
bound that ends the inner loop early). Taking one batch of a cheapest partition away leaves a cheapest partition of the
rest, so nothing is lost by deciding one batch at a time.

Fairness is structural. Only the `HORIZON` most urgent sequences are looked at, and every plan has the most urgent of
them in it, unless another would miss its deadline, which may happen `MAX_LEFT_OUT` times in a row. So a sequence is
passed over at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Final, Protocol

from service.cost import Column
from service.pool import HORIZON, MAX_PRIORITY, PRIORITY_HEAD_START, Pool, Waiting

MAX_LEFT_OUT: Final = 4
"""How often in a row the most urgent sequence yields to one that would miss its deadline."""
_NEIGHBOURS: Final = 1.5
"""How many good batches on either side of the urgent sequence's width are partitioned with it."""
_ENOUGH_AT_LEAST: Final = 4
"""The rows that a good batch is taken to have for that, at least, if so many may run together."""
_PARTS: Final = 4
"""Into how many parts a good batch of one width can be divided among its neighbours; more where few wait."""


class Cost(Protocol):
    """What the planner asks of a cost table."""

    def column(self, width: int, rows: int) -> Column:
        """The costs of up to `rows` rows of that width."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may be. A lone sequence past all of them still runs, alone.

    Attributes:
        rows: Most sequences.
        cost_steps: Most rows x width.
        seconds: Longest predicted run.
        turn_seconds: Longest predicted run of a batch with more rows than are worth it (`Column.enough`).
        multiple: Widths are rounded up to a multiple of it.
    """

    rows: int = 64
    cost_steps: int = 16_384
    seconds: float = float("inf")
    turn_seconds: float = float("inf")
    multiple: int = 1

    def most_rows(self, width: int) -> int:
        """How many sequences a batch may have whose longest has so many steps; at least 1."""
        return min(self.rows, self.cost_steps // (-(-width // self.multiple) * self.multiple)) or 1

    def at_most(self, rows: int | None) -> BatchLimits:
        """The same, with no more rows than a model takes; None for as many as these allow."""
        return self if rows is None or rows >= self.rows else replace(self, rows=rows)


def bypass_bound(horizon: int = HORIZON) -> int:
    """How often a sequence can be passed over: left waiting while one that came later runs.

    While a sequence of rank k in urgency waits, each run of `MAX_LEFT_OUT` + 1 plans takes at least one of the k - 1
    before it away; only later ones with higher priority can add to these, each level at most its head start.
    """
    return (horizon + PRIORITY_HEAD_START * MAX_PRIORITY) * (MAX_LEFT_OUT + 1)


def plan(pool: Pool, cost: Cost, limits: BatchLimits, now: float) -> list[Waiting]:
    """The sequences to run together now, taken out of the pool; empty where nothing waits.

    Args:
        pool: What waits.
        cost: Predicts a batch's seconds.
        limits: What one batch may be.
        now: The time, on the clock of the deadlines.
    """
    urgent = pool.most_urgent()
    if urgent is None:
        return []
    if len(pool) == 1:  # as at every plan of a server at rest: there is nobody to choose from
        pool.left_out = 0
        return pool.take({urgent.width: 1}, urgent)
    anchor = _anchor(pool, urgent, cost, limits, now)
    seconds = _allowed_seconds(anchor, cost, limits, now)
    chosen = pool.take(_company(pool, anchor.width, cost, limits, seconds), anchor)
    pool.left_out = pool.left_out + 1 if urgent.waits else 0
    return chosen


def _anchor(pool: Pool, urgent: Waiting, cost: Cost, limits: BatchLimits, now: float) -> Waiting:
    """The most urgent sequence, or one that makes its deadline only if it runs now."""
    hurried = pool.earliest_deadline()
    if hurried is None or hurried is urgent or pool.left_out >= MAX_LEFT_OUT:
        return urgent
    alone = cost.column(hurried.width, limits.rows).seconds[1]
    batch = cost.column(urgent.width, limits.rows).seconds[limits.most_rows(urgent.width)]
    slack = hurried.deadline - now
    return hurried if alone <= slack < alone + min(batch, limits.seconds) else urgent


def _allowed_seconds(anchor: Waiting, cost: Cost, limits: BatchLimits, now: float) -> float:
    """How long the batch may run: no longer than the anchor's deadline leaves, where it can be met at all.

    Nor past a turn for more rows than are worth it: they gain nothing, and whoever comes meanwhile waits for them all.
    """
    column = cost.column(anchor.width, limits.rows)
    worth = column.seconds[min(column.enough, limits.most_rows(anchor.width))]
    most = min(limits.seconds, max(limits.turn_seconds, worth))
    slack = anchor.deadline - now
    return min(most, slack) if slack >= column.seconds[1] else most


def _company(pool: Pool, width: int, cost: Cost, limits: BatchLimits, seconds: float) -> dict[int, int]:
    """The batch with the anchor's width in it, of a cheapest partition of the widths around: how many of each."""
    column = cost.column(width, limits.rows)
    most = _rows_within(column.seconds, limits.most_rows(width), seconds)
    rows = column.cheapest[most]
    same = pool.count(width)
    if same >= 2 * rows:  # a full batch without padding, and another may follow: nothing is cheaper
        return {width: rows}
    counts = pool.counts_around(width, _NEIGHBOURS * min(rows, max(column.enough, _ENOUGH_AT_LEAST)))
    if len(counts) == 1:
        return {width: _of_one_width(same, most, column.seconds)}
    return _batch_with(width, counts, cost, limits, seconds)


def _of_one_width(count: int, most: int, times: list[float]) -> int:
    """How many run first of sequences of one width that need one batch or two, of so many rows at most."""
    fewest = -(-count // 2)
    return min(range(min(count, most), fewest - 1, -1), key=lambda rows: times[rows] + times[count - rows])


def _batch_with(
    width: int, counts: list[tuple[int, int]], cost: Cost, limits: BatchLimits, seconds: float
) -> dict[int, int]:
    """Of a cheapest partition of some sequences, the batch with a width in it: how many of each.

    Args:
        width: The one that has to be in it.
        counts: Ascending widths, and how many there are of each.
        cost: Predicts a batch's seconds.
        limits: What a batch may be.
        seconds: How long it may run.
    """
    parts: list[tuple[int, int]] = []  # sequences of one width that stay together: the width, and how many
    before = [0]  # rows of all parts before this one
    floor = [0.0]  # what these take at least, in whatever batches
    best = [0.0]  # what they take in the cheapest partition
    start = [0]  # where the last batch of that partition starts
    place = 0  # of the first part of the width that has to be in
    finest = 1 + sum([count for _, count in counts]) // 24
    rows_alone = limits.cost_steps // limits.rows - limits.multiple  # up to this width the rows alone are limited
    for each, count in counts:
        if each == width:
            place = len(parts)
        column = cost.column(each, limits.rows)
        times, least = column.seconds, column.least
        limit = limits.rows if each <= rows_alone else limits.most_rows(each)
        for size in (1,) if count == 1 else _sizes(count, column, _rows_within(times, limit, seconds), finest):
            i = len(parts)
            total = before[i] + size
            cheapest, cut = best[i] + times[size], i
            for j in range(i - 1, -1, -1):
                rows = total - before[j]
                if rows > limit or (taken := times[rows]) > seconds:
                    break
                if best[j] + taken < cheapest:
                    cheapest, cut = best[j] + taken, j
                # `least` does not fall with the width: what is true here is true for every smaller j.
                elif floor[j] + rows * least >= cheapest:
                    break
            parts.append((each, size))
            before.append(total)
            floor.append(floor[i] + size * least)
            best.append(cheapest)
            start.append(cut)
    return _cut_out(parts, start, place)


def _cut_out(parts: list[tuple[int, int]], start: list[int], place: int) -> dict[int, int]:
    """The batch with one part in it: how many of each width.

    Args:
        parts: In the order of their widths: the width, and how many.
        start: Where the last batch of a cheapest partition of the first 0, 1, ... parts starts.
        place: Of that one.
    """
    high = len(parts)
    while start[high] > place:
        high = start[high]
    batch: dict[int, int] = {}
    for width, size in parts[start[high] : high]:
        batch[width] = batch.get(width, 0) + size
    return batch


def _sizes(count: int, column: Column, most: int, finest: int) -> list[int]:
    """How what waits of one width is parted: what is in a part stays together.

    A width that fills batches of its own needs no company for them: only what is left is shared out.

    Args:
        count: How many wait.
        column: Their costs.
        most: The most rows that a batch of them may have.
        finest: How many a part holds at least, if there are as many.
    """
    rows = column.cheapest[most]
    if count >= 2 * rows:
        count = rows + count % rows
    size = min(finest, -(-rows // _PARTS))
    sizes: list[int] = []
    # What is past a good batch stands apart, so that the parts of a good batch add up to one.
    for left in (count - rows, rows) if count > rows else (count,):
        sizes += [size] * ((left - 1) // size)
        sizes.append(left - (left - 1) // size * size)
    return sizes


def _rows_within(times: list[float], most: int, seconds: float) -> int:
    """Of at most so many rows, with the seconds of 0, 1, ... of them, how many take no longer; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)

"""Which of the waiting sequences run together now. Pure: time is an argument, and equal input gives an equal plan.

`PendingSequences` orders what waits by urgency and by width. A plan starts from the most urgent sequence and finds its
company: the widths around it are cut into batches so that all of them together cost the least time, and the batch with
the urgent sequence in it runs. For a cost that does not fall with the width some cheapest partition is contiguous in
width order, so a dynamic program finds one:

    best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)

(the length-ordered partition of TurboTransformers, Fang et al., PPoPP 2021, over parts of equal width and with a lower
bound that ends the inner loop early). Taking one batch of a cheapest partition away leaves a cheapest partition of the
rest, so nothing is lost by deciding one batch at a time. Where only full batches are cheap, as on a device, the widths
around are those of whole batches, so that what is left on either side can be full as well.

Fairness is structural. Only the `HORIZON` most urgent sequences are looked at, and every plan has the most urgent of
them in it, unless another would miss its deadline, which may happen `MAX_LEFT_OUT` times in a row. So a sequence is
passed over at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from lengthwise.batching.cost import Column
from lengthwise.batching.pending import HORIZON, PRIORITY_HEAD_START, PendingSequences, Waiting
from lengthwise.priorities import MAX_PRIORITY

MAX_LEFT_OUT: Final = 4
"""How often in a row the most urgent sequence yields to one that would miss its deadline."""
_NEIGHBOURS: Final = 1.5
"""How many good batches on either side of the urgent sequence's width are partitioned with it."""
_ENOUGH_AT_LEAST: Final = 4
"""The rows that a good batch is taken to have for that, at least, if so many may run together."""
_FEWEST_OF_FULL: Final = 12
"""How many sequences on either side are, at least, where batches are full."""
_SINGLE: Final = 10
"""Fewer sequences than that are divided one by one; of one width two stay together from so many on, three from twice as
many, and so on."""
_PARTS: Final = 4
"""Into how many parts, at least, a good batch of one width can be divided among its neighbours."""


class Cost(Protocol):
    """What the planner asks of a cost table."""

    @property
    def slower(self) -> float:
        """How many times as long everything takes as the columns say."""

    def column(self, width: int, rows: int) -> Column:
        """The costs of up to `rows` rows of that width."""

    def columns(self, widths: Sequence[int], rows: int) -> list[Column]:
        """The costs of up to `rows` rows of each of some widths."""


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


def plan(pool: PendingSequences, cost: Cost, limits: BatchLimits, now: float) -> list[Waiting]:
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
    slower = cost.slower
    anchor = _anchor(pool, urgent, cost, slower, limits, now)
    column = cost.column(anchor.width, limits.rows)
    seconds = _allowed_seconds(anchor, column, slower, limits, now)
    chosen = pool.take(_company(pool, anchor.width, column, cost, limits, seconds), anchor)
    pool.left_out = pool.left_out + 1 if urgent.waits else 0
    return chosen


def _anchor(
    pool: PendingSequences, urgent: Waiting, cost: Cost, slower: float, limits: BatchLimits, now: float
) -> Waiting:
    """The most urgent sequence, or one that makes its deadline only if it runs now."""
    hurried = pool.earliest_deadline()
    if hurried is None or hurried is urgent or pool.left_out >= MAX_LEFT_OUT:
        return urgent
    alone = cost.column(hurried.width, limits.rows).seconds[1] * slower
    batch = cost.column(urgent.width, limits.rows).seconds[limits.most_rows(urgent.width)] * slower
    slack = hurried.deadline - now
    return hurried if alone <= slack < alone + min(batch, limits.seconds) else urgent


def _allowed_seconds(anchor: Waiting, column: Column, slower: float, limits: BatchLimits, now: float) -> float:
    """How long the batch may run, as the columns count: no longer than the anchor's deadline leaves, if it can be met.

    Nor past a turn for more rows than are worth it: they gain nothing, and whoever comes meanwhile waits for them all.
    """
    worth = column.seconds[min(column.enough, limits.most_rows(anchor.width))]
    most = min(limits.seconds / slower, max(limits.turn_seconds / slower, worth))
    slack = (anchor.deadline - now) / slower
    return min(most, slack) if slack >= column.seconds[1] else most


def _company(
    pool: PendingSequences, width: int, column: Column, cost: Cost, limits: BatchLimits, seconds: float
) -> dict[int, int]:
    """The batch with the anchor's width in it, of a cheapest partition of the widths around: how many of each.

    Where as many rows as may be are hardly enough, batches are full, and those around the anchor are too only if what
    is left on either side fills batches: so the widths around are taken from one end of a full batch to another, as
    counted from the widest, where a batch that is not full costs the most.
    """
    limit = limits.most_rows(width)
    most = _rows_within(column.seconds, limit, seconds)
    rows = column.cheapest[most]
    same = pool.count(width)
    if same >= 2 * rows:  # a full batch without padding, and another may follow: nothing is cheaper
        return {width: rows}
    full = 1
    neighbours = _NEIGHBOURS * min(rows, max(column.enough, _ENOUGH_AT_LEAST))
    if most == limit and rows <= 2 * column.enough:
        full, neighbours = rows, max(neighbours, _FEWEST_OF_FULL)
    widths, counts = pool.around(width, neighbours, full)
    if len(widths) == 1:
        return {width: _of_one_width(same, most, column.seconds)}
    return _batch_with(width, widths, counts, cost, limits, seconds, full)


def _of_one_width(count: int, most: int, times: list[float]) -> int:
    """How many run first of sequences of one width that need one batch or two, of so many rows at most."""
    fewest = -(-count // 2)
    return min(range(min(count, most), fewest - 1, -1), key=lambda rows: times[rows] + times[count - rows])


def _batch_with(
    width: int, widths: list[int], counts: list[int], cost: Cost, limits: BatchLimits, seconds: float, full: int
) -> dict[int, int]:
    """Of a cheapest partition of some sequences, the batch with a width in it: how many of each.

    Args:
        width: The one that has to be in it.
        widths: Those of the sequences, ascending.
        counts: How many there are of each.
        cost: Predicts a batch's seconds.
        limits: What a batch may be.
        seconds: How long it may run.
        full: How many rows, counted from the widest, are to be divisible into batches of so many.
    """
    ends: list[tuple[int, int]] = []  # the widths, each with the rows up to its last
    # Of all parts so far, and of all but the last, the last two, ...: the rows, their seconds in a cheapest partition,
    # and the seconds that they take at least, however they are divided.
    prefixes = [(0, 0.0, 0.0)]
    start: dict[int, int] = {}  # by the rows of a prefix: those before the last batch of that partition
    total = place = 0
    floor = 0.0
    rows_of_all = sum(counts)
    finest = 1 + rows_of_all // _SINGLE
    most = limits.rows
    rows_alone = limits.cost_steps // most - limits.multiple  # up to this width the rows alone are limited
    columns = cost.columns(widths, most)
    for each, count, (times, good, _, least) in zip(widths, counts, columns, strict=True):
        if each == width:
            place = total
        limit = most if each <= rows_alone else limits.most_rows(each)
        sizes = (1,) if count == 1 else _sizes(count, good[_rows_within(times, limit, seconds)], finest)
        for size in sizes if full == 1 else _cut(sizes, (rows_of_all - total - 1) % full + 1, full):
            total += size
            shorter = iter(prefixes)
            cut, cheapest, _ = next(shorter)
            cheapest += times[size]
            for before, best, at_least in shorter:
                rows = total - before
                if rows > limit or (taken := times[rows]) > seconds:
                    break
                if best + taken < cheapest:
                    cheapest, cut = best + taken, before
                # `least` does not fall with the width: what is true here is true for every shorter one.
                elif at_least + rows * least >= cheapest:
                    break
            floor += size * least
            prefixes.insert(0, (total, cheapest, floor))
            start[total] = cut
        ends.append((each, total))
    high = total
    while start[high] > place:
        high = start[high]
    return _between(start[high], high, ends)


def _between(low: int, high: int, ends: list[tuple[int, int]]) -> dict[int, int]:
    """How many of each width the rows from one to another are.

    Args:
        low: Rows before the first of them.
        high: Rows up to the last of them.
        ends: Ascending widths, each with the rows up to its last.
    """
    batch: dict[int, int] = {}
    before = 0
    for width, end in ends:
        if end > low:
            batch[width] = min(end, high) - max(before, low)
            if end >= high:
                break
        before = end
    return batch


def _sizes(count: int, rows: int, finest: int) -> tuple[int, ...]:
    """How what waits of one width is parted: what is in a part stays together.

    A width that fills batches of its own needs no company for them: only what is left is shared out.

    Args:
        count: How many wait.
        rows: How many make a good batch.
        finest: How many a part holds at least, if there are as many.
    """
    if count >= 2 * rows:
        count = rows + count % rows
    size = min(finest, -(-rows // _PARTS))
    if count <= rows:
        return _in_parts(count, size)
    # What is past a good batch stands apart, so that the parts of a good batch add up to one.
    return _in_parts(count - rows, size) + _in_parts(rows, size)


def _in_parts(count: int, size: int) -> tuple[int, ...]:
    """A count as parts of that size, and what is left."""
    whole, left = divmod(count, size)
    return (size,) * whole + (left,) if left else (size,) * whole


def _cut(sizes: Iterable[int], left: int, full: int) -> Iterator[int]:
    """The same parts, divided where a full batch ends.

    Args:
        sizes: How many each part holds.
        left: How many there are up to the first end.
        full: How many there are from one end to the next.
    """
    for size in sizes:
        while size > left:
            yield left
            size -= left
            left = full
        yield size
        left = left - size or full


def _rows_within(times: list[float], most: int, seconds: float) -> int:
    """Of at most so many rows, with the seconds of 0, 1, ... of them, how many take no longer; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)

"""Which of the waiting sequences run together now: the plan of the next batch.

A plan is pure: the time is an argument, and equal input gives an equal plan.

1. The anchor is the most urgent sequence, or one that would otherwise miss its deadline.
2. The window is the waiting sequences with widths around the anchor's.
3. The window is partitioned into batches with the smallest total predicted seconds. For a cost that does not fall with
   the width, some cheapest partition is contiguous in width order, so a dynamic program finds one:

       best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)

4. The batch of that partition with the anchor in it runs.

The dynamic program is the length-ordered partition of TurboTransformers (Fang et al., PPoPP 2021), over blocks of
equal width, with a lower bound that ends the inner loop early. Removing one batch from a cheapest partition leaves a
cheapest partition of the rest, so nothing is lost by deciding one batch at a time. Where only full batches are cheap,
as on a device, the window holds a whole number of full batches, so that the batches beside the anchor's can be full
too.

Fairness is a property of the structure. A plan chooses from the `HORIZON` most urgent sequences only. It contains the
most urgent one, unless another sequence would miss its deadline, which may happen `MAX_LEFT_OUT` times in a row. So a
sequence is passed over at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from lengthwise.batching.cost import Column
from lengthwise.batching.pending import HORIZON, PRIORITY_HEAD_START, PendingSequences, WaitingSequence
from lengthwise.priorities import MAX_PRIORITY

MAX_LEFT_OUT: Final = 4
"""How many plans in a row may leave out the most urgent sequence for one that would miss its deadline."""
_WINDOW_BATCHES: Final = 1.5
"""Size of the window on either side of the anchor's width, in good batches (`Column.enough_rows`). A batch contains the
anchor, so sequences further away can change its boundaries only through the batch next to it."""
_WINDOW_ROWS: Final = 4
"""Least number of rows that a good batch counts as in the size of the window."""
_WINDOW_ROWS_OF_FULL: Final = 12
"""Least number of sequences on either side of the window where batches are full."""
_BLOCK_DIVISOR: Final = 10
"""Sequences of equal width are moved in blocks of `1 + n // 10` for a window of n sequences, which bounds the dynamic
program: about 10 blocks, and one more for each width."""
_BLOCKS_PER_BATCH: Final = 4
"""A good batch of one width is divided into at least this many blocks, so that it can be shared with its neighbours."""


class Cost(Protocol):
    """The part of a cost table that the planner uses."""

    @property
    def drift(self) -> float:
        """How many times as long a batch takes as the columns say."""

    def column(self, width: int, rows: int) -> Column:
        """The predicted seconds of a width, for `rows` rows at least."""

    def columns(self, widths: Sequence[int], rows: int) -> list[Column]:
        """The predicted seconds of several widths, each for `rows` rows at least."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch. A single sequence that exceeds them still runs, unbatched.

    Attributes:
        rows: Most sequences.
        padded_steps: Most rows x width.
        seconds: Longest predicted run.
        turn_seconds: Longest predicted run of a batch with more rows than `Column.enough_rows`: further rows make a row
            hardly cheaper, and let other sequences wait.
        multiple: Widths are rounded up to a multiple of it.
    """

    rows: int = 64
    padded_steps: int = 16_384
    seconds: float = float("inf")
    turn_seconds: float = float("inf")
    multiple: int = 1

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
    """The sequences of the next batch, removed from the pending ones; empty if none waits.

    Args:
        pending: The waiting sequences.
        cost: Predicts a batch's seconds.
        limits: The limits of one batch.
        now: The time, on the clock of the deadlines.
    """
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
    chosen = pending.take(_batch_around(pending, anchor.width, column, cost, limits, seconds), anchor)
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
    """Longest predicted run of the batch, in seconds before the drift.

    The batch must end before the anchor's deadline, if the anchor can meet it. With more rows than `Column.enough_rows`
    it must also end within `turn_seconds`: those rows gain nothing, and sequences that arrive meanwhile wait for them.
    """
    worth = column.seconds[min(column.enough_rows, limits.most_rows(anchor.width))]
    most = min(limits.seconds / drift, max(limits.turn_seconds / drift, worth))
    slack = (anchor.deadline - now) / drift
    return min(most, slack) if slack >= column.seconds[1] else most


def _batch_around(
    pending: PendingSequences, width: int, column: Column, cost: Cost, limits: BatchLimits, seconds: float
) -> dict[int, int]:
    """The batch with the anchor's width in it, from a cheapest partition of the window: how many of each width.

    Where even the most rows that are allowed are hardly enough to be cheap, batches should be full. The batches beside
    the anchor's are full only if the rows left on either side fill batches. So the window then starts and ends where a
    full batch ends, counted from the widest sequence, because a batch that is not full costs most there.

    Args:
        pending: The waiting sequences.
        width: The anchor's width, in steps.
        column: The predicted seconds of this width.
        cost: Predicts a batch's seconds.
        limits: The limits of one batch.
        seconds: Longest predicted run, before the drift.
    """
    limit = limits.most_rows(width)
    most = _rows_within(column.seconds, limit, seconds)
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
    return _batch_with(width, widths, counts, cost, limits, seconds, full)


def _of_one_width(count: int, most: int, times: list[float]) -> int:
    """How many of `count` sequences of one width run first, if they need one batch or two of `most` rows at most."""
    fewest = -(-count // 2)
    return min(range(min(count, most), fewest - 1, -1), key=lambda rows: times[rows] + times[count - rows])


def _batch_with(
    width: int, widths: list[int], counts: list[int], cost: Cost, limits: BatchLimits, seconds: float, full: int
) -> dict[int, int]:
    """The batch of a cheapest partition with one width in it: how many of each width.

    Args:
        width: The width that has to be in the batch.
        widths: The widths of the window, ascending.
        counts: How many sequences of each width.
        cost: Predicts a batch's seconds.
        limits: The limits of one batch.
        seconds: Longest predicted run, before the drift.
        full: Blocks are cut every `full` rows, counted from the widest, so that full batches can be formed; 1 for none.
    """
    ends: list[tuple[int, int]] = []  # of each width: itself, and the number of rows up to its last
    # Of every prefix of the blocks so far, the longest first: its rows, the seconds of its cheapest partition, and a
    # lower bound of the seconds of any partition.
    prefixes = [(0, 0.0, 0.0)]
    start: dict[int, int] = {}  # by the rows of a prefix: the rows before the last batch of its cheapest partition
    total = place = 0
    floor = 0.0
    rows_of_all = sum(counts)
    block = 1 + rows_of_all // _BLOCK_DIVISOR
    most = limits.rows
    narrow = limits.padded_steps // most - limits.multiple  # up to this width only the rows are limited
    columns = cost.columns(widths, most)
    for each, count, (times, good, _, least) in zip(widths, counts, columns, strict=True):
        if each == width:
            place = total
        limit = most if each <= narrow else limits.most_rows(each)
        sizes = (1,) if count == 1 else _block_sizes(count, good[_rows_within(times, limit, seconds)], block)
        for size in sizes if full == 1 else _cut(sizes, (rows_of_all - total - 1) % full + 1, full):
            total += size
            shorter = iter(prefixes)
            cut, cheapest, _ = next(shorter)
            cheapest += times[size]
            for before, best, at_least in shorter:
                rows = total - before
                if rows > limit or (run_seconds := times[rows]) > seconds:
                    break
                if best + run_seconds < cheapest:
                    cheapest, cut = best + run_seconds, before
                # `least` does not fall with the width, so this holds for every shorter prefix too.
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
    """How many rows of each width are between two positions in width order.

    Args:
        low: The number of rows before the first.
        high: The number of rows up to the last.
        ends: Ascending widths, each with the number of rows up to its last.
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


def _block_sizes(count: int, rows: int, block: int) -> tuple[int, ...]:
    """The sizes of the blocks of one width; the rows of a block stay together.

    A width with enough rows for full batches of its own leaves those out: only the rest is divided.

    Args:
        count: How many sequences of this width wait.
        rows: How many rows make a good batch.
        block: Rows of a block; smaller where a good batch would have fewer than `_BLOCKS_PER_BATCH` blocks.
    """
    if count >= 2 * rows:
        count = rows + count % rows
    size = min(block, -(-rows // _BLOCKS_PER_BATCH))
    if count <= rows:
        return _divided(count, size)
    # The rows past a good batch are divided apart from it, so that its blocks add up to exactly one good batch.
    return _divided(count - rows, size) + _divided(rows, size)


def _divided(count: int, size: int) -> tuple[int, ...]:
    """`count` as terms of `size`, and the remainder if there is one."""
    whole, left = divmod(count, size)
    return (size,) * whole + (left,) if left else (size,) * whole


def _cut(sizes: Iterable[int], left: int, full: int) -> Iterator[int]:
    """The same blocks, cut where a full batch ends.

    Args:
        sizes: Rows of each block.
        left: Rows up to the first end of a batch.
        full: Rows from one end to the next.
    """
    for size in sizes:
        while size > left:
            yield left
            size -= left
            left = full
        yield size
        left = left - size or full


def _rows_within(times: list[float], most: int, seconds: float) -> int:
    """The most rows, at most `most`, whose predicted `times[rows]` are within `seconds`; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)

"""The batch with a given width in it, of a cheapest partition of a window into batches.

For a cost that does not fall with the width, some cheapest partition is contiguous in width order, so a dynamic program
finds one: `best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)`. It is the length-ordered
partition of TurboTransformers (Fang et al., PPoPP 2021), over blocks of equal width, with a lower bound that ends the
inner loop early. Where padding is cheap (`CostTable.padding`), it is the cheapest contiguous partition only.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from lengthwise.batching.cost import Column, rows_that_count

if TYPE_CHECKING:
    from lengthwise.batching.plan import BatchLimits

_BLOCK_DIVISOR: Final = 10  # blocks have `1 + n // 10` of the window's n rows: about 10, and one more a width
_BLOCKS_PER_BATCH: Final = 4  # least blocks of a good batch of one width, so that it can be shared with its neighbours


class Cost(Protocol):
    """The part of a cost table that the planner uses."""

    @property
    def drift(self) -> float:
        """How many times as long a batch takes as the columns say."""

    @property
    def padding(self) -> float:
        """What a padded step costs, as a share of a valid one."""

    def column(self, width: int, rows: int) -> Column:
        """The predicted seconds of a width, for `rows` rows at least."""

    def columns(self, widths: Sequence[int], rows: int) -> list[Column]:
        """The predicted seconds of several widths, each for `rows` rows at least."""


def batch_with(
    width: int, widths: list[int], counts: list[int], cost: Cost, limits: BatchLimits, seconds: float, full: int
) -> dict[int, int]:
    """The batch of a cheapest partition with one width in it: how many of each width.

    `counts` belong to `widths`, which ascend; `seconds` is the longest predicted run, before the drift. Blocks are cut
    every `full` rows, counted from the widest, so that full batches can be formed; 1 for none.
    """
    ends: list[tuple[int, int]] = []  # of each width: itself, and the number of rows up to its last
    # Of every prefix of the blocks so far, the longest first: its rows, the seconds of its cheapest partition, and a
    # lower bound of the seconds of any partition; and its valid steps.
    prefixes = [(0, 0.0, 0.0, 0)]
    start: dict[int, int] = {}  # by the rows of a prefix: the rows before the last batch of its cheapest partition
    total = place = valid = 0
    padding = cost.padding
    exact = padding >= 1  # else the rows that count are fewer
    rows_of_all = sum(counts)
    block = 1 + rows_of_all // _BLOCK_DIVISOR
    most = limits.rows
    narrow = limits.padded_steps // most - limits.multiple  # up to this width only the rows are limited
    columns = cost.columns(widths, most)
    for each, count, (times, good, _, least) in zip(widths, counts, columns, strict=True):
        if each == width:
            place = total
        limit = most if each <= narrow else limits.most_rows(each)
        sizes = (1,) if count == 1 else _block_sizes(count, good[rows_within(times, limit, seconds)], block)
        for size in sizes if full == 1 else _cut(sizes, (rows_of_all - total - 1) % full + 1, full):
            total += size
            valid += size * each
            shorter = iter(prefixes)
            cut, cheapest, floor_before, _ = next(shorter)
            cheapest += times[size]
            floor = floor_before + size * least
            for before, best, at_least, valid_before in shorter:
                rows = count_of = total - before
                if not exact:
                    count_of = math.ceil(rows_that_count(rows, each, valid - valid_before, padding))
                if rows > limit or (run_seconds := times[count_of]) > seconds:
                    break
                if best + run_seconds < cheapest:
                    cheapest, cut = best + run_seconds, before
                # `least` does not fall with the width, so this holds for every shorter prefix too.
                elif (at_least + rows * least if exact else floor) >= cheapest:
                    break
            prefixes.insert(0, (total, cheapest, floor, valid))
            start[total] = cut
        ends.append((each, total))
    high = total
    while start[high] > place:
        high = start[high]
    return _between(start[high], high, ends)


def _between(low: int, high: int, ends: list[tuple[int, int]]) -> dict[int, int]:
    """How many rows of each width are after `low` rows and up to `high`; `ends` has the rows up to each width's end."""
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
    """The sizes of the blocks of one width, without full batches of `rows`, of which it has enough for its own."""
    if count >= 2 * rows:
        count = rows + count % rows
    size = min(block, -(-rows // _BLOCKS_PER_BATCH))
    if count <= rows:
        return _divided(count, size)
    # The rows past a good batch are divided apart from it, so that its blocks add up to exactly one good batch.
    return _divided(count - rows, size) + _divided(rows, size)


def _divided(count: int, size: int) -> tuple[int, ...]:
    whole, left = divmod(count, size)
    return (size,) * whole + (left,) if left else (size,) * whole


def _cut(sizes: Iterable[int], left: int, full: int) -> Iterator[int]:
    """The same blocks, cut where a full batch ends: after `left` rows, and then every `full` rows."""
    for size in sizes:
        while size > left:
            yield left
            size -= left
            left = full
        yield size
        left = left - size or full


def rows_within(times: list[float], most: int, seconds: float) -> int:
    """The most rows, at most `most`, whose predicted `times[rows]` are within `seconds`; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)

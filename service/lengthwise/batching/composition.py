"""Which sequences run with an anchor: `cheapest_batch`.

Two batches are compared, by the cost table:

- *In order of arrival*: the anchor and the most urgent others. Where the queue is cut does not change the order of
  answers. Small batches answer sooner, large ones save work between batches, which the cost table does not contain. By
  the table neither matters over a range of rows: from where a row is about as cheap as it can be, to where the
  processor's caches are full. A batch has the most rows of this range, a power of two: callers are often as many, and
  the remainder would be a batch of its own. It keeps about that number: the range moves with the widths that wait and
  with the noise of the table, and batches of changing sizes let some wait for two large ones.
- *By length*: the anchor's part of a cheapest partition of the most urgent. If the cost does not fall with the width,
  some cheapest partition is contiguous in order of width. So a dynamic program finds one: `best[i] = min over j < i of
  best[j] + seconds(rows between j and i, width of i)`, as TurboTransformers (Fang et al., PPoPP 2021) divides a queue.
  Here it divides only the most urgent sixth of the queue, or third while the anchor was seldom passed over
  (`_may_choose_more`). Later sequences wait for their turn, so the longest wait stays near that in order of arrival, at
  the price of some throughput. Of many it divides those about as wide as the anchor: how the others are divided changes
  the anchor's part little, unless the cut is within sequences of one width.

The batch in order of arrival is fairer. It runs if its padding costs little, or if it and the cheapest partition of the
others cost little more than the cheapest of all. So the order is that of arrival where padding is skipped, and by
length where a padding step costs as much as a valid one. A caller that has all sequences beforehand (`scoring.offline`)
adds them in order of width, and loses little.

Where a row costs next to nothing, as on a device, and as many sequences arrive as run: `by_class`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, islice
from operator import add, sub
from typing import Final

from lengthwise.batching.by_class import class_batch
from lengthwise.batching.cost import MANY_FREE, CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import WIDTH, PendingSequences, WaitingSequence

# Who may overtake whom is policy, as in `plan`: the same on every processor and device.
_LITTLE: Final = 0.05  # of its seconds, by which a batch in order of arrival may be dearer, if padding is skipped
_FEWEST_COMPARED: Final = 32  # both batches are compared by at least so many of the most urgent
_COMPARED_PLANS: Final = 8  # and again after so many plans
_NEAR_SHARE: Final = 6  # a sixth of the queue is chosen from: from more costs less, and lengthens the tail
_FEWEST_NEAR: Final = 8  # at least so many are chosen from: among fewer there is little to choose
_PASSED_SHARE: Final = 0.25  # twice as many are chosen from while at most this part of the queue passed the anchor over
_PAYS: Final = 1.5  # batches save much (a third) if a row alone costs at least so many times as much as in the best
_FULL_BATCHES: Final = 4  # where only full batches are cheap, the sequences of so many may be chosen
# A decision is to take 0.3 ms, under the lock of the batcher. Its time grows with the square of the number of places
# where batches may end, so on a processor:
_MOST_NEAR: Final = 176  # at most so many sequences are chosen from, or twice as many, or as many as are enough rows.
_REACH: Final = 32  # If they are more than four times this, only so many on each side of the anchor are partitioned.
_ENDS: Final = 48  # Batches may end after about so many of all,
_FEW_ENDS: Final = 24  # or after about so many of those around the anchor, and where padding costs less,
_COMPARED_ENDS: Final = 16  # or after about so many of those that are compared.


def cheapest_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The anchor and the waiting sequences that run with it, the anchor among at least one."""
    # Of the widest, as a few steps cost next to nothing on a processor, too
    widest = cost.column(max(pending.alike)[0], limits.rows)
    rows_nearly_free = widest.seconds[1] >= MANY_FREE * widest.least_row_seconds
    little = _LITTLE * (1 - cost.padding_cost)
    arrivals = _arrival_batch(pending, anchor, cost, limits, now) if little > 0 else []
    if arrivals:
        widths = [*map(WIDTH, arrivals)]
        rows, width = len(widths), max(widths)
        charged_rows = cost.charged_rows(rows, width, sum(widths))
        if charged_rows - sum(widths) / width <= little * charged_rows:
            return arrivals
    if pending.refilled and rows_nearly_free:
        return class_batch(pending, anchor, cost, limits, now)

    seconds = limits.allowed_seconds(anchor, anchor.width, cost, now)

    def allowed(width: int) -> float:
        # Where rows are nearly free, a full batch of the widest may take longer than a turn.
        return limits.allowed_seconds(anchor, width, cost, now) if rows_nearly_free else seconds

    if arrivals:
        if pending.plans_until_comparison <= 0 or len(pending) < _FEWEST_COMPARED:
            most_added = little * cost.seconds_of(rows, width, sum(widths))
            pending.by_length = _added_seconds(arrivals, pending, cost, limits, allowed) > most_added
            pending.plans_until_comparison = _COMPARED_PLANS
        pending.plans_until_comparison -= 1
        if not pending.by_length:
            return arrivals
    return _length_batch(pending, anchor, cost, limits, allowed, rows_nearly_free=rows_nearly_free)


def _added_seconds(
    arrivals: Sequence[WaitingSequence],
    pending: PendingSequences,
    cost: CostTable,
    limits: BatchLimits,
    allowed: Callable[[int], float],
) -> float:
    """How much longer all of the most urgent take if those in order of arrival run first, in seconds before the drift.

    Compared are this batch with a cheapest partition of the others, and a cheapest partition of all.
    """
    rows, others = len(arrivals), pending.company(arrivals[0])  # the first of these are the others of the batch
    widths = [arrivals[0].width, *map(WIDTH, islice(others, max(2 * rows, _FEWEST_COMPARED) - 1))]
    of_all, of_others = (
        _cheapest_partition(sorted(some), cost, limits, allowed, _COMPARED_ENDS)[0] for some in (widths, widths[rows:])
    )
    return cost.seconds_of(rows, max(widths[:rows]), sum(widths[:rows])) + of_others - of_all


def _arrival_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The anchor and the most urgent others in order of arrival: as many as are cheap, within the limits, and in time.

    A batch is in time if its predicted run is within the allowed seconds, and ends before each deadline of its
    sequences, except those that not even a run of the sequence alone would meet.
    """
    seconds = limits.allowed_seconds(anchor, anchor.width, cost, now)
    # 1. How many rows: one runner's share of the queue, but at least those that are enough, and no more than pay.
    near = [anchor, *islice(pending.company(anchor), limits.rows - 1)]
    column = cost.column(sum([waiting.width for waiting in near]) // len(near), limits.rows)
    if not column.balanced_rows <= 2 * pending.arrival_rows <= 4 * column.balanced_rows:
        pending.arrival_rows = column.balanced_rows
    useful_rows = max(column.enough_rows, min(math.ceil(limits.share * len(pending)), pending.arrival_rows))
    # 2. Add the most urgent ones; of each prefix, note its rows, width, valid steps and allowed seconds.
    chosen, prefixes = [anchor], [(1, anchor.width, anchor.width, seconds)]
    width, valid_steps, row_limit = anchor.width, anchor.width, min(limits.most_rows(anchor.width), useful_rows)
    for waiting in near[1:]:
        if waiting.width > width:
            width, row_limit = waiting.width, min(limits.most_rows(waiting.width), useful_rows)
        if len(chosen) >= row_limit:
            break
        slack = (waiting.deadline - now) / cost.drift
        if slack < seconds and cost.seconds_of(1, waiting.width) <= slack:
            seconds = slack
        valid_steps += waiting.width
        chosen.append(waiting)
        prefixes.append((len(chosen), width, valid_steps, seconds))

    def is_late(prefix: tuple[int, int, int, float]) -> bool:
        return cost.seconds_of(*prefix[:3]) > prefix[3]

    # 3. Keep the longest prefix in time: a longer one takes longer, and is allowed no more.
    if is_late(prefixes[-1]):
        del chosen[max(1, bisect_left(prefixes, True, key=is_late)) :]
    return chosen


def _length_batch(
    pending: PendingSequences,
    anchor: WaitingSequence,
    cost: CostTable,
    limits: BatchLimits,
    allowed: Callable[[int], float],
    *,
    rows_nearly_free: bool,
) -> list[WaitingSequence]:
    """The batch by length with the anchor in it; `allowed(width)` are the seconds that it may take.

    1. All of the most urgent have the anchor's width: as many of them as are cheapest.
    2. Otherwise the most urgent are partitioned by length, `_part_around`. Where a small batch is cheap, they are a
       share of what waits; where only full batches are, as many sequences as several full batches take.
    """
    column, full_rows = cost.column(anchor.width, limits.rows), limits.most_rows(anchor.width)
    batch_may_be_small = 2 * column.enough_rows < full_rows and not rows_nearly_free  # it is cheap before it is full
    others = pending.company(anchor)
    # Case 1
    if all(waiting.width == anchor.width for waiting in islice(pending.near(), 2 * full_rows)):
        rows = column.rows_of_first(min(len(pending), 2 * full_rows), full_rows, allowed(anchor.width))
        return [anchor, *islice(others, rows - 1)]
    # Case 2
    share = max(_FEWEST_NEAR, min(len(pending) // _NEAR_SHARE, _MOST_NEAR), column.enough_rows)
    count = share if batch_may_be_small else full_rows * max(_FULL_BATCHES, -(-_FEWEST_NEAR // full_rows))
    near = [anchor, *islice(others, count - 1)]
    if batch_may_be_small and _may_choose_more(near, cost, limits.rows, pending.passed_over(anchor) / len(pending)):
        near += islice(others, count)
    near.sort(key=WIDTH)  # of each width the anchor is the first, then the most urgent

    return _part_around(
        anchor,
        near,
        cost,
        limits,
        allowed,
        reach=max(_REACH, column.enough_rows) if batch_may_be_small else len(near),
    )


def _may_choose_more(near: Sequence[WaitingSequence], cost: CostTable, rows: int, passed_share: float) -> bool:
    """Whether to choose by length from more sequences than `near`.

    `passed_share`: how many sequences more than in order of arrival ran before the anchor, over those that wait.
    It may be up to `_PASSED_SHARE` where batches save much, and must be 0 elsewhere. Below 0, the anchor is early.
    """
    widest = cost.column(max(map(WIDTH, near)), rows)
    return (
        passed_share <= _PASSED_SHARE
        if widest.seconds[1] >= _PAYS * widest.least_row_seconds  # batches save much
        else passed_share == 0
    )


def _part_around(
    anchor: WaitingSequence,
    near: list[WaitingSequence],
    cost: CostTable,
    limits: BatchLimits,
    allowed: Callable[[int], float],
    *,
    reach: int,
) -> list[WaitingSequence]:
    """The part with the anchor of a cheapest partition by length.

    All of `near` are partitioned, or, if they are more than four times `reach`, at most so many on each side of the
    anchor. Then, if those after it all have its width, the end of the partition would cut them anywhere, so a batch of
    this width runs.

    Args:
        anchor: The sequence that the batch must contain.
        near: The sequences to choose from, by width; of each width the anchor first, then by urgency.
        cost: Predicts the seconds of a batch.
        limits: The limits of the batch.
        allowed: The longest predicted run of a batch by its width, in seconds before the drift.
        reach: How many sequences on each side of the anchor are enough.
    """
    widths = [*map(WIDTH, near)]
    index, next_width = bisect_left(widths, anchor.width), bisect_right(widths, anchor.width)
    begin, end, ends = 0, len(near), _ENDS if cost.padding_cost == 1 else _FEW_ENDS
    if len(near) > 4 * reach:
        if next_width >= index + reach:
            column, row_limit = cost.column(anchor.width, limits.rows), limits.most_rows(anchor.width)
            return near[index : index + column.rows_of_first(next_width - index, row_limit, allowed(anchor.width))]
        begin, end, ends = max(0, index - reach), min(index + reach, len(near)), _FEW_ENDS

    # Wider ones that alone take too long are left out.
    def takes_too_long(width: int) -> bool:
        return cost.seconds_of(1, width) > allowed(width)

    if next_width < end and takes_too_long(widths[end - 1]):
        end = bisect_left(widths, True, next_width, end, key=takes_too_long)
    ends_of_batches = _cheapest_partition(widths[begin:end], cost, limits, allowed, ends)[1]
    part = bisect_right(ends_of_batches, index - begin)
    low, high = begin + ends_of_batches[part - 1], begin + ends_of_batches[part]
    # Further ones of the widest run where these cost nothing, as the part may be what was left by full ones. If fewer
    # rows than it has are in time, so many run, the anchor among them.
    width, column = widths[high - 1], cost.column(widths[high - 1], limits.rows)
    rows = column.rows_within(limits.most_rows(width), min(column.seconds[high - low], allowed(width)))
    low = max(low, index + 1 - rows)
    high = min(bisect_right(widths, width), low + rows)
    # If the part begins within a width, the most urgent of that width run.
    first, last = bisect_left(widths, widths[low]), min(high, bisect_right(widths, widths[low]))
    return near[first : first + last - low] + near[last:high]


def _cheapest_partition(
    widths: Sequence[int], cost: CostTable, limits: BatchLimits, allowed: Callable[[int], float], ends: int
) -> tuple[float, list[int]]:
    """The seconds of a cheapest partition of ascending widths into batches, before the drift; and where batches end.

    The dynamic program of the module, over the `_possible_ends`. `allowed(width)` is the longest predicted run of a
    batch of this width, in seconds. The first of the positions is 0, the begin of the first batch.
    """
    # 1. The seconds of the cheapest partition of each prefix, where it ends, and after which prefix its last batch
    # begins.
    padding_cost, valid_steps = cost.padding_cost, [0, *accumulate(widths)]
    seconds, prefix_ends, previous, first = [0.0], [0], [0], 0
    for end in _possible_ends(widths, cost, limits, allowed, ends):
        width = widths[end - 1]
        column = cost.column(width, limits.rows)
        times, added = column.seconds, column.added_seconds
        earliest_begin = end - column.rows_within(limits.most_rows(width), allowed(width))
        first = min(bisect_left(prefix_ends, earliest_begin, first), len(prefix_ends) - 1)
        begins = prefix_ends[first:]
        if padding_cost == 1:
            batch_seconds = map(times.__getitem__, map(end.__sub__, begins))
            seconds_from = [*map(add, seconds[first:], batch_seconds)]
        else:  # as `CostTable.seconds_of`, without a call for each of them
            per_step, valid = (1 - padding_cost) / width, valid_steps[end]
            charged = [padding_cost * (end - begin) + per_step * (valid - valid_steps[begin]) for begin in begins]
            seconds_from = [
                before + times[int(rows)] + rows % 1.0 * added[int(rows)]
                for before, rows in zip(seconds[first:], charged, strict=True)
            ]
        least = min(seconds_from)
        previous.append(first + seconds_from.index(least))
        seconds.append(least)
        prefix_ends.append(end)
    # 2. Back from the last batch to the first.
    last, ends_of_batches = len(prefix_ends) - 1, [len(widths)]
    while last:
        last = previous[last]
        ends_of_batches.append(prefix_ends[last])
    return seconds[-1], ends_of_batches[::-1]


def _possible_ends(
    widths: Sequence[int], cost: CostTable, limits: BatchLimits, allowed: Callable[[int], float], ends: int
) -> Sequence[int]:
    """The positions of ascending widths where a batch may end: all, or of more than about `ends` one of every few.

    Of every few it is that before the largest step in width.
    """
    stride = max(1, round(len(widths) / ends))
    if stride == 1:
        return range(1, len(widths) + 1)

    def is_dense(width: int) -> bool:
        most_rows = cost.column(width, limits.rows).rows_within(limits.most_rows(width), allowed(width))
        return most_rows < 2 * stride - 1

    # From here on, batches may have too few rows to reach over two strides: every position may be an end.
    dense = bisect_left(widths, True, key=is_dense)
    # The step in width before each position, and minus the position: of equal steps the first is the largest.
    steps = [*zip(map(sub, islice(widths, 1, dense), widths), range(-1, -dense, -1), strict=True)]
    sparse = (-max(steps[begin : begin + stride])[1] for begin in range(0, len(steps), stride))
    return [*sparse, *range(max(1, dense), len(widths) + 1)]

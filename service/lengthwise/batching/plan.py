"""Chooses the next batch of one model from its waiting sequences: `plan`.

| word here | meaning |
|---|---|
| anchor | the sequence that the next batch must contain: the most urgent one, or the hurried one |
| hurried sequence | has the earliest deadline that can still be met, and meets it only in the next batch |
| near sequences | the `HORIZON` most urgent ones (see `pending`); only they are chosen |
| allowed seconds | the longest predicted run of the next batch, before the drift (`CostTable.drift`) |
| class, its top | a range of widths, of which a batch takes its sequences; the widest of them |
| narrow part, wide part | of a queue too short for two classes: the sequences up to a width, and the wider ones |

The hurried sequence is the anchor if no fewer deadlines are met then. What runs with the anchor depends on the kernels
(`CostTable.valid_steps_only`) and on the device:

| a row costs | the batch | by |
|---|---|---|
| its own steps | the anchor and the most urgent others, as many as are cheapest within the limits | `_arrival_batch` |
| the steps of the longest row, too | the part with the anchor, of a cheapest partition by length | `_length_batch` |
| next to nothing, on a busy device | the anchor and others of its class | `_class_batch` |

**In order of arrival**, where the queue is cut does not change the order of answers. Small batches answer sooner, large
ones save work between batches, which the cost table does not contain. By the table neither matters over a range of
rows: from where a row is about as cheap as it can be, to where the processor's caches are full. A batch has the rows in
the middle of this range, a power of two: callers are often as many, and the remainder would be a batch of its own.

**By length**: if the cost does not fall with the width, some cheapest partition is contiguous in order of width. So a
dynamic program finds one: `best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)`, as
TurboTransformers (Fang et al., PPoPP 2021) divides a queue. Here it divides only the most urgent sixth of the queue, or
third while the anchor was seldom passed over (`_may_choose_more`). Later sequences wait for their turn, so the longest
wait stays near that in order of arrival, at the price of some throughput. Of many it divides those about as wide as the
anchor: how the others are divided changes the anchor's part little, unless the cut is within sequences of one width. A
caller that has all sequences beforehand (`scoring.offline`) adds them in order of width, and loses little.

**By class**: on a device only batches of many rows are cheap. If as many sequences arrive as run, a partition of those
that wait says little, as the next arrivals fill the batches up. So the widths of the last arrivals are divided into a
few classes, and a batch is of the anchor's class. Each class runs when its first sequence is the most urgent, so none
waits much longer than in order of arrival. If one batch can take the whole queue, all of it runs together, or its
narrow part first if that answers more sequences a second. If it cannot, but too few wait for two classes, the narrow
and the wide part run in turn, if a turn of both takes less time than all of them in order of arrival (`_narrow_part`).
Otherwise all run in that order, in batches of about equal size: as many rows as are cheapest would leave some for one
batch more, and lengthen the tail.

In each case the most urgent sequence is left out by at most `MAX_LEFT_OUT` plans in a row. So a sequence is passed over
at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, islice
from operator import attrgetter, sub
from typing import Final

from lengthwise.batching.cost import NEARLY_BEST, TAIL, CostTable
from lengthwise.batching.pending import HORIZON, MAX_PRIORITY, PRIORITY_HEAD_START, PendingSequences, WaitingSequence

# Who may overtake whom is policy: the same on every processor and device. What a batch gains is in the cost table.
MAX_LEFT_OUT: Final = 4  # plans in a row that may leave out the most urgent sequence, for a hurried one
_NEAR_SHARE: Final = 6  # a sixth of the queue is chosen from by length: from more costs less, and lengthens the tail
_FEWEST_NEAR: Final = 8  # at least so many are chosen from: among fewer there is little to choose
_PASSED_SHARE: Final = 0.25  # twice as many are chosen from while at most this part of the queue passed the anchor over
_PAYS: Final = 1.5  # batches save much (a third) if a row alone costs at least so many times as much as in the best
_LONGER: Final = 1.05  # half of `TAIL`, for waits past one batch of the widest: rounded widths may take the other half
_SAME_END: Final = 0.07  # a class ends where it ended before, if that is so near to full, in full batches
_EMPTY: Final = 0.75  # the narrowest class is joined to the next if its batches would be empty to this share, or more
# A device, where one row costs nearly what all cost, is told from a processor, where further rows cost time: of the
# widest that wait, a row alone costs as much as 64 or more in a full batch there (`benchmarks.devices`), and with 400
# steps 1.9 times as much at most on a processor (the models of `benchmarks.planning`).
_MANY_FREE: Final = 6
_FULL_BATCHES: Final = 4  # where only full batches are cheap, the sequences of so many may be chosen by length
# A decision is to take 0.3 ms, under the lock of the batcher. Its time grows with the square of the number of places
# where batches may end, so on a processor:
_MOST_NEAR: Final = 176  # at most so many sequences are chosen from, or twice as many, or as many as are enough rows.
_REACH: Final = 32  # If they are more than four times this, only so many on each side of the anchor are partitioned.
_ENDS: Final = 48  # Batches may end after about so many of all,
_FEW_ENDS: Final = 24  # or after about so many of those around the anchor.
_CUTS: Final = 16  # between two parts: at most so many are compared
_MOST_LATE: Final = 64  # so many deadlines that cannot be met are skipped to find one that can


_WIDTH: Final = attrgetter("width")
_ARRIVAL_WORK: Final = attrgetter("arrival_work")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch. A single sequence that exceeds them still runs, unbatched."""

    rows: int = 64  # most sequences
    padded_steps: int = 16_384  # most rows x width
    seconds: float = float("inf")  # longest predicted run
    turn_seconds: float = float("inf")  # the same for rows past `Column.enough_rows`: they gain little, others wait
    multiple: int = 1  # widths are rounded up to a multiple of it
    by_table: bool = False  # whether a device's cost table lowers rows and steps (`buckets.lowered`)
    share: float = 1.0  # by arrival: the part of the queue that one runner takes, if that is more than enough rows

    def most_rows(self, width: int) -> int:
        """Most rows of a batch of this width, in steps; at least 1."""
        return min(self.rows, self.padded_steps // (-(-width // self.multiple) * self.multiple)) or 1

    def at_most(self, rows: int | None) -> BatchLimits:
        """These limits with at most `rows` rows; None for no further limit."""
        return self if rows is None or rows >= self.rows else replace(self, rows=rows)


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
        batch_of = _arrival_batch if cost.valid_steps_only else _length_batch
        chosen = batch_of(pending, urgent, cost, limits, now)
        if (hurried := _hurried_sequence(pending, urgent, cost, limits, now)) is not None:
            # The batch of the hurried sequence runs first, if this makes no more sequences of both batches late.
            sooner = batch_of(pending, hurried, cost, limits, now)
            if _count_in_time(sooner, chosen, cost, now) >= _count_in_time(chosen, sooner, cost, now):
                chosen = sooner
        if not cost.valid_steps_only:
            pending.work += cost.seconds_of(len(chosen), max(map(_WIDTH, chosen)))
    pending.run(chosen)
    pending.left_out = pending.left_out + 1 if urgent in pending else 0
    return chosen


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
        widths = [*map(_WIDTH, batch)]
        end += cost.predict(len(batch), max(widths), sum(widths))
        in_time += sum(end <= waiting.deadline for waiting in batch if waiting not in ran)
        ran.update(batch)
    return in_time


def _allowed_seconds(
    anchor: WaitingSequence, width: int, cost: CostTable, limits: BatchLimits, now: float, *, tail: float = 1.0
) -> float:
    """The longest predicted run of a batch of this width with the anchor, in seconds before the drift.

    The shortest of three times:

    1. `limits.seconds`, which no run may exceed.
    2. A fair turn, after which others run: `limits.turn_seconds`; but a batch with enough rows to be cheap may always
       run, and take `tail` times as long.
    3. The time to the anchor's deadline, unless even the anchor alone takes longer: it is late anyway.
    """
    column, drift = cost.column(width, limits.rows), cost.drift
    seconds_of_enough = column.seconds[min(column.enough_rows, limits.most_rows(width))]
    longest = min(limits.seconds / drift, max(limits.turn_seconds / drift, tail * seconds_of_enough))
    slack = (anchor.deadline - now) / drift
    return min(longest, slack) if slack >= cost.seconds_of(1, anchor.width) else longest


def _arrival_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The anchor and the most urgent others: as many as are cheap, within the limits, and in time.

    A batch is in time if its predicted run is within the allowed seconds, and ends before each deadline of its
    sequences, except those that not even a run of the sequence alone would meet.
    """
    seconds = _allowed_seconds(anchor, anchor.width, cost, limits, now)
    # 1. How many rows: one runner's share of the queue, but at least those that are enough, and no more than pay.
    near = list(islice(pending.near(), limits.rows))
    column = cost.column(sum([waiting.width for waiting in near]) // len(near), limits.rows)
    useful_rows = max(column.enough_rows, min(math.ceil(limits.share * len(pending)), column.balanced_rows))
    # 2. Add the most urgent ones; of each prefix, note its rows, width, valid steps and allowed seconds.
    chosen, prefixes = [anchor], [(1, anchor.width, anchor.width, seconds)]
    width, valid_steps, row_limit = anchor.width, anchor.width, min(limits.most_rows(anchor.width), useful_rows)
    for waiting in near:
        if waiting is anchor:
            continue
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
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The batch with the anchor in it, where each row costs the steps of the longest row.

    1. On a device that new sequences keep busy: a batch of one class of widths, `_class_batch`.
    2. All of the most urgent have the anchor's width: as many of them as are cheapest.
    3. Otherwise the most urgent are partitioned by length, `_part_around`. Where a small batch is cheap, they are a
       share of what waits; where only full batches are, as many sequences as several full batches take.
    """
    column, full_rows = cost.column(anchor.width, limits.rows), limits.most_rows(anchor.width)
    widest = cost.column(max(pending.alike)[0], limits.rows)  # a few steps cost next to nothing on a processor, too
    rows_nearly_free = widest.seconds[1] >= _MANY_FREE * widest.least_row_seconds
    batch_may_be_small = 2 * column.enough_rows < full_rows and not rows_nearly_free  # it is cheap before it is full
    # Case 1
    if rows_nearly_free and pending.refilled:
        return _class_batch(pending, anchor, cost, limits, now)
    seconds = _allowed_seconds(anchor, anchor.width, cost, limits, now)
    others = (waiting for waiting in pending.near() if waiting is not anchor)
    # Case 2
    if all(waiting.width == anchor.width for waiting in islice(pending.near(), 2 * full_rows)):
        rows = column.rows_of_first(min(len(pending), 2 * full_rows), full_rows, seconds)
        return [anchor, *islice(others, rows - 1)]
    # Case 3
    if batch_may_be_small:
        count = max(_FEWEST_NEAR, min(len(pending) // _NEAR_SHARE, _MOST_NEAR), column.enough_rows)
    else:
        count = full_rows * max(_FULL_BATCHES, -(-_FEWEST_NEAR // full_rows))
    near = [anchor, *islice(others, count - 1)]
    if batch_may_be_small and _may_choose_more(near, cost, limits.rows, pending.passed_over(anchor) / len(pending)):
        near += islice(others, count)
    near.sort(key=_WIDTH)  # of each width the anchor is the first, then the most urgent

    def allowed(width: int) -> float:
        # Where rows are nearly free, a full batch of the widest may take longer than a turn.
        return _allowed_seconds(anchor, width, cost, limits, now) if rows_nearly_free else seconds

    return _part_around(
        anchor,
        near,
        cost,
        limits,
        allowed,
        reach=max(_REACH, column.enough_rows) if batch_may_be_small else len(near),
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
    widths = [*map(_WIDTH, near)]
    index, next_width = bisect_left(widths, anchor.width), bisect_right(widths, anchor.width)
    begin, end, ends = 0, len(near), _ENDS
    if len(near) > 4 * reach:
        if next_width >= index + reach:
            column, row_limit = cost.column(anchor.width, limits.rows), limits.most_rows(anchor.width)
            return near[index : index + column.rows_of_first(next_width - index, row_limit, allowed(anchor.width))]
        begin, end, ends = max(0, index - reach), min(index + reach, len(near)), _FEW_ENDS
    # Wider ones that alone take too long are left out.
    end = bisect_left(widths, True, next_width, end, key=lambda width: cost.seconds_of(1, width) > allowed(width))
    low, high = (begin + cut for cut in _batch_around(index - begin, widths[begin:end], cost, limits, allowed, ends))
    # Further ones of the widest run where these cost nothing, as the part may be what was left by full ones. If fewer
    # rows than it has are in time, so many run, the anchor among them.
    width, column = widths[high - 1], cost.column(widths[high - 1], limits.rows)
    rows = column.rows_within(limits.most_rows(width), min(column.seconds[high - low], allowed(width)))
    low = max(low, index + 1 - rows)
    high = min(bisect_right(widths, width), low + rows)
    # If the part begins within a width, the most urgent of that width run.
    first, last = bisect_left(widths, widths[low]), min(high, bisect_right(widths, widths[low]))
    return near[first : first + last - low] + near[last:high]


def _class_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The anchor and the most urgent sequences of one class of widths; rows that are left go to narrower sequences.

    The class is the anchor's. It may have too few sequences for a full batch. Then a batch of these few, and batches
    of them with the next wider class, with the next two, and so on, are compared, until there are enough: the one that
    answers most sequences a second is taken. Where one batch can take all that wait: `_queue_batch`; where too few wait
    for two classes: `_narrow_part`.
    """

    def allowed(width: int) -> float:
        return _allowed_seconds(anchor, width, cost, limits, now, tail=TAIL)

    # 1. How many sequences of each width wait, and whether one batch can take them all.
    counts = [(width, len(alike)) for (width, _), alike in pending.alike.items()]
    *_, widest = widths = sorted({width for width, _ in counts})
    waiting, column = len(pending), cost.column(widest, limits.rows)
    if waiting <= column.full_rows(limits.most_rows(widest), allowed(widest), waiting):
        return _queue_batch(pending, anchor, cost, limits)

    # 2. Leave out the widths of which a single row already takes longer than is allowed. The anchor always runs.
    def takes_too_long(width: int) -> bool:
        return width > anchor.width and cost.seconds_of(1, width) > allowed(width)

    if takes_too_long(widest):
        del widths[bisect_left(widths, True, key=takes_too_long) :]
    # 3. The batch that answers most sequences a second: of the anchor's class, or of that and the next wider ones.
    tops = pending.classes(lambda: _class_tops(pending, cost, limits, limits.seconds / cost.drift))
    if few_wait := len(tops) == 1:
        tops.insert(0, _narrow_part(pending, cost, limits, allowed))
    tops[-1] = max(tops[-1], widths[-1])
    anchor_class = bisect_left(tops, anchor.width)
    next_narrower = tops[anchor_class - 1] if anchor_class else 0
    shapes: list[tuple[float, int, int]] = []  # sequences a second, rows, width
    for top in tops[anchor_class:]:
        width = widths[bisect_right(widths, top) - 1]
        column, row_limit, seconds = cost.column(width, limits.rows), limits.most_rows(width), allowed(width)
        full_rows = column.full_rows(row_limit, seconds, waiting)
        rows = column.cheapest_rows[min(full_rows, sum([count for one, count in counts if one <= width]))]
        shapes.append((rows / column.seconds[rows], rows, width))
        if few_wait or rows == column.cheapest_rows[full_rows] or top >= widths[-1]:
            break  # enough sequences for a full batch, or no wider ones wait
    _, rows, width = max(shapes)
    if few_wait:  # the whole part, if need be in several batches; and further rows where they cost nothing
        _, rows = column.even_batches(
            row_limit, seconds, sum([count for one, count in counts if next_narrower < one <= width])
        )
        rows = column.rows_within(row_limit, min(seconds, column.seconds[rows]))
    # 4. Its most urgent sequences; then narrower ones for the rows that are left.
    chosen = pending.most_urgent_of(next_narrower, width, rows)
    if len(chosen) < rows:
        chosen += pending.most_urgent_of(0, next_narrower, rows)
    return [anchor, *(sequence for sequence in chosen if sequence is not anchor)][:rows]


def _narrow_part(
    pending: PendingSequences, cost: CostTable, limits: BatchLimits, allowed: Callable[[int], float]
) -> int:
    """Whether to cut the queue into a narrow and a wide part that run in turn, and where.

    Returns the largest width of the narrow part; 0 if no cut is better than order of arrival.

    1. A *turn* runs first one part, then the other, each with all of its sequences. While a part runs, as many
       sequences arrive as are answered. Let `p` be the share of arrivals in the wide part and `q` that in the narrow
       one. Then a turn answers `waiting / (1 - p * q)` sequences: more than wait, as those that arrived during the
       first part for the second one run, too.
    2. So where a turn takes no longer than all that wait in order of arrival, more are answered and none waits longer.
       The seconds of turns at some cuts are compared with those of order of arrival, by the cost table.
    3. The cut of the last decision, which `pending` keeps, stays while its turn is nearly the shortest. If cuts moved,
       a sequence beside them could miss the turns of both parts.

    `allowed(width)` are the seconds that a batch of a width may take.
    """

    def seconds_of(width: int, count: float) -> float:
        """The seconds in which so many sequences run, at this width."""
        column = cost.column(width, limits.rows)
        return column.even_batches(limits.most_rows(width), allowed(width), math.ceil(count))[0]

    def turn_seconds(wide: float, width: int) -> float:
        """The seconds of both parts, if a share `wide` of all is wider than this width."""
        count = len(pending) / (1 - wide * (1 - wide))
        more = 2 * math.sqrt(count * wide * (1 - wide))  # a part may have so many more, of 40 turns in all but one
        return seconds_of(top, count * wide + more) + seconds_of(width, count * (1 - wide) + more)

    top, *narrower = widths = sorted(pending.widths, reverse=True)
    shares = accumulate(pending.widths[width] / len(pending.recent) for width in widths)
    stride = -(-len(widths) // _CUTS)
    turns = {0: seconds_of(top, len(pending))}
    for index, (wide, width) in enumerate(zip(shares, narrower, strict=False)):
        if index % stride == 0 or width == pending.narrow_part:
            turns[width] = turn_seconds(wide, width)
    if not pending.narrow_part or turns.get(pending.narrow_part, math.inf) > NEARLY_BEST * min(turns.values()):
        pending.narrow_part = min(turns, key=turns.__getitem__)
    return pending.narrow_part


def _class_tops(pending: PendingSequences, cost: CostTable, limits: BatchLimits, seconds: float) -> list[int]:
    """The widest of each class of widths, ascending; a full batch of each takes at most `seconds` before the drift.

    In order of arrival, a share of what is computed is padding. So many classes are there that full batches of all of
    them have this share of the sequences that wait: with more classes there is less padding, and each waits longer for
    its turn. Classes follow from the last arrivals, not from what waits: there, the classes that ran last are missing,
    and if classes changed with them, sequences at their ends would wait too long.

    A class ends where it is nearest to full: a width begins the next class if its arrivals would overfill this one by
    more rows than are still free in it. With them, a few long sequences would run with very many short ones. One class
    never becomes two so: where so few wait, a division into two parts is better (`_narrow_part`).

    If an end moved to and fro, sequences beside it could miss the turns of both classes. So all of them stay while
    little changes (`PendingSequences.classes`), and then each one with which its class is still nearly full.
    """
    # 1. The share of padding, if every batch were as wide as the widest of the last arrivals.
    widths, arrivals, waiting = sorted(pending.widths, reverse=True), len(pending.recent), len(pending)
    counts = [pending.widths[width] for width in widths]
    columns = [cost.column(width, limits.rows) for width in widths]
    valid_seconds = sum([column.least_row_seconds * count for column, count in zip(columns, counts, strict=True)])
    padding_share = 1 - valid_seconds / (arrivals * columns[0].least_row_seconds)
    # `filled_rows[n]`: how many rows of full batches the `n` widest fill, each by its share of the arrivals
    rows_of_arrival = padding_share * waiting / arrivals
    filled_rows = [0.0, *accumulate([rows_of_arrival * count for count in counts])]

    # 2. From the widest down: a class ends where its arrivals have filled the rows of a full batch.
    def divided(*, nearest: bool) -> Iterator[int]:
        """The tops if classes end with the width that fills them, or if `nearest`, before one that overfills them."""
        begin, end = 0, len(widths)  # of a class
        while begin < end:
            full_rows = columns[begin].full_rows(limits.most_rows(widths[begin]), seconds, waiting)
            full = filled_rows[begin] + full_rows
            if begin and full - filled_rows[end] >= _EMPTY * full_rows:
                return  # the narrowest join the next wider class
            yield widths[begin]
            begin, first = bisect_left(filled_rows, full, begin + 1, end), begin
            if nearest:
                if begin > first + 1 and filled_rows[begin] - full >= full - filled_rows[begin - 1]:
                    begin -= 1
                if begin < end and widths[begin] not in pending.class_tops:
                    low, high = (
                        bisect_left(filled_rows, full + share * full_rows, first + 1, end)
                        for share in (-_SAME_END, _SAME_END)
                    )
                    begin = next((same for same in range(low, high) if widths[same] in pending.class_tops), begin)

    # One class stays one: only where there are two already is an end moved to the nearest.
    return [*divided(nearest=len([*islice(divided(nearest=False), 2)]) > 1)][::-1]


def _queue_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits
) -> list[WaitingSequence]:
    """The whole queue, which one batch can take, or its narrow part, with the anchor in it, where that is better.

    Each cut between two widths is compared: the narrow part runs, then a batch of all that wait then. The best cut
    makes the sequences as little late as can be, in seconds of all together, and of these cuts it is the one that
    answers most sequences a second. A sequence is late by as much as the runs since it came take longer than `_LONGER`
    times a batch of the widest that came lately.
    """
    now, widest = pending.work, cost.column(max(pending.widths), limits.rows)
    near = sorted(pending.near(), key=_WIDTH)
    count = len(near)
    longest_wait = _LONGER * widest.seconds[count]
    seconds_of_all = cost.column(near[-1].width, limits.rows).seconds[count]
    # `earliest[n]`: when the first of `near[n - 1:]` came, on the clock of `pending.work`
    earliest = [*accumulate(map(_ARRIVAL_WORK, reversed(near)), min), math.inf][::-1]
    passed_over = sum(waiting.arrival_work < now for waiting in near)  # by at least one batch
    cuts: list[tuple[float, float, int]] = []  # minus the lateness, sequences a second; rows of the narrow part
    rows_up_to = {waiting.width: rows for rows, waiting in enumerate(near, 1) if waiting.width >= anchor.width}
    for width, rows in rows_up_to.items():
        run_seconds = cost.column(width, limits.rows).seconds[rows]
        # A part is as late as the first of it, all together.
        end = now + run_seconds
        lateness = (
            passed_over * max(0.0, end - anchor.arrival_work - longest_wait)  # of the narrow part, and of the rest
            + (count - rows) * max(0.0, end + seconds_of_all - earliest[rows] - longest_wait)
        )
        answered, seconds = (rows, run_seconds) if rows == count else (rows + count, run_seconds + seconds_of_all)
        cuts.append((-lateness, answered / seconds, rows))
    *_, rows = max(cuts)
    return [anchor, *(waiting for waiting in near[:rows] if waiting is not anchor)]


def _may_choose_more(near: Sequence[WaitingSequence], cost: CostTable, rows: int, passed_share: float) -> bool:
    """Whether to choose by length from more sequences than `near`.

    `passed_share`: how many sequences more than in order of arrival ran before the anchor, over those that wait.
    It may be up to `_PASSED_SHARE` where batches save much, and must be 0 elsewhere. Below 0, the anchor is early.
    """
    widest = cost.column(max(map(_WIDTH, near)), rows)
    return (
        passed_share <= _PASSED_SHARE
        if widest.seconds[1] >= _PAYS * widest.least_row_seconds  # batches save much
        else passed_share == 0
    )


def _batch_around(
    index: int, widths: Sequence[int], cost: CostTable, limits: BatchLimits, allowed: Callable[[int], float], ends: int
) -> tuple[int, int]:
    """Begin and end (exclusive) of the batch with `widths[index]` in it, in a cheapest partition of ascending widths.

    The dynamic program of the module. Where there are more widths than about `ends`, only one position of every few may
    be an end: that before the largest step in width. `allowed(width)` is the longest predicted run of a batch of this
    width, in seconds.
    """

    # 1. The positions where a batch may end.
    @cache
    def most_rows(width: int) -> int:
        return cost.column(width, limits.rows).rows_within(limits.most_rows(width), allowed(width))

    stride = max(1, round(len(widths) / ends))
    # From here on, batches may have too few rows to reach over two strides: every position may be an end.
    dense = bisect_left(widths, True, key=lambda width: most_rows(width) < 2 * stride - 1)
    # The step in width before each position, and minus the position: of equal steps the first is the largest.
    steps = [*zip(map(sub, islice(widths, 1, dense), widths), range(-1, -dense, -1), strict=True)]
    sparse = (-max(steps[begin : begin + stride])[1] for begin in range(0, len(steps), stride))
    candidates = (*sparse, *range(max(1, dense), len(widths) + 1))
    # 2. The prefix up to each end: the seconds of its cheapest partition, and after which prefix its last batch begins.
    prefixes, previous, first = [(0.0, 0)], [0], 0
    for end, width in [(end, widths[end - 1]) for end in candidates]:
        times, earliest_begin = cost.column(width, limits.rows).seconds, min(prefixes[-1][1], end - most_rows(width))
        while prefixes[first][1] < earliest_begin:
            first += 1
        seconds_from = [before + times[end - begin] for before, begin in prefixes[first:]]
        least = min(seconds_from)
        previous.append(first + seconds_from.index(least))
        prefixes.append((least, end))
    # 3. Back from the last batch to the one with the index.
    last = len(prefixes) - 1
    while prefixes[previous[last]][1] > index:
        last = previous[last]
    return prefixes[previous[last]][1], prefixes[last][1]

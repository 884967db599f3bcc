"""Which of the waiting sequences run together now: the next batch, a pure function.

The anchor is the most urgent sequence. Or it is the one with the earliest deadline that can still be met, where that is
met only in the next batch, and where no more of the two batches are late then. What runs with the anchor depends on the
kernels (`CostTable.valid_steps_only`):

| a row costs | the batch |
|---|---|
| its own steps | the anchor and the most urgent others: as many as are cheapest here, within the limits |
| the steps of the longest row, too | the one with the anchor in it, of a cheapest partition by length |

In order of arrival, what waits is served in the same order however it is cut. Fewer rows a batch answer sooner, more
save work between batches, which no table has. The table that was measured at load says where either is free on this
processor: from where a row is about as cheap as it can be to where the caches are full. A batch has the rows in the
middle, a power of two: callers are often as many, and what is left over would be a batch of its own.

For a cost that does not fall with the width, some cheapest partition is contiguous in width order, so a dynamic program
finds one: `best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)`, as TurboTransformers (Fang
et al., PPoPP 2021) divides a queue. Here it divides the most urgent sixth of it, or third, while few have passed over
the anchor (none, where batches save little): what came last waits for its turn, so the longest wait stays near that of
batches in order of arrival, for some of the throughput. Who has all sequences beforehand (`scoring.offline`) adds them
in order of their widths, and loses little.

Where only many rows are cheap, as on a device, and as many sequences arrive as run, a partition of those that wait
says little: the next ones fill batches up. There the widths that came lately are divided into a few classes, and a
batch is of the anchor's class. Each class runs when its first sequence is the most urgent, so none waits for much
longer than in order of arrival. What one batch can take runs together, or its narrow ones before if that answers more.

Either way the most urgent sequence is left out at most `MAX_LEFT_OUT` times in a row, so one is passed over at most
`bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from operator import attrgetter, sub
from typing import Final

from lengthwise.batching.cost import NEARLY_BEST, Column, CostTable
from lengthwise.batching.pending import HORIZON, MAX_PRIORITY, PRIORITY_HEAD_START, PendingSequences, WaitingSequence

# Who may overtake whom is policy: the same on every processor and device. What a batch gains is in the cost table.
MAX_LEFT_OUT: Final = 4  # plans in a row without the most urgent sequence, for one that would be late
_NEAR_SHARE: Final = 6  # one of so many that wait may be chosen by length: more cost less, with a longer tail
_FEWEST_NEAR: Final = 8  # of fewer there is little to choose
_PASSED_SHARE: Final = 0.25  # twice as many may be chosen until the anchor was passed over by so much of the queue,
_PAYS: Final = 1.5  # where batches save a third at least: a row alone costs so many times as much as in the best batch
_TAIL: Final = 1.1  # times that of order of arrival: more rows than are enough may make a batch so much longer
_LONGER: Final = 1.05  # the same for who waits past one batch of the widest: rounded widths may take the other half
_EMPTY: Final = 0.75  # a class whose batches would be empty to such a share, or more, is part of the next wider one
# A device, where one row costs nearly what all cost, is told from a processor, where further rows cost time: of the
# widest that wait, a row alone costs as much as 64 or more in a full batch there (`benchmarks.devices`), and with 400
# steps 1.9 times as much at most on a processor (the models of `benchmarks.planning`).
_MANY_FREE: Final = 6
_FULL_BATCHES: Final = 4  # where only full batches are cheap, the sequences of so many may be chosen by length
# A decision is to take 0.3 ms, under the lock of the batcher. It grows with the square of where batches may end, so
_MOST_NEAR: Final = 64  # on a processor at most so many are chosen from, or twice as many,
_ENDS: Final = 48  # and batches may end at about so many of them.
_MOST_LATE: Final = 64  # So many deadlines that cannot be met are skipped to find one that can


_WIDTH: Final = attrgetter("width")
_ARRIVAL_WORK: Final = attrgetter("arrival_work")


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
    """Most batches that run sequences which arrived later, while an earlier one waits.

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
        chosen = _batch_with_anchor(pending, urgent, cost, limits, now)
        if (hurried := _hurried(pending, urgent, cost, limits, now)) is not None:
            sooner = _batch_with_anchor(pending, hurried, cost, limits, now)
            if _count_in_time(sooner, chosen, cost, now) >= _count_in_time(chosen, sooner, cost, now):
                chosen = sooner
        if not cost.valid_steps_only:
            pending.work += cost.seconds_of(len(chosen), max(map(_WIDTH, chosen)))
    pending.run(chosen)
    pending.left_out = pending.left_out + 1 if urgent.waits else 0
    return chosen


def _hurried(
    pending: PendingSequences, urgent: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> WaitingSequence | None:
    """The sequence with the earliest deadline that can be met, if it is met only in the next batch; or None."""
    first = islice(pending.by_deadline(), _MOST_LATE)
    in_time = (each for each in first if cost.seconds_of(1, each.width) * cost.drift <= each.deadline - now)
    hurried = next(in_time, None)
    if hurried is None or hurried is urgent or pending.left_out >= MAX_LEFT_OUT or not pending.is_near(hurried):
        return None
    if cost.valid_steps_only:  # the others may be longer than the most urgent one
        most = limits.padded_steps // limits.rows or 1
        batch = min(cost.seconds_of(limits.rows, most), limits.turn_seconds / cost.drift)
    else:
        widest = max(pending.alike)[0]  # others may be wider than the most urgent one
        batch = cost.seconds_of(limits.most_rows(widest), widest)
    alone, slack = cost.seconds_of(1, hurried.width) * cost.drift, hurried.deadline - now
    return hurried if slack < alone + min(batch * cost.drift, limits.seconds) else None


def _count_in_time(
    first: Sequence[WaitingSequence], second: Sequence[WaitingSequence], cost: CostTable, now: float
) -> int:
    """How many sequences meet their deadlines if `first` runs before `second`; a sequence in both batches runs once."""
    in_time, ran, end = 0, set[WaitingSequence](), now
    for batch in (first, second):
        widths = [*map(_WIDTH, batch)]
        end += cost.predict(len(batch), max(widths), sum(widths))
        in_time += sum(end <= each.deadline for each in batch if each not in ran)
        ran.update(batch)
    return in_time


def _batch_with_anchor(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The batch with the anchor in it, the way that the kernels ask for."""
    seconds = _allowed_seconds(anchor, cost, limits, now)
    if cost.valid_steps_only:
        return _by_arrival(pending, anchor, cost, limits, seconds, now)
    return _by_length(pending, anchor, cost, limits, seconds)


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
    near = list(islice(pending.near(), limits.rows))
    column = cost.column(sum([each.width for each in near]) // len(near), limits.rows)
    enough = max(column.enough_rows, min(math.ceil(limits.share * len(pending)), column.balanced_rows))
    width, valid, most = anchor.width, anchor.width, min(limits.most_rows(anchor.width), enough)
    for waiting in near:
        if waiting is anchor:
            continue
        if waiting.width > width:
            width, most = waiting.width, min(limits.most_rows(waiting.width), enough)
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
    """The batch with the anchor in it, where each row costs the steps of the longest row.

    1. On a device that new sequences keep busy: a batch of one class of widths, `_class_batch`.
    2. All of the most urgent have the anchor's width: as many of them as are cheapest.
    3. Otherwise the most urgent are partitioned by length, as cheaply as can be, and the batch is the part with the
       anchor. Where a small batch is cheap, they are a share of what waits; where only full batches are, as many
       sequences as several full batches take.
    """
    column, full = cost.column(anchor.width, limits.rows), limits.most_rows(anchor.width)
    widest = cost.column(max(pending.alike)[0], limits.rows)  # a few steps cost next to nothing on a processor, too
    rows_nearly_free = widest.seconds[1] >= _MANY_FREE * widest.least_row_seconds
    batch_may_be_small = 2 * column.enough_rows < full and not rows_nearly_free  # it is cheap before it is full
    if rows_nearly_free and pending.refilled:
        return _class_batch(pending, anchor, cost, limits, seconds)
    if all(each.width == anchor.width for each in islice(pending.near(), 2 * full)):
        rows = _rows_of_one_width(min(len(pending), 2 * full), rows_within(column.seconds, full, seconds), column)
        return [anchor, *islice((each for each in pending.near() if each is not anchor), rows - 1)]
    if batch_may_be_small:
        count = max(_FEWEST_NEAR, min(len(pending) // _NEAR_SHARE, _MOST_NEAR), column.enough_rows)
    else:
        count = full * max(_FULL_BATCHES, -(-_FEWEST_NEAR // full))
    near = list(islice(pending.near(), count))
    if batch_may_be_small and _may_choose_more(near, cost, limits.rows, pending.passed_over(anchor) / len(pending)):
        near = list(islice(pending.near(), 2 * count))
    if anchor not in near:
        near.append(anchor)
    widths = sorted([each.width for each in near])
    low, high = _batch_around(bisect_left(widths, anchor.width), widths, cost, limits, seconds)
    still_to_take = Counter(widths[low:high])
    still_to_take[anchor.width] -= 1
    chosen = [anchor]
    for each in near:  # of each width the most urgent
        if still_to_take[each.width] > 0 and each is not anchor:
            still_to_take[each.width] -= 1
            chosen.append(each)
    return chosen


def _class_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, seconds: float
) -> list[WaitingSequence]:
    """The anchor and the most urgent sequences of one class of widths; rows that are left go to narrower sequences.

    The class is the anchor's. Where that has too few sequences for a full batch, the next wider ones are taken with it
    if that answers more sequences a second. Where one batch can take all that wait: `_queue_batch`.
    """
    of_width: Counter[int] = Counter()
    for (width, _), alike in pending.alike.items():
        of_width[width] += len(alike)
    widths, waiting = sorted(of_width), len(pending)
    if waiting <= _full_rows(cost.column(widths[-1], limits.rows), limits.most_rows(widths[-1]), seconds, waiting):
        return _queue_batch(pending, anchor, cost, limits)
    seconds = max(seconds, cost.seconds_of(1, anchor.width))
    del widths[bisect_right(widths, seconds, key=lambda width: cost.seconds_of(1, width)) :]  # these make it late
    counts = [*accumulate(of_width[width] for width in widths)]
    tops = _class_tops(pending, cost, limits, limits.seconds / cost.drift)
    tops[-1] = max(tops[-1], widths[-1])
    rows_of_class = _full_rows if len(tops) > 1 else _rows_in_order
    first = bisect_left(tops, anchor.width)
    shapes: list[tuple[float, int, int]] = []  # of classes: sequences a second, rows, width
    for top in tops[first:]:
        at = bisect_right(widths, top) - 1
        column = cost.column(widths[at], limits.rows)
        full = rows_of_class(column, limits.most_rows(widths[at]), seconds, waiting)
        rows = column.cheapest_rows[min(full, counts[at])]
        shapes.append((rows / column.seconds[rows], rows, widths[at]))
        if rows == column.cheapest_rows[full] or top >= widths[-1]:
            break
    _, rows, width = max(shapes)
    below = tops[first - 1] if first else 0
    chosen = pending.most_urgent_of(below, width, rows)
    if len(chosen) < rows:
        chosen += pending.most_urgent_of(0, below, rows)
    if anchor in chosen:
        chosen.remove(anchor)
    return [anchor, *chosen][:rows]


def _full_rows(column: Column, most: int, seconds: float, waiting: int) -> int:
    """The rows of a full batch of a class: those that are enough, and more where those take little longer.

    While a class fills a batch of `rows`, half of them wait on average, beside what waits of the other classes. So all
    wait for about `waiting + rows / 2` sequences, and half as many rows may answer sooner where few wait.
    """
    times, enough = column.seconds, column.enough_rows
    rows = min(enough, -(-enough // 2), key=lambda rows: times[rows] / rows * (waiting + rows / 2))
    return rows_within(times, most, min(seconds, _TAIL * times[rows]))


def _rows_in_order(column: Column, most: int, seconds: float, waiting: int) -> int:
    """The rows of a full batch of the only class: of those that cost next to the least, which run all soonest."""
    times, least, most = column.seconds, column.least_row_seconds, rows_within(column.seconds, most, seconds)
    cheap = [rows for rows in range(column.enough_rows, most + 1) if times[rows] <= NEARLY_BEST * least * rows]
    return min(cheap, key=lambda rows: (-(-waiting // rows) * times[rows], -rows), default=column.cheapest_rows[most])


def _class_tops(pending: PendingSequences, cost: CostTable, limits: BatchLimits, seconds: float) -> list[int]:
    """The widest of each class of widths, ascending.

    In order of arrival, a share of what is computed is padding. So many classes are there that full batches of each are
    that share of what waits: the more there are, the less is padding, and the longer each waits for its turn. They
    follow from what came lately, not from what waits: of that, the classes that ran last are missing, and classes that
    move leave sequences at their ends behind.
    """
    of_width = sorted(pending.widths.items(), reverse=True)
    columns = [cost.column(width, limits.rows) for width, _ in of_width]
    valid = sum(column.least_row_seconds * count for column, (_, count) in zip(columns, of_width, strict=True))
    padding = 1 - valid / (len(pending.recent) * columns[0].least_row_seconds)
    waiting = padding * len(pending) / len(pending.recent)  # for each that arrived
    tops, full, free_rows = [], 1, 0.0  # of the class
    for column, (width, arrived) in zip(columns, of_width, strict=True):
        if free_rows <= 0:
            tops.append(width)
            free_rows = full = _full_rows(column, limits.most_rows(width), seconds, len(pending))
        free_rows -= waiting * arrived
    if free_rows >= _EMPTY * full and len(tops) > 1:
        del tops[-1]
    return tops[::-1]


def _queue_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits
) -> list[WaitingSequence]:
    """The whole queue, which one batch can take; or its narrow part first, where the two batches answer more a second.

    As few as can be wait for longer than `_LONGER` times a batch of the widest that came lately.
    """
    now, (times, cheapest, *_) = pending.work, cost.column(max(pending.widths), limits.rows)
    count = cheapest[len(pending)]
    longest = _LONGER * times[count]
    others = islice((each for each in pending.near() if each is not anchor), count - 1)
    near = sorted([anchor, *others], key=_WIDTH)
    seconds_of_all = cost.column(near[-1].width, limits.rows).seconds[count]
    # Of all but the narrowest 0, 1, 2, ...: the first that came
    earliest = [*accumulate(map(_ARRIVAL_WORK, reversed(near)), min), math.inf][::-1]
    again = sum(each.arrival_work < now for each in near)  # these waited for a batch before
    shapes: list[tuple[int, float, int]] = []  # who is late, sequences a second; rows
    for width, rows in {each.width: rows for rows, each in enumerate(near, 1)}.items():
        if width >= anchor.width:
            run_seconds = cost.column(width, limits.rows).seconds[rows]
            late = again * (now + run_seconds - anchor.arrival_work > longest)
            late += (count - rows) * (now + run_seconds + seconds_of_all - earliest[rows] > longest)
            answered, seconds = (rows, run_seconds) if rows == count else (rows + count, run_seconds + seconds_of_all)
            shapes.append((-late, answered / seconds, rows))
    rows = max(shapes)[-1]
    return [anchor, *(each for each in near[:rows] if each is not anchor)]


def _may_choose_more(near: Sequence[WaitingSequence], cost: CostTable, rows: int, passed: float) -> bool:
    """Whether to choose from more, where the anchor was passed over by `passed` of the queue."""
    widest = cost.column(max(each.width for each in near), rows)
    saves_much = widest.seconds[1] >= _PAYS * widest.least_row_seconds
    return passed <= _PASSED_SHARE if saves_much else passed == 0


def _rows_of_one_width(count: int, most: int, column: Column) -> int:
    """How many of `count` sequences of one width run first, at most `most`."""
    rows, times = column.cheapest_rows[most], column.seconds
    if count >= 2 * rows:
        return rows
    return min(range(min(count, most), (count - 1) // 2, -1), key=lambda rows: times[rows] + times[count - rows])


def _batch_around(
    index: int, widths: Sequence[int], cost: CostTable, limits: BatchLimits, seconds: float
) -> tuple[int, int]:
    """Where the batch with `widths[index]` in it begins and ends, in a cheapest partition of ascending widths.

    Of many, a batch ends at one of every few: before the largest step in width.
    """
    columns = {width: (cost.column(width, limits.rows).seconds, limits.most_rows(width)) for width in {*widths}}
    few = max(1, round(len(widths) / _ENDS))
    # Of these on, a batch has not as many rows as may be between two ends.
    short = bisect_left(widths, True, key=lambda width: rows_within(*columns[width], seconds) < 2 * few - 1)
    wider = [0, *map(sub, islice(widths, 1, None), widths)].__getitem__  # than the one before, in steps
    parts = (range(end, min(end + few, short)) for end in range(1, short, few))
    # Of every prefix: its end, the seconds of its cheapest partition, and where the last batch of that begins.
    ends, best, begins, first = [0], [0.0], [0], 0
    for end in (*(max(part, key=wider) for part in parts), *range(max(1, short), len(widths) + 1)):
        times, limit = columns[widths[end - 1]]
        least = min(ends[-1], end - rows_within(times, limit, seconds))
        while ends[first] < least:
            first += 1
        seconds_of = [before + times[end - begin] for before, begin in zip(best[first:], ends[first:], strict=True)]
        best.append(min(seconds_of))
        begins.append(ends[first + seconds_of.index(best[-1])])
        ends.append(end)
    last = len(ends) - 1
    while begins[last] > index:
        last = ends.index(begins[last])
    return begins[last], ends[last]


def rows_within(times: list[float], most: int, seconds: float) -> int:
    """The most rows, at most `most`, whose predicted `times[rows]` are within `seconds`; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)

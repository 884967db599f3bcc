"""The next batch by class of widths, where a row costs next to nothing on a busy device: `class_batch`.

| word here | meaning |
|---|---|
| class, its top | a range of widths, of which a batch takes its sequences; the widest of them |
| narrow part, wide part | of a queue too short for two classes: the sequences up to a width, and the wider ones |

On a device only batches of many rows are cheap. If as many sequences arrive as run, a partition of those that wait says
little, as the next arrivals fill the batches up. So the widths of the last arrivals are divided into a few classes, and
a batch is of the anchor's class. Each class runs when its first sequence is the most urgent, so none waits much longer
than in order of arrival.

| of the queue | runs | by |
|---|---|---|
| one batch can take all of it | all, or its narrow part first if that answers more a second | `_queue_batch` |
| too few wait for two classes | the narrow and the wide part in turn, if that is faster | `_narrow_part` |
| otherwise | the anchor's class | `_class_tops` |

Where no cut is faster, all run in order of arrival, in batches of about equal size: as many rows as are cheapest would
leave some for one batch more, and lengthen the tail.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from operator import attrgetter
from typing import Final

from lengthwise.batching.cost import NEARLY_BEST, TAIL, CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import WIDTH, PendingSequences, WaitingSequence

# Who may overtake whom is policy, as in `plan`: the same on every device.
_LONGER: Final = 1.05  # half of `TAIL`, for waits past one batch of the widest: rounded widths may take the other half
_SAME_END: Final = 0.07  # a class ends where it ended before, if that is so near to full, in full batches
_EMPTY: Final = 0.75  # the narrowest class is joined to the next if its batches would be empty to this share, or more
_CUTS: Final = 16  # between two parts: at most so many are compared
_ARRIVAL_WORK: Final = attrgetter("arrival_work")


def class_batch(
    pending: PendingSequences, anchor: WaitingSequence, cost: CostTable, limits: BatchLimits, now: float
) -> list[WaitingSequence]:
    """The anchor and the most urgent sequences of one class of widths; rows that are left go to narrower sequences.

    The class is the anchor's. It may have too few sequences for a full batch. Then a batch of these few, and batches
    of them with the next wider class, with the next two, and so on, are compared, until there are enough: the one that
    answers most sequences a second is taken. Where one batch can take all that wait: `_queue_batch`; where too few wait
    for two classes: `_narrow_part`.
    """

    def allowed(width: int) -> float:
        return limits.allowed_seconds(anchor, width, cost, now, tail=TAIL)

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
    near = sorted(pending.near(), key=WIDTH)
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

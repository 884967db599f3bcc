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
_NEIGHBOURS: Final = 2
"""How many good batches on either side of the urgent sequence's width are partitioned with it."""
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
        pool.remove(urgent)
        return [urgent]
    anchor = _anchor(pool, urgent, cost, limits, now)
    chosen = _company(pool, anchor, cost, limits, seconds=_allowed_seconds(anchor, cost, limits, now))
    pool.left_out = 0 if urgent in chosen else pool.left_out + 1
    for waiting in chosen:
        pool.remove(waiting)
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


def _company(pool: Pool, anchor: Waiting, cost: Cost, limits: BatchLimits, *, seconds: float) -> list[Waiting]:
    """The anchor's batch of a cheapest partition of the widths around it."""
    same = pool.group(anchor.width)
    column = cost.column(anchor.width, limits.rows)
    rows = column.cheapest[_rows_within(column.seconds, limits.most_rows(anchor.width), seconds)]
    if len(same) >= 2 * rows:  # a full batch without padding, and another may follow: nothing is cheaper
        return _first_with(same, rows, anchor)
    chosen: list[Waiting] = []
    widths = pool.widths_around(anchor.width, _NEIGHBOURS * min(rows, column.enough))
    for width, count in _block(_parts(pool, widths, cost, limits, seconds), anchor.width).items():
        chosen += _first_with(same, count, anchor) if width == anchor.width else _first(pool.group(width), count)
    return chosen


_Part = tuple[int, int, list[float], int, float]
"""Sequences of one width that stay together: the width, how many, the seconds of 0, 1, ... rows of that width, the most
rows that a batch of it may have, and the seconds that each of them takes at least, in whatever batch."""


def _parts(pool: Pool, widths: list[int], cost: Cost, limits: BatchLimits, seconds: float) -> list[_Part]:
    """What waits of some ascending widths, in parts that may run in different batches.

    A width that fills batches of its own needs no company for them: only what is left is shared out.
    """
    parts: list[_Part] = []
    finest = 1 + len(pool) // 24
    for width in widths:
        times, cheapest, _ = cost.column(width, limits.rows)
        most = _rows_within(times, limits.most_rows(width), seconds)
        rows = cheapest[most]
        least = times[rows] / rows
        count = len(pool.group(width))
        if count >= 2 * rows:
            count = rows + count % rows
        size = min(finest, -(-rows // _PARTS))
        # What is past a good batch stands apart, so that the parts of a good batch add up to one.
        for left in (count - rows, rows) if count > rows else (count,):
            while left > size:
                parts.append((width, size, times, most, least))
                left -= size
            parts.append((width, left, times, most, least))
    return parts


def _block(parts: list[_Part], width: int) -> dict[int, int]:
    """A batch with sequences of a width in it, of a cheapest partition: how many of each width."""
    before = [0]  # rows of all narrower parts
    floor = [0.0]  # what these take at least
    best = [0.0]  # what they take in the cheapest partition
    start = [0]  # where the last batch of that partition starts
    for i, (_, count, seconds, limit, least) in enumerate(parts):
        total = before[i] + count
        cheapest, cut = best[i] + seconds[count], i
        for j in range(i - 1, -1, -1):
            rows = total - before[j]
            if rows > limit:
                break
            taken = seconds[rows]
            if best[j] + taken < cheapest:
                cheapest, cut = best[j] + taken, j
            elif floor[j] + rows * least >= cheapest:  # and for every smaller j: `least` grows with the width
                break
        before.append(total)
        floor.append(floor[i] + count * least)
        best.append(cheapest)
        start.append(cut)
    place = next(i for i, part in enumerate(parts) if part[0] == width)
    high = len(parts)
    while start[high] > place:
        high = start[high]
    batch: dict[int, int] = {}
    for part in parts[start[high] : high]:
        batch[part[0]] = batch.get(part[0], 0) + part[1]
    return batch


def _rows_within(times: list[float], most: int, seconds: float) -> int:
    """Of at most so many rows, with the seconds of 0, 1, ... of them, how many take no longer; at least 1."""
    return most if times[most] <= seconds else max(1, bisect_right(times, seconds, 1, most + 1) - 1)


def _first_with(group: list[tuple[int, int, Waiting]], rows: int, anchor: Waiting) -> list[Waiting]:
    """The most urgent `rows` of a group, the anchor among them."""
    first = _first(group, rows)
    if anchor not in first:
        first[-1] = anchor
    return first


def _first(group: list[tuple[int, int, Waiting]], rows: int) -> list[Waiting]:
    return [waiting for _, _, waiting in group[:rows]]

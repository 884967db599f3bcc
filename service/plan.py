"""Which of the waiting sequences run together now. Pure: time is an argument, and equal input gives an equal plan.

The `Pool` orders what waits in two ways: by urgency (arrival, with a head start for priority) and by width. A plan
starts from the most urgent sequence and finds its company: the widths around it are cut into batches so that all of
them together cost the least time, and the batch with the urgent sequence in it runs. For a cost that does not fall with
the width some cheapest partition is contiguous in width order, so a dynamic program over the widths finds one:

    best[i] = min over j < i of best[j] + seconds(rows between j and i, width of i)

(the length-ordered partition of TurboTransformers, Fang et al., PPoPP 2021, over distinct widths and with a lower bound
that ends the inner loop early). Taking one batch of a cheapest partition away leaves a cheapest partition of the rest,
so nothing is lost by deciding one batch at a time.

Fairness is structural. Only the `HORIZON` most urgent sequences are looked at, and every plan has the most urgent of
them in it, unless another would miss its deadline, which may happen `MAX_LEFT_OUT` times in a row. So a sequence is
passed over at most `bypass_bound()` times, whatever arrives.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from service.cost import Column

HORIZON: Final = 512
"""How many of the most urgent sequences a plan chooses from."""
PRIORITY_HEAD_START: Final = 256
"""How many sequences that came earlier one level of priority overtakes."""
MAX_PRIORITY: Final = 9
MAX_LEFT_OUT: Final = 4
"""How often in a row the most urgent sequence yields to one that would miss its deadline."""
_NEIGHBOURS: Final = 40
"""How many distinct widths on either side of the urgent one are partitioned with it."""


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
    """

    rows: int = 64
    cost_steps: int = 16_384
    seconds: float = float("inf")


@dataclass(eq=False, slots=True)
class Waiting:
    """One sequence that waits, as far as planning needs it. Whoever queues it derives from this class.

    Attributes:
        width: Its length rounded up: the width of a batch in which it is the longest, in steps.
        deadline: When its answer is worthless, in seconds of the caller's clock.
        priority: 0 to 9, higher first.
        urgency: Set by the pool: its number in order of arrival, less the head start of its priority. Lower is sooner.
        waits: Set by the pool: whether it is still in it.
    """

    width: int
    deadline: float = float("inf")
    priority: int = 0
    urgency: int = field(default=0, init=False)
    waits: bool = field(default=False, init=False)


def bypass_bound(horizon: int = HORIZON) -> int:
    """How often a sequence can be passed over: left waiting while one that came later runs.

    While a sequence of rank k in urgency waits, each run of `MAX_LEFT_OUT` + 1 plans takes at least one of the k - 1
    before it away; only later ones with higher priority can add to these, each level at most its head start.
    """
    return (horizon + PRIORITY_HEAD_START * MAX_PRIORITY) * (MAX_LEFT_OUT + 1)


class Pool:
    """What waits.

    Args:
        horizon: How many of the most urgent a plan chooses from.
    """

    def __init__(self, horizon: int = HORIZON) -> None:
        self.horizon = horizon
        self.left_out = 0
        self._arrivals = 0
        self._size = 0
        self._near = 0
        self._by_width: dict[int, list[tuple[int, int, Waiting]]] = {}
        self._widths: list[int] = []
        self._urgent: list[tuple[int, int, Waiting]] = []
        self._deadlines: list[tuple[float, int, Waiting]] = []
        self._far: list[tuple[int, int, Waiting]] = []

    def __len__(self) -> int:
        """How many wait."""
        return self._size

    def __iter__(self) -> Iterator[Waiting]:
        """All that wait, the nearest widths first, in no promised order."""
        for width in self._widths:
            for _, _, waiting in self._by_width[width]:
                yield waiting
        for _, _, waiting in self._far:
            if waiting.waits:
                yield waiting

    def add(self, waiting: Waiting) -> None:
        """Lets one more wait."""
        self._arrivals += 1
        waiting.urgency = self._arrivals - PRIORITY_HEAD_START * waiting.priority
        waiting.waits = True
        self._size += 1
        entry = (waiting.urgency, self._arrivals, waiting)
        if self._near < self.horizon:
            self._bring_near(entry)
        else:
            heapq.heappush(self._far, entry)
            # What is more urgent than the nearest others must not stand behind them.
            if waiting.priority and entry < max(self._urgent):
                self._bring_near(heapq.heappop(self._far))

    def remove(self, waiting: Waiting) -> bool:
        """Takes one out, because it runs or nobody wants its answer any more. False if it did not wait."""
        if not waiting.waits:
            return False
        waiting.waits = False
        self._size -= 1
        group = self._by_width.get(waiting.width, [])
        place = bisect_left(group, waiting.urgency, key=lambda entry: entry[0])
        while place < len(group) and group[place][0] == waiting.urgency:
            if group[place][2] is waiting:
                del group[place]
                self._near -= 1
                if not group:
                    del self._by_width[waiting.width]
                    del self._widths[bisect_left(self._widths, waiting.width)]
                break
            place += 1
        self._refill()
        return True

    def most_urgent(self) -> Waiting | None:
        """The one that the next plan is made for, or None where nothing waits."""
        while self._urgent and not self._urgent[0][2].waits:
            heapq.heappop(self._urgent)
        return self._urgent[0][2] if self._urgent else None

    def earliest_deadline(self) -> Waiting | None:
        """The one whose deadline comes first, or None where nothing waits."""
        while self._deadlines and not self._deadlines[0][2].waits:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][2] if self._deadlines else None

    def widths_around(self, width: int) -> list[int]:
        """The distinct widths that wait near one, ascending."""
        place = bisect_left(self._widths, width)
        return self._widths[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS + 1]

    def group(self, width: int) -> list[tuple[int, int, Waiting]]:
        """All of one width, the most urgent first."""
        return self._by_width[width]

    def _bring_near(self, entry: tuple[int, int, Waiting]) -> None:
        waiting = entry[2]
        self._near += 1
        group = self._by_width.get(waiting.width)
        if group is None:
            self._by_width[waiting.width] = [entry]
            insort(self._widths, waiting.width)
        elif group[-1] < entry:
            group.append(entry)
        else:
            insort(group, entry)
        heapq.heappush(self._urgent, entry)
        if waiting.deadline != float("inf"):
            heapq.heappush(self._deadlines, (waiting.deadline, entry[1], waiting))

    def _refill(self) -> None:
        while self._near < self.horizon and self._far:
            entry = heapq.heappop(self._far)
            if entry[2].waits:
                self._bring_near(entry)


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
    batch = cost.column(urgent.width, limits.rows).seconds[_most_rows(urgent.width, limits)]
    slack = hurried.deadline - now
    return hurried if alone <= slack < alone + min(batch, limits.seconds) else urgent


def _allowed_seconds(anchor: Waiting, cost: Cost, limits: BatchLimits, now: float) -> float:
    """How long the batch may run: no longer than the anchor's deadline leaves, where it can be met at all."""
    slack = anchor.deadline - now
    alone = cost.column(anchor.width, limits.rows).seconds[1]
    return min(limits.seconds, slack) if slack >= alone else limits.seconds


def _company(pool: Pool, anchor: Waiting, cost: Cost, limits: BatchLimits, *, seconds: float) -> list[Waiting]:
    """The anchor's batch of a cheapest partition of the widths around it."""
    same = pool.group(anchor.width)
    column = cost.column(anchor.width, limits.rows)
    rows = column.cheapest[_most_rows(anchor.width, limits, column.seconds, seconds)]
    if len(same) >= rows:  # a full batch without padding: nothing is cheaper
        return _first_with(same, rows, anchor)
    widths = pool.widths_around(anchor.width)
    place = widths.index(anchor.width)
    columns = [cost.column(width, limits.rows) for width in widths]
    # What fills batches of its own width needs no company; only the rest is partitioned.
    alone = [column.cheapest[_most_rows(width, limits)] for width, column in zip(widths, columns, strict=True)]
    counts = [len(pool.group(width)) % rows for width, rows in zip(widths, alone, strict=True)]
    counts[place] = len(same)
    most = [_most_rows(width, limits, column.seconds, seconds) for width, column in zip(widths, columns, strict=True)]
    floors = [count * column.seconds[rows] / rows for count, column, rows in zip(counts, columns, alone, strict=True)]
    low, high = _block(counts, [column.seconds for column in columns], most, floors, place)
    return [
        waiting
        for width, count in zip(widths[low:high], counts[low:high], strict=True)
        for _, _, waiting in pool.group(width)[:count]
    ]


def _block(
    counts: list[int], seconds: list[list[float]], most: list[int], floors: list[float], place: int
) -> tuple[int, int]:
    """The batch around `place` in a cheapest partition, as a range of widths.

    Args:
        counts: Rows of each width, the widths ascending.
        seconds: For each width, the seconds of 0, 1, ... rows.
        most: For each width, how many rows a batch of it may have.
        floors: For each width, seconds that its rows take at least, in whatever batch.
        place: The width that must be in the batch.
    """
    before = [0]  # rows of all narrower widths
    floor = [0.0]  # what these take at least
    best = [0.0]  # what they take in the cheapest partition
    start = [0]  # where the last batch of that partition starts
    for i, (count, column, limit) in enumerate(zip(counts, seconds, most, strict=True), start=1):
        total = before[-1] + count
        cheapest, cut = best[i - 1] + column[min(count, limit)], i - 1
        for j in range(i - 2, -1, -1):
            rows = total - before[j]
            if rows > limit:
                break
            taken = column[rows]
            if best[j] + taken < cheapest:
                cheapest, cut = best[j] + taken, j
            elif floor[j] + taken >= cheapest:
                break
        before.append(total)
        floor.append(floor[-1] + floors[i - 1])
        best.append(cheapest)
        start.append(cut)
    high = len(counts)
    while start[high] > place:
        high = start[high]
    return start[high], high


def _most_rows(
    width: int, limits: BatchLimits, column: list[float] | None = None, seconds: float = float("inf")
) -> int:
    """How many rows of a width one batch may have; at least 1."""
    most = max(1, min(limits.rows, limits.cost_steps // width))
    if column is not None and column[most] > seconds:
        most = max(1, bisect_right(column, seconds, 1, most + 1) - 1)
    return most


def _first_with(group: list[tuple[int, int, Waiting]], rows: int, anchor: Waiting) -> list[Waiting]:
    """The most urgent `rows` of a group, the anchor among them."""
    first = [waiting for _, _, waiting in group[:rows]]
    if anchor not in first:
        first[-1] = anchor
    return first

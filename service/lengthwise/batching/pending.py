"""The waiting sequences of one model, in the two orders that a plan needs: by urgency and by width.

Urgency is the order of arrival, with a head start for priority. Only the `HORIZON` most urgent (*near*) are ordered by
width, so that a plan's work does not grow with the queue, and nobody is passed over forever; *far* ones become near as
others go. The orders hold numbers, not sequences: that of a removed one stays until it reaches the front, or too many
are there, while the sequence, maybe of megabytes, is freed at once.
"""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, TypeAlias

HORIZON: Final = 2048  # most urgent sequences a plan chooses from: enough for good batches, and fast
MAX_PRIORITY: Final = 9  # from 0, the default
PRIORITY_HEAD_START: Final = 256  # earlier sequences that one level of priority overtakes
_MAX_STALE: Final = 64  # an order is cleaned at more numbers than this, plus twice the waiting sequences
_URGENCY: Final = itemgetter(0)
Number: TypeAlias = int  # a sequence's place in the order of arrival, from 1: its key here
_NEVER: Final = float("inf")


@dataclass(eq=False, slots=True)
class WaitingSequence:
    """The part of a waiting sequence that planning needs; what is queued derives from this class."""

    width: int  # in steps, for predicting the cost
    deadline: float = float("inf")  # on the caller's clock
    priority: int = 0
    urgency: int = field(default=0, init=False)  # the number less the head start; lower runs sooner
    number: Number = field(default=0, init=False)  # of arrival
    waits: bool = field(default=False, init=False)  # in `PendingSequences`


class _Order:
    """The waiting sequences by a sort key: a sorted list, as most are added at its end and removed at its front."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[float, Number]] = []

    def __len__(self) -> int:
        """How many numbers it holds, including those of removed sequences."""
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[float, Number]]:
        return iter(self._entries)

    def add(self, entry: tuple[float, Number]) -> None:
        """Adds one (sort key, arrival number)."""
        entries = self._entries
        if entries and entry < entries[-1]:
            insort(entries, entry)
        else:
            entries.append(entry)

    def first(self, waiting: Mapping[Number, WaitingSequence]) -> WaitingSequence | None:
        """The first sequence that waits, or None; drops the numbers of removed ones before it."""
        entries = self._entries
        for place, (_, number) in enumerate(entries):
            sequence = waiting.get(number)
            if sequence is not None:
                if place:
                    del entries[:place]
                return sequence
        entries.clear()
        return None

    def count_up_to(self, key: float) -> int:
        """How many numbers have a sort key of at most `key`, including those of removed sequences."""
        return bisect_right(self._entries, (key, sys.maxsize))

    def drop_stale(self, waiting: Mapping[Number, WaitingSequence], most: int) -> None:
        """Drops the numbers of all removed sequences if it holds more than `most`."""
        if len(self._entries) > most:
            self._entries = [entry for entry in self._entries if entry[1] in waiting]


class PendingSequences:
    """The waiting sequences of one model; a plan chooses from the `horizon` most urgent."""

    def __init__(self, horizon: int = HORIZON) -> None:
        self.horizon = horizon
        self.left_out = 0  # plans in a row without the most urgent sequence; counted by the planner
        self._arrivals = 0
        self._waiting: dict[Number, WaitingSequence] = {}
        self._near = 0
        self.by_width: dict[int, list[tuple[int, int, WaitingSequence]]] = {}
        self.widths: list[int] = []
        self.urgent = _Order()
        self.deadlines = _Order()
        self._far: list[tuple[int, Number]] = []
        self._last_near = 0  # the greatest urgency (the least urgent) that was ever near

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingSequence]:
        """All waiting sequences, in order of arrival."""
        return iter(self._waiting.values())

    def add(self, waiting: WaitingSequence) -> None:
        """Adds a sequence."""
        self._arrivals += 1
        if not self._arrivals % _MAX_STALE:
            self._drop_stale()
        waiting.number = self._arrivals
        waiting.urgency = self._arrivals - PRIORITY_HEAD_START * waiting.priority
        waiting.waits = True
        self._waiting[waiting.number] = waiting
        # A sequence that is more urgent than a near one has to be near too. Nothing in `_far` is more urgent.
        if self._near < self.horizon or waiting.urgency < self._last_near:
            self._bring_near(waiting)
        else:
            heapq.heappush(self._far, (waiting.urgency, waiting.number))

    def remove(self, waiting: WaitingSequence) -> bool:
        """Removes a sequence whose answer is no longer wanted. False if it did not wait."""
        if not waiting.waits:
            return False
        waiting.waits = False
        del self._waiting[waiting.number]
        group = self.by_width.get(waiting.width, [])
        place = _place(group, waiting)
        if place < len(group):
            del group[place]
            self._near -= 1
            if not group:
                self._forget_width(waiting.width)
        self._fill_near()
        self._drop_stale()
        return True

    def take(self, batch: Mapping[int, int], anchor: WaitingSequence) -> list[WaitingSequence]:
        """Removes and returns a batch: of each width so many of the most urgent, and the anchor in any case."""
        removed: list[WaitingSequence] = []
        for width, count in batch.items():
            group = self.by_width[width]
            if count == len(group):
                removed += [waiting for _, _, waiting in group]
                self._forget_width(width)
                continue
            if width == anchor.width and (place := _place(group, anchor)) >= count:
                group.insert(count - 1, group.pop(place))
            removed += [waiting for _, _, waiting in group[:count]]
            del group[:count]
        for waiting in removed:
            waiting.waits = False
            del self._waiting[waiting.number]
        self._near -= len(removed)
        self._fill_near()
        return removed

    def most_urgent(self) -> WaitingSequence | None:
        """The most urgent sequence, or None if none waits."""
        return self.urgent.first(self._waiting)

    def by_urgency(self) -> Iterator[WaitingSequence]:
        """The near sequences, the most urgent first."""
        for _, number in self.urgent:
            waiting = self._waiting.get(number)
            if waiting is not None:
                yield waiting

    def earliest_deadline(self) -> WaitingSequence | None:
        """The near sequence with the earliest deadline, or None if none has one."""
        return self.deadlines.first(self._waiting)

    def share_before(self, priority: int, deadline: float) -> float:
        """Roughly which share of the waiting would run before a new one: more urgent, earlier deadline."""
        count = len(self._waiting)
        if not count:
            return 0.0
        urgent = max(0, count - PRIORITY_HEAD_START * priority) / count
        hurried = self.deadlines.count_up_to(deadline) / max(len(self.deadlines), self._near)
        return min(urgent, hurried)

    def around(self, width: int, rows: float, full: int = 1) -> tuple[list[int], list[int]]:
        """The window around a near width: the near widths, ascending, and how many sequences of each.

        On either side it has `rows` sequences at least, if there are as many. It is extended so that its rows, and the
        rows wider than it, are multiples of `full`; of the outermost widths it may then have only a part.
        """
        widths, groups = self.widths, self.by_width
        low = place = bisect_left(widths, width)
        counts = [len(groups[width])]
        left = rows
        while low and left > 0:
            low -= 1
            counts.append(count := len(groups[widths[low]]))
            left -= count
        counts.reverse()
        high = place + 1
        left = rows
        while high < len(widths) and left > 0:
            counts.append(count := len(groups[widths[high]]))
            left -= count
            high += 1
        return (widths[low:high], counts) if full == 1 else self._extended(low, high, full)

    def _extended(self, low: int, high: int, full: int) -> tuple[list[int], list[int]]:
        """The window from `self.widths[low]` to before `[high]`, extended to full batches; see `around`."""
        widths, groups = self.widths, self.by_width
        wanted = sum([len(groups[each]) for each in widths[high:]]) % full
        while wanted > 0:
            wanted -= len(groups[widths[high]])
            high += 1
        counts = [len(groups[each]) for each in widths[low:high]]
        counts[-1] += wanted  # negative: the last width has more rows than were needed
        wanted = -sum(counts) % full
        while low and wanted > 0:
            low -= 1
            counts.insert(0, len(groups[widths[low]]))
            wanted -= counts[0]
        counts[0] += min(wanted, 0)
        return widths[low:high], counts

    def count(self, width: int) -> int:
        """How many near sequences have this width."""
        return len(self.by_width[width])

    def _bring_near(self, waiting: WaitingSequence) -> None:
        entry = (waiting.urgency, waiting.number, waiting)
        self._near += 1
        self._last_near = max(self._last_near, waiting.urgency)
        group = self.by_width.get(waiting.width)
        if group is None:
            self.by_width[waiting.width] = [entry]
            insort(self.widths, waiting.width)
        elif group[-1] < entry:
            group.append(entry)
        else:
            insort(group, entry)
        self.urgent.add(entry[:2])
        if waiting.deadline != _NEVER:
            self.deadlines.add((waiting.deadline, waiting.number))

    def _forget_width(self, width: int) -> None:
        del self.by_width[width], self.widths[bisect_left(self.widths, width)]

    def _fill_near(self) -> None:
        """Makes the most urgent of the far sequences near, up to the horizon."""
        while self._near < self.horizon and self._far:
            waiting = self._waiting.get(heapq.heappop(self._far)[1])
            if waiting is not None:
                self._bring_near(waiting)

    def _drop_stale(self) -> None:
        """Drops the numbers of removed sequences from each order in which they are the most."""
        most = 2 * self._near + _MAX_STALE
        self.urgent.drop_stale(self._waiting, most)
        self.deadlines.drop_stale(self._waiting, most)
        if len(self._far) > 2 * (len(self._waiting) - self._near) + _MAX_STALE:
            self._far = [entry for entry in self._far if entry[1] in self._waiting]
            heapq.heapify(self._far)


def _place(group: Sequence[tuple[int, int, WaitingSequence]], waiting: WaitingSequence) -> int:
    """The index of a sequence in a group, which is sorted by urgency; the group's length if it is not there."""
    if group and group[0][2] is waiting:
        return 0
    place = bisect_left(group, waiting.urgency, key=_URGENCY)
    while place < len(group) and group[place][2] is not waiting:
        place += 1
    return place

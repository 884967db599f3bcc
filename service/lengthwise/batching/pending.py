"""The waiting sequences of one model, by urgency and by deadline.

Urgency is the order of arrival, with a head start for priority. A plan chooses from the `HORIZON` most urgent (*near*),
so that its work does not grow with the queue, and nobody is passed over forever. The orders hold numbers, not
sequences: that of a removed one stays until it reaches the front, or too many are there, while the sequence, maybe of
megabytes, is freed at once.
"""

from __future__ import annotations

import sys
from bisect import bisect_right, insort
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Final, TypeAlias

HORIZON: Final = 8192  # most urgent sequences a plan chooses from: several full batches of a device
MAX_PRIORITY: Final = 9  # from 0, the default
PRIORITY_HEAD_START: Final = 256  # earlier sequences that one level of priority overtakes
_RECENT: Final = 4096  # arrivals whose widths are counted
_MAX_STALE: Final = 64  # an order is cleaned at more numbers than this, plus 1.5 times the waiting sequences
Number: TypeAlias = int  # a sequence's index in the order of arrival, from 1: its key here
_NUMBER: Final = itemgetter(1)
_URGENCY: Final = attrgetter("urgency")
_NEVER: Final = float("inf")


@dataclass(eq=False, slots=True)
class WaitingSequence:
    """The part of a waiting sequence that planning needs; what is queued derives from this class."""

    width: int  # in steps, for predicting the cost
    deadline: float = float("inf")  # on the caller's clock
    priority: int = 0
    urgency: int = field(default=0, init=False)  # the number less the head start; lower runs sooner
    number: Number = field(default=0, init=False)  # of arrival
    turn: int = field(default=0, init=False)  # how many would have run before it in order of arrival
    arrival_work: float = field(default=0.0, init=False)  # `PendingSequences.work` when it came
    waits: bool = field(default=False, init=False)  # in `PendingSequences`


class _Order(list[tuple[float, Number]]):
    """The waiting sequences by a sort key: a sorted list, as most are added at its end and removed at its front."""

    __slots__ = ("_clean",)

    def __init__(self) -> None:
        super().__init__()
        self._clean = 0  # up to where the numbers of removed ones were dropped

    def add(self, entry: tuple[float, Number]) -> None:
        """Adds one (sort key, arrival number)."""
        if self and entry < self[-1]:
            insort(self, entry)
        else:
            self.append(entry)

    def compact(self, waiting: Mapping[Number, WaitingSequence], removed: int) -> None:
        """Drops the entries of removed sequences from the next part of the order: from all of it would take long."""
        start = self._clean if self._clean < len(self) else 0
        part = slice(start, start + _MAX_STALE + 8 * removed)
        entries = [entry for entry in self[part] if entry[1] in waiting]
        self[part] = entries
        self._clean = start + len(entries)

    def first(self, waiting: Mapping[Number, WaitingSequence]) -> WaitingSequence | None:
        """The first sequence that waits, or None; drops the numbers of removed ones before it."""
        for index, (_, number) in enumerate(self):
            if (sequence := waiting.get(number)) is not None:
                if index:
                    del self[:index]
                return sequence
        self.clear()
        return None


class PendingSequences:
    """The waiting sequences of one model; a plan chooses from the `horizon` most urgent."""

    def __init__(self, horizon: int = HORIZON) -> None:
        self.horizon = horizon
        self.left_out = 0  # plans in a row without the most urgent sequence; counted by the planner
        self._arrivals = 0
        self._ran = 0
        self.work = 0.0  # predicted seconds of all plans so far, as far as the planner adds them
        self.recent: deque[int] = deque()  # the widths of the last arrivals, and how many have each
        self.widths: Counter[int] = Counter()
        self._refilled_at = sys.maxsize  # the arrival with which as many have come as the last plan took, nearly
        self._waiting: dict[Number, WaitingSequence] = {}
        self.alike: dict[tuple[int, int], dict[Number, WaitingSequence]] = {}  # by width and priority: by urgency, too
        self.urgent = _Order()
        self.deadlines = _Order()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingSequence]:
        """All waiting sequences, in order of arrival."""
        return iter(self._waiting.values())

    def add(self, waiting: WaitingSequence) -> None:
        """Adds a sequence."""
        number = self._arrivals = self._arrivals + 1
        waiting.number = number
        waiting.urgency = number - PRIORITY_HEAD_START * waiting.priority
        waiting.turn = self._ran + len(self._waiting)
        waiting.arrival_work = self.work
        waiting.waits = True
        self._waiting[number] = waiting
        self.alike.setdefault((waiting.width, waiting.priority), {})[number] = waiting
        self.urgent.add((waiting.urgency, number))
        if waiting.deadline != _NEVER:
            self.deadlines.add((waiting.deadline, number))
        self.recent.append(waiting.width)
        self.widths[waiting.width] += 1
        if len(self.recent) > _RECENT:
            oldest = self.recent.popleft()
            self.widths[oldest] -= 1
            if not self.widths[oldest]:
                del self.widths[oldest]

    def remove(self, waiting: WaitingSequence) -> bool:
        """Removes a sequence whose answer is no longer wanted. False if it did not wait."""
        if not waiting.waits:
            return False
        self._ran -= 1  # which `take` adds
        self.take([waiting])
        return True

    def take(self, batch: Sequence[WaitingSequence]) -> None:
        """Removes the sequences of a batch, which run."""
        self._ran += len(batch)
        for waiting in batch:
            waiting.waits = False
            del self._waiting[waiting.number]
            alike = self.alike[waiting.width, waiting.priority]
            del alike[waiting.number]
            if not alike:
                del self.alike[waiting.width, waiting.priority]
        most = 3 * len(self._waiting) // 2 + _MAX_STALE
        for order in (self.urgent, self.deadlines):
            if len(order) > most:
                order.compact(self._waiting, len(batch))

    def run(self, batch: Sequence[WaitingSequence]) -> None:
        """Removes the sequences of a planned batch; from now on, arrivals count for `refilled`."""
        self.take(batch)
        self._refilled_at = self._arrivals + (len(batch) + 1) // 2

    @property
    def refilled(self) -> bool:
        """Whether at least half as many have arrived since the last plan as that took."""
        return self._arrivals >= self._refilled_at

    def most_urgent(self) -> WaitingSequence | None:
        """The most urgent sequence, or None if none waits."""
        return self.urgent.first(self._waiting)

    def by_deadline(self) -> Iterator[WaitingSequence]:
        """The waiting sequences that have a deadline, the earliest deadline first."""
        return filter(None, map(self._waiting.get, map(_NUMBER, self.deadlines)))

    def near(self) -> Iterator[WaitingSequence]:
        """The near sequences, the most urgent first."""
        waiting = map(self._waiting.get, map(_NUMBER, self.urgent))
        return islice(filter(None, waiting), self.horizon)

    def most_urgent_of(self, below: int, width: int, count: int) -> list[WaitingSequence]:
        """At most `count` of the near ones that are wider than `below` and at most `width` wide: the most urgent."""
        kinds = (alike for (its_width, _), alike in self.alike.items() if below < its_width <= width)
        candidates = [each for alike in kinds for each in islice(alike.values(), count)]
        if len(self._waiting) > self.horizon:
            candidates = list(filter(self.is_near, candidates))
        return sorted(candidates, key=_URGENCY)[:count] if len(candidates) > count else candidates

    def is_near(self, waiting: WaitingSequence) -> bool:
        """Whether a sequence is surely one of the near ones."""
        return waiting.urgency <= self.urgent[min(self.horizon, len(self.urgent)) - 1][0]

    def passed_over(self, waiting: WaitingSequence) -> int:
        """How many more have run than would have before it in order of arrival; negative before its turn."""
        return self._ran - waiting.turn

    def earliest_deadline(self) -> WaitingSequence | None:
        """The sequence with the earliest deadline, or None if none has one."""
        return self.deadlines.first(self._waiting)

    def share_before(self, priority: int, deadline: float) -> float:
        """Roughly the share of the waiting that runs before a new one: more urgent, or earlier deadline (seconds)."""
        count = len(self._waiting)
        if not count:
            return 0.0
        urgent = max(0, count - PRIORITY_HEAD_START * priority) / count
        earlier = bisect_right(self.deadlines, (deadline, sys.maxsize))
        return min(urgent, earlier / max(len(self.deadlines), count))

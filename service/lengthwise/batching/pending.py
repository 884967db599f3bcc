"""What waits, in the two orders that a plan needs: by urgency, and by width.

Urgency is arrival, with a head start for priority. Only the `HORIZON` most urgent stand in the order by width, so that
a plan costs the same however much waits, and what it leaves waiting is bounded; the others are brought near as these
run or are withdrawn.

Removing is cheap: the orders hold numbers of arrival, and keep that of what left until it comes to the front or until
there are too many such numbers. What left is itself let go of at once: it holds its steps, which may be megabytes.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, TypeAlias

HORIZON: Final = 2048
"""How many of the most urgent sequences a plan chooses from."""
PRIORITY_HEAD_START: Final = 256
"""How many sequences that came earlier one level of priority overtakes."""
_FORGOTTEN: Final = 64
"""How many removed sequences an order may hold beside as many again as wait."""
_URGENCY: Final = itemgetter(0)
Number: TypeAlias = int
"""A sequence's place in the order of arrival; by it the pool knows it."""
_NEVER: Final = float("inf")


@dataclass(eq=False, slots=True)
class Waiting:
    """One sequence that waits, once, as far as planning needs it. Whoever queues it derives from this class.

    Attributes:
        width: What a batch costs the width of in which it is the longest, in steps.
        deadline: When its answer is worthless, in seconds of the caller's clock.
        priority: 0 to 9, higher first.
        urgency: Set by the pool: its number in order of arrival, less the head start of its priority. Lower is sooner.
        number: Set by the pool: its number in order of arrival.
        waits: Set by the pool: whether it is still in it.
    """

    width: int
    deadline: float = float("inf")
    priority: int = 0
    urgency: int = field(default=0, init=False)
    number: Number = field(default=0, init=False)
    waits: bool = field(default=False, init=False)


class _Line:
    """What waits, in one order: each as its place in that order, and its number.

    Nearly everything comes in order and goes in order, which a list does faster than a heap.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[float, Number]] = []

    def __len__(self) -> int:
        """How many it holds, of what waits and of what left."""
        return len(self._entries)

    def add(self, entry: tuple[float, Number]) -> None:
        """Lets one stand in line."""
        entries = self._entries
        if entries and entry < entries[-1]:
            insort(entries, entry)
        else:
            entries.append(entry)

    def first(self, waiting: Mapping[Number, Waiting]) -> Waiting | None:
        """The first that waits, or None where nothing does; lets go of what left before it."""
        entries = self._entries
        for place, (_, number) in enumerate(entries):
            found = waiting.get(number)
            if found is not None:
                if place:
                    del entries[:place]
                return found
        entries.clear()
        return None

    def forget(self, waiting: Mapping[Number, Waiting], most: int) -> None:
        """Lets go of all that left, where it and what waits are more than so many."""
        if len(self._entries) > most:
            self._entries = [entry for entry in self._entries if entry[1] in waiting]


class PendingSequences:
    """What waits.

    Args:
        horizon: How many of the most urgent a plan chooses from.
    """

    def __init__(self, horizon: int = HORIZON) -> None:
        self.horizon = horizon
        self.left_out = 0
        self._arrivals = 0
        self._waiting: dict[Number, Waiting] = {}
        self._near = 0
        self._by_width: dict[int, list[tuple[int, int, Waiting]]] = {}
        self._widths: list[int] = []
        self._urgent = _Line()
        self._deadlines = _Line()
        self._far: list[tuple[int, Number]] = []
        self._last_near = 0  # the greatest urgency that was ever near

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        """All that wait, in order of arrival."""
        return iter(self._waiting.values())

    def add(self, waiting: Waiting) -> None:
        """Lets one more wait."""
        self._arrivals += 1
        if not self._arrivals % _FORGOTTEN:
            self._forget()
        waiting.number = self._arrivals
        waiting.urgency = self._arrivals - PRIORITY_HEAD_START * waiting.priority
        waiting.waits = True
        self._waiting[waiting.number] = waiting
        # What is more urgent than one that came near must not stand behind it; nothing in `_far` is.
        if self._near < self.horizon or waiting.urgency < self._last_near:
            self._bring_near(waiting)
        else:
            heapq.heappush(self._far, (waiting.urgency, waiting.number))

    def remove(self, waiting: Waiting) -> bool:
        """Takes one out because nobody wants its answer any more. False if it did not wait."""
        if not waiting.waits:
            return False
        waiting.waits = False
        del self._waiting[waiting.number]
        group = self._by_width.get(waiting.width, [])
        place = _place(group, waiting)
        if place < len(group):
            del group[place]
            self._near -= 1
            if not group:
                self._forget_width(waiting.width)
        self._tidy()
        self._forget()
        return True

    def take(self, batch: Mapping[int, int], anchor: Waiting) -> list[Waiting]:
        """Takes a batch out, which runs: the most urgent of each width.

        Args:
            batch: How many of each width, at least 1 and no more than stand near.
            anchor: One of the near that is among them, in the place of the last of its width if need be.
        """
        taken: list[Waiting] = []
        for width, count in batch.items():
            group = self._by_width[width]
            if count == len(group):
                taken += [waiting for _, _, waiting in group]
                self._forget_width(width)
                continue
            if width == anchor.width and (place := _place(group, anchor)) >= count:
                group.insert(count - 1, group.pop(place))
            taken += [waiting for _, _, waiting in group[:count]]
            del group[:count]
        for waiting in taken:
            waiting.waits = False
            del self._waiting[waiting.number]
        self._near -= len(taken)
        self._tidy()
        return taken

    def most_urgent(self) -> Waiting | None:
        """The one that the next plan is made for, or None where nothing waits."""
        return self._urgent.first(self._waiting)

    def earliest_deadline(self) -> Waiting | None:
        """The one whose deadline comes first, or None where nothing waits."""
        return self._deadlines.first(self._waiting)

    def around(self, width: int, rows: float, full: int = 1) -> tuple[list[int], list[int]]:
        """The widths that are near around one, ascending, and how many of each.

        Args:
            width: One of them.
            rows: On either side, as many widths as hold so many sequences.
            full: Both these and all that are wider fill batches of so many, as far as there are as many; for that more
                are taken on either side, and of the outermost width only some.
        """
        widths, groups = self._widths, self._by_width
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
        return (widths[low:high], counts) if full == 1 else self._in_full(low, high, full)

    def _in_full(self, low: int, high: int, full: int) -> tuple[list[int], list[int]]:
        """The widths from one place to before another, and what else makes these and all that are wider full."""
        widths, groups = self._widths, self._by_width
        wanted = sum([len(groups[each]) for each in widths[high:]]) % full
        while wanted > 0:
            wanted -= len(groups[widths[high]])
            high += 1
        counts = [len(groups[each]) for each in widths[low:high]]
        counts[-1] += wanted  # what was too many of the last stays out
        wanted = -sum(counts) % full
        while low and wanted > 0:
            low -= 1
            counts.insert(0, len(groups[widths[low]]))
            wanted -= counts[0]
        counts[0] += min(wanted, 0)
        return widths[low:high], counts

    def count(self, width: int) -> int:
        """How many of one width are near."""
        return len(self._by_width[width])

    def _bring_near(self, waiting: Waiting) -> None:
        entry = (waiting.urgency, waiting.number, waiting)
        self._near += 1
        self._last_near = max(self._last_near, waiting.urgency)
        group = self._by_width.get(waiting.width)
        if group is None:
            self._by_width[waiting.width] = [entry]
            insort(self._widths, waiting.width)
        elif group[-1] < entry:
            group.append(entry)
        else:
            insort(group, entry)
        self._urgent.add(entry[:2])
        if waiting.deadline != _NEVER:
            self._deadlines.add((waiting.deadline, waiting.number))

    def _forget_width(self, width: int) -> None:
        """Nothing of a width is near any more."""
        del self._by_width[width], self._widths[bisect_left(self._widths, width)]

    def _tidy(self) -> None:
        """Brings the most urgent of the far near."""
        while self._near < self.horizon and self._far:
            waiting = self._waiting.get(heapq.heappop(self._far)[1])
            if waiting is not None:
                self._bring_near(waiting)

    def _forget(self) -> None:
        """Lets go of the numbers of what left, once they are most of an order: until then they are passed over."""
        most = 2 * self._near + _FORGOTTEN
        self._urgent.forget(self._waiting, most)
        self._deadlines.forget(self._waiting, most)
        if len(self._far) > 2 * (len(self._waiting) - self._near) + _FORGOTTEN:
            self._far = [entry for entry in self._far if entry[1] in self._waiting]
            heapq.heapify(self._far)


def _place(group: Sequence[tuple[int, int, Waiting]], waiting: Waiting) -> int:
    """Where one stands in a group, the most urgent first; the group's length where it does not."""
    if group and group[0][2] is waiting:
        return 0
    place = bisect_left(group, waiting.urgency, key=_URGENCY)
    while place < len(group) and group[place][2] is not waiting:
        place += 1
    return place

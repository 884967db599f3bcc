"""The waiting sequences of one model, by urgency and by deadline.

| word here | meaning |
|---|---|
| urgency | a number: the work that came before, less a head start for the priority; the lowest is the most urgent |
| key | the urgency, in the collections here: no two sequences have the same |
| near | among the `horizon` most urgent ones: a plan chooses from these, so its work does not grow with the queue |
| an order | the keys of the sequences, sorted by urgency or by deadline |
| stale entry | of an order: its sequence no longer waits |

The orders hold keys, so that a removed sequence, of megabytes perhaps, is freed at once. Its stale entry stays until
it comes to the front of the order, or until the order is cleaned, a part at a time (`_Order.compact`).
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress, dropwhile, filterfalse, islice
from operator import attrgetter, index, indexOf, is_not, itemgetter
from typing import Any, Final

HORIZON: Final = 8192  # so many most urgent sequences are near: several full batches of a device
MAX_PRIORITY: Final = 9  # from 0, the default
PRIORITY_SECONDS: Final = 1.0  # of predicted work that came earlier, and that one level of priority overtakes
_PER_SECOND: Final = 1e9  # of work; each of these takes `MAX_PRIORITY` + 1 steps of urgency, one for each priority
# What counts for a sequence at least: its way through the service takes about as long, however little the model does.
# So a level overtakes a bounded number of sequences, also where no cost is predicted, or far too little.
_LEAST_SECONDS: Final = 1e-4
_MOST_DUE: Final = 64  # so many of those with the next deadlines may run with a sequence in a hurry
_SAMPLE: Final = 128  # about so many sequences, of more, are looked at to estimate the work of all
WIDTH: Final = attrgetter("width")  # of a waiting sequence
_RECENT: Final = 4096  # last arrivals whose widths are counted
_MANY: Final = 2048  # where so many wait, a division into classes is kept until much has changed
_MAX_STALE: Final = 64  # an order is cleaned when it has more entries than this, plus 1.5 times the waiting sequences
_NEVER: Final = float("inf")


@dataclass(eq=False, slots=True)
class WaitingSequence:
    """The part of a waiting sequence that planning needs; `queues.QueuedSequence` derives from this class.

    `PendingSequences.add` sets the fields that `__init__` does not take.
    """

    width: int  # in steps, for predicting the cost
    deadline: float = float("inf")  # on the caller's clock
    priority: int = 0
    seconds: float = 0.0  # of work, predicted when it came
    urgency: int = field(default=0, init=False)  # see the module
    turn: int = field(default=0, init=False)  # how many would have run before it in order of arrival
    arrival_work: float = field(default=0.0, init=False)  # `PendingSequences.work` when it came


class _Order(list[Any]):
    """Sorted entries: keys, or pairs (deadline, key). A list, as most are added at its end and removed at its front."""

    __slots__ = ("_clean", "_key_of")

    def __init__(self, key_of: Callable[[Any], int]) -> None:
        super().__init__()
        self._key_of = key_of  # of an entry
        self._clean = 0  # the index up to which `compact` has dropped the stale entries

    def add(self, entry: int | tuple[float, int]) -> None:
        """Adds an entry at its place."""
        if self and entry < self[-1]:
            insort(self, entry)
        else:
            self.append(entry)

    def compact(self, waiting: Mapping[int, WaitingSequence], removed: int) -> None:
        """Drops the stale entries of a part of the order; the next call continues where this one ends.

        The whole order would take long at once. The part is larger if more sequences were removed just now.

        Args:
            waiting: The waiting sequences by their keys: an entry with another key is stale.
            removed: How many sequences were removed just now.
        """
        start = self._clean if self._clean < len(self) else 0
        part = slice(start, start + _MAX_STALE + 8 * removed)
        entries = self[part]
        self[part] = entries = [*compress(entries, map(waiting.__contains__, map(self._key_of, entries)))]
        self._clean = start + len(entries)

    def work_of(self, end: int, waiting: Mapping[int, WaitingSequence]) -> float:
        """Estimates the work, in predicted seconds, of the sequences of the first `end` entries that wait."""
        keys = [*map(self._key_of, self[: end : end // _SAMPLE + 1])]
        return sum([waiting[key].seconds for key in keys if key in waiting]) * end / max(1, len(keys))

    def first(self, waiting: Mapping[int, WaitingSequence]) -> WaitingSequence | None:
        """Returns the first sequence that waits, or None; drops the stale entries before it."""
        waits = map(waiting.__contains__, map(self._key_of, self))
        del self[: indexOf(chain(waits, [True]), True)]  # all entries if no sequence waits
        return waiting[self._key_of(self[0])] if self else None


class PendingSequences:
    """The waiting sequences of one model; a plan chooses from the `horizon` most urgent."""

    def __init__(self, horizon: int = HORIZON) -> None:
        self.horizon = horizon
        self.hurried: WaitingSequence | None = None  # while a plan chooses the batch for one in a hurry
        self.left_out = 0  # plans in a row without the most urgent sequence; counted by `plan`
        self._arrivals = 0  # sequences that were added so far
        self._arrived = 0  # their work in steps of urgency, and at least so many that none has that of another
        self._head_start = (MAX_PRIORITY + 1) * int(PRIORITY_SECONDS * _PER_SECOND) - 1  # steps of urgency of a level
        self._ran = 0  # sequences that were taken by plans so far
        self.work = 0.0  # predicted seconds of all plans by length so far; `plan` adds them
        self.by_length = False  # whether batches by length pay; compared by `composition`
        self.plans_until_comparison = 0  # of the two orders
        self.arrival_rows = (
            0  # of the last batch in order of arrival, as far as the processor decides; by `composition`
        )
        self.narrow_part = 0  # the widest of those that run in turn with wider ones, or 0; set by `plan`
        self.class_tops: list[int] = []  # the widest of each class, ascending, as `classes` found them
        self._divided_at = (0, 0)  # the numbers of arrivals and of waiting sequences then
        self.recent: deque[int] = deque()  # the widths of the last arrivals,
        self.widths: Counter[int] = Counter()  # and how many of these have each width
        self._refilled_at = sys.maxsize  # see `refilled`: the number of the arrival with which it becomes true
        self._waiting: dict[int, WaitingSequence] = {}  # in order of arrival
        # By (width, priority). Each of these dicts is in order of arrival, so of urgency too.
        self.alike: dict[tuple[int, int], dict[int, WaitingSequence]] = {}
        self.urgent = _Order(index)  # an entry is the key itself
        self.deadlines = _Order(itemgetter(1))  # pairs (deadline, key), of sequences that have a deadline

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingSequence]:
        """All waiting sequences, in order of arrival."""
        return iter(self._waiting.values())

    def __contains__(self, waiting: WaitingSequence) -> bool:
        """Whether this sequence waits."""
        return self._waiting.get(waiting.urgency) is waiting

    def add(self, waiting: WaitingSequence) -> None:
        """Adds a sequence, and sets its fields that concern the order."""
        # 1. Its fields
        self._arrivals += 1
        waiting.urgency = key = self._arrived - self._head_start * waiting.priority
        self._arrived += (MAX_PRIORITY + 1) * (1 + int(max(waiting.seconds, _LEAST_SECONDS) * _PER_SECOND))
        waiting.turn = self._ran + len(self._waiting)
        waiting.arrival_work = self.work
        # 2. The collections
        self._waiting[key] = waiting
        self.alike.setdefault((waiting.width, waiting.priority), {})[key] = waiting
        self.urgent.add(key)
        if waiting.deadline != _NEVER:
            self.deadlines.add((waiting.deadline, key))
        # 3. The widths of the last `_RECENT` arrivals
        self.recent.append(waiting.width)
        self.widths[waiting.width] += 1
        if len(self.recent) > _RECENT:
            oldest = self.recent.popleft()
            self.widths[oldest] -= 1
            if not self.widths[oldest]:
                del self.widths[oldest]

    def remove(self, waiting: WaitingSequence) -> bool:
        """Removes a sequence whose answer is no longer wanted; returns whether it was waiting."""
        if waiting not in self:
            return False
        self._ran -= 1  # `take` adds it, but this sequence does not run
        self.take([waiting])
        return True

    def take(self, batch: Sequence[WaitingSequence]) -> None:
        """Removes the sequences of a batch that runs, and cleans the orders if they have many stale entries."""
        self._ran += len(batch)
        for waiting in batch:
            kind = (waiting.width, waiting.priority)
            alike = self.alike[kind]
            del self._waiting[waiting.urgency], alike[waiting.urgency]
            if not alike:
                del self.alike[kind]
        entry_limit = 3 * len(self._waiting) // 2 + _MAX_STALE
        for order in (self.urgent, self.deadlines):
            if len(order) > entry_limit:
                order.compact(self._waiting, len(batch))

    def take_planned(self, batch: Sequence[WaitingSequence]) -> None:
        """Removes the sequences of a planned batch; `refilled` is false until half as many have arrived since."""
        self.take(batch)
        self._refilled_at = self._arrivals + (len(batch) + 1) // 2

    @property
    def refilled(self) -> bool:
        """Whether at least half as many sequences have arrived since the last plan as that plan took."""
        return self._arrivals >= self._refilled_at

    def classes(self, divide: Callable[[], list[int]]) -> list[int]:
        """Returns the widest of each class of widths, ascending: a new list.

        They are those that `divide` returns, or returned before: it takes a fifth to two fifths of a decision. Where
        many wait, it is called again when a quarter as many have arrived since, or when so many fewer wait.
        """
        arrivals, waiting = self._arrivals, len(self)
        if waiting < _MANY or 4 * max(arrivals - self._divided_at[0], self._divided_at[1] - waiting) >= waiting:
            self.class_tops, self._divided_at = divide(), (arrivals, waiting)
        return [*self.class_tops]

    def most_urgent(self) -> WaitingSequence | None:
        """The most urgent sequence, or None if none waits."""
        return self.urgent.first(self._waiting)

    def by_deadline(self) -> Iterator[WaitingSequence]:
        """The waiting sequences that have a deadline, the earliest deadline first."""
        return filter(None, map(self._waiting.get, map(itemgetter(1), self.deadlines)))

    def near(self) -> Iterator[WaitingSequence]:
        """The near sequences, the most urgent first."""
        return islice(filter(None, map(self._waiting.get, self.urgent)), self.horizon)  # without stale entries

    def company(self, anchor: WaitingSequence) -> Iterator[WaitingSequence]:
        """The near sequences that may run with an anchor, in the order in which a batch takes them.

        The most urgent come first. While a sequence is in a hurry, it and those whose deadlines come next are before
        them: it may be that they, too, can wait for no other batch, such as the others of its request.
        """
        due = () if self.hurried is None else dropwhile(partial(is_not, self.hurried), self.by_deadline())
        first = dict.fromkeys([anchor, *filter(self.is_near, islice(due, _MOST_DUE))])
        return chain(islice(first, 1, None), filterfalse(first.__contains__, self.near()))

    def most_urgent_of(self, above: int, up_to: int, count: int) -> list[WaitingSequence]:
        """Returns the `count` most urgent of the near sequences whose width is above `above` and at most `up_to`.

        They are in order of urgency; fewer if there are no more. If many sequences have such a width, the most urgent
        are soon found in the order of all; of few, it is quicker to sort the most urgent of each width. With more than
        `horizon` waiting and stale entries in the order, some that just are near may be left out (`is_near`).
        """
        groups = [alike for (width, _), alike in self.alike.items() if above < width <= up_to]
        to_sort = sum([min(count, len(alike)) for alike in groups])
        if to_sort * sum(map(len, groups)) > count * len(self):
            return [*islice((waiting for waiting in self.near() if above < waiting.width <= up_to), count)]
        keys = sorted(chain.from_iterable(islice(alike, count) for alike in groups))[:count]
        if len(self) > self.horizon:
            del keys[bisect_right(keys, self._last_near_urgency) :]
        return [*map(self._waiting.__getitem__, keys)]

    def is_near(self, waiting: WaitingSequence) -> bool:
        """Whether a sequence is near; with stale entries in the order, False for some that just are."""
        return waiting.urgency <= self._last_near_urgency

    @property
    def _last_near_urgency(self) -> int:
        """The urgency of the last near sequence; with stale entries in the order, an earlier one's."""
        return int(self.urgent[min(self.horizon, len(self.urgent)) - 1])

    def passed_over(self, waiting: WaitingSequence) -> int:
        """Returns how many sequences have overtaken this one, which still waits.

        That is how many have run so far, less those that run before it in order of arrival. So it is negative while
        some of these have still to run.
        """
        return self._ran - waiting.turn

    def earliest_deadline(self) -> WaitingSequence | None:
        """The sequence with the earliest deadline, or None if none has one."""
        return self.deadlines.first(self._waiting)

    def work_before(self, work: float, priority: int, deadline: float) -> tuple[float, float]:
        """Estimates the work that is before a new sequence, in predicted seconds: more urgent, and due earlier.

        Args:
            work: That of all waiting sequences.
            priority: That of the new sequence.
            deadline: That of the new sequence.
        """
        more_urgent = bisect_left(self.urgent, self._arrived - self._head_start * priority)
        due_earlier = bisect_right(self.deadlines, (deadline, sys.maxsize))
        if more_urgent < len(self.urgent):
            work = self.urgent.work_of(more_urgent, self._waiting)
        return work, self.deadlines.work_of(due_earlier, self._waiting)

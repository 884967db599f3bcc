"""Slots that connections have in turn: to receive a message of gRPC, or to inflate and decode a large body.

There are few slots, and a job may keep one for most of a second. So the jobs that wait are served by fair queueing
(Demers, Keshav and Shenker, SIGCOMM 1989): as if one byte of each connection were handled in turn, the job that would
be done first comes first. A short job therefore waits for those that have a slot, but not for all the long ones; a long
job waits for no more bytes of any other connection than it has itself. When a job would be done is its *finish*, in
*virtual time*: the bytes that every busy connection could have had handled until then.

The *turn* of a waiting job is (its rank, its finish, its order of arrival): the smallest turn gets the next free slot.

```
join ──> a slot is free: `begin` ────────────────────────────────> leave: the slot goes to the next job
   └──> none is free: waits ──> its turn has come: `begin` ──┘
                         └──> leave
```
"""

from __future__ import annotations

import itertools
import sys
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import defaultdict
from typing import Final, Generic, TypeAlias, TypeVar

_MOST_PEERS: Final = 1024  # connections whose finish is kept; beyond, only finishes in the future are kept

JobTurn: TypeAlias = tuple[int, float, int]
"""(rank, finish, order of arrival)."""


class Job(ABC):
    """A body or a message of one connection, which needs a slot."""

    turn: JobTurn = (0, 0.0, 0)  # set when it joins

    def __init__(self, peer: object, cost: float, rank: int = 0) -> None:
        self.peer = peer  # its connection: equal for all jobs of one connection
        self.cost = cost  # bytes, as far as they are known
        self.rank = rank  # jobs of a lower rank come first

    @abstractmethod
    def begin(self) -> bool:
        """Begins, as it has a slot now; returns False if it cannot: then the slot goes to the next job."""


J = TypeVar("J", bound=Job)


class _Lines(Generic[J]):
    """The waiting jobs of one rank, by connection; finding the connection with most of them takes no search."""

    def __init__(self) -> None:
        self._of: dict[object, dict[J, None]] = {}  # by connection, in the order in which they came
        self._by_length: list[dict[object, None]] = []  # connections with one job, two jobs, ...; the last has some

    def of(self, peer: object) -> dict[J, None]:
        """The waiting jobs of a connection; not to be changed."""
        return self._of.get(peer, {})

    def add(self, job: J) -> None:
        """Adds the newest job of a connection."""
        line = self._of.setdefault(job.peer, {})
        line[job] = None
        self._has(job.peer, len(line) - 1, len(line))

    def remove(self, job: J) -> None:
        """Removes a job."""
        line = self._of[job.peer]
        del line[job]
        self._has(job.peer, len(line) + 1, len(line))
        if not line:
            del self._of[job.peer]

    def newest_of_most(self) -> J:
        """The newest job of the connection with most of them, of equal ones that which has had so many for longest."""
        return next(reversed(self._of[next(iter(self._by_length[-1]))]))

    def _has(self, peer: object, before: int, after: int) -> None:
        """Notes how many jobs a connection has."""
        if before:
            del self._by_length[before - 1][peer]
        if after > len(self._by_length):
            self._by_length.append({})
        if after:
            self._by_length[after - 1][peer] = None
        while self._by_length and not self._by_length[-1]:
            self._by_length.pop()


class FairSlots(Generic[J]):
    """The slots, and the queue of the jobs that wait for one: at most `most_queued`."""

    def __init__(self, slots: int, most_queued: int = sys.maxsize) -> None:
        self.slots = slots
        self.running: dict[J, None] = {}  # jobs that have a slot, in the order in which they got it
        self.queue: list[tuple[JobTurn, J]] = []  # jobs that wait, sorted
        self._lines: dict[int, _Lines[J]] = defaultdict(_Lines)  # the same jobs, by rank
        self._most_queued = most_queued
        self._order = itertools.count()  # among jobs of equal finish, the earlier one is first
        self._virtual_time = 0.0  # bytes
        self._finishes: dict[object, float] = {}  # by connection, that of its last job

    @property
    def free(self) -> int:
        """The slots that no job has; if there are any, no job waits."""
        return self.slots - len(self.running)

    def join(self, job: J) -> J | None:
        """Gives a job a free slot, or has it wait for one; returns the job to refuse, as too many wait, else None.

        That is the newest job of the connection that has most of them, among the connections of the highest rank. It
        may be the job itself. It has left then.
        """
        # In virtual time, it begins now, or when the last job of its connection is done; it takes its cost.
        finish = max(self._virtual_time, self._finishes.get(job.peer, 0.0)) + job.cost
        self._finishes[job.peer] = finish
        # Where others of its connection left, those after them keep their turns, and it stays behind these.
        last = next((last.turn[1] for last in reversed(self._lines[job.rank].of(job.peer))), 0.0)
        job.turn = (job.rank, max(finish, last), next(self._order))
        if len(self.running) < self.slots:  # so no job waits
            self._begin(job)
            return None
        self._enqueue(job)
        if len(self.queue) <= self._most_queued:
            return None
        refused = self._lines[self.queue[-1][0][0]].newest_of_most()
        self.leave(refused)
        return refused

    def leave(self, job: J, handled: float | None = None) -> None:
        """Takes the slot of a job back, or removes it from those that wait; does nothing if it has left before.

        `handled`: the bytes that it really had, with which its connection is charged; None: those of its cost.
        """
        if job in self.running:
            del self.running[job]
            if handled is not None:
                self._finishes[job.peer] = self._finishes.get(job.peer, 0.0) + handled - job.cost
            while self.queue and len(self.running) < self.slots:
                job = self.queue[0][1]
                self._remove(job)
                self._begin(job)
            if not self.running:  # nothing waits: begin anew
                self._finishes.clear()
                self._virtual_time = 0.0
            return
        if self._remove(job):
            self._refund(job)

    def set_rank(self, peer: object, rank: int) -> None:
        """Gives the waiting jobs of a connection another rank; their order among each other stays."""
        waiting = [job for lines in self._lines.values() for job in lines.of(peer)]
        for job in sorted(waiting, key=lambda job: job.turn[2]):
            self._remove(job)
            job.turn = (rank, *job.turn[1:])
            self._enqueue(job)

    def _enqueue(self, job: J) -> None:
        """Adds a job to those that wait."""
        insort(self.queue, (job.turn, job))
        self._lines[job.turn[0]].add(job)

    def _remove(self, job: J) -> bool:
        """Removes a job from those that wait; returns False if it does not wait."""
        entry = (job.turn, job)
        index = bisect_left(self.queue, entry)
        if self.queue[index : index + 1] != [entry]:
            return False
        del self.queue[index]
        self._lines[job.turn[0]].remove(job)
        return True

    def _refund(self, job: J) -> None:
        """Takes back what a connection was charged for a job that had no slot."""
        if job.peer in self._finishes:
            self._finishes[job.peer] -= job.cost

    def _begin(self, job: J) -> None:
        """Gives a free slot to a job; if that cannot begin, it has left, and the slot is free."""
        if job.begin():
            # All that wait or have a slot share the time of these bytes; or the jobs of one connection follow another.
            share = job.cost / (len(self.queue) + self.slots)
            self._virtual_time = max(self._virtual_time + share, job.turn[1] - job.cost)
            self.running[job] = None
        else:
            self._refund(job)
        if len(self._finishes) > _MOST_PEERS:
            now = self._virtual_time
            self._finishes = {peer: finish for peer, finish in self._finishes.items() if finish > now}

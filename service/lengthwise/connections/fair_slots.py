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
from collections import Counter
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


class FairSlots(Generic[J]):
    """The slots, and the queue of the jobs that wait for one: at most `most_queued`."""

    def __init__(self, slots: int, most_queued: int = sys.maxsize) -> None:
        self.slots = slots
        self.running: dict[J, None] = {}  # jobs that have a slot, in the order in which they got it
        self.queue: list[tuple[JobTurn, J]] = []  # jobs that wait, sorted
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
        job.turn = (job.rank, finish, next(self._order))
        if len(self.running) < self.slots:  # so no job waits
            self._begin(job)
            return None
        insort(self.queue, (job.turn, job))
        if len(self.queue) <= self._most_queued:
            return None
        refused = self._newest_of_most(job)
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
                self._begin(self.queue.pop(0)[1])
            if not self.running:  # nothing waits: begin anew
                self._finishes.clear()
                self._virtual_time = 0.0
            return
        entry = (job.turn, job)
        index = bisect_left(self.queue, entry)
        if self.queue[index : index + 1] == [entry]:
            del self.queue[index]

    def set_rank(self, peer: object, rank: int) -> None:
        """Gives the waiting jobs of a connection another rank; their order among each other stays."""
        for job in [job for _, job in self.queue if job.peer == peer]:
            self.leave(job)
            job.turn = (rank, *job.turn[1:])
            insort(self.queue, (job.turn, job))

    def _begin(self, job: J) -> None:
        """Gives a free slot to a job; if that cannot begin, it has left, and the slot is free."""
        # All that wait or have a slot share the time of these bytes; or the jobs of one connection follow another.
        share = job.cost / (len(self.queue) + self.slots)
        self._virtual_time = max(self._virtual_time + share, job.turn[1] - job.cost)
        if job.begin():
            self.running[job] = None
        if len(self._finishes) > _MOST_PEERS:
            now = self._virtual_time
            self._finishes = {peer: finish for peer, finish in self._finishes.items() if finish > now}

    def _newest_of_most(self, newest: J) -> J:
        """The newest waiting job of the connection with most of them, among those of the highest rank.

        Among connections with equally many, that of `newest` is the last to be chosen.
        """
        highest_rank = self.queue[-1][0][0]
        of_peer = Counter(job.peer for turn, job in self.queue if turn[0] == highest_rank)
        longest = max(of_peer, key=lambda peer: (of_peer[peer], peer != newest.peer))
        return max((turn[2], job) for turn, job in self.queue if job.peer == longest)[1]

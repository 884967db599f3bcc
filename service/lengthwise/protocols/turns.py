"""The slots in which large bodies are inflated and decoded in threads, and whose turn is next.

There are few slots, and reading a body may take most of a second. So those that wait are served by fair queueing
(Demers, Keshav and Shenker, SIGCOMM 1989): as if one byte of each connection were read in turn, the body that would be
read first comes first. A short body therefore waits for those that are being read, and not behind all the long ones; a
long one waits for no more bytes of any other connection than it has itself.

A body that will not be read before its deadline is refused as soon as that is seen: when it comes, and again at some
moments of its first half. How long reading takes is measured; before the first body is read, those that are being read
show how long it takes at least.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from lengthwise.errors import DeadlineExceeded

# Bodies that are decoded in threads at the same time. The validating reader may need forty times a body's size.
LARGE_BODIES_AT_ONCE: Final = 2
_MOST_PEERS: Final = 1024  # whose shares are kept; beyond, those are dropped that have no debt
_DECAY: Final = 0.9  # share of the older measurements in the rate of reading, at each further body
# When a body that waits is looked at whether it still may be read in time, in shares of the time that it has.
_LOOKS: Final = (1 / 8, 1 / 4, 3 / 8, 1.0)


class Turns:
    """The slots for large bodies."""

    def __init__(self, slots: int = LARGE_BODIES_AT_ONCE) -> None:
        self.free = slots
        self.waiting = 0  # bodies that wait for a slot
        self._slots = slots
        self._queue: list[tuple[float, int, int, asyncio.Future[None]]] = []  # finish, order, size, slot
        self._order = itertools.count()
        self._virtual_time = 0.0  # of fair queuing: bytes that each connection could have had read
        self._finishes: dict[object, float] = {}  # of each connection's last body, in virtual time
        self._read_bytes = self._read_seconds = 0.0
        self._reading: dict[int, tuple[int, float]] = {}  # bodies that have a slot: their size, and since when

    @asynccontextmanager
    async def turn(self, peer: object, size: int, until: float, *, certain: bool = False) -> AsyncIterator[None]:
        """One of the slots, as soon as it is the turn of a body of about `size` bytes when inflated.

        `peer` is equal for the bodies of one connection. Raises `DeadlineExceeded` if its turn does not come `until`
        then, by `time.monotonic`; if that is `certain`, because the answer is of no use after it, already when it is
        seen that it will not.
        """
        finish = self._finishes[peer] = max(self._virtual_time, self._finishes.get(peer, 0.0)) + size
        if self.free and not self.waiting:
            self.free -= 1
        else:
            await self._wait(finish, size, until, certain=certain)
        began, number = time.monotonic(), next(self._order)
        self._reading[number] = size, began
        try:
            yield
        finally:
            del self._reading[number]
            self._read_bytes = _DECAY * self._read_bytes + size
            self._read_seconds = _DECAY * self._read_seconds + time.monotonic() - began
            self.release()

    def predicted_seconds(self, turn: tuple[float, int] = (float("inf"), 0), size: int = 0) -> float:
        """Predicted seconds until a body of `size` bytes, with this (virtual finish time, order), is read.

        That is the time of the bodies that are being read, of those whose turn comes before, and its own.
        """
        now = time.monotonic()
        running = [(body_bytes, now - began) for body_bytes, began in self._reading.values()]
        if self._read_bytes:
            rate = self._read_seconds / self._read_bytes
        else:
            rate = sum(seconds for _, seconds in running) / max(1, sum(body_bytes for body_bytes, _ in running))
        earlier = [waiting for waiting in self._queue if waiting[:2] < turn and not waiting[3].done()]
        ahead = rate * sum(body_bytes for _, _, body_bytes, _ in earlier)
        ahead += sum(max(0.0, body_bytes * rate - seconds) for body_bytes, seconds in running)
        return ahead / self._slots + size * rate

    async def _wait(self, finish: float, size: int, until: float, *, certain: bool) -> None:
        """Waits for a slot, with this virtual finish time.

        Raises:
            DeadlineExceeded: There was none until then; or, if the deadline is `certain`, there will be none.
        """
        turn, began = (finish, next(self._order)), time.monotonic()
        slot: asyncio.Future[None] | None = None
        try:
            for look in _LOOKS if certain else (1.0,):
                if certain and (needed := self.predicted_seconds(turn, size)) > until - time.monotonic():
                    raise DeadlineExceeded(
                        f"the deadline cannot be met: it takes about {needed:.1f} s to read this body"
                    )
                if slot is None:
                    slot = asyncio.get_running_loop().create_future()
                    heapq.heappush(self._queue, (*turn, size, slot))
                    self.waiting += 1
                await asyncio.wait((slot,), timeout=max(0.0, began + look * (until - began) - time.monotonic()))
                if slot.done():
                    return
            raise DeadlineExceeded("the deadline passed before the body could be read")
        except BaseException:
            if slot is not None and not slot.cancel():
                self.release()  # it became free at the same moment
            raise
        finally:
            self.waiting -= slot is not None

    def release(self) -> None:
        """Gives a slot back: to the body whose turn is next."""
        while self._queue:
            _, _, size, slot = heapq.heappop(self._queue)
            if not slot.done():
                # Shared by the bodies that are read and those that wait, of which `waiting` still counts this one
                self._virtual_time += size / (self.waiting + self._slots - 1)
                slot.set_result(None)
                break
        else:
            self.free += 1
        if self.free == self._slots:
            self._finishes.clear()
            self._virtual_time = 0.0
        elif len(self._finishes) > _MOST_PEERS:
            self._finishes = {peer: finish for peer, finish in self._finishes.items() if finish > self._virtual_time}

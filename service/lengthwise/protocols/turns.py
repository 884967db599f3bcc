"""The slots in which large bodies are inflated and decoded in threads, and whose turn is next.

There are few slots, and reading a body may take most of a second. So the bodies that wait are served by fair queueing
(Demers, Keshav and Shenker, SIGCOMM 1989): as if one byte of each connection were read in turn, the body that would be
read first comes first. A short body therefore waits for those that are being read, but not for all the long ones; a
long body waits for no more bytes of any other connection than it has itself. When a body would be read is its *finish*,
in *virtual time*: the bytes that every busy connection could have had read until then.

A body that will not be read before its deadline is refused as soon as that is predicted: when it comes, and again at
some moments of its first half. The time of reading is measured; before the first body is read, the bodies that are
being read show how long it takes at least.

*To read* a body is to inflate and decode it, in a slot. The *turn* of a waiting body is (its finish, its order of
arrival): the smallest turn gets the next free slot.

How large a compressed body is, nobody knows before it is inflated, and what its sender says of it may be a lie. So it
waits with a size that is believed (`believed_bytes`). If it has more bytes, it gives its slot back before it is
decoded, and waits again with a larger size. That size only orders the bodies. Most bodies have fewer bytes, so the end
is predicted by a *likely* size.

Small bodies are decoded on the event loop, and most take much less than a millisecond. One with many sequences takes
several, as each sequence is queued by itself. So the sequences of such bodies are counted (`count_at_once`): after
`MOST_AT_ONCE` of them in one turn of the event loop, further bodies of that turn wait for a slot, too.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from lengthwise.errors import DeadlineExceeded
from lengthwise.protocols.body import ClientLeft

# Bodies that are decoded in threads at the same time. The validating reader may need forty times a body's size.
LARGE_BODIES_AT_ONCE: Final = 2
_MOST_PEERS: Final = 1024  # connections whose finish is kept; beyond, only finishes in the future are kept
_DECAY: Final = 0.9  # weight of the older measurements of reading, at each further one
_GROWTH: Final = 10  # of the size of a body, when it is inflated: least that is believed
MANY_SEQUENCES: Final = 32  # of one body, from which on they are counted
MOST_AT_ONCE: Final = 512  # counted sequences of one turn of the event loop, which take 2 ms
# When it is predicted again whether a waiting body will be read in time, in shares of the time that it has.
_LOOKS: Final = (1 / 8, 1 / 4, 3 / 8, 1.0)


@dataclass(slots=True, eq=False)
class BodyReading:
    """A body that has a slot.

    Its reader sets `size` as soon as it is known for certain; to 0 if the body gives the slot back and waits again.
    """

    size: int  # in bytes, inflated; at first the likely one
    began: float  # in seconds of `time.monotonic`


def believed_bytes(least_bytes: int, max_bytes: int, promised_bytes: int = 0) -> int:
    """The size with which a compressed body waits for its turn, at most `max_bytes`.

    Args:
        least_bytes: How many bytes it has, as it came; or the size with which it waited before, which was too small.
        max_bytes: Most that a body may have.
        promised_bytes: What its sender says, or its beginning promises; under ten times `least_bytes` it is no matter.
    """
    return min(max(_GROWTH * least_bytes, promised_bytes), max_bytes)


class Turns:
    """The slots for large bodies, and the queue of the bodies that wait for one."""

    def __init__(self, slots: int = LARGE_BODIES_AT_ONCE) -> None:
        self.free = slots  # slots that nobody has
        self.waiting = 0  # bodies that wait for a slot
        self._slots = slots
        # A heap of (finish, order, size, likely size, slot)
        self._queue: list[tuple[float, int, int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()  # among bodies of equal finish, the earlier one is first
        self._virtual_time = 0.0  # bytes
        self._finishes: dict[object, float] = {}  # by connection, that of its last body
        self._read_bytes = self._read_seconds = 0.0  # sums over the bodies so far, older ones with less weight
        self._reading: set[BodyReading] = set()
        self.at_once = 0  # sequences that were counted in this turn of the event loop

    def count_at_once(self, sequences: int) -> None:
        """Counts the `MANY_SEQUENCES` or more of a body that was decoded on the event loop, until its next turn."""
        if not self.at_once:
            asyncio.get_running_loop().call_soon(setattr, self, "at_once", 0)
        self.at_once += sequences

    @asynccontextmanager
    async def turn(
        self,
        peer: object,
        size: int,
        deadline: float,
        *,
        likely: int | None = None,
        certain: bool = False,
        slot: asyncio.Future[None] | None = None,
    ) -> AsyncIterator[BodyReading]:
        """Waits for a slot, and has it for the time of the block, in which the caller reads a body.

        Args:
            peer: The connection of the body; equal for all bodies of one connection.
            size: How many bytes the body has when it is inflated, as far as that is known. It orders the bodies.
            likely: The same, for predicting the end, where `size` is rather too large.
            deadline: Seconds of `time.monotonic`. `DeadlineExceeded` is raised if the turn does not come before.
            certain: Whether the caller set the deadline, so that a later answer is of no use to it. Then
                `DeadlineExceeded` is raised as soon as it is predicted that the body will not be read in time.
            slot: A new future, which is done when a body that waits has its slot. Cancel it if the client leaves.

        Raises:
            ClientLeft: `slot` was cancelled while the body waited.
        """
        likely = size if likely is None else likely
        # In virtual time, the body begins now, or when the last body of its connection is finished; it takes its size.
        finish = self._finishes[peer] = max(self._virtual_time, self._finishes.get(peer, 0.0)) + size
        if self.free:  # so no body waits: `release` would have given it the slot
            self.free -= 1
        else:
            slot = slot or asyncio.get_running_loop().create_future()
            await self._wait(finish, (size, likely), deadline, slot, certain=certain)
            if slot.cancelled():
                raise ClientLeft
        reading = BodyReading(likely, time.monotonic())
        self._reading.add(reading)
        try:
            yield reading
            if reading.size:  # what fails may do so early: how long it took says nothing of bodies that are read
                self._read_bytes = _DECAY * self._read_bytes + reading.size
                self._read_seconds = _DECAY * self._read_seconds + time.monotonic() - reading.began
        finally:
            self._reading.remove(reading)
            if reading.size:  # the bytes that it really has
                self._finishes[peer] = self._finishes.get(peer, 0.0) + reading.size - size
            self.release()

    def predicted_seconds(self, turn: tuple[float, int] = (float("inf"), 0), size: int = 0) -> float:
        """Predicts the seconds until a body of `size` likely bytes is read, whose turn is (finish, order).

        They are the time of the bodies that are being read, of the waiting ones whose turn is earlier, and its own.
        Without arguments: the seconds until every body that is here now is read.
        """
        now = time.monotonic()
        running = [(reading.size, now - reading.began) for reading in self._reading]
        # Seconds a byte: as measured, or at least what the bodies that are being read have taken so far.
        if self._read_bytes:
            seconds_per_byte = self._read_seconds / self._read_bytes
        else:
            running_bytes = sum(body_bytes for body_bytes, _ in running)
            seconds_per_byte = sum(seconds for _, seconds in running) / max(1, running_bytes)
        earlier = [waiting for waiting in self._queue if waiting[:2] < turn and not waiting[4].done()]
        seconds_before = seconds_per_byte * sum(body_bytes for _, _, _, body_bytes, _ in earlier)
        seconds_before += sum(max(0.0, body_bytes * seconds_per_byte - seconds) for body_bytes, seconds in running)
        return seconds_before / self._slots + size * seconds_per_byte

    async def _wait(
        self, finish: float, sizes: tuple[int, int], deadline: float, slot: asyncio.Future[None], *, certain: bool
    ) -> None:
        """Puts a body with this finish and these sizes (of `turn`) into the queue, and waits.

        It waits until `release` gives it the slot, or the slot is cancelled.

        Raises:
            DeadlineExceeded: No slot was free before the deadline; or, if the deadline is `certain`, it is predicted
                that the body will not be read in time. The body has left the queue then.
        """
        turn, began, is_waiting = (finish, next(self._order)), time.monotonic(), False
        try:
            # Up to each look (a share of the time that the body has) it waits; before each, the end is predicted again.
            for look in _LOOKS if certain else (1.0,):
                if certain and (needed := self.predicted_seconds(turn, sizes[1])) > deadline - time.monotonic():
                    raise DeadlineExceeded(
                        f"the deadline cannot be met: it takes about {needed:.1f} s to read this body"
                    )
                if not is_waiting:
                    heapq.heappush(self._queue, (*turn, *sizes, slot))
                    self.waiting += 1
                    is_waiting = True
                await asyncio.wait((slot,), timeout=max(0.0, began + look * (deadline - began) - time.monotonic()))
                if slot.done():
                    return
            raise DeadlineExceeded("the deadline passed before the body could be read")
        except BaseException:
            if is_waiting and not slot.cancel() and not slot.cancelled():  # it was given to this body at that moment
                self.release()
            raise
        finally:
            self.waiting -= is_waiting

    def release(self) -> None:
        """Takes a slot back: gives it to the waiting body whose turn is next, or counts it as free.

        Also moves the virtual time on, and forgets connections all of whose bodies are read.
        """
        while self._queue:
            _, _, size, _, slot = heapq.heappop(self._queue)
            if not slot.done():
                # The connections of all waiting bodies (`waiting` still counts this one) and of the other slots share
                # the time in which these bytes are read.
                self._virtual_time += size / (self.waiting + self._slots - 1)
                slot.set_result(None)
                break
        else:  # no body waits
            self.free += 1
        if self.free == self._slots:  # nothing is read and nothing waits: begin anew
            self._finishes.clear()
            self._virtual_time = 0.0
        elif len(self._finishes) > _MOST_PEERS:
            self._finishes = {peer: finish for peer, finish in self._finishes.items() if finish > self._virtual_time}

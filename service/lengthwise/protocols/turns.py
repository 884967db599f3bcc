"""The slots in which large bodies are inflated and decoded in threads, and how long a body waits for one.

Whose turn is next is decided by fair queueing (`connections.fair_slots`). A body that will not be read before its
deadline is refused as soon as that is predicted: when it comes, and again at some moments of its first half. *To read*
a body is to inflate and decode it, in a slot. The seconds of a byte are measured for each kind of work by itself: a
message of gRPC is inflated or decoded much faster than JSON. Before the first body of a kind is read, those that are
being read show how long it takes at least.

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
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from lengthwise.connections.fair_slots import FairSlots, Job
from lengthwise.errors import DeadlineExceeded
from lengthwise.protocols.body import ClientLeft

# Bodies that are decoded in threads at the same time. The validating reader may need forty times a body's size.
LARGE_BODIES_AT_ONCE: Final = 2
_DECAY: Final = 0.9  # weight of the older measurements of reading, at each further one
_GROWTH: Final = 10  # of the size of a body, when it is inflated: least that is believed
MANY_SEQUENCES: Final = 32  # of one body, from which on they are counted
MOST_AT_ONCE: Final = 512  # counted sequences of one turn of the event loop, which take 2 ms
# When it is predicted again whether a waiting body will be read in time, in shares of the time that it has.
_LOOKS: Final = (1 / 8, 1 / 4, 3 / 8, 1.0)


class BodyReading(Job):
    """A body that waits for a slot, or is being read.

    Its reader sets `size` as soon as it is known for certain; to 0 if the body gives the slot back and waits again.
    """

    def __init__(self, peer: object, cost: int, size: int, work: str, slot: asyncio.Future[None]) -> None:
        super().__init__(peer, cost)
        self.size = size  # in bytes, inflated; at first the likely one
        self.work = work  # the kind of work: bodies of one kind take equally long for a byte
        self.slot = slot  # done when it has its slot
        self.began = 0.0  # when it got its slot, in seconds of `time.monotonic`

    def begin(self) -> bool:
        """Has its reader begin; False if the reader waits no longer."""
        if self.slot.done():
            return False
        self.slot.set_result(None)
        self.began = time.monotonic()
        return True


def believed_bytes(least_bytes: int, max_bytes: int, promised_bytes: int = 0) -> int:
    """The size with which a compressed body waits for its turn, at most `max_bytes`.

    Args:
        least_bytes: How many bytes it has, as it came; or the size with which it waited before, which was too small.
        max_bytes: Most that a body may have.
        promised_bytes: What its sender says, or its beginning promises; under ten times `least_bytes` it is no matter.
    """
    return min(max(_GROWTH * least_bytes, promised_bytes), max_bytes)


class Turns(FairSlots[BodyReading]):
    """The slots for large bodies, and the queue of the bodies that wait for one."""

    def __init__(self, slots: int = LARGE_BODIES_AT_ONCE) -> None:
        super().__init__(slots)
        self.waiting = 0  # bodies whose readers wait for a slot, or have not noticed yet that they have one
        self.at_once = 0  # sequences that were counted in this turn of the event loop
        # By the kind of work, the bytes and the seconds of the bodies that were read, older ones with less weight
        self.rates: dict[str, tuple[float, float]] = {}

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
        work: str = "",
        likely: int | None = None,
        certain: bool = False,
        slot: asyncio.Future[None] | None = None,
    ) -> AsyncIterator[BodyReading]:
        """Waits for a slot, and has it for the time of the block, in which the caller reads a body.

        Args:
            peer: The connection of the body; equal for all bodies of one connection.
            size: How many bytes the body has when it is inflated, as far as that is known. It orders the bodies.
            deadline: Seconds of `time.monotonic`. `DeadlineExceeded` is raised if the turn does not come before.
            work: The kind of work, whose seconds a byte are measured.
            likely: The bytes of the body, for predicting the end, where `size` is rather too large.
            certain: Whether the caller set the deadline, so that a later answer is of no use to it. Then
                `DeadlineExceeded` is raised as soon as it is predicted that the body will not be read in time.
            slot: A new future, which is done when a body that waits has its slot. Cancel it if the client leaves.

        Raises:
            ClientLeft: `slot` was cancelled while the body waited.
        """
        slot = slot or asyncio.get_running_loop().create_future()
        reading = BodyReading(peer, size, size if likely is None else likely, work, slot)
        self.join(reading)
        try:
            if not slot.done():
                await self._wait(reading, deadline, certain=certain)
            if slot.cancelled():
                raise ClientLeft
            yield reading
            if reading.size:  # what fails may do so early: how long it took says nothing of bodies that are read
                read, seconds = self.rates.get(work, (0.0, 0.0))
                seconds = _DECAY * seconds + time.monotonic() - reading.began
                self.rates[work] = _DECAY * read + reading.size, seconds
        finally:
            self.leave(reading, reading.size or None)

    def predicted_seconds(self, body: BodyReading | None = None) -> float:
        """Predicts the seconds until a waiting body is read; without one, until every body that is here now is read.

        They are the time of the bodies that are being read, of the waiting ones whose turn is earlier, and its own.
        """
        now = time.monotonic()
        seconds = sum(self._seconds(job) for turn, job in self.queue if body is None or turn < body.turn)
        seconds += sum(max(0.0, self._seconds(reading) - (now - reading.began)) for reading in self.running)
        return seconds / self.slots + (0.0 if body is None else self._seconds(body))

    def _seconds(self, body: BodyReading) -> float:
        """How long it takes to read a body, by what was measured of its kind of work.

        Before that, it is what the bodies of this kind that are being read have taken so far: it takes that at least.
        """
        alike, now = [reading for reading in self.running if reading.work == body.work], time.monotonic()
        so_far = sum(reading.size for reading in alike), sum(now - reading.began for reading in alike)
        size, seconds = self.rates.get(body.work, so_far)
        return body.size * seconds / max(1.0, size)

    async def _wait(self, body: BodyReading, deadline: float, *, certain: bool) -> None:
        """Waits until a body has its slot, or the slot is cancelled.

        Raises:
            DeadlineExceeded: No slot was free before the deadline; or, if the deadline is `certain`, it is predicted
                that the body will not be read in time.
        """
        began = time.monotonic()
        self.waiting += 1
        try:
            # Up to each look (a share of the time that the body has) it waits; before each, the end is predicted again.
            for look in _LOOKS if certain else (1.0,):
                if certain and (needed := self.predicted_seconds(body)) > deadline - time.monotonic():
                    raise DeadlineExceeded(
                        f"the deadline cannot be met: it takes about {needed:.1f} s to read this body"
                    )
                await asyncio.wait((body.slot,), timeout=max(0.0, began + look * (deadline - began) - time.monotonic()))
                if body.slot.done():
                    return
            raise DeadlineExceeded("the deadline passed before the body could be read")
        finally:
            self.waiting -= 1

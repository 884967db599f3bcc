"""When a message over gRPC may be received: its size is not known before, so room is kept for the largest.

gRPC hands over whole messages only. Few are received at once, each with room for the largest in hand
(`inflight`), which is given back but for its true size when it is there; the others wait unread, where HTTP/2
lets their callers send no more than a window. A message that was sent with its call, as nearly all are, is there in the
next turn of the event loop. One whose caller takes his time goes on only while nobody waits behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from lengthwise.errors import DeadlineExceeded
from lengthwise.inflight import Hold, Inflight

SHARE: Final = 2
"""One part of so many of the bound may be kept for messages that are being received."""
PATIENCE_SECONDS: Final = 2.0
"""How long the others wait behind slow messages before these are refused."""


class Receiving:
    """The messages that are being received.

    Args:
        inflight: Where room is kept for them.
        max_bytes: The largest message.
    """

    def __init__(self, inflight: Inflight, max_bytes: int) -> None:
        self._room = 2 * max_bytes  # for gRPC's own copy, and for the one that it makes of that for Python
        self._places = asyncio.Semaphore(max(1, inflight.max_bytes // SHARE // self._room))
        self._begun: dict[asyncio.Timeout, float] = {}
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def one(self, hold: Hold, deadline: float) -> AsyncIterator[None]:
        """Room for one message, to be received while the block runs; `hold` goes on to hold that room.

        Args:
            hold: The call's.
            deadline: How long to wait for room and for the message, on the clock of `time.monotonic`.

        Raises:
            InflightFull: There is no room now.
            DeadlineExceeded: The deadline passed, or the message came slowly and others waited behind it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline - time.monotonic()
        try:
            async with asyncio.timeout_at(until):
                await self._place()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the message could be received") from None
        try:
            hold.set(self._room)
            async with asyncio.timeout_at(until) as receiving:
                self._begun[receiving] = loop.time()
                try:
                    yield
                finally:
                    del self._begun[receiving]
        except TimeoutError:
            raise DeadlineExceeded("the message did not come in time") from None
        finally:
            self._places.release()

    async def _place(self) -> None:
        """Waits for one of the places; while anybody does, slow messages are refused."""
        if not self._places.locked():
            await self._places.acquire()
            return
        self._waiting += 1
        if self._timer is None:
            self._hurry()
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    def _hurry(self) -> None:
        """Ends what has been received for longer than the others' patience, and looks again while anybody waits."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for receiving, began in self._begun.items():
            if began <= now - PATIENCE_SECONDS:
                receiving.reschedule(now)
        if self._waiting:
            self._timer = loop.call_later(PATIENCE_SECONDS / 4, self._hurry)

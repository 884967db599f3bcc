"""Decides when a gRPC message may be received: its size is not known before, so memory is reserved for the largest.

gRPC delivers whole messages only. Few are received at once, each with memory for the largest one reserved (`inflight`),
of which all but its real size is given back when it has arrived. The others wait unread; HTTP/2 lets their clients send
no more than a window. A message that was sent together with its call, as nearly all are, arrives in the next turn of
the event loop. A slow one is received only as long as no other waits.
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
"""The share of the memory for all calls that may be reserved for messages being received is 1 / `SHARE`."""
PATIENCE_SECONDS: Final = 2.0
"""How long a message may take to arrive while others wait."""


class Receiving:
    """The messages that are being received.

    Args:
        inflight: The memory for them is reserved here.
        max_bytes: The largest message.
    """

    def __init__(self, inflight: Inflight, max_bytes: int) -> None:
        self._reserved_bytes = 2 * max_bytes  # gRPC's own copy, and the copy for Python
        self._free = asyncio.Semaphore(max(1, inflight.max_bytes // SHARE // self._reserved_bytes))
        self._began_at: dict[asyncio.Timeout, float] = {}
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def one(self, hold: Hold, deadline: float) -> AsyncIterator[None]:
        """Reserves memory for one message, which is received while the block runs; `hold` keeps it afterwards.

        Args:
            hold: The bytes of the call.
            deadline: Until when to wait for the turn and for the message, on the clock of `time.monotonic`.

        Raises:
            InflightFull: There is no memory for it now.
            DeadlineExceeded: The deadline passed, or the message was slow and others waited.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline - time.monotonic()
        try:
            async with asyncio.timeout_at(until):
                await self._take_turn()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the message could be received") from None
        try:
            hold.set(self._reserved_bytes)
            async with asyncio.timeout_at(until) as receiving:
                self._began_at[receiving] = loop.time()
                try:
                    yield
                finally:
                    del self._began_at[receiving]
        except TimeoutError:
            raise DeadlineExceeded("the message did not come in time") from None
        finally:
            self._free.release()

    async def _take_turn(self) -> None:
        """Waits until another message may be received; while any waits, slow messages are refused."""
        if not self._free.locked():
            await self._free.acquire()
            return
        self._waiting += 1
        if self._timer is None:
            self._end_slow()
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1

    def _end_slow(self) -> None:
        """Ends messages that take longer than `PATIENCE_SECONDS`, and checks again later while others wait."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for receiving, began in self._began_at.items():
            if began <= now - PATIENCE_SECONDS:
                receiving.reschedule(now)
        if self._waiting:
            self._timer = loop.call_later(PATIENCE_SECONDS / 4, self._end_slow)

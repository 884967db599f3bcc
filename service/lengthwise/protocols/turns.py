"""The places where large bodies are inflated and decoded in threads, and whose turn is next.

There are few places, and reading a body may take most of a second. So those that wait are served by fair queueing
(Demers, Keshav and Shenker, SIGCOMM 1989): as if one byte of each connection were read in turn, the body that would be
read first comes first. A short body therefore waits for those that are being read, and not behind all the long ones; a
long one waits for no more bytes of any other connection than it has itself.

A body names its deadline itself (`timeout_ms`), and the default holds only for one that names none. So a body that
waits to be read is not ended by the default while it may name a longer one (`patience`).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from lengthwise.decoding.calls import MAX_TIMEOUT_MS
from lengthwise.errors import DeadlineExceeded

if TYPE_CHECKING:
    from lengthwise.protocols.endpoint import Received

# Bodies that are decoded in threads at the same time. The validating reader may need forty times a body's size.
LARGE_BODIES_AT_ONCE: Final = 2
UNKNOWN_SECONDS: Final = 60.0  # that a body waits whose deadline is not known before, unless the default is longer
_MOST_PEERS: Final = 1024  # whose shares are kept; beyond, those are dropped that have no debt
_KEPT: Final = 0.9  # share of the older measurements in the rate of reading, at each further body
_NAME: Final = b"timeout"
# In JSON this can only be a key: a quotation mark within a text is written with a backslash before it.
_IN_JSON: Final = re.compile(rb'"timeout_ms"[ \t\r\n]*:[ \t\r\n]*([0-9]{1,20}(?:\.[0-9]{1,20})?)(?=[ \t\r\n,}])')
_IN_QUERY: Final = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,20}(?:\.[0-9]{1,20})?)(?=&|$)")


class Turns:
    """The places for large bodies."""

    def __init__(self, places: int = LARGE_BODIES_AT_ONCE) -> None:
        self.free = places
        self.waiting = 0  # bodies that wait for a place
        self._places = places
        self._queue: list[tuple[float, int, int, asyncio.Future[None]]] = []  # finish, order, size, place
        self._order = itertools.count()
        self._now = 0.0  # virtual time: bytes that each connection could have had read
        self._finishes: dict[object, float] = {}  # of each connection's last body, in virtual time
        self._read_bytes = self._read_seconds = 0.0

    @asynccontextmanager
    async def turn(self, peer: object, size: int, until: float, *, certain: bool = False) -> AsyncIterator[None]:
        """One of the places, as soon as it is the turn of a body of about `size` bytes when inflated.

        `peer` is equal for the bodies of one connection. Raises `DeadlineExceeded` if its turn does not come `until`
        then, by `time.monotonic`; if that is `certain`, because the answer is of no use after it, already when it is
        seen that it will not.
        """
        finish = self._finishes[peer] = max(self._now, self._finishes.get(peer, 0.0)) + size
        if self.free and not self.waiting:
            self.free -= 1
        else:
            await self._wait(finish, size, until, certain=certain)
        began = time.monotonic()
        try:
            yield
        finally:
            self._read_bytes = _KEPT * self._read_bytes + size
            self._read_seconds = _KEPT * self._read_seconds + time.monotonic() - began
            self.release()

    def predicted_seconds(self, finish: float = float("inf")) -> float:
        """How long a body waits whose finish this is: for the bytes of those whose turn comes before it."""
        ahead = sum(size for other, _, size, place in self._queue if other <= finish and not place.done())
        return ahead / self._places * self._read_seconds / self._read_bytes if self._read_bytes else 0.0

    async def _wait(self, finish: float, size: int, until: float, *, certain: bool) -> None:
        left = until - time.monotonic()
        if certain and (needed := self.predicted_seconds(finish)) > left:
            raise DeadlineExceeded(
                f"the deadline cannot be met: bodies that came before take about {needed:.1f} s to read"
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (finish, next(self._order), size, place))
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, left)):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self.release()  # it was given in the same moment
            place.cancel()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed before the body could be read") from None
            raise
        finally:
            self.waiting -= 1

    def release(self) -> None:
        """Gives a place back: to the body whose turn is next."""
        while self._queue:
            _, _, size, place = heapq.heappop(self._queue)
            if not place.done():
                self._now += size / (self.waiting + self._places - 1)
                place.set_result(None)
                break
        else:
            self.free += 1
        if self.free == self._places:
            self._finishes.clear()
            self._now = 0.0
        elif len(self._finishes) > _MOST_PEERS:
            self._finishes = {peer: finish for peer, finish in self._finishes.items() if finish > self._now}


def patience(request: Received | None, default_seconds: float) -> tuple[float, bool]:
    """How long a body may wait to be read, in seconds from its arrival, and whether its caller says so.

    There is no request if its body is not inflated yet. A caller that does not say how long waits `default_seconds`.
    """
    unknown = max(default_seconds, UNKNOWN_SECONDS), False
    if request is None:
        return unknown
    if _NAME not in request.query and _NAME not in request.body:
        return default_seconds, False
    named = _IN_QUERY.findall(request.query) or _IN_JSON.findall(request.body)
    if len(named) != 1 or not float(named[0]):
        return unknown
    return min(float(named[0]), MAX_TIMEOUT_MS) / 1000, True

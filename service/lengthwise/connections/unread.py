"""How long bytes may stay unread: a client that does not take its answers is cut off.

What was written stays in memory, and its connection in its place, until the client has taken it. A client gets a
bounded time, and every kibibyte that it takes gives it back a second; so one that reads slowly keeps its connection,
and one that does not read loses it. What the kernel holds counts as not taken, where the system tells.
"""

from __future__ import annotations

import array
import asyncio
from collections.abc import Callable
from typing import Final

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # no such call here: what the kernel took counts as taken
    ioctl = None  # type: ignore[assignment]

MIN_READ_BYTES_PER_SECOND: Final = 1024
PATIENCE_SECONDS: Final = 20.0
"""The longest that a client may take nothing at all."""
_LOOKS: Final = 4
"""How often it is looked at in that time."""


def unread_bytes(transport: asyncio.Transport) -> int:
    """What was written and not taken: in the transport, and in the kernel where that can be asked."""
    size = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is None or ioctl is None:
        return size
    queued = array.array("i", [0])
    try:
        ioctl(connection.fileno(), TIOCOUTQ, queued)
    except OSError:
        return size
    return size + queued[0]


class UnreadWatch:
    """Watches one connection that has unread bytes, and calls back once its client took too little for too long.

    Args:
        loop: Where it runs.
        transport: The connection's.
        too_slow: Called once.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, too_slow: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._too_slow = too_slow
        self._patience = self._left = 0.0
        self._unread = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, patience_seconds: float) -> None:
        """Watches from now on; one that watches already goes on."""
        if self._timer is not None:
            return
        self._patience = self._left = patience_seconds
        self._unread = unread_bytes(self._transport)
        self._timer = self._loop.call_later(self._patience / _LOOKS, self._look)

    def stop(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        unread = unread_bytes(self._transport)
        taken = max(0, self._unread - unread)
        self._unread = unread
        period = self._patience / _LOOKS
        self._left = min(self._patience, self._left + taken / MIN_READ_BYTES_PER_SECOND) - period
        if self._left > 0:
            self._timer = self._loop.call_later(period, self._look)
        else:
            self._timer = None
            self._too_slow()

"""How long answers may stay unread: a client that does not read its answers is disconnected.

Answers stay in memory until the client reads them, so a client gets a limited time (*patience*), and a second more with
every kibibyte that it reads. Bytes in the kernel's buffer count as unread, where the system reports them.
"""

from __future__ import annotations

import array
import asyncio
import termios
from collections.abc import Callable
from fcntl import ioctl
from typing import Final

MIN_READ_BYTES_PER_SECOND: Final = 1024
PATIENCE_SECONDS: Final = 20.0  # for which a client may read nothing at all
_LOOKS: Final = 4  # checks in this time


def unread_bytes(transport: asyncio.Transport) -> int:
    """The bytes that were written and not read: in the transport, and in the kernel where the system reports that."""
    return transport.get_write_buffer_size() + _in_kernel(transport, "TIOCOUTQ")


def has_arrived(transport: asyncio.Transport) -> bool:
    """Whether bytes have arrived that the event loop has not read yet, where the system reports that."""
    return _in_kernel(transport, "FIONREAD") > 0


def _in_kernel(transport: asyncio.Transport, call: str) -> int:
    """The bytes in a socket's buffer in the kernel, by an ioctl (`TIOCOUTQ`, `FIONREAD`); 0 if they are not known."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return 0
    count = array.array("i", [0])
    try:
        ioctl(connection.fileno(), getattr(termios, call), count)
    except OSError:
        return 0
    return count[0]


class UnreadWatch:
    """Watches one connection that has unread bytes, and calls back once when its client reads too slowly."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, too_slow: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._too_slow = too_slow
        self._patience = self._seconds_left = 0.0  # seconds: at most, and now
        self._unread = 0  # bytes at the last look
        self._timer: asyncio.TimerHandle | None = None

    def start(self, patience_seconds: float) -> None:
        """Gives the client `patience_seconds` from now on; does nothing if it is watched already."""
        if self._timer is not None:
            return
        self._patience = self._seconds_left = patience_seconds
        self._unread = unread_bytes(self._transport)
        self._timer = self._loop.call_later(self._patience / _LOOKS, self._look)

    def stop(self) -> None:
        """Stops watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Adds time for the bytes read since the last look, and takes away the time that has passed.

        If none is left, calls `too_slow`.
        """
        unread = unread_bytes(self._transport)
        read_bytes = max(0, self._unread - unread)
        self._unread = unread
        period = self._patience / _LOOKS
        self._seconds_left = min(self._patience, self._seconds_left + read_bytes / MIN_READ_BYTES_PER_SECOND) - period
        if self._seconds_left > 0:
            self._timer = self._loop.call_later(period, self._look)
        else:
            self._timer = None
            self._too_slow()

"""When a connection is read from and written to: not read from while its client has answers to read."""

from __future__ import annotations

import asyncio
import socket


class Flow:
    """The flow control of one connection.

    Args:
        transport: The connection's.

    Attributes:
        read_paused: Whether reading is paused.
        write_paused: Whether the client has to read before more is written.
        discarding: What still arrives is dropped, so reading is not paused any more.
        resumed: Reading was paused and resumed since this was last set to False.
        behind: What was read is not parsed yet: nothing more is read until it is.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._writable: asyncio.Event | None = None  # made by the first that waits
        self.read_paused = False
        self.write_paused = False
        self.discarding = False
        self.resumed = False
        self.behind = False
        self._pauses = False  # whether reading is to be paused for another reason too

    def fall_behind(self) -> None:
        """Pauses reading until `catch_up`, whatever else pauses and resumes it."""
        self._pauses = self.read_paused
        self.pause_reading()
        self.behind = True

    def catch_up(self) -> None:
        """What was read is parsed."""
        self.behind = False
        if not self._pauses:
            self.resume_reading()

    def pause_reading(self) -> None:
        """Pauses reading."""
        if self.behind:
            self._pauses = True
        elif not self.discarding and not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resumes reading, unless the client has answers to read first."""
        if self.behind:
            self._pauses = False
        elif self.read_paused and not self.write_paused:
            self.resumed = True
            self._resume()

    def discard(self) -> None:
        """Reads from now on without pause, because what arrives is dropped.

        If a socket has unread bytes when it is closed, the connection is reset, and answers on their way are lost.
        """
        self.discarding = True
        self.behind = False
        self._resume()

    def end(self) -> None:
        """Called when the client sends no more: pausing and resuming then do nothing."""
        self.discarding = True
        self.read_paused = False

    def pause_writing(self) -> None:
        """The client does not read: `drain` waits, and nothing is read from it."""
        self.write_paused = True
        self.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again, or is gone."""
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    async def drain(self) -> None:
        """Waits until the client has read."""
        while self.write_paused:
            self._writable = self._writable or asyncio.Event()
            await self._writable.wait()

    def lost(self) -> bool:
        """Whether the client reset the connection while reading was paused, which asyncio does not notice.

        Such a connection ends here: the kernel reports a reset once, and the connection would stay open for ever.
        """
        if not self.read_paused:
            return False
        connection = self._transport.get_extra_info("socket")
        if connection is None or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            return False
        self._transport.abort()
        return True

    def _resume(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._transport.resume_reading()

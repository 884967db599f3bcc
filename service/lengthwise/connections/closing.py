"""How a connection ends without losing what was written.

When a socket with unread bytes is closed, the kernel resets the connection, which may overtake the answer written
before. So the server first ends its side, then reads and drops until the client has ended its own, or a limit is
reached (RFC 9112, 9.6). TLS has its own messages for this; a connection over it is closed as usual.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

LINGER_SECONDS: Final = 2.0  # that a client may take to end its side, once everything written was sent
LINGER_BYTES: Final = 16 * 1024 * 1024  # are dropped: a body refused by its headers is mostly on its way


def gently(transport: asyncio.Transport) -> asyncio.Transport:
    """A transport whose `close` first sends everything that was written."""
    return cast("asyncio.Transport", _Gentle(transport)) if transport.can_write_eof() else transport


class _Gentle:
    """A transport that closes in two steps; what is called for each request is the wrapped one's own, at no cost."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ending = False
        for name in ("write", "writelines", "is_closing", "get_extra_info", "pause_reading", "resume_reading"):
            setattr(self, name, getattr(transport, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Ends the connection once everything written was sent and the client has ended its side, or is too slow."""
        transport = self._transport
        if self._ending or transport.is_closing():
            return
        self._ending = True
        for name in ("write", "writelines", "pause_reading", "resume_reading"):
            setattr(self, name, lambda *_: None)
        self.is_closing = lambda: True
        transport.set_protocol(_Lingering(transport, cast("asyncio.Protocol", transport.get_protocol())))
        transport.write_eof()
        transport.resume_reading()


class _Lingering(asyncio.Protocol):
    """The protocol of a connection between the two steps; its own gets every event but the bytes."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._read = 0
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._is_late)

    def data_received(self, data: bytes) -> None:
        """Drops the bytes; closes the connection after `LINGER_BYTES` of them."""
        self._read += len(data)
        if self._read > LINGER_BYTES:
            self._transport.close()

    def eof_received(self) -> None:
        """The client has ended its side: the transport closes."""

    def pause_writing(self) -> None:
        """Called when the client does not read."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Called when the client reads again."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection has ended."""
        self._timer.cancel()
        self._protocol.connection_lost(exc)

    def _is_late(self) -> None:
        if self._transport.get_write_buffer_size():  # how long that may take is for `unread`
            self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._is_late)
        else:
            self._transport.close()

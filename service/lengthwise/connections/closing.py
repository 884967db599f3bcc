"""How a connection ends without losing what was written.

When a socket with unread bytes is closed, the kernel resets the connection, which may overtake the answer written
before. So the server closes in two steps (a lingering close, RFC 9112, 9.6): it ends its own side, and then reads and
drops until the client has ended its side, or a limit is reached. TLS has its own messages for this; a connection over
it is closed as usual.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

LINGER_SECONDS: Final = 2.0  # that a client may take to end its side, once everything written was sent
LINGER_BYTES: Final = 16 * 1024 * 1024  # dropped at most: a body refused by its headers is mostly on its way


def gently(transport: asyncio.Transport) -> asyncio.Transport:
    """A transport whose `close` first sends everything that was written; the same transport where that is TLS."""
    return cast("asyncio.Transport", _Gentle(transport)) if transport.can_write_eof() else transport


class _Gentle:
    """A transport that closes in two steps.

    The methods that are called for each request are those of the wrapped transport, set as attributes: they cost
    nothing.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ending = False
        for name in ("write", "writelines", "is_closing", "get_extra_info", "pause_reading", "resume_reading"):
            setattr(self, name, getattr(transport, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Ends this side once everything written is sent, and the connection when the client has ended its side.

        From now on nothing is written, and `_Lingering` drops what arrives; it closes the connection after
        `LINGER_SECONDS`.
        """
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
    """The protocol between the two steps: it drops bytes, and passes all other events on to the connection's own."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._dropped_bytes = 0
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._is_late)

    def data_received(self, data: bytes) -> None:
        """Drops the bytes; closes the connection after `LINGER_BYTES` of them."""
        self._dropped_bytes += len(data)
        if self._dropped_bytes > LINGER_BYTES:
            self._transport.close()

    def eof_received(self) -> None:
        """Called when the client has ended its side: the return value None makes the transport close."""

    def pause_writing(self) -> None:
        """Tells the connection that the client does not read."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Tells the connection that the client reads again."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection has ended: tells the connection's own protocol."""
        self._timer.cancel()
        self._protocol.connection_lost(exc)

    def _is_late(self) -> None:
        """Closes the connection after `LINGER_SECONDS`, or later if something is still to be sent."""
        if self._transport.get_write_buffer_size():  # `unread` limits how long sending may take
            self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._is_late)
        else:
            self._transport.close()

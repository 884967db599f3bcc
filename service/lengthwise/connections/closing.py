"""How a connection ends, so that what was written arrives.

A socket that is closed over bytes that nobody has read is reset by the kernel, and a reset may overtake the answer that
was written before it. So a connection is closed in two steps (RFC 9112, 9.6): the server says that it writes no more,
then it reads on, and drops what it reads, until the client has ended its side too or a bound is reached.

TLS does the same by itself, with its own words for the end; a connection over it is left as it is.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

LINGER_SECONDS: Final = 2.0
"""How long a client may take to end its side, when all that was written has left."""
LINGER_BYTES: Final = 16 * 1024 * 1024
"""How much of what it still sends is read and dropped: a body that was refused by its head is mostly on its way."""


def gently(transport: asyncio.Transport) -> asyncio.Transport:
    """A transport whose `close` does not cut off what was written."""
    return _Gentle(transport) if transport.can_write_eof() else transport


class _Gentle(asyncio.Transport):
    """A transport that closes in two steps, and is another's in everything else.

    What is called for each request is the other's own method, so that it costs nothing.

    Args:
        transport: The other.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._ending = False
        for name in ("write", "writelines", "is_closing", "get_extra_info", "pause_reading", "resume_reading"):
            setattr(self, name, getattr(transport, name))

    def close(self) -> None:
        """Ends the connection when what was written has left and the client has ended its side, or is too slow."""
        transport = self._transport
        if self._ending or transport.is_closing():
            return
        self._ending = True
        for name in ("write", "writelines", "pause_reading", "resume_reading"):
            setattr(self, name, _nothing)
        setattr(self, "is_closing", _yes)  # noqa: B010 - mypy wants no method assigned
        transport.set_protocol(_Lingering(transport, cast("asyncio.Protocol", transport.get_protocol())))
        transport.write_eof()
        transport.resume_reading()

    def abort(self) -> None:
        """Ends it at once."""
        self._transport.abort()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whose connection it is."""
        return self._transport.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Gives it to another."""
        self._transport.set_protocol(protocol)

    def is_reading(self) -> bool:
        """Whether it reads."""
        return self._transport.is_reading()

    def can_write_eof(self) -> bool:
        """Whether one side may end before the other."""
        return True

    def write_eof(self) -> None:
        """Ends the side that writes."""
        self._transport.write_eof()

    def get_write_buffer_size(self) -> int:
        """Bytes that were written and have not left."""
        return self._transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Where the protocol is told to pause and to go on."""
        return self._transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Sets them."""
        self._transport.set_write_buffer_limits(high, low)


class _Lingering(asyncio.Protocol):
    """Stands in for a connection's protocol between the two steps.

    Args:
        transport: Of the connection; its side that writes is ended.
        protocol: Told of everything but of what is read.
    """

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._read = 0
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._is_late)

    def data_received(self, data: bytes) -> None:
        """Drops it."""
        self._read += len(data)
        if self._read > LINGER_BYTES:
            self._transport.close()

    def eof_received(self) -> None:
        """The client has ended its side: the transport closes."""

    def pause_writing(self) -> None:
        """The client does not read."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._timer.cancel()
        self._protocol.connection_lost(exc)

    def _is_late(self) -> None:
        if self._transport.get_write_buffer_size():  # how long that may take is not for this module to say
            self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._is_late)
        else:
            self._transport.close()


def _nothing(*_: Any) -> None:
    """What a transport that ends does when it is told to write or to read."""


def _yes() -> bool:
    return True

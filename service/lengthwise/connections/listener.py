"""A listening socket: takes connections, and bounds and counts them from the moment that the kernel hands them over.

```
accept ──> pending: the TLS handshake, within handshake_seconds ──> connection: its protocol counts it
   └> too many: the oldest handshake makes room, or the newcomer is told 503
```

A caller who connects and says nothing holds a place for the time of a handshake, and only until somebody else wants it:
an honest handshake takes milliseconds, so it is the silent ones that are the oldest.

At the end nothing that was on its way in is cut off; see `Listener.close`.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Final, cast

from lengthwise.errors import ConfigurationError

log = logging.getLogger("lengthwise.listener")

BACKLOG: Final = 2048
"""Connections that the kernel keeps until they are taken."""
TOLD: Final = 16
"""Connections past the most that are taken only to be told so."""
_A_TURN: Final = 32
"""Connections taken before others have their turn."""
_NO_FILES_SECONDS: Final = 0.5
"""How long none is taken when there are no files left for them."""
_ARRIVING_SECONDS: Final = 0.1
"""How long a connection may need from its first packet to its last before it can be taken."""
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"


class Listener:
    """Takes connections, and gives each a protocol.

    Args:
        listening: The socket.
        most: Most connections at once; some more are taken to be told.
        tls: For HTTPS.
        handshake_seconds: Longest that a TLS handshake may take.
    """

    def __init__(
        self, listening: socket.socket, *, most: int, tls: ssl.SSLContext | None, handshake_seconds: float
    ) -> None:
        self._socket = listening
        self._most = most
        self._tls = tls
        self._bounds = {} if tls is None else {"ssl_handshake_timeout": handshake_seconds}
        self._pending: dict[socket.socket, asyncio.Task[None]] = {}
        self._connections: Collection[object] = ()
        self._make: Callable[[], asyncio.Protocol] = asyncio.Protocol
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def pending(self) -> int:
        """Connections that were taken and have no protocol yet."""
        return len(self._pending)

    @property
    def _full(self) -> bool:
        return len(self._connections) + len(self._pending) >= self._most + TOLD

    def start(self, make: Callable[[], asyncio.Protocol], connections: Collection[object]) -> None:
        """Takes connections from now on, on the running event loop.

        Args:
            make: Makes the protocol of one.
            connections: Those that have one, kept by the protocols.
        """
        self._make, self._connections = make, connections
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._take_some, self._loop)

    async def close(self) -> None:
        """Takes what is on its way in, and then no more.

        A connection that the kernel has begun and nobody has taken is reset when the socket is closed. So first the
        kernel is told to begin no new ones: whoever wants to connect is neither let in nor refused, asks again a second
        later and is refused then. Those that had begun are taken as they come.
        """
        if self._loop is None:
            self._socket.close()
            return
        with suppress(OSError):  # elsewhere than on Linux the time between the last look and the end stays
            _begin_no_more(self._socket)
            await asyncio.sleep(_ARRIVING_SECONDS)
        self._loop.remove_reader(self._socket)
        while self._take(self._loop):
            pass
        self._socket.close()
        self._loop = None

    def _take_some(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(_A_TURN):
            if not self._take(loop) or (self._tls is not None and self._full):
                return  # where one took another's place, the other's file is closed only in the turns to come

    def _take(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Takes a connection; whether there may be another."""
        try:
            taken, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:  # it has left again
            return True
        except OSError as error:
            log.error("no connection can be taken: %s", error.strerror)
            loop.remove_reader(self._socket)
            loop.call_later(_NO_FILES_SECONDS, self._go_on, loop)
            return False
        if self._full and not self._make_room():
            self._turn_away(taken)
            return True
        taken.setblocking(False)
        self._pending[taken] = loop.create_task(self._welcome(loop, taken))
        return True

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            loop.add_reader(self._socket, self._take_some, loop)

    def _make_room(self) -> bool:
        """Ends the oldest handshake; whether there was one."""
        if self._tls is None or not self._pending:
            return False
        oldest = next(iter(self._pending))
        del self._pending[oldest]
        with suppress(OSError):  # it has just left
            oldest.shutdown(socket.SHUT_RDWR)
        return True

    def _turn_away(self, taken: socket.socket) -> None:
        """Tells a caller that there are too many, and ends the connection."""
        with taken, suppress(OSError):
            taken.setblocking(False)
            if self._tls is None:
                taken.send(_FULL)
            taken.shutdown(socket.SHUT_WR)
            taken.recv(65_536)  # what was said already: closed over it, the connection would be reset

    async def _welcome(self, loop: asyncio.AbstractEventLoop, taken: socket.socket) -> None:
        """Makes a protocol's connection of one that was taken."""

        def arrived(transport: asyncio.Transport) -> None:
            self._pending.pop(taken, None)
            protocol = self._make()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)

        try:
            await loop.connect_accepted_socket(lambda: _Arrival(arrived), taken, ssl=self._tls, **self._bounds)
        except OSError as error:  # also whatever is wrong with a handshake
            log.debug("a connection ended before its first request: %s", error)
        finally:
            self._pending.pop(taken, None)


class _Arrival(asyncio.Protocol):
    """Stands where a connection's protocol will be, until there is a connection.

    Args:
        arrived: Told of it.
    """

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._arrived(cast("asyncio.Transport", transport))


@contextmanager
def listening(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """A listening socket.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        option: What sets the port, for the message.

    Raises:
        ConfigurationError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error.strerror}; {_what_helps(error, option)}"
            ) from error
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()


def _what_helps(error: OSError, option: str) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "--host must be an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
    return f"another {option} may be free"


def _begin_no_more(listener: socket.socket) -> None:
    """Has the kernel drop every packet that asks for a new connection.

    It is a packet filter (`man 7 socket`, SO_ATTACH_FILTER) of four instructions on the TCP header: those with SYN set
    are dropped, all others pass. Whoever is dropped asks again after a second.

    Raises:
        OSError: This system has no such filters.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "packet filters are Linux's")
    instructions = (
        (0x30, 0, 0, 13),  # load byte 13, the flags
        (0x45, 0, 1, 0x02),  # SYN?
        (0x06, 0, 0, 0),  # yes: drop
        (0x06, 0, 0, 0xFFFFFFFF),  # no: pass
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in instructions))
    so_attach_filter = 26
    listener.setsockopt(
        socket.SOL_SOCKET, so_attach_filter, struct.pack("HL", len(instructions), ctypes.addressof(program))
    )

"""A listening socket: accepts connections, and limits and counts them from the moment that they are accepted.

```
accept ──> pending: the TLS handshake, within handshake_seconds ──> connection: its protocol counts it
   └> too many: the oldest handshake ends, or the connection that has been idle longest, or the new one gets 503
```

A normal handshake takes milliseconds, so the oldest ones are those of clients that connect and send nothing.

A proxy keeps its connections open for about a minute, and loses a request that it sends while this side closes one. So
the server waits longer (`keep_alive_seconds`). In a crowd, a new connection gets the slot of the one that has been
idle longest, unless that was used within `LEAST_IDLE_SECONDS`.
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
from itertools import islice
from typing import Final, NoReturn, Protocol, cast

from lengthwise.errors import ConfigurationError
from lengthwise.settings import Settings, flag

log = logging.getLogger("lengthwise.listener")

BACKLOG: Final = 2048  # connections that the kernel keeps until they are accepted
REFUSED: Final = 16  # connections above the limit that are accepted only to be refused
_A_TURN: Final = 32  # connections accepted in one turn of the event loop
_PATIENCE: Final = 5  # times that it leaves a connection to others before it takes one; later two, and so on
NO_FILES_SECONDS: Final = 0.5  # none is accepted when the process has no file descriptors left
ARRIVING_SECONDS: Final = 0.1  # that a connection may take to be established, from its first packet
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"

LEAST_IDLE_SECONDS: Final = 5.0  # that a connection is kept open for its next request in any case
_LOOKS: Final = 8  # connections that are looked at: a request may just have arrived on the first ones


class IdleConnection(Protocol):
    """A connection that was answered and may send another request."""

    def give_way(self) -> bool:
        """Ends the connection at once; returns False, and does nothing, if its next request has begun."""


class KeepAlive(dict[IdleConnection, float]):
    """The idle connections of one server, the one that has been idle longest first, and since when, in seconds."""

    def make_room(self, now: float) -> bool:
        """Ends the connection that has been idle longest by `now` (seconds); returns whether one could be ended."""
        for connection, since in list(islice(self.items(), _LOOKS)):
            if now - since < LEAST_IDLE_SECONDS:
                return False
            del self[connection]
            if connection.give_way():
                return True
        return False


class Listener:
    """Accepts connections, `most` at once and some to be refused, and gives each a protocol.

    Where other processes accept from the same socket, `turn` says how many seconds this one leaves a connection to
    them, given how many it has and how many wait, below 0 if in any case; and `is_last` whether none of them accepts
    any more. If they do not take what is left to them, as they are busy or stopped, this one takes more each time.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        most: int,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
        turn: Callable[[int, int], float] = lambda *_: 0.0,
        is_last: Callable[[], bool] = lambda: True,
    ) -> None:
        self._turn = turn
        self._is_last = is_last
        self._waits = 0  # in a row
        self._socket = listening
        self._most = most
        self._tls = tls
        self._bounds = {} if tls is None else {"ssl_handshake_timeout": handshake_seconds}
        self._pending: dict[socket.socket, asyncio.Task[None]] = {}
        self._connections: Collection[object] = ()
        self._make: Callable[[], asyncio.Protocol] = asyncio.Protocol
        self._keep_alive = KeepAlive()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def pending(self) -> int:
        """Connections that were accepted and have no protocol yet."""
        return len(self._pending)

    @property
    def _full(self) -> bool:
        return len(self._connections) + len(self._pending) >= self._most + REFUSED

    def start(
        self,
        make: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        keep_alive: KeepAlive | None = None,
    ) -> None:
        """Accepts connections from now on; the protocols that `make` makes keep `connections` and `keep_alive`."""
        self._make, self._connections = make, connections
        self._keep_alive = KeepAlive() if keep_alive is None else keep_alive
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._accept_some, self._loop)

    async def close(self) -> None:
        """Accepts the connections that are being opened, and then no more.

        When the socket is closed, the kernel resets the connections that it has begun and that were not accepted. So
        first it is set to begin no new ones: a client that tries gets no reply, tries again a second later and is
        refused then.
        """
        if self._loop is None:
            self._socket.close()
            return
        is_last = self._is_last()
        if is_last:
            with suppress(OSError):  # other systems cannot: a connection may be reset between last accept and close
                _ignore_new_connections(self._socket)
                await asyncio.sleep(ARRIVING_SECONDS)
        self._loop.remove_reader(self._socket)
        while is_last and self._accept(self._loop):
            pass
        self._socket.close()
        self._loop = None

    def _accept_some(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accepts connections in one turn of the event loop, but leaves some to workers that have fewer.

        After `_PATIENCE` waits in a row for them it takes one connection, after twice as many two, and so on.
        """
        own, rest = divmod(self._waits, _PATIENCE)
        own = 0 if rest else own  # connections that it takes although `turn` leaves them to others
        for number in range(_A_TURN):
            seconds = self._turn(len(self._connections) + len(self._pending), _waiting(self._socket))
            if not number and not seconds:
                own = self._waits = 0  # the others have taken theirs
            if seconds < 0 or (seconds and number >= own):
                self._waits = self._waits + 1 if seconds > 0 else 0
                loop.remove_reader(self._socket)
                loop.call_later(abs(seconds), self._go_on, loop)
                return
            if not self._accept(loop) or self._full:
                break  # where one replaced another, the file of that is closed only in a later turn
        self._waits = 0

    def _accept(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Accepts one connection; returns whether more may wait."""
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:  # the client has left again
            return True
        except OSError as error:
            log.error("no connection can be accepted: %s", error.strerror)
            self._turn(sys.maxsize, 0)  # no other process leaves one to this
            loop.remove_reader(self._socket)
            loop.call_later(NO_FILES_SECONDS, self._go_on, loop)
            return False
        if self._full and not self._make_room(loop.time()):
            self._refuse(accepted)
            return True
        accepted.setblocking(False)
        self._pending[accepted] = loop.create_task(self._set_up(loop, accepted))
        return True

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            loop.add_reader(self._socket, self._accept_some, loop)
            self._accept_some(loop)  # where nobody waits any more, what was left is forgotten

    def _make_room(self, now: float) -> bool:
        """Ends the oldest handshake, or else the longest idle connection; returns whether there was one."""
        if self._tls is None or not self._pending:
            return self._keep_alive.make_room(now)
        oldest = next(iter(self._pending))
        del self._pending[oldest]
        with suppress(OSError):  # it has just left
            oldest.shutdown(socket.SHUT_RDWR)
        return True

    def _refuse(self, accepted: socket.socket) -> None:
        """Tells a client that there are too many connections, and ends this one."""
        with accepted, suppress(OSError):
            accepted.setblocking(False)
            if self._tls is None:
                accepted.send(_FULL)
            accepted.shutdown(socket.SHUT_WR)
            accepted.recv(65_536)  # what was sent already: with unread bytes the connection would be reset

    async def _set_up(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        """Gives an accepted connection its protocol, after the TLS handshake where there is one."""

        def arrived(transport: asyncio.Transport) -> None:
            self._pending.pop(accepted, None)
            protocol = self._make()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)

        try:
            await loop.connect_accepted_socket(lambda: _Arrival(arrived), accepted, ssl=self._tls, **self._bounds)
        except OSError as error:  # an error of the handshake is one too
            log.debug("a connection ended before its first request: %s", error)
        finally:
            self._pending.pop(accepted, None)


class _Arrival(asyncio.Protocol):
    """The first protocol of a connection: replaced by the real one once the handshake is over."""

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when the handshake is over."""
        self._arrived(cast("asyncio.Transport", transport))


@contextmanager
def listening(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """A listening socket; `option` sets the port, for the message if it cannot listen.

    Raises:
        ConfigurationError: The server cannot listen on the address: the port is taken, or the host is not of this
            machine.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            helps = f"another {option} may be free"
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                helps = "--host must be an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; {helps}") from error
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()


def reserved(host: str, port: int, option: str) -> socket.socket:
    """A socket that holds a port on which each worker listens by itself, as gRPC does; it accepts nothing.

    `option` sets the port.

    Raises:
        ConfigurationError: The port is taken; the message names `option`.
    """
    with listening(host, port, option):  # SO_REUSEPORT would share a port in use
        pass
    reservation = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind((host, port))
    except OSError as error:
        reservation.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return reservation


def context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of the options; None where plain HTTP is served. Error messages name the file that is wrong.

    Raises:
        ConfigurationError: A file cannot be read, does not hold what it should, or the private key is encrypted.
    """
    certificate, key, authorities = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    if certificate is None:
        return None
    for option, path in (("tls_cert_file", certificate), ("tls_key_file", key), ("tls_client_ca_file", authorities)):
        try:
            if path is not None:
                path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{flag(option)} {path} cannot be read: {error.strerror}") from error

    def refuse_encrypted() -> NoReturn:
        raise ConfigurationError(
            f"the private key in {key or certificate} is encrypted: nobody is there to type its password"
        )

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = f"{flag('tls_cert_file')} {certificate}" + ("" if key is None else f" and {flag('tls_key_file')} {key}")
    try:
        tls.load_cert_chain(certificate, key, password=refuse_encrypted)
    except ssl.SSLError as error:
        raise ConfigurationError(f"{files}: no certificate with its private key, in PEM ({_reason(error)})") from error
    if authorities is not None:
        try:
            tls.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{flag('tls_client_ca_file')} {authorities}: no certificates in PEM ({_reason(error)})"
            ) from error
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unreadable").replace("_", " ").lower()


def _waiting(listener: socket.socket) -> int:
    """How many connections the kernel keeps until they are accepted; 0 where it does not say."""
    if sys.platform != "linux":
        return 0
    # Of a socket that listens, `tcpi_unacked`, from byte 24 on, is the length of that queue (`tcp_get_info` of Linux).
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int.from_bytes(info[24:], sys.byteorder)


def _ignore_new_connections(listener: socket.socket) -> None:
    """Lets the kernel drop every packet that opens a new connection.

    It is a packet filter (`man 7 socket`, SO_ATTACH_FILTER) of four instructions on the TCP header: packets with SYN
    set are dropped, all others pass. A client whose packet is dropped sends it again after a second.

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

"""A listening socket: accepts connections, and limits and counts them from the moment that they are accepted.

```
accept ──> pending: the TLS handshake, within handshake_seconds ──> connection: its protocol counts it
   └> too many: the oldest handshake ends, or the connection that has been idle longest, or the new one gets 503
```

A normal handshake takes milliseconds, so the oldest handshakes are those of clients that connect and send nothing.

A proxy keeps its connections open for about a minute, and loses a request that it sends while this side closes one. So
the server waits longer (`keep_alive_seconds`). If there are too many connections, a new one gets the slot of the one
that has been idle longest, unless that was used within `LEAST_IDLE_SECONDS`.
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
REFUSED: Final = 16  # connections above the limit that are accepted only to be answered 503
_A_TURN: Final = 256  # connections accepted in one turn of the event loop, which takes 0.1 s where 1,024 send
_PATIENCE: Final = 5  # delays for other workers, in a row, before one connection is taken; see `_accept_some`
NO_FILES_SECONDS: Final = 0.5  # until the next try, when the process has no file descriptors left
ARRIVING_SECONDS: Final = 0.1  # that a connection may take to be established, from its first packet
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"

LEAST_IDLE_SECONDS: Final = 5.0  # that a connection is kept open for its next request in any case
_LOOKS: Final = 8  # idle connections that are tried: a request may just have arrived on the first of them


class IdleConnection(Protocol):
    """A connection whose last request was answered, and which may send another one."""

    def give_way(self) -> bool:
        """Ends the connection at once; returns False, and does nothing, if its next request has begun."""


class KeepAlive(dict[IdleConnection, float]):
    """The idle connections of one server: since when each is idle (seconds), the longest idle first."""

    def make_room(self, now: float) -> bool:
        """Ends the connection that has been idle longest at `now` (seconds); returns whether one was ended."""
        for connection, since in list(islice(self.items(), _LOOKS)):
            if now - since < LEAST_IDLE_SECONDS:
                return False
            del self[connection]
            if connection.give_way():
                return True
        return False


class Listener:
    """Accepts connections, at most `max_connections` and some to be refused, and gives each a protocol.

    Where several workers accept from the same socket, they take turns:

    - `accept_delay(connections, waiting)` gets the number of connections that this worker has, and of those that wait
      in the kernel to be accepted. It returns for how many seconds this worker leaves the next connection to the
      others. 0: this worker accepts it. A negative number: this worker is not ready, and waits that long in any case.
    - `is_last()` returns whether no other worker accepts connections any more.

    After a delay of a positive number of seconds, the others may have left the connection, because they are busy or
    stopped. So after some delays in a row this worker accepts connections all the same.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        max_connections: int,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
        accept_delay: Callable[[int, int], float] = lambda *_: 0.0,
        is_last: Callable[[], bool] = lambda: True,
    ) -> None:
        self._accept_delay = accept_delay
        self._is_last = is_last
        self._delays = 0  # how often connections were left to other workers, in a row
        self._socket = listening
        self._max_connections = max_connections
        self._tls = tls
        self._bounds = {} if tls is None else {"ssl_handshake_timeout": handshake_seconds}
        self._pending: dict[socket.socket, asyncio.Task[None]] = {}  # sockets whose handshake runs, oldest first
        self._connections: Collection[object] = ()  # those with a protocol
        self._make: Callable[[], asyncio.Protocol] = asyncio.Protocol  # makes the protocol of a connection
        self.keep_alive = KeepAlive()  # the idle ones of these, which their protocols keep up to date
        self._loop: asyncio.AbstractEventLoop | None = None  # while it accepts

    @property
    def pending(self) -> int:
        """The number of connections that were accepted and have no protocol yet."""
        return len(self._pending)

    @property
    def _full(self) -> bool:
        return len(self._connections) + len(self._pending) >= self._max_connections + REFUSED

    def start(self, make: Callable[[], asyncio.Protocol], connections: Collection[object]) -> None:
        """Accepts connections from now on.

        `make` makes the protocol of each; the protocols keep `connections` and `keep_alive` up to date.
        """
        self._make, self._connections = make, connections
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._accept_some, self._loop)

    async def close(self) -> None:
        """Accepts the connections that are being opened, and then no more.

        When the socket is closed, the kernel resets the connections that are established or half open and were not
        accepted. So first the kernel is told to open no new ones: a client that tries gets no reply, tries again a
        second later, and is refused then.
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
        """Accepts at most `_A_TURN` waiting connections, until `accept_delay` leaves the next one to other workers.

        Then it accepts nothing for that delay. After `_PATIENCE` delays in a row it takes one connection although it is
        left to others, after twice as many delays two, and so on.
        """
        # How many connections it takes now although they are left to others.
        left_but_taken = 0 if self._delays % _PATIENCE else self._delays // _PATIENCE
        for number in range(_A_TURN if self._tls is None else _A_TURN // 8):  # a handshake takes longer
            delay = self._accept_delay(len(self._connections) + len(self._pending), _waiting(self._socket))
            if not number and not delay:
                left_but_taken = self._delays = 0  # the other workers have taken theirs
            if delay < 0 or (delay and number >= left_but_taken):
                self._delays = self._delays + 1 if delay > 0 else 0
                loop.remove_reader(self._socket)
                loop.call_later(abs(delay), self._go_on, loop)
                return
            if not self._accept(loop) or self._full:
                break  # the file of an idle connection that was ended for a new one is closed in a later turn
        self._delays = 0

    def _accept(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Accepts one connection; returns whether more may be waiting."""
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:  # the client has left again
            return True
        except OSError as error:
            log.error("no connection can be accepted: %s", error.strerror)
            self._accept_delay(sys.maxsize, 0)  # tells the other workers to leave no connection to this one
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
        """Accepts connections again after a wait, unless the listener was closed meanwhile."""
        if self._loop is not None:
            loop.add_reader(self._socket, self._accept_some, loop)
            self._accept_some(loop)  # also ends the row of delays, if no connection is waiting any more

    def _make_room(self, now: float) -> bool:
        """Ends the oldest handshake, or else the longest idle connection; returns whether there was one to end."""
        if self._tls is None or not self._pending:
            return self.keep_alive.make_room(now)
        oldest = next(iter(self._pending))
        del self._pending[oldest]
        with suppress(OSError):  # the client has just left
            oldest.shutdown(socket.SHUT_RDWR)
        return True

    def _refuse(self, accepted: socket.socket) -> None:
        """Answers 503 to an accepted connection (over TLS: nothing), and ends it."""
        with accepted, suppress(OSError):
            accepted.setblocking(False)
            if self._tls is None:
                accepted.send(_FULL)
            accepted.shutdown(socket.SHUT_WR)
            accepted.recv(65_536)  # with unread bytes the kernel would reset the connection

    async def _set_up(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        """Gives an accepted connection its protocol, after the TLS handshake where there is one.

        Until the handshake is over, the connection has the protocol `_Arrival`, which calls `arrived` then.
        """

        def arrived(transport: asyncio.Transport) -> None:
            """Makes the protocol of the connection, which is not pending any more."""
            self._pending.pop(accepted, None)
            protocol = self._make()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)

        try:
            await loop.connect_accepted_socket(lambda: _Arrival(arrived), accepted, ssl=self._tls, **self._bounds)
        except OSError as error:  # also the errors of a handshake
            log.debug("a connection ended before its first request: %s", error)
        finally:
            self._pending.pop(accepted, None)


class _Arrival(asyncio.Protocol):
    """The first protocol of a connection: calls `arrived` once the handshake is over, and is replaced then."""

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when the handshake is over."""
        self._arrived(cast("asyncio.Transport", transport))


@contextmanager
def listening(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """A socket that listens on an address, closed after the block; `option` is the option of the port, for messages.

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
            advice = f"another {option} may be free"
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                advice = "--host must be an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; {advice}") from error
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()


def reserved(host: str, port: int, option: str) -> socket.socket:
    """A socket that keeps a port for the workers, which each listen on it by themselves, as gRPC does; accepts nothing.

    `option` is the option of the port, for messages.

    Raises:
        ConfigurationError: The port is taken; the message names `option`.
    """
    with listening(host, port, option):  # raises if the port is in use: with SO_REUSEPORT it would be shared
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
    """The TLS context of the options; None for plain HTTP. Error messages name the file that is wrong.

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

    # OpenSSL calls it for the password of an encrypted key.
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
    """OpenSSL's reason of an error, in words."""
    return (error.reason or "unreadable").replace("_", " ").lower()


def _waiting(listener: socket.socket) -> int:
    """The number of connections that wait in the kernel to be accepted; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    # For a listening socket, `tcpi_unacked` (from byte 24 on) is the length of its queue (Linux, `tcp_get_info`).
    return int.from_bytes(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)[24:], sys.byteorder)


def _ignore_new_connections(listener: socket.socket) -> None:
    """Makes the kernel drop every packet that opens a new connection.

    It attaches a packet filter (`man 7 socket`, SO_ATTACH_FILTER) of four instructions on the TCP header: packets with
    SYN set are dropped, all others pass. A client whose packet is dropped sends it again after a second.

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
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
    # 26 is SO_ATTACH_FILTER, which Python's module `socket` does not have.
    listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(instructions), ctypes.addressof(program)))

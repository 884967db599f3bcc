"""The connections of the gRPC server, within the bounds that those of HTTP have.

gRPC accepts its connections itself, and limits the time of a handshake, of silence and of a life. What it does not know
is done here: a connection on which no call has begun has `header_seconds`, and while nearly all slots are
taken, those that have been idle longest make room. A connection counts as idle while none of its calls is open.

gRPC does not report its connections, so they are searched for among the open files of this process: each search is a
*look*. gRPC may close such a file at any moment, and its number may then be another file's; so each is duplicated
while it is used.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lengthwise.connections.listener import LEAST_IDLE_SECONDS
from lengthwise.grpc.transport import RpcCall

_LOOKS: Final = 4  # how often the open files are read in `header_seconds`
_MOST_LOOK_SECONDS: Final = 2.5  # the longest time between two of these looks
_STALE_SECONDS: Final = 0.05  # after which the files are read again for a connection that the last look did not find
_CALL_BYTES: Final = 512  # what a call takes besides its message: metadata, frames
_FRAME_SHARE: Final = 256  # the frames of a message take less than this share of it, those of TLS too
_CROWDED: Final = 0.75  # above this share of the limit, idle connections make room
_FILES: Final = "/dev/fd"
_RECEIVED: Final = 128  # the offset of `tcpi_bytes_received`, of 64 bits, in Linux's `struct tcp_info`
_INFO_BYTES: Final = _RECEIVED + 8


@dataclass
class AcceptedConnections:
    """The connections of one port. A client is named `ADDRESS:PORT`, an IPv6 address without brackets."""

    port: int
    # The file of each client's connection, at the last look
    _files: dict[str, int] = field(default_factory=dict, init=False)

    def look(self) -> list[str]:
        """Searches the open files for connections of the port: keeps the file of each client, returns the clients.

        Takes some microseconds for each open file; safe in any thread.
        """
        try:
            files = [int(name) for name in os.listdir(_FILES)]
        except OSError:  # this system has no such folder
            files = []
        clients: dict[str, int] = {}
        for file in files:
            if (opened := self._duplicate(file)) is not None:
                client, connection = opened
                connection.close()
                clients[client] = file
        self._files = clients
        return list(clients)

    def received_bytes(self, client: str) -> int | None:
        """How many bytes have arrived from a client.

        None if the system does not report that, or if the last look did not find the client, which may be new.
        """
        connection = self._connection_of(client)
        if connection is None:
            return None
        with connection:
            is_linux = sys.platform == "linux"
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES) if is_linux else b""
        return int(struct.unpack_from("Q", info, _RECEIVED)[0]) if len(info) == _INFO_BYTES else None

    def end(self, client: str) -> None:
        """Shuts the connection of a client down, in both directions; gRPC sees that and closes it."""
        if (connection := self._connection_of(client)) is not None:
            with connection, suppress(OSError):  # it has just ended
                connection.shutdown(socket.SHUT_RDWR)

    def _connection_of(self, client: str) -> socket.socket | None:
        """A duplicate of a client's connection, which the caller closes.

        None if the last look did not find it, or it was closed since: its file may be another client's now.
        """
        file = self._files.get(client)
        opened = None if file is None else self._duplicate(file)
        if opened is None:
            return None
        peer, connection = opened
        if peer == client:
            return connection
        connection.close()
        return None

    def _duplicate(self, file: int) -> tuple[str, socket.socket] | None:
        """The client whose connection an open file is, and a duplicate of it, which the caller closes.

        None if the file is something else than a connection of this port, or was closed meanwhile.
        """
        try:
            if not stat.S_ISSOCK(os.fstat(file).st_mode):
                return None
            connection = socket.socket(fileno=os.dup(file))
        except OSError:  # it was closed meanwhile
            return None
        with suppress(OSError):  # it listens, or has just ended
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == self.port:
                address, port = connection.getpeername()[:2]
                return f"{address.removeprefix('::ffff:')}:{port}", connection
        connection.close()
        return None


@dataclass(slots=True)
class ClientConnection:
    """What is counted for the connection of one client."""

    since: float  # when it became idle (`time.monotonic`); before the first call, when it was seen first
    calls: int = 0  # open calls
    called: bool = False  # whether any call has begun on it
    delivered: int = 0  # bytes, about, of its calls and of the messages that gRPC handed over, with their frames

    def deliver(self, message_bytes: int) -> None:
        """Counts a message that was handed to its call."""
        self.delivered += message_bytes + message_bytes // _FRAME_SHARE


@dataclass
class GrpcConnections:
    """The connections of the gRPC port, by client."""

    max_connections: int
    header_seconds: float
    calls: int = 0  # open calls of all connections
    # Its port is set by `keep`
    _accepted: AcceptedConnections = field(default_factory=lambda: AcceptedConnections(0), init=False)
    _known: dict[str, ClientConnection] = field(default_factory=dict, init=False)  # by client
    _looked: float = field(default_factory=time.monotonic, init=False)  # when the open files were read last

    @property
    def count(self) -> int:
        """The number of open connections; reads the open files of the process."""
        return len(self._accepted.look())

    def count_call(self, rpc: RpcCall) -> None:
        """Counts a call as open from now until its end, and its messages as delivered bytes of its connection."""
        connection = self.of(rpc.client)
        connection.called = True
        connection.calls += 1
        connection.delivered += _CALL_BYTES
        self.calls += 1
        rpc.on_message = connection.deliver

        def ended() -> None:
            """Counts the end of the call."""
            self.calls -= 1
            connection.calls -= 1
            connection.since = time.monotonic()

        rpc.on_end(ended)

    def of(self, client: str) -> ClientConnection:
        """The counts of a client's connection; a connection that is not known yet gets new ones."""
        return self._known.setdefault(client, ClientConnection(time.monotonic()))

    def received_bytes(self, client: str) -> int | None:
        """How many bytes have arrived from a client; None if that is not known.

        For a client that the last look did not find it looks again, unless that look was just now.
        """
        received = self._accepted.received_bytes(client)
        now = time.monotonic()
        if received is None and now - self._looked > _STALE_SECONDS:
            self._looked = now
            self._accepted.look()
            received = self._accepted.received_bytes(client)
        return received

    async def keep(self, port: int) -> None:
        """Ends connections that stay too long, until it is cancelled; `port` is the one that gRPC listens on."""
        self._accepted.port = port
        period = min(_MOST_LOOK_SECONDS, self.header_seconds / _LOOKS)
        while True:
            await asyncio.sleep(period)
            for client in self._clients_to_end(await asyncio.to_thread(self._accepted.look)):
                self._accepted.end(client)

    def _clients_to_end(self, present: list[str]) -> list[str]:
        """The clients whose connection must end, of those that are `present` now.

        These are connections without a call in time; and where too many are left, those that have been idle longest.
        Also forgets the clients that are no longer connected and have no open call.
        """
        self._looked = now = time.monotonic()
        known = self._known
        for client in known.keys() - set(present):
            if not known[client].calls:
                del known[client]
        # Idle connections, the longest idle first: those without a first call in time must end.
        idle = sorted((known[client].since, client) for client in present if not self.of(client).calls)
        late = [client for since, client in idle if not known[client].called and now - since > self.header_seconds]
        # If too many would be left, the longest idle ones end, too.
        excess = len(present) - len(late) - int(self.max_connections * _CROWDED)
        if excess > 0:
            late_clients = set(late)
            longest_idle = [
                client for since, client in idle if client not in late_clients and now - since > LEAST_IDLE_SECONDS
            ]
            late += longest_idle[:excess]
        return late

"""The connections of a port that another library accepts, as gRPC does: who they are, and what arrived on each.

Such a library tells nobody of its connections, so they are found among the open files of this process. A file is
duplicated while it is looked at, because the library may close it, and its number may go to another, at any moment.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from typing import Final

_FILES: Final = "/dev/fd"
_RECEIVED: Final = 128  # where `tcpi_bytes_received`, of 64 bits, is in Linux's `struct tcp_info`
_INFO_BYTES: Final = _RECEIVED + 8


class AcceptedConnections:
    """The connections of one port. A client is named `ADDRESS:PORT`, an IPv6 address without brackets."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._files: dict[str, int] = {}

    def look(self) -> list[str]:
        """The clients that are connected now. Takes some microseconds for each open file; safe in any thread."""
        found: dict[str, int] = {}
        for file in _open_files():
            opened = self._opened(file)
            if opened is not None:
                client, connection = opened
                connection.close()
                found[client] = file
        self._files = found
        return list(found)

    def received_bytes(self, client: str) -> int | None:
        """How many bytes have arrived from a client; None if the system does not say, or it is not connected."""
        connection = self._of(client)
        if connection is None:
            return None
        with connection:
            if sys.platform != "linux":
                return None
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if len(info) < _INFO_BYTES:
            return None
        (received,) = struct.unpack_from("Q", info, _RECEIVED)
        return int(received)

    def end(self, client: str) -> None:
        """Ends the connection of a client, in both directions; the library sees that and closes it."""
        connection = self._of(client)
        if connection is not None:
            with connection, suppress(OSError):  # it has just ended
                connection.shutdown(socket.SHUT_RDWR)

    def _of(self, client: str) -> socket.socket | None:
        """The connection of a client, where the last `look` found it."""
        file = self._files.get(client)
        opened = None if file is None else self._opened(file)
        if opened is None:
            return None
        found, connection = opened
        if found == client:
            return connection
        connection.close()
        return None

    def _opened(self, file: int) -> tuple[str, socket.socket] | None:
        """The client and a duplicate of a file, which the caller closes; None if it is no connection of the port."""
        try:
            if not stat.S_ISSOCK(os.fstat(file).st_mode):
                return None
            connection = socket.socket(fileno=os.dup(file))
        except OSError:  # it was closed meanwhile
            return None
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == self._port:
                address, port = connection.getpeername()[:2]
                return f"{address.removeprefix('::ffff:')}:{port}", connection
        except OSError:  # it listens, or has just ended
            pass
        connection.close()
        return None


def _open_files() -> list[int]:
    """The files that this process has open; none where the system has no such folder."""
    try:
        return [int(name) for name in os.listdir(_FILES)]
    except OSError:
        return []

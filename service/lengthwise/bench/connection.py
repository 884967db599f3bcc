"""One keep-alive connection of the load generator. It parses little, since the client's time is in every figure."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from lengthwise.client.proxies import proxy_of
from lengthwise.errors import ConfigurationError

# Below the size from which malloc maps fresh pages for each call.
_RECEIVE_BYTES = 65536
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The host and port of a server under load."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> ServerAddress:
        """Parses `http://HOST[:PORT]`; the port is 80 by default.

        Raises:
            ConfigurationError: The text has another form.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{url} is not a URL: {error}") from error
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigurationError(f"{url} is not of the form http://HOST:PORT; load goes to the server's own port")
        return cls(parts.hostname, port or 80)

    @property
    def url(self) -> str:
        """The URL without a slash at its end."""
        return f"http://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port, as they stand in a URL and in the header `host`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def why_unreachable(self, error: Exception) -> str:
        """The message for a server that cannot be reached.

        It names the proxy that the environment sets for this server, if there is one: a load does not go through it.
        """
        proxy = proxy_of(self.url)
        directly = f" (connected directly, and not through the proxy of {proxy})" if proxy else ""
        return f"{self.url} cannot be reached: {error}{directly}; is the service running?"

    def request(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """The bytes of one POST request."""
        lines = [f"POST {path} HTTP/1.1", f"host: {self.authority}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


class ConnectionLostError(Exception):
    """The server closed a connection; a load counts it and opens another."""


class LoadConnection:
    """One keep-alive connection, with at most one request under way."""

    __slots__ = ("_received", "due", "index", "sent", "socket", "unsent")

    def __init__(self, target: ServerAddress) -> None:
        """Connects to the server.

        Raises:
            ConfigurationError: The server cannot be reached.
        """
        try:
            self.socket = socket.create_connection((target.host, target.port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise ConfigurationError(target.why_unreachable(error)) from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.index = -1  # of the request under way; -1 if there is none
        self.due = self.sent = 0.0  # when it was due and was sent, in seconds since the start of the load
        self.unsent = memoryview(b"")  # the part of it that the socket has not accepted
        self._received = b""  # the beginning of its answer

    def send(self, request: bytes | memoryview) -> None:
        """Sends as much of a request as the socket accepts; the rest is in `unsent`.

        Raises:
            ConnectionLostError: The connection is closed or broken.
        """
        try:
            sent_bytes = self.socket.send(request)
        except BlockingIOError:
            sent_bytes = 0
        except OSError as error:
            raise ConnectionLostError from error
        self.unsent = memoryview(request)[sent_bytes:]

    def receive(self) -> tuple[int, bytes, bytes] | None:
        """Reads from the socket; returns the status, head (in lower case) and body of an answer, None while incomplete.

        Raises:
            ConnectionLostError: The connection is closed or broken.
            ConfigurationError: The answer has no content-length.
        """
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConnectionLostError from error
        if not data:
            raise ConnectionLostError
        # An answer is complete if it has a head, and as many bytes after it as its content-length says.
        if self._received:
            data = self._received + data
        head_bytes = data.find(b"\r\n\r\n")
        if head_bytes >= 0:
            head = data[: head_bytes + 2].lower()
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            if not length:
                raise ConfigurationError("the server sends an answer without content-length, which is not read here")
            answer_bytes = head_bytes + 4 + int(length)
            if len(data) >= answer_bytes:
                self._received = b""
                return int(head[9:12]), head, data[head_bytes + 4 : answer_bytes]
        self._received = data
        return None

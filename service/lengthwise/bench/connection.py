"""One keep-alive connection of the load generator, which reads little: the client's time is part of every figure."""

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
        """Reads `http://HOST[:PORT]`.

        Raises:
            ConfigurationError: It is not such a URL.
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
        """Host and port as a URL and the header `host` have them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def why_unreachable(self, error: Exception) -> str:
        """Says that the server cannot be reached, and why; load goes past every proxy."""
        proxy = proxy_of(self.url)
        past = f" (connected directly, and not through the proxy of {proxy})" if proxy else ""
        return f"{self.url} cannot be reached: {error}{past}; is the service running?"

    def request(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """The bytes of one POST."""
        lines = [f"POST {path} HTTP/1.1", f"host: {self.authority}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


class ConnectionLostError(Exception):
    """The server closed a connection; a load counts it and opens another."""


class LoadConnection:
    """One keep-alive connection with at most one request on its way."""

    __slots__ = ("_received", "due", "index", "sent", "socket", "unsent")

    def __init__(self, target: ServerAddress) -> None:
        try:
            self.socket = socket.create_connection((target.host, target.port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise ConfigurationError(target.why_unreachable(error)) from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.index = -1
        self.due = self.sent = 0.0
        self.unsent = memoryview(b"")
        self._received = b""

    def send(self, request: bytes | memoryview) -> None:
        """Sends as much as the socket accepts; the rest is `unsent`.

        Raises:
            ConnectionLostError: The connection is closed or broken.
        """
        try:
            sent = self.socket.send(request)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ConnectionLostError from error
        self.unsent = memoryview(request)[sent:]

    def receive(self) -> tuple[int, bytes, bytes] | None:
        """Status, head in lower case, and body; None while the answer is incomplete.

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
        if self._received:
            data = self._received + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            head = data[: end + 2].lower()
            at = head.find(b"\r\ncontent-length:")
            if at < 0:
                raise ConfigurationError("the server sends an answer without content-length, which is not read here")
            whole = end + 4 + int(head[at + 17 : head.index(b"\r\n", at + 17)])
            if len(data) >= whole:
                self._received = b""
                return int(head[9:12]), head, data[end + 4 : whole]
        self._received = data
        return None

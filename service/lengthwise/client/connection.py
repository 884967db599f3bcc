"""What both clients share: their arguments, the options of a call, and what an exchange gets back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, get_args

from lengthwise.client import exchange
from lengthwise.client.bodies import Encoding, PreparedSequences, ServerLimits, prepare
from lengthwise.client.exchange import Answered, Deadline, Exchange, Send
from lengthwise.client.proxies import is_loopback, proxy_of
from lengthwise.datasets.given import Layout, sequences_of
from lengthwise.errors import (
    ConfigurationError,
    DeadlineExceeded,
    LengthwiseError,
    ServerUnreachable,
    how_to_install,
)

if TYPE_CHECKING:
    import ssl

    import httpx

Transport = TypeVar("Transport")

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 1.0  # past its deadline an answer may come: the server says itself that it has passed

_DIRECTLY: Final = {"http://": None, "https://": None, "all://": None}  # switches the proxies of the environment off
_CLIENT_CERTIFICATE: Final = (
    "; the server may want a client certificate: verify=CONTEXT, an ssl.SSLContext after its load_cert_chain(...)"
)
_TLS_HINTS: Final = {
    "CERTIFICATE_VERIFY_FAILED": "; a certificate of your own authority: verify=ssl.create_default_context(cafile=...)",
    "WRONG_VERSION_NUMBER": "; if the port speaks http, the address must begin with http://",
    "RECORD_LAYER_FAILURE": "; if the port speaks http, the address must begin with http://",
    "CERTIFICATE_REQUIRED": _CLIENT_CERTIFICATE,
    "HANDSHAKE_FAILURE": _CLIENT_CERTIFICATE,
    "disconnected": _CLIENT_CERTIFICATE,
    "reset": _CLIENT_CERTIFICATE,
}  # what to try, by a part of the error of a connection to an https server


class AnyClient(Generic[Transport]):
    """What both clients share: the arguments, the options of a call, and what an exchange gets back."""

    _of_httpx: ClassVar[str]  # the class that has the connections

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        key: str | None = None,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        retries: int = 10,
        encoding: Encoding = "auto",
        verify: bool | ssl.SSLContext = True,
        transport: Transport | None = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigurationError(f"a client needs httpx: {how_to_install('client')}") from error
        if encoding not in get_args(Encoding):
            raise ConfigurationError(f"encoding must be one of {', '.join(get_args(Encoding))}, got {encoding!r}")
        if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip()):
            raise ConfigurationError(
                "the key has a character that a header cannot have, perhaps the line break of the file that it was in"
            )
        if not isinstance(retries, int) or retries < 0:
            raise ConfigurationError(f"retries must be an integer >= 0, got {retries!r}")
        self._httpx = httpx
        self._failures = (httpx.RequestError, httpx.InvalidURL, DeadlineExceeded)
        self._model = model
        self._version = version
        self._timeout = _seconds(timeout)
        self._retries = retries
        self._encoding = encoding
        self._limits: ServerLimits | None = None
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        try:
            directly = _DIRECTLY if is_loopback(httpx.URL(base_url).host) else None
            self._connections: Any = getattr(httpx, self._of_httpx)(
                base_url=base_url,
                headers=headers,
                verify=verify,
                transport=transport,
                timeout=self._timeout,
                mounts=directly,
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigurationError(f"the address of the server is not valid, got {base_url!r}: {error}") from error
        if self._connections.base_url.scheme not in ("http", "https"):
            raise ConfigurationError(f"the address of the server must start with http:// or https://, got {base_url!r}")
        proxy = "" if transport is not None else proxy_of(str(self._connections.base_url))
        self._via = proxy and f" (through the proxy of {proxy})"

    def __repr__(self) -> str:
        """`<lengthwise.Client http://localhost:8000>`; without the key."""
        return f"<lengthwise.{type(self).__name__} {self._address}>"

    @property
    def _address(self) -> str:
        """The address of the server without its path, a user or a password."""
        address = self._connections.base_url
        return f"{address.scheme}://{address.netloc.decode()}"

    def _prepared(self, sequences: Any, layout: Layout, deadline: Deadline) -> Exchange:
        """The bodies of some sequences, by the limits of the server, which is asked for them once."""
        if isinstance(sequences, PreparedSequences):
            return sequences
        if self._limits is None:
            self._limits = yield from exchange.server_limits(deadline, self._retries)
        return prepare(sequences_of(sequences, layout), self._limits, self._encoding)

    def _predicted(
        self,
        sequences: Any,
        layout: Layout,
        attention: bool,
        model: str | None,
        version: str | int | None,
        timeout: float | None,
        priority: int,
    ) -> Exchange:
        deadline = self._deadline(timeout)
        model = self._model if model is None else model
        version = self._version if version is None else version
        options: dict[str, Any] = {}
        if model is not None:
            options["model"] = model
        if version is not None:
            options["version"] = str(version)
        if attention:
            options["outputs"] = ["attention"]
        if priority:
            options["priority"] = priority
        prepared = yield from self._prepared(sequences, layout, deadline)
        return (yield from exchange.predict(prepared, options=options, deadline=deadline, retries=self._retries))

    def _called(self, method: str, path: str, document: Any) -> Exchange:
        """The answer of any path. httpx would follow a whole URL, and send the key along."""
        if not path.startswith("/") or path.startswith("//"):
            raise ConfigurationError(f"a path of the server must begin with one '/', got {path!r}")
        return exchange.call(method, path, document, deadline=self._deadline(None), retries=self._retries)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self._timeout if timeout is None else _seconds(timeout))

    def _request(self, step: Send) -> dict[str, Any]:
        return {
            "method": step.method,
            "url": step.path,
            "content": step.content,
            "headers": step.headers,
            "timeout": step.seconds + _GRACE_SECONDS,
        }

    def _failure(self, error: Exception, step: Send) -> LengthwiseError:
        """The error of a request that got no answer; raises ConfigurationError where its path is none."""
        if isinstance(error, DeadlineExceeded):
            return error
        if isinstance(error, self._httpx.InvalidURL):
            raise ConfigurationError(f"the path is not valid, got {step.path!r}: {error}") from error
        if isinstance(error, self._httpx.TimeoutException):
            return DeadlineExceeded(f"no answer came within {step.seconds:.3g} s{self._via}")
        return ServerUnreachable(f"{self._address}: {error or type(error).__name__}{self._via}{self._hint(error)}")

    def _hint(self, error: Exception) -> str:
        """What may be the cause of a connection that failed, where the error does not say it."""
        if self._connections.base_url.scheme == "https":
            said = str(error)
            return next((hint for sign, hint in _TLS_HINTS.items() if sign in said), "")
        cut_off = isinstance(error, self._httpx.RemoteProtocolError | self._httpx.ReadError)
        return "; if the port speaks https, the address must begin with https://" if cut_off else ""


class ArrivingAnswer:
    """The body of an answer, in parts: httpx limits the time between two of them, and not the time of all."""

    def __init__(self, step: Send) -> None:
        self._seconds = step.seconds
        self._late_at = time.monotonic() + step.seconds + _GRACE_SECONDS
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        """Adds the next part; DeadlineExceeded if it came too late."""
        if time.monotonic() > self._late_at:
            raise DeadlineExceeded(f"the answer did not arrive within {self._seconds:.3g} s")
        self._parts.append(part)

    def of(self, response: httpx.Response, via: str) -> Answered:
        """The answer, with the status and the headers of its response, and the proxy that it came through."""
        headers: Mapping[str, str] = response.headers
        return Answered(response.status_code, headers, b"".join(self._parts), via)


def _seconds(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ConfigurationError(f"timeout must be a number of seconds > 0, got {timeout!r}")
    return float(timeout)

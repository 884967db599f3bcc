"""The clients: `Client`, and `AsyncClient` for asyncio. All I/O is here; what is sent and when is in `exchange`."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from lengthwise.api import AsyncStream, Predictions, Stream, outputs_of
from lengthwise.client.bodies import PreparedSequences, ServerLimits, prepare
from lengthwise.client.exchange import (
    GRACE_SECONDS,
    Answered,
    Deadline,
    Exchange,
    Result,
    Send,
    call,
    predict,
    server_limits,
)
from lengthwise.client.proxies import is_loopback, proxy_of
from lengthwise.datasets.column_roles import ColumnNames, quoted
from lengthwise.datasets.input_sequences import InputSequence, Layout, Padding, sequences_of
from lengthwise.errors import (
    ConfigurationError,
    DeadlineExceeded,
    LengthwiseError,
    ServerUnreachable,
    how_to_install,
)

if TYPE_CHECKING:
    import ssl

    import httpx2  # noqa: F401  # the bases of both classes name its transports


Transport = TypeVar("Transport")
P = ParamSpec("P")

_KEY: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
DEFAULT_TIMEOUT_SECONDS: Final = 30.0
_NO_PROXIES: Final = {"http://": None, "https://": None, "all://": None}  # mounts of httpx2: without a proxy
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
}  # advice, by a part of the text of a connection error of an https server


_ASYNC_EXAMPLE: Final = """Example:
    >>> async with lengthwise.AsyncClient("http://localhost:8000") as client:
    ...     (prediction,) = await client.predict([np.zeros((19, 12))])
"""  # of `AsyncClient.predict`
_ASKED_AGAIN_SECONDS: Final = 0.05  # between two looks whether another call has the limits of the server


class _TimeLeft(dict[str, float]):
    """The timeouts of one request, as transports of httpx2 read them: each step gets what the steps before left."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        super().__init__(dict.fromkeys(("connect", "read", "write", "pool"), deadline.seconds + GRACE_SECONDS))

    def get(self, *_: object) -> float:  # no other key is asked for
        """The seconds that are left now, at least a millisecond: 0 would mean something else to a socket."""
        return max(self._deadline.seconds + GRACE_SECONDS, 1e-3)


class _AnyClient(Generic[Transport]):
    """What both clients share: the arguments, the options of a call, and the errors of httpx2."""

    _httpx_class: ClassVar[str]  # name of the class of httpx2 that has the connections

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        key: str | None = None,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        retries: int = 10,
        verify: bool | ssl.SSLContext = True,
        transport: Transport | None = None,
    ) -> None:
        """Checks the arguments, and makes the client of httpx2; no connection is opened yet.

        Raises:
            ConfigurationError: An argument is wrong, or httpx2 is not installed.
        """
        try:
            import httpx2
        except ImportError as error:
            raise ConfigurationError(f"a client needs httpx2: {how_to_install('client')}") from error
        if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise ConfigurationError(
                "the key is empty or no text, or has a character that a header cannot have, perhaps the line break of "
                "the file that it was in"
            )
        if not isinstance(retries, int) or retries < 0:
            raise ConfigurationError(f"retries must be an integer >= 0, got {retries!r}")
        self._httpx = httpx2
        # What a request may raise, see `_failure`.
        self._failures = (httpx2.RequestError, httpx2.InvalidURL, DeadlineExceeded, TimeoutError)
        self._model = model
        self._version = version
        self._timeout = _seconds(timeout)
        self._retries = retries
        self._limits: ServerLimits | None = None  # asked for at the first call
        self._is_asking = False  # whether a call is asking for them
        self._connections = self._open_connections(base_url, key, verify, transport)
        proxy = "" if transport is not None else proxy_of(str(self._connections.base_url))
        self._via = f" (through the proxy of {proxy})" if proxy else ""  # for messages
        self._way = self._via, self._connections.base_url.path.rstrip("/")  # what an `Answered` has of the client

    def _open_connections(
        self, base_url: str, key: str | None, verify: bool | ssl.SSLContext, transport: Transport | None
    ) -> Any:
        """Makes the client of httpx2, which opens a connection when it is used.

        Raises:
            ConfigurationError: The address or the certificates are wrong.
        """
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        try:
            mounts = _NO_PROXIES if is_loopback(self._httpx.URL(base_url).host) else None
            options = {"verify": verify, "transport": transport, "timeout": self._timeout, "mounts": mounts}
            connections = getattr(self._httpx, self._httpx_class)(base_url=base_url, headers=headers, **options)
        except (self._httpx.InvalidURL, UnicodeError) as error:
            raise ConfigurationError(f"the address of the server is not valid, got {base_url!r}: {error}") from error
        except OSError as error:  # httpx2 takes the path of a file, too
            raise ConfigurationError(f"verify={verify!r} cannot be read as certificates: {error}") from error
        if connections.base_url.scheme not in ("http", "https"):
            raise ConfigurationError(f"the address of the server must start with http:// or https://, got {base_url!r}")
        return connections

    def __repr__(self) -> str:
        """`<lengthwise.Client http://localhost:8000>`; without the key."""
        return f"<lengthwise.{type(self).__name__} {self._address}>"

    @property
    def _address(self) -> str:
        """The address of the server without its path, a user or a password."""
        address = self._connections.base_url
        return f"{address.scheme}://{address.netloc.decode()}"

    def _prepared(
        self,
        sequences: Any,
        reading: Mapping[str, Any],
        model: str | None,
        version: str | int | None,
        deadline: Deadline,
    ) -> Exchange[tuple[list[InputSequence], PreparedSequences]]:
        """The exchange that reads and encodes a caller's sequences.

        The server is asked for its limits, and for the names of the models' features, at the first call only: calls
        that begin meanwhile wait for its answer. Features with names are brought to the order of the version; for an
        alias, to that of the newest version, since only the answer says which version it is. `reading` has further
        arguments of `sequences_of`.

        Returns:
            The sequences, and their encoded bodies.
        """
        while self._limits is None and self._is_asking and deadline.seconds > 0:
            yield _ASKED_AGAIN_SECONDS
        if self._limits is None:
            self._is_asking = True
            try:
                self._limits = yield from server_limits(deadline)
            finally:
                self._is_asking = False
        versions = self._limits.versions(model)
        known_version = str(version) if str(version) in versions else max(versions, key=int, default="")
        names = versions.get(known_version)
        input_sequences = sequences_of(sequences, columns=ColumnNames(inputs=tuple(names or ())), **reading)
        return input_sequences, prepare(input_sequences, self._limits)

    def _prepare(self, sequences: Any, reading: Mapping[str, Any]) -> Exchange[PreparedSequences]:
        """The exchange of `prepare`."""
        deadline = self._deadline(None)
        _, prepared = yield from self._prepared(sequences, reading, self._model, self._version, deadline)
        return prepared

    def _predict(
        self,
        sequences: Any,
        reading: Mapping[str, Any],
        outputs: Sequence[str],
        model: str | None,
        version: str | int | None,
        timeout: float | None,
        priority: int,
    ) -> Exchange[Predictions]:
        """The exchange of `predict`, with the arguments of `Client.predict`; returns the predictions.

        Features with names are sent in the order that the client knows. If the version that answered has another order,
        the answer is of no use, and they are sent again in that order.

        Raises:
            ConfigurationError: The version that answered has another order, and the sequences were prepared before, so
                that they cannot be encoded again; or there are states for sequences that were.
        """
        # The options: those of this call, or else those of the client
        deadline, prepared = self._deadline(timeout), sequences
        model = self._model if model is None else model
        version = self._version if version is None else version
        fields = {
            "model": model,
            "version": None if version is None else str(version),
            "outputs": [*outputs] or None,
            "priority": priority or None,
        }
        options = {name: value for name, value in fields.items() if value is not None}
        if isinstance(sequences, PreparedSequences) and reading["before"]["state"] is not None:
            raise ConfigurationError("states go with the sequences: give them to prepare, as 'state' of each")
        while True:
            if not isinstance(sequences, PreparedSequences):
                sequences, prepared = yield from self._prepared(sequences, reading, model, version, deadline)
            predictions = yield from predict(prepared, options, deadline)
            if prepared.names is None:
                return predictions
            # The orders of the versions that answered, where they are not the one that was sent
            model, version = predictions.model, predictions.version
            answering = {str(prediction.version) for prediction in predictions}
            if self._limits is None or not self._limits.knows(model, answering):
                self._limits = yield from server_limits(deadline)
            versions = self._limits.versions(model)
            other_orders = {tuple(versions.get(name) or prepared.names) for name in answering} - {prepared.names}
            if not other_orders:
                return predictions
            if prepared is sequences:  # the caller prepared them
                difference = f"prepared for {quoted(prepared.names)}, and {model} takes {quoted(other_orders.pop())}"
                raise ConfigurationError(f"the sequences were {difference}: prepare them again")

    def _call(self, method: str, path: str, document: Any) -> Exchange[Any]:
        """The exchange for `get` and `post`: once it has run, its result is the JSON of the answer, or else its text.

        A whole URL as the path is refused: httpx2 would follow it, and send the key along.

        Raises:
            ConfigurationError: `path` is not a path.
        """
        if not path.startswith("/") or path.startswith("//"):
            raise ConfigurationError(f"a path of the server must begin with one '/', got {path!r}")
        return call(method, path, document, self._deadline(None))

    def _deadline(self, timeout: float | None) -> Deadline:
        """The deadline of a call that begins now; `timeout` in seconds, None: that of the client."""
        return Deadline.after(self._timeout if timeout is None else _seconds(timeout), self._retries)

    def _httpx_arguments(self, request: Send) -> dict[str, Any]:
        """The arguments of httpx2 for a request.

        Raises:
            ConfigurationError: The client was closed.
        """
        if self._connections.is_closed:
            raise ConfigurationError("the client was closed: make another one")
        return {
            "method": request.method,
            "url": request.path,
            "content": request.content,
            "headers": request.headers,
            "extensions": {"timeout": _TimeLeft(request.deadline)},
        }

    def _failure(self, error: Exception, request: Send) -> LengthwiseError:
        """Converts an error of httpx2, for a request that got no answer, to the error of this package.

        Raises:
            ConfigurationError: Nothing was sent, because the path is not valid.
        """
        if isinstance(error, DeadlineExceeded):
            return error
        if isinstance(error, self._httpx.InvalidURL):
            raise ConfigurationError(f"the path is not valid, got {request.path!r}: {error}") from error
        if isinstance(error, self._httpx.TimeoutException | TimeoutError):
            return DeadlineExceeded(f"no answer came within {request.deadline.timeout:g} s{self._via}")
        return ServerUnreachable(f"{self._address}: {error or type(error).__name__}{self._via}{self._hint(error)}")

    def _hint(self, error: Exception) -> str:
        """Advice about the likely cause of a connection that failed, as the end of a message; or empty."""
        if self._connections.base_url.scheme == "https":
            return next((hint for sign, hint in _TLS_HINTS.items() if sign in str(error)), "")
        cut_off = isinstance(error, self._httpx.RemoteProtocolError | self._httpx.ReadError)
        return "; if the port speaks https, the address must begin with https://" if cut_off else ""


def _seconds(timeout: float) -> float:
    """A timeout in seconds, checked.

    Raises:
        ConfigurationError: It is not a positive finite number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ConfigurationError(f"timeout must be a number of seconds > 0, got {timeout!r}")
    return float(timeout)


class Client(_AnyClient["httpx2.BaseTransport"]):
    """A client of one server. Several threads may use it at once.

    Close it after use, or use it in a `with` statement: it keeps connections open.

    Args:
        base_url: The address of the server, such as `https://models.example.com` or `http://localhost:8000/prefix`.
        key: The API key, where the server needs one.
        model: The name of the model, if the server has several; a call may name another.
        version: Its version; default: the highest good one.
        timeout: Seconds that a call may take, with all of its requests and retries; a call may set another.
        retries: How often a request is sent again at most. 429 and 503 are sent again after the time of the header
            `Retry-After`; a failed batch and a lost connection at most twice. What would begin after the timeout is not
            sent.
        verify: Whether to verify the certificate of an https server, or the `ssl.SSLContext` to verify it with.
        transport: A transport of httpx2, instead of a connection.

    Raises:
        ConfigurationError: An argument is wrong, or httpx2 is not installed.
    """

    _httpx_class = "Client"

    def predict(
        self,
        sequences: Any = None,
        *,
        attention: bool = False,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        layout: Layout = "steps-first",
        padding: Padding | None = None,
        static: Any = None,
        inputs: Mapping[str, Any] | None = None,
        states: Sequence[str | None] | None = None,
        offsets: Sequence[int | None] | None = None,
        outputs: Sequence[str] = (),
    ) -> Predictions:
        """Answers sequences of different lengths, in their order.

        Sequences that one request cannot have are split into several requests, one after the other.

        Args:
            sequences: A list of array-likes, each `[length, features]` with NaN for a missing value (None in a list),
                or `[length]` of one feature or of token ids. An entry may also be an object as in `POST /predict`:
                `{"id": ..., "steps": ..., "step_mask": ..., "feature_mask": ...}`. Or any other form that
                `Model.predict` takes (a mapping, a table, groups, a list column), or what `prepare` returned.
            attention: Whether to return the attention weights.
            model: The model; default: that of the client.
            version: Its version; default: that of the client.
            timeout: Seconds that the call may take; default: that of the client.
            priority: 0 to 9; higher runs first.
            layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.
            padding: `zeros` or `nan` cuts steps of zeros, or without values, off the end of each sequence first.
                Without it, a warning (logger `lengthwise.data`) says what looks like padding.
            static: Of a model that takes static values: for each sequence a list of them, or a mapping by their names;
                or a table with a row for each sequence; or the names of the columns of a table of steps.
            inputs: Of a model that takes several sequences: those of each name, in the place of `sequences`.
            states: Of a model that streams: for each sequence the `state` of the prediction before, or None where it
                begins. The answer is that to the whole sequence so far.
            offsets: How many steps the caller believes each of these states has seen; None for no belief.
            outputs: Further outputs: `state`, the state after the steps of each, and `attention`.

        Returns:
            One prediction for each sequence; a list with `model`, `version` and `labels`.

        Raises:
            InvalidSequences: The model does not accept some sequences; `indices` are theirs. It is a ValueError.
            StateConflict: Some states are of another version, or have seen another number of steps; `indices` too.
            QueueFull: The server is busy for longer than the timeout. Also `NotReady`, `InflightFull`, `Draining`.
            DeadlineExceeded: The timeout has passed.
            ServerUnreachable: The server gave no answer. It is a ConnectionError.
            RequestError: Any other refusal: `Unauthorized`, `ModelNotFound`, `TooLarge`, `InferenceFailed`.
            ConfigurationError: An argument is wrong.

        Example:
            >>> client = lengthwise.Client("http://localhost:8000")
            >>> (prediction,) = client.predict([np.zeros((19, 12))])
            >>> prediction.probabilities.shape, prediction.length
            ((9,), 19)
        """  # noqa: DOC502 - what it calls raises them
        reading = {"layout": layout, "padding": padding, "static": static, "inputs": inputs}
        reading["before"] = {"state": states, "offset": offsets}
        further = outputs_of(outputs, attention)
        return self._run(self._predict(sequences, reading, further, model, version, timeout, priority))

    def stream(self, state: str | None = None, **options: Any) -> Stream:
        """A sequence that goes on, from a state or from its beginning; `options` are those of `predict`, as `model`."""
        return Stream(partial(self.predict, **options), state)

    def prepare(
        self,
        sequences: Any = None,
        *,
        layout: Layout = "steps-first",
        padding: Padding | None = None,
        static: Any = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> PreparedSequences:
        """Encodes sequences once, to `predict` them several times: of other models, or again."""
        reading = {"layout": layout, "padding": padding, "static": static, "inputs": inputs}
        return self._run(self._prepare(sequences, reading))

    def get(self, path: str) -> Any:
        """`GET` of any path of the server, such as `/healthz`: the JSON of the answer, or its text."""
        return self._run(self._call("GET", path, None))

    def post(self, path: str, document: Any = None) -> Any:
        """`POST` of a JSON document, with NumPy arrays in it, to any path: the JSON of the answer, or its text."""
        return self._run(self._call("POST", path, document))

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, exchange: Exchange[Result]) -> Result:
        """Drives an exchange: sends each request, waits as long as it says, and returns its result."""
        result: Answered | LengthwiseError | None = None
        with closing(exchange):  # also of a call that is cancelled
            while True:
                try:
                    request = exchange.send(result)  # a `Send`, or seconds to wait
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]  # the library's stub has it as Any
                if isinstance(request, float):
                    time.sleep(request)
                    result = None
                    continue
                try:
                    with self._connections.stream(**self._httpx_arguments(request)) as response:
                        parts = [request.in_time(part) for part in response.iter_bytes()]
                    result = Answered(response.status_code, response.headers, b"".join(parts), *self._way)
                except self._failures as error:
                    result = self._failure(error, request)


def _awaited(
    method: Callable[Concatenate[Any, P], Result], example: str = ""
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, Result]]:
    """A method of `Client` as one of `AsyncClient`, whose `_run` is a coroutine; `example` is its own."""

    @wraps(method)
    async def coroutine(client: Any, /, *arguments: P.args, **options: P.kwargs) -> Result:
        """Calls the method, and awaits what it returns."""
        exchange: Any = method(client, *arguments, **options)
        return await exchange  # type: ignore[no-any-return]  # it has the type that the method says

    coroutine.__qualname__ = f"AsyncClient.{method.__name__}"
    coroutine.__doc__ = inspect.cleandoc(method.__doc__ or "").partition("Example:")[0] + example
    return coroutine


class AsyncClient(_AnyClient["httpx2.AsyncBaseTransport"]):
    """`Client` for asyncio: the same arguments, and the same methods as coroutines.

    A `transport` is an asynchronous one of httpx2. A call raises at its `await`, also where an argument is wrong.
    """

    _httpx_class = "AsyncClient"

    predict = _awaited(Client.predict, _ASYNC_EXAMPLE)
    prepare = _awaited(Client.prepare)
    get = _awaited(Client.get)
    post = _awaited(Client.post)

    def stream(self, state: str | None = None, **options: Any) -> AsyncStream:
        """A sequence that goes on, from a state or from its beginning; `options` are those of `predict`, as `model`."""
        return AsyncStream(partial(self.predict, **options), state)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, exchange: Exchange[Result]) -> Result:
        """Drives an exchange: sends each request, waits as long as it says, and returns its result."""
        result: Answered | LengthwiseError | None = None
        with closing(exchange):  # also of a call that is cancelled
            while True:
                try:
                    request = exchange.send(result)  # a `Send`, or seconds to wait
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]  # the library's stub has it as Any
                if isinstance(request, float):
                    await asyncio.sleep(request)
                    result = None
                    continue
                try:
                    async with (
                        asyncio.timeout(request.deadline.seconds + GRACE_SECONDS),
                        self._connections.stream(**self._httpx_arguments(request)) as response,
                    ):
                        parts = [request.in_time(part) async for part in response.aiter_bytes()]
                    result = Answered(response.status_code, response.headers, b"".join(parts), *self._way)
                except self._failures as error:
                    result = self._failure(error, request)

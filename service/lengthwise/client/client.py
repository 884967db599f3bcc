"""The clients: `Client`, and `AsyncClient` for asyncio. They send what an `exchange` says, and do nothing else."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lengthwise.client.answers import Predictions
from lengthwise.client.bodies import PreparedSequences
from lengthwise.client.connection import AnyClient, ArrivingAnswer
from lengthwise.client.exchange import Answered, Exchange, Wait
from lengthwise.datasets.given import Layout
from lengthwise.errors import LengthwiseError

if TYPE_CHECKING:
    import httpx  # noqa: F401  # the bases of both classes name its transports


class Client(AnyClient["httpx.BaseTransport"]):
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
        encoding: `json`, `arrow`, or `auto`: as an Arrow stream if there are many numbers, pyarrow is installed here,
            and the server reads Arrow streams; as JSON otherwise. The answers have the same bits.
        verify: Whether to verify the certificate of an https server, or the `ssl.SSLContext` to verify it with.
        transport: A transport of httpx, instead of a connection.

    Raises:
        ConfigurationError: An argument is wrong, or httpx is not installed.
    """

    _of_httpx = "Client"

    def predict(
        self,
        sequences: Any,
        *,
        attention: bool = False,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        layout: Layout = "steps-first",
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

        Returns:
            One prediction for each sequence; a list with `model`, `version` and `labels`.

        Raises:
            InvalidSequences: The model does not accept some sequences; `indices` are theirs. It is a ValueError.
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
        """
        found: Predictions = self._run(self._predicted(sequences, layout, attention, model, version, timeout, priority))
        return found

    def prepare(self, sequences: Any, *, layout: Layout = "steps-first") -> PreparedSequences:
        """Encodes sequences once, to `predict` them several times: of other models, or again."""
        found: PreparedSequences = self._run(self._prepared(sequences, layout, self._deadline(None)))
        return found

    def get(self, path: str) -> Any:
        """`GET` of any path of the server, such as `/healthz`: the JSON of the answer, or its text."""
        return self._run(self._called("GET", path, None))

    def post(self, path: str, document: Any = None) -> Any:
        """`POST` of a JSON document, with NumPy arrays in it, to any path: the JSON of the answer, or its text."""
        return self._run(self._called("POST", path, document))

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Exchange) -> Any:
        result: Answered | LengthwiseError | None = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value
            if isinstance(step, Wait):
                time.sleep(step.seconds)  # as long as the server said, or the back-off
                result = None
                continue
            try:
                with self._connections.stream(**self._request(step)) as response:
                    answer = ArrivingAnswer(step)
                    for part in response.iter_bytes():
                        answer.add(part)
                result = answer.of(response, self._via)
            except self._failures as error:
                result = self._failure(error, step)


class AsyncClient(AnyClient["httpx.AsyncBaseTransport"]):
    """`Client` for asyncio: the same arguments, and the same methods as coroutines.

    A `transport` is an asynchronous one of httpx.
    """

    _of_httpx = "AsyncClient"

    async def predict(
        self,
        sequences: Any,
        *,
        attention: bool = False,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        layout: Layout = "steps-first",
    ) -> Predictions:
        """Answers sequences of different lengths, in their order; see `Client.predict`.

        Args:
            sequences: The sequences.
            attention: Whether to return the attention weights.
            model: The model.
            version: Its version.
            timeout: Seconds that the call may take.
            priority: 0 to 9; higher runs first.
            layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.

        Returns:
            One prediction for each sequence.

        Raises:
            LengthwiseError: As `Client.predict` does.

        Example:
            >>> async with lengthwise.AsyncClient("http://localhost:8000") as client:
            ...     predictions = await client.predict([np.zeros((19, 12))])
        """
        found: Predictions = await self._run(
            self._predicted(sequences, layout, attention, model, version, timeout, priority)
        )
        return found

    async def prepare(self, sequences: Any, *, layout: Layout = "steps-first") -> PreparedSequences:
        """Encodes sequences once, to `predict` them several times; see `Client.prepare`."""
        found: PreparedSequences = await self._run(self._prepared(sequences, layout, self._deadline(None)))
        return found

    async def get(self, path: str) -> Any:
        """`GET` of any path of the server; see `Client.get`."""
        return await self._run(self._called("GET", path, None))

    async def post(self, path: str, document: Any = None) -> Any:
        """`POST` of a JSON document to any path of the server; see `Client.post`."""
        return await self._run(self._called("POST", path, document))

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: Exchange) -> Any:
        result: Answered | LengthwiseError | None = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
                result = None
                continue
            try:
                async with self._connections.stream(**self._request(step)) as response:
                    answer = ArrivingAnswer(step)
                    async for part in response.aiter_bytes():
                        answer.add(part)
                result = answer.of(response, self._via)
            except self._failures as error:
                result = self._failure(error, step)

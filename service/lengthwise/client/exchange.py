"""The protocol of the clients, without any I/O: what to send, when to wait, and when to give up.

```
Send ──> 200                      the result
     ──> 429, 503                 wait as long as Retry-After says, and Send again
     ──> 500, connection lost     wait a little, and Send again, a few times
     ──> any other refusal        the error
```

An *exchange* is a generator that yields a `Send`, or seconds to wait; the client does that, and sends the answer back
into the generator. So `Client` and `AsyncClient` share everything but the I/O. Nothing begins after the deadline.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import orjson

from lengthwise.api import Predictions
from lengthwise.client.answers import error_of, predictions_of
from lengthwise.client.bodies import PreparedSequences, RequestBody, ServerLimits
from lengthwise.errors import (
    DeadlineExceeded,
    InferenceFailed,
    LengthwiseError,
    ModelNotFound,
    RequestError,
    ServerUnreachable,
)

GRACE_SECONDS: Final = 1.0  # after the deadline, in which the server may still answer that it has passed
MOST_RETRIES_OF_FAILURES: Final = 2  # after failed batches and lost connections
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 2.0
_JITTER: Final = 0.1  # added to a wait at random, so that clients do not come back all at once
_BUSY: Final = (429, 503)
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be over, and how often its requests may be sent again."""

    at: float  # seconds of `time.monotonic`
    retries: int
    timeout: float  # the seconds that the whole call may take

    @classmethod
    def after(cls, seconds: float, retries: int) -> Deadline:
        """The deadline `seconds` from now."""
        return cls(time.monotonic() + seconds, retries, seconds)

    @property
    def seconds(self) -> float:
        """The seconds until the deadline; negative when it has passed."""
        return self.at - time.monotonic()


@dataclass(frozen=True, slots=True)
class Send:
    """A request to send; the client adds the headers that all requests have, such as the key."""

    method: str
    path: str  # and query
    headers: Mapping[str, str]
    content: bytes
    deadline: Deadline

    def in_time(self, part: bytes) -> bytes:
        """Returns a part of the answer as it is, if it came in time: until `GRACE_SECONDS` after the deadline.

        httpx2 cannot check this: it limits only the time between two parts.

        Raises:
            DeadlineExceeded: The part came too late.
        """
        if self.deadline.seconds < -GRACE_SECONDS:
            raise DeadlineExceeded(f"the answer did not arrive within {self.deadline.timeout:g} s")
        return part


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a `Send`; `via` is a text about the proxy that it came through, or empty.

    `prefix` is the path of the client's address, which is before that of each `Send`: empty in an ordinary address.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    via: str = ""
    prefix: str = ""


Result = TypeVar("Result")
Exchange: TypeAlias = Generator[Send | float, Answered | LengthwiseError | None, Result]
"""Yields a request, and gets its answer or its error; or yields seconds to wait, and gets None. Returns its result."""


def predict(prepared: PreparedSequences, options: Mapping[str, Any], deadline: Deadline) -> Exchange[Predictions]:
    """The exchange that gets the predictions for prepared sequences, with one request after the other.

    All requests name the version that answered the first one, so that one version answers all.

    Raises:
        ModelNotFound: The server has no such model or version.
        InferenceFailed: The model changed during the call, and the new version has other labels.
    """
    predictions: Predictions | None = None
    for body in prepared.bodies:
        same_version = options if predictions is None else {**options, "version": predictions.version}
        try:
            part = yield from _predict_body(body, same_version, deadline)
        except ModelNotFound:
            if same_version.get("version") == options.get("version"):
                raise
            part = yield from _predict_body(body, options, deadline)  # that version is not served any more
        if predictions is None:
            predictions = part
        elif part.labels != predictions.labels:
            raise InferenceFailed(
                f"the model changed during the call, from version {predictions.version} to version {part.version}, "
                "which has other labels; name a version"
            )
        else:
            predictions.extend(part)
    return Predictions([], "", "", ()) if predictions is None else predictions


def server_limits(deadline: Deadline) -> Exchange[ServerLimits]:
    """The exchange that gets the limits of the server; the defaults where it does not show them.

    Raises:
        RequestError: The server wants a key, or is too busy to answer in time.
    """
    try:
        document = yield from call("GET", "/", None, deadline)
    except RequestError as error:
        if error.status in (401, 403, *_BUSY) or isinstance(error, DeadlineExceeded):
            raise
        return ServerLimits()
    return ServerLimits.of(document)


def call(method: str, path: str, document: Any, deadline: Deadline) -> Exchange[Any]:
    """The exchange of a call of any path: returns the JSON of its answer, or its text.

    `document` becomes the body, as JSON; None: the request has no body.

    Raises:
        InferenceFailed: The answer is not the JSON that its content type says.
    """
    content = b"" if document is None else orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"accept": "application/json, text/plain;q=0.5"}
    if content:
        headers["content-type"] = _JSON
    answered = yield from _send_until_answered(lambda: content, method, path, headers, None, deadline)
    if "json" in answered.headers.get("content-type", ""):
        try:
            return orjson.loads(answered.content)
        except orjson.JSONDecodeError as error:
            raise InferenceFailed(f"the answer is not JSON: {error}") from error
    return answered.content.decode("utf-8", "replace")


def _predict_body(body: RequestBody, options: Mapping[str, Any], deadline: Deadline) -> Exchange[Predictions]:
    """Sends one body, with the remaining time as its `timeout_ms`; returns its predictions.

    Raises:
        InferenceFailed: The answer cannot be read, or does not have a prediction for each sequence.
    """

    def content() -> bytes:
        """The body, with the time that remains now."""
        return body.with_options({**options, "timeout_ms": round(max(deadline.seconds * 1000, 1.0), 3)})

    answered = yield from _send_until_answered(
        content, "POST", "/predict", {"content-type": _JSON, "accept": _JSON}, body, deadline
    )
    try:
        predictions = predictions_of(answered.content)
    except ValueError as error:
        raise InferenceFailed(f"the answer cannot be read: {error}") from error
    if len(predictions) != body.count:
        raise InferenceFailed(f"{len(predictions)} predictions came back for {body.count} sequences")
    return predictions


def _send_until_answered(
    content: Callable[[], bytes],
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: RequestBody | None,
    deadline: Deadline,
) -> Exchange[Answered]:
    """The exchange that sends a request until it succeeds; returns the answer.

    Yields each `Send`, and the seconds to wait between two of them. Each try calls `content` for the body, so that this
    can state the time that remains. If no try succeeds, the error of the last one is raised.

    Raises:
        DeadlineExceeded: The deadline passed before the request could be sent.
    """
    retries = failures = 0  # retries so far; and tries that failed for another reason than a busy server
    while True:
        if deadline.seconds <= 0:
            raise DeadlineExceeded("the deadline passed before the request was sent")
        answered = yield Send(method, path, headers, content(), deadline)
        assert answered is not None  # a Send is answered
        if isinstance(answered, LengthwiseError):
            error = answered
        elif 200 <= answered.status < 300:
            return answered
        else:
            found = answered.headers
            hint = f" (it redirects to {found['location'][:200]}: give that address)" if "location" in found else ""
            asked = answered.prefix and f" (asked was {answered.prefix}{path}: is the address only that of the server?)"
            error = error_of(
                answered.status, answered.content, found.get("retry-after"), body, hint + answered.via, asked
            )
        failures += 0 if isinstance(error, RequestError) and error.status in _BUSY else 1
        wait = _wait_seconds(error, retries, failures)
        if wait is None or retries == deadline.retries or deadline.seconds <= wait:
            raise error
        yield wait
        retries += 1


def _wait_seconds(error: LengthwiseError, retries: int, failures: int) -> float | None:
    """The seconds to wait before the next try; None to give up.

    A busy server says how long to wait; otherwise it is twice as long each time. A random part is added.

    Args:
        error: The error of the last try.
        retries: The retries so far.
        failures: The tries, the last one included, that failed for another reason than a busy server.
    """
    backoff = min(_FIRST_WAIT_SECONDS * 2**retries, _LONGEST_WAIT_SECONDS)
    if isinstance(error, RequestError) and error.status in _BUSY:
        wait = backoff if error.retry_after_seconds is None else max(error.retry_after_seconds, _FIRST_WAIT_SECONDS)
    elif isinstance(error, InferenceFailed | ServerUnreachable) and failures <= MOST_RETRIES_OF_FAILURES:
        wait = backoff
    else:
        return None
    return wait * (1 + _JITTER * random.random())

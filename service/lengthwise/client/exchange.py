"""What happens between a client and a server in one call, without sending anything: what to send, and when to wait.

```
Send ──> 200                      the result
     ──> 429, 503                 wait as long as Retry-After says, and Send again
     ──> 500, connection lost     wait a little, and Send again, a few times
     ──> any other refusal        the error
```

So both clients share everything but the sending. What would begin after the deadline is not begun.
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

GRACE_SECONDS: Final = 1.0  # past its deadline an answer may come: the server says itself that it has passed
MOST_RETRIES_OF_FAILURES: Final = 2  # of a failed batch or a lost connection
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 2.0
_JITTER: Final = 0.1  # added to a wait at random, so that clients do not come back all at once
_BUSY: Final = (429, 503)
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be over, on the clock of `time.monotonic`; and how often its requests are sent again at most."""

    at: float
    retries: int
    timeout: float  # the seconds that the whole call may take

    @classmethod
    def after(cls, seconds: float, retries: int) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds, retries, seconds)

    @property
    def seconds(self) -> float:
        """The seconds that are left; negative when it has passed."""
        return self.at - time.monotonic()


@dataclass(frozen=True, slots=True)
class Send:
    """A request to send; headers that every request has, such as the key, are added by the client."""

    method: str
    path: str  # with the query
    headers: Mapping[str, str]
    content: bytes
    deadline: Deadline

    def in_time(self, part: bytes) -> bytes:
        """Returns a part of the answer, unless the call's time is over: httpx limits the time between two parts only.

        Raises:
            DeadlineExceeded: The time of the call is over.
        """
        if self.deadline.seconds < -GRACE_SECONDS:
            raise DeadlineExceeded(f"the answer did not arrive within {self.deadline.timeout:g} s")
        return part


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back for a `Send`; `via` is the proxy that it came through."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    via: str = ""


Result = TypeVar("Result")
Exchange: TypeAlias = Generator[Send | float, Answered | LengthwiseError | None, Result]
"""Yields a request, and is sent its answer or its error; or seconds to wait, and is sent None."""


def predict(prepared: PreparedSequences, options: Mapping[str, Any], deadline: Deadline) -> Exchange[Predictions]:
    """The calls for some sequences, one after the other; returns `Predictions`.

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
            part = yield from _predict_body(body, options, deadline)  # that version is gone since
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
    """The limits of the server; the defaults where it does not say them.

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
    """One call of any path; returns the JSON of its answer, or its text.

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
    """Sends one body with the time that is left as its `timeout_ms`, and reads its predictions.

    Raises:
        InferenceFailed: The answer cannot be read, or has not a prediction for each sequence.
    """

    def now() -> bytes:
        return body.with_options({**options, "timeout_ms": round(max(deadline.seconds * 1000, 1.0), 3)})

    headers = {"content-type": _JSON, "accept": _JSON}
    answered = yield from _send_until_answered(now, "POST", "/predict", headers, body, deadline)
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
    """Yields each `Send`, and between tries the seconds to wait; returns the first answer with a 2xx.

    `content` is called for each try, so that a body can name the time that is left.

    Raises:
        DeadlineExceeded: The deadline passed before the request could be sent.
    """
    number = failures = 0  # tries so far, and how many of them failed
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
            error = error_of(answered.status, answered.content, answered.headers.get("retry-after"), body, answered.via)
        wait = _wait_seconds(error, number, failures)
        failures += not (isinstance(error, RequestError) and error.status in _BUSY)
        if wait is None or number == deadline.retries or deadline.seconds <= wait:
            raise error
        yield wait
        number += 1


def _wait_seconds(error: LengthwiseError, number: int, failures: int) -> float | None:
    """The seconds to wait before the next try; None to give up. `number`, `failures`: tries so far."""
    backoff = min(_FIRST_WAIT_SECONDS * 2**number, _LONGEST_WAIT_SECONDS)
    if isinstance(error, RequestError) and error.status in _BUSY:
        wait = backoff if error.retry_after_seconds is None else max(error.retry_after_seconds, _FIRST_WAIT_SECONDS)
    elif isinstance(error, InferenceFailed | ServerUnreachable) and failures < MOST_RETRIES_OF_FAILURES:
        wait = backoff
    else:
        return None
    return wait * (1 + _JITTER * random.random())

"""Every way a request, a model or a call can be refused, as one tree.

```
LengthwiseError
├── ConfigurationError              a wrong option, an unreadable file or repository        exit 2
│   └── RecordError                 one record of a data file is wrong
├── ModelError                      a model directory that must not be served       exit 1
│   ├── ManifestError               its manifest is missing, malformed or contradicts the graph
│   ├── VerificationError           its digests, its golden sequences or its proof do not hold
│   │   └── PromiseBroken           company moves an answer by more than was promised
│   └── NotJudged                   it could not be judged, for a reason that need not be its own: tried again later
└── RequestError                    a request that gets no answer: has a status, a title, maybe a wait
    ├── InvalidRequest       422    the body or an item in it is wrong; carries (pointer, detail) pairs
    │   └── InvalidSequences        sequences given to `Model.predict` are wrong; a ValueError too
    ├── Unauthorized         401    no key, or a wrong one
    ├── Forbidden            403    a call that this server does not take from anybody, as it was started
    ├── ModelNotFound        404    no such model or version
    ├── TooLarge             413    more bytes, sequences or steps than the limits allow
    ├── UnsupportedMedia     415    a content type or encoding that is not read here
    ├── InferenceFailed      500    the runtime failed; only this batch is affected
    └── Refused                     nothing is wrong with the request itself; says why, as a closed set of reasons
        ├── QueueFull        429    reason queue_full; comes with the seconds to wait
        ├── InflightFull     503    reason inflight_full: too many bytes of bodies and answers are in hand
        ├── NotReady         503    reason not_ready: starting, or no good model
        ├── Draining         503    reason draining: shutting down
        └── DeadlineExceeded 504    reason deadline
```

Only the text given to a `RequestError` ever reaches a client; whatever caused it stays in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


def how_to_install(extra: str) -> str:
    """What brings what an extra is for, as the end of an error's text."""
    return f"pip install 'lengthwise[{extra}]', or in a checkout: make install"


class LengthwiseError(Exception):
    """Base of every error that Lengthwise raises on purpose."""


class ConfigurationError(LengthwiseError):
    """An option is wrong or a path cannot be read; the message says which, and what would be right."""


class RecordError(ConfigurationError):
    """A record of a data file cannot be used; the message starts with its file and line."""


class ModelError(LengthwiseError):
    """A model directory that must not be served."""


class ManifestError(ModelError):
    """The manifest is missing, malformed, or says something else than the graph does."""


class VerificationError(ModelError):
    """Digests, golden sequences or the recorded proof do not hold."""


class PromiseBroken(VerificationError):
    """Company moves an answer by more than was promised for the device that it runs on."""


class NotJudged(ModelError):
    """A model could not be judged, and whatever stood in the way may be gone at the next look."""


class RequestError(LengthwiseError):
    """A request that gets no answer.

    Args:
        detail: A sentence for the client.
        retry_after_seconds: When to come back, where that is known.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one place of a body: an RFC 6901 pointer into the body as sent, and a sentence."""

    pointer: str
    detail: str


class InvalidRequest(RequestError):
    """The body, or items in it, cannot be read as the model's sequences.

    Args:
        problems: The first of them, in body order.
        total: How many there are in all; the number of `problems` unless more were found than are listed.
        more: Whether there may be still more: the rest was not read.
    """

    status = 422
    title = "Invalid request"

    def __init__(self, problems: Sequence[Problem], *, total: int | None = None, more: bool = False) -> None:
        self.problems = tuple(problems)
        self.total = len(self.problems) if total is None else total
        detail = self.problems[0].detail if self.total == 1 else f"{self.total} things are wrong with the body"
        super().__init__(f"at least {detail}; the rest was not read" if more else detail)


class InvalidSequences(InvalidRequest, ValueError):
    """Sequences given to `Model.predict` that the model does not take, or cannot answer.

    `problems` has all of them; the text names the first by their places in the list.
    """

    _LISTED: ClassVar[int] = 10

    def __str__(self) -> str:
        """`sequence 3: step 0 ...; sequence 7: ...`."""
        listed = [
            f"{'sequence ' if '/' in problem.pointer[1:] else ''}{problem.pointer.rpartition('/')[2]}: {problem.detail}"
            for problem in self.problems[: self._LISTED]
        ]
        more = self.total - len(listed)
        return "; ".join([*listed, *([f"and {more} more"] if more else [])])


class Unauthorized(RequestError):
    """A key is required, and none or a wrong one was given."""

    status = 401
    title = "Unauthorized"


class Forbidden(RequestError):
    """The call is switched off here; the text says how to switch it on, where that can be."""

    status = 403
    title = "Forbidden"


class ModelNotFound(RequestError):
    """No such model or version is served."""

    status = 404
    title = "Model not found"


class TooLarge(RequestError):
    """More bytes, sequences or steps than the limits allow, even on an idle server."""

    status = 413
    title = "Too large"


class UnsupportedMedia(RequestError):
    """The content type or content encoding is none that is read here."""

    status = 415
    title = "Unsupported media type"


class InferenceFailed(RequestError):
    """The runtime failed while this request's batch was running."""

    status = 500
    title = "Inference failed"


class Refused(RequestError):
    """Nothing is wrong with the request itself; `reason` is the label in `lengthwise_rejected_total`."""

    reason: ClassVar[str]


class QueueFull(Refused):
    """More padded steps are waiting than the queue holds."""

    status = 429
    title = "Queue full"
    reason = "queue_full"


class InflightFull(Refused):
    """The bodies and answers in hand leave no room for this call's bytes."""

    status = 503
    title = "Too many bytes in flight"
    reason = "inflight_full"


class NotReady(Refused):
    """The server is starting, or has no good model."""

    status = 503
    title = "Not ready"
    reason = "not_ready"


class Draining(Refused):
    """The server is shutting down and takes nothing new."""

    status = 503
    title = "Draining"
    reason = "draining"


class DeadlineExceeded(Refused):
    """The request's deadline passed before its answer was there."""

    status = 504
    title = "Deadline exceeded"
    reason = "deadline"

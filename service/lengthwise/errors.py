"""All errors that Lengthwise raises on purpose, as one tree.

```
LengthwiseError
├── ConfigurationError              a wrong option, an unreadable file or repository        exit 2
│   ├── RecordError                 one record of a data file is wrong
│   └── StoreUnreachable            a store of models gave no answer: a copy in the cache is used where there is one
├── ModelError                      a model directory that must not be served       exit 1
│   ├── ManifestError               its manifest is missing, malformed or contradicts the graph
│   ├── VerificationError           its digests, its golden sequences or its verification do not hold
│   │   └── PromiseBroken           batching changes an answer by more than was promised
│   └── NotVerified                 it could not be verified now, maybe not because of the model: tried again later
├── ServerUnreachable               a server gave no answer: nothing listens there, or the connection was lost
└── RequestError                    a request that gets no answer: has a status, a title, perhaps a Retry-After
    ├── InvalidRequest       422    the body or an item in it is wrong; carries (pointer, detail) pairs
    │   ├── NoSuchAlias             the version is neither a number nor an alias of the model
    │   ├── StateConflict    409    a state is of another version, or has seen other steps than the caller believes
    │   └── InvalidSequences        sequences given to `Model.predict` or to a client are wrong; a ValueError too
    ├── Unauthorized         401    no key, or a wrong one
    ├── Forbidden            403    a call that this server's options switch off, or that a page of another site made
    ├── ModelNotFound        404    no such model or version
    ├── TooLarge             413    more bytes, sequences or steps than the limits allow
    ├── UnsupportedMedia     415    a content type or encoding that is not supported
    ├── Misdirected          421    the server is called by a name that it does not have
    ├── InferenceFailed      500    the runtime failed; only this batch is affected
    ├── WorkersDiffer        500    a change of the models was made at some workers only
    └── Refused                     the request itself is good, but is refused; has one of a closed set of reasons
        ├── QueueFull        429    reason queue_full; comes with the seconds to wait
        ├── InflightFull     503    reason inflight_full: too many bytes of bodies and answers in memory
        ├── NotReady         503    reason not_ready: starting, or no good model
        ├── Draining         503    reason draining: shutting down
        └── DeadlineExceeded 504    reason deadline
```

Only the text given to a `RequestError` reaches a client; its cause is in the log only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, Final

_VARIES: Final = re.compile(
    r"'[^']*'|\"[^\"]*\"|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
)  # what differs in messages of one cause
IS_TRANSPOSED: Final = "; is it transposed?"  # ends some messages of a cause only
_LINE: Final = re.compile(r":((?:row )?\d+): ")  # the line of a file in a message
_FEW_ALIKE: Final = 3  # up to so many messages of one cause are all shown
_MOST_SOURCES: Final = 6  # of one cause that are kept
_MOST_CAUSES: Final = 100  # that are kept
_INDEX: Final = re.compile(
    r"/sequences/(\d+)(?:(?:/steps)?/(\d+)|/|$)"
)  # a pointer to a sequence, or to one of its steps


EXTRAS_OF: Final = {
    **dict.fromkeys(("fastapi", "httptools", "starlette", "uvicorn", "uvloop"), ("serve",)),
    "prometheus_client": ("serve", "bench"),
    "onnxruntime": ("cpu",),
    "httpx2": ("client", "stores"),
    "onnx": ("check", "export"),
    "safetensors": ("check", "export", "train"),
    "torch": ("torch", "export", "train"),
    **dict.fromkeys(("onnx_ir", "onnxscript"), ("export",)),
    "matplotlib": ("bench",),
    "pyarrow": ("parquet",),
    **dict.fromkeys(("obstore", "huggingface_hub"), ("stores",)),
    **dict.fromkeys(("scipy", "sklearn"), ("train",)),
}  # the extras that install a module
_BESIDE: Final = {
    **dict.fromkeys(("serve", "export", "onnx"), "onnxruntime"),
    "torch": "safetensors",
}  # what is also needed: by a command, or beside a module

OUT_OF_MEMORY: Final = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Unable to allocate")
"""In the messages of errors that a lack of memory causes."""
OUT_OF_DEVICE_MEMORY: Final = (
    "Failed to allocate memory",  # of onnxruntime, on the CPU too
    "CUDA failure 2: out of memory",
    "STATUS_ALLOC_FAILED",  # of cuBLAS, and of cuDNN 8
    "DEVICE_ALLOCATION_FAILED",  # of cuDNN 9
)
"""The same of a GPU's memory, which other processes may use up."""


def how_to_install(extras: str) -> str:
    """How to install extras, separated by commas, as the end of an error's message."""
    return f"pip install 'lengthwise[{extras}]', or in a checkout: pip install -e '.[{extras}]'"


def missing_extra(error: ModuleNotFoundError, name: str, subject: str) -> str | None:
    """The message for a module that is not installed: who needs it, and the extras for it and what goes with it.

    None if no extra installs it. If several install a module, the message has the extra `name` if it is one of them,
    otherwise the first. `subject` is who needs the module, such as the name of a command.
    """
    missing = (error.name or "").partition(".")[0]
    if missing not in EXTRAS_OF:
        return None
    modules = [missing, *(each for each in map(_BESIDE.get, (missing, name)) if each and find_spec(each) is None)]
    extras = dict.fromkeys(name if name in EXTRAS_OF[each] else EXTRAS_OF[each][0] for each in modules)
    return f"{subject} needs {missing}, which is not installed: {how_to_install(','.join(extras))}"


class LengthwiseError(Exception):
    """Base of every error that Lengthwise raises on purpose."""


class ConfigurationError(LengthwiseError):
    """An option is wrong or a path cannot be read; the message names it and says what is valid."""


class RecordError(ConfigurationError):
    """A record of a data file cannot be used; the message starts with its file and line."""


class StoreUnreachable(ConfigurationError):
    """A store of models, which an address names, gave no answer."""


class ModelError(LengthwiseError):
    """A model directory that must not be served."""


class ManifestError(ModelError):
    """The manifest is missing or malformed, or contradicts the graph."""


class VerificationError(ModelError):
    """Digests, golden sequences or the recorded verification do not hold."""


class PromiseBroken(VerificationError):
    """Batching changes an answer by more than was promised for the device that runs it."""


class NotVerified(ModelError):
    """A model could not be verified now; a later scan tries it again."""


@contextmanager
def as_model_errors(problem: str, *unchanged: type[Exception]) -> Iterator[None]:
    """Turns the errors of the block into a ModelError: onnxruntime's exceptions have no common base of their own.

    Args:
        problem: What could not be done; the text of the error follows it in the message.
        unchanged: Classes of errors that are raised as they are.

    Raises:
        ModelError: The block raised an error.
        NotVerified: It looks as if memory were short now, of the machine or of a GPU.
    """  # noqa: DOC502 - an expression chooses the class, which the rule cannot read
    try:
        yield
    except unchanged:
        raise
    except Exception as error:
        is_short = any(sign in str(error) for sign in (*OUT_OF_MEMORY, *OUT_OF_DEVICE_MEMORY))
        lacks_memory = is_short or isinstance(error, (MemoryError, NotVerified))
        raise (NotVerified if lacks_memory else ModelError)(f"{problem}: {error}") from error


class ServerUnreachable(LengthwiseError, ConnectionError):
    """A server gave no answer: nothing listens at its address, or the connection was lost."""


class RequestError(LengthwiseError):
    """A request that gets no answer; `detail` is a sentence for the client."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init_subclass__(cls, **class_attributes: Any) -> None:
        """Sets the class attributes that a subclass states: `class TooLarge(RequestError, status=413, title=...)`."""
        super().__init_subclass__()
        for name, value in class_attributes.items():
            setattr(cls, name, value)

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a body: a JSON pointer (RFC 6901) into the body as sent, and a sentence."""

    pointer: str
    detail: str

    @property
    def sequence(self) -> int | None:
        """The index of the sequence that it is about; None if it is about something else."""
        index = _INDEX.match(self.pointer)
        return None if index is None else int(index[1])

    @property
    def step(self) -> int | None:
        """The index of the step in that sequence, as sent; None if it is not about one step."""
        index = _INDEX.match(self.pointer)
        return None if index is None or index[2] is None else int(index[2])


class InvalidRequest(RequestError, status=422, title="Invalid request"):
    """The body, or items in it, cannot be read as the model's sequences.

    `problems` are the first errors, in the order of the body; `total` is how many there are. `more`: the rest of the
    body was not read, and may have further errors.
    """

    def __init__(self, problems: Sequence[Problem], *, total: int | None = None, more: bool = False) -> None:
        """Makes the text of the error; `total` is by default the number of problems.

        Raises:
            TypeError: `problems` is a text.
        """
        # Apache Beam tries to call the class of an error with a longer text; on a TypeError it keeps the error.
        if isinstance(problems, str):
            raise TypeError(f"problems must be a list, not a {type(problems).__name__}")
        self.problems = tuple(problems)
        self.total = len(self.problems) if total is None else total
        self.more = more
        detail = self.problems[0].detail if self.total == 1 else f"{self.total} things are wrong with the body"
        super().__init__(f"at least {detail}; the rest was not read" if more else detail)

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices of the sequences that `problems` names, ascending."""
        return tuple(sorted({problem.sequence for problem in self.problems if problem.sequence is not None}))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the error by its arguments: engines send the errors of their workers to the caller."""
        return partial(type(self), total=self.total, more=self.more), (self.problems,)


class NoSuchAlias(InvalidRequest):
    """The version is neither a number nor an alias of the model."""


class StateConflict(InvalidRequest, status=409, title="State conflict"):
    """A state fits neither the version that would answer, nor what the caller believes it has seen.

    It is of a version that is not served, of another one than the call names or than another state is of, or has seen
    another number of steps than the `offset` that was sent with it. `indices` are the sequences at fault.
    """


class InvalidSequences(InvalidRequest, ValueError):
    """Sequences passed to `Model.predict` or to a client that the model does not accept, or cannot answer.

    `problems` has all of them (a client: the first); the text names the first by their places in the list.
    """

    _LISTED: ClassVar[int] = 10  # causes that the text names

    def __str__(self) -> str:
        """The causes, each with the sequences that it is about; at most `_LISTED`."""
        causes = Causes()
        for problem in self.problems:
            causes.add(problem.detail, _source(problem))
        causes.total += self.total - len(self.problems)
        return "; ".join(causes.lines(self._LISTED))


def _source(problem: Problem) -> str:
    """What a problem is about, in words: `sequence 3, step 7`; otherwise the last part of its pointer."""
    if problem.sequence is None:
        return problem.pointer.rpartition("/")[2] or "the request"
    return f"sequence {problem.sequence}" + ("" if problem.step is None else f", step {problem.step}")


class Unauthorized(RequestError, status=401, title="Unauthorized"):
    """A key is required, and none or a wrong one was given."""


class Forbidden(RequestError, status=403, title="Forbidden"):
    """The call is switched off, for all or for web pages; the text says how to switch it on, if it can be."""


class ModelNotFound(RequestError, status=404, title="Model not found"):
    """No such model or version is served."""


class TooLarge(RequestError, status=413, title="Too large"):
    """More bytes, sequences or steps than the limits allow, even on an idle server."""


class UnsupportedMedia(RequestError, status=415, title="Unsupported media type"):
    """The content type or the content encoding is not supported."""


class Misdirected(RequestError, status=421, title="Misdirected request"):
    """The server is called by a name that it does not have."""


class InferenceFailed(RequestError, status=500, title="Inference failed"):
    """The runtime failed while this request's batch was running."""


class WorkersDiffer(RequestError, status=500, title="Workers differ"):
    """A change of the models was made at some of the processes that serve together."""


class Refused(RequestError):
    """The request itself is good, but is rejected; `reason` is the label in `lengthwise_rejected_total`."""

    reason: ClassVar[str]


class QueueFull(Refused, status=429, title="Queue full", reason="queue_full"):
    """More padded steps are waiting than the queue holds."""


class InflightFull(Refused, status=503, title="Too many bytes in flight", reason="inflight_full"):
    """The bodies and answers in memory leave no room for this call's bytes."""


class NotReady(Refused, status=503, title="Not ready", reason="not_ready"):
    """The server is starting, or has no good model."""


class Draining(Refused, status=503, title="Draining", reason="draining"):
    """The server is shutting down and refuses new requests."""


class DeadlineExceeded(Refused, status=504, title="Deadline exceeded", reason="deadline"):
    """The request's deadline passed before it was answered."""


@dataclass
class Causes:
    """Groups messages by their cause, and shows a few of each group.

    Messages have the same cause if they differ only in numbers and in quoted names. Of each cause it keeps the first
    messages and their *sources*: what they are about, such as a line of a file. It keeps at most `_MOST_CAUSES`.
    """

    total: int = 0  # messages, also those that are not kept
    # By the message without what varies: the first messages, their different sources, and how many there are
    _groups: dict[str, tuple[list[str], dict[str, None], int]] = field(default_factory=dict, init=False)

    def add(self, message: str, source: str = "") -> None:
        """Counts a message, and keeps it if it is one of the first of its cause.

        `source` says what the message is about, such as `sequence 3`; '': the message itself has the line of a file.
        """
        self.total += 1
        key = _VARIES.sub("#", message.partition(IS_TRANSPOSED)[0])
        messages, sources, count = self._groups.get(key, ([], {}, 0))
        if len(self._groups) < _MOST_CAUSES or count:
            if len(messages) < _FEW_ALIKE:
                messages.append(f"{source}: {message}" if source else message)
            if len(sources) < _MOST_SOURCES:
                line = _LINE.search(message)
                sources[source or ("" if line is None else line[1])] = None
            self._groups[key] = (messages, sources, count + 1)

    def lines(self, most: int) -> list[str]:
        """The messages in at most `most` lines, and one line more with the number of messages that are not shown.

        A cause with few messages has a line for each. A cause with many has one line, which shows all of them: the
        first message, the number of the others, and some of their sources.
        """
        listed: list[str] = []
        shown_count = 0  # messages that the lines stand for
        for messages, sources, count in self._groups.values():
            is_large = count > _FEW_ALIKE
            if is_large:
                others = [source for source in [*sources][1:] if source]
                more = ["..."] if len(others) < count - 1 else []
                on_lines = " on other lines" if all(map(str.isdecimal, others)) and others else ""
                listed_sources = f": {', '.join([*others, *more])}" if others else ""
                messages = [f"{messages[0]} (and{on_lines} {count - 1} more like it{listed_sources})"]
            new_lines = messages[: most - len(listed)]
            listed += new_lines
            shown_count += count if is_large and new_lines else len(new_lines)
        remaining = self.total - shown_count
        return [*listed, f"and {remaining} more"] if remaining else listed

"""One inference call from its arrival to its end, whatever protocol and transport it came by.

```
open ──> admit ──> decode ──> submit ──> finish ──> close
  └────────┴─────────┴──────────┴──────────┴─> fail ─> close
```

| step | what happens | on which thread |
|---|---|---|
| open (`InferenceCall`) | its record begins: request id, trace, arrival | event loop |
| `admit` | key and headers are checked, before the body is read | event loop |
| `decode` | the body is read: `decode_at_once` on the event loop, or `decode_slowly` in a thread | both |
| `submit` | its sequences are queued, if there is memory for them and for the answer | event loop |
| `_finish` | the model's results become the answer, encoded | the one that ran the last batch |
| `fail` | any step may fail: an error becomes the refusal that the client gets | event loop |
| `close` | its record ends: counted, logged, traced | event loop |

Three transports drive a call; each only reads bytes and writes bytes: ASGI (`protocols.over_asgi`), the connection
itself (`http.fast_request`) and gRPC (`grpc.infer`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias, cast

from lengthwise.batching.queues import PendingRequest, Timing, Waiter
from lengthwise.connections.inflight import Hold
from lengthwise.decoding.calls import MAX_TIMEOUT_MS, Call, answer_bytes
from lengthwise.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, Problem, RequestError
from lengthwise.protocols import windows
from lengthwise.protocols.body import ClientLeft
from lengthwise.protocols.body_deadline import read_timeout
from lengthwise.protocols.endpoint import Decoded, InferenceProtocol, Received
from lengthwise.protocols.turns import MANY_SEQUENCES, MOST_AT_ONCE, BodyReading
from lengthwise.runtime.answers import Answer
from lengthwise.telemetry.call_record import Caller

log = logging.getLogger("lengthwise.call")

Write: TypeAlias = Callable[[Any, Timing], Any]
"""Turns an encoded answer and its timing into what the transport sends, in the thread that ran the last batch."""

PRIORITY: Final = b"priority"  # the option's name in every protocol: a body without it has no priority
TIMEOUT: Final = b"x-lengthwise-timeout-ms"  # the header with a call's deadline, known before its body is read
_MILLISECONDS: Final = re.compile(rb"[0-9]{1,20}(\.[0-9]{1,20})?")
_PROCESS: Final = secrets.token_hex(4).encode()  # the beginning of this process's request ids
_numbers: Final = itertools.count(1)
_LONGEST_ID: Final = 128  # bytes
_SMALL_BYTES: Final = 16_384  # of a body with few parts that is read on the event loop in any form: some 1 ms at most
_FEW_PARTS: Final = 256  # commas and brackets: each part may be wrong, which takes some 5 us
_ID_CHARACTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=")


class InferenceCall:
    """One inference call, from its arrival to its end; the docstring of the module shows the steps.

    `peer` is the other end of the connection, so that connections take turns where large bodies are read.
    """

    def __init__(self, protocol: InferenceProtocol, headers: dict[bytes, bytes], peer: object = None) -> None:
        serving = protocol.serving
        self._protocol = protocol
        self.headers = headers  # by lower-case name; or gRPC's metadata
        self.peer = peer
        caller_id = headers.get(b"x-request-id", b"")
        is_safe = 0 < len(caller_id) <= _LONGEST_ID and _ID_CHARACTERS.issuperset(caller_id)  # to echo, and to log
        self.request_id = caller_id if is_safe else b"%s-%x" % (_PROCESS, next(_numbers))
        self.record = serving.call_records.open(protocol.name, self.request_id, headers)
        # The memory of this call. The transport counts the body here while it reads it, and closes the hold when the
        # answer is sent.
        self.hold = Hold(serving.inflight)
        # When the answer must be there, as known before the body is read; seconds of `time.monotonic`.
        self.deadline = self.record.arrived + serving.settings.default_timeout_ms / 1000
        self.has_deadline = False  # whether the caller set it
        self.decode_seconds = 0.0
        self._decoding_since = 0.0  # seconds of `time.monotonic`
        self._slot: asyncio.Future[None] | None = None  # for decoding a large body; done when the call has it
        self._pending: PendingRequest | None = None  # in the queue, or running
        self._timing: Timing | None = None
        self._error: RequestError | None = None  # the refusal, if it failed
        self._is_over = False  # nobody waits for its answer
        self._closed = False

    def admit(self, *, known: bool = False) -> None:
        """Checks the caller and the headers, before the body is decoded; raises `RequestError` for a refusal.

        `known`: an earlier request with the same headers was admitted, so only the key is checked, which may be invalid
        now.
        """
        protocol = self._protocol
        if not known:
            protocol.check_page(self.headers)
        if (name := protocol.serving.check_key(self.headers)) is not None:
            self.record.caller = Caller(*name)
        if not known:
            protocol.check(self.headers)
        if TIMEOUT in self.headers:
            self.limit(self.record.arrived + timeout_of(self.headers[TIMEOUT]) / 1000)

    def limit(self, deadline: float) -> None:
        """Sets a deadline of the caller, seconds of `time.monotonic`; an earlier one that the caller set stays."""
        self.deadline = min(self.deadline, deadline) if self.has_deadline else deadline
        self.has_deadline = True

    def begin_decoding(self) -> None:
        """Notes when decoding begins, because the body is complete; tells the batcher that a request is coming."""
        self._decoding_since = time.monotonic()
        self._protocol.serving.batcher.expect()

    def decode_at_once(self, request: Received) -> Decoded | None:
        """Decodes a body on the event loop; returns None, without decoding it, if that would block the loop too long.

        Raises `QueueFull`, without decoding the body, if every queue is full and the request names no priority; another
        `RequestError` if the request is wrong or its model is not served.
        """
        self._refuse_if_full(request)
        protocol = self._protocol
        if len(request.body) > protocol.most_fast_bytes or protocol.large_bodies.at_once >= MOST_AT_ONCE:
            return None
        decoded = protocol.read(request, fast=True)
        body = request.body
        if decoded is None and len(body) <= _SMALL_BYTES and sum(map(body.count, (b",", b"[", b"{"))) <= _FEW_PARTS:
            decoded = protocol.read(request, fast=False)
        if decoded is not None:
            self._note(decoded)
            if (count := len(decoded[0].items)) >= MANY_SEQUENCES:
                protocol.large_bodies.count_at_once(count)
        return decoded

    async def decode_slowly(self, request: Received) -> Decoded:
        """Waits for a decoding slot, and decodes a body in a thread.

        Raises `DeadlineExceeded` if no slot is free in time, `ClientLeft` if `withdraw` is called meanwhile, and the
        errors of `decode_at_once`.
        """
        async with self.decoding_slot(len(request.body), request):
            return await self.decode_in_thread(request)

    async def decode_in_thread(self, request: Received) -> Decoded:
        """Decodes a body in a thread, and counts the memory that decoding takes; the caller has a `decoding_slot`.

        Raises:
            ClientLeft: The call was withdrawn.
            RequestError: The errors of `decode_at_once`; `InflightFull` if there is no memory.
        """  # noqa: DOC502 - what it calls raises them
        if self._is_over:
            raise ClientLeft
        self._refuse_if_full(request)
        protocol = self._protocol
        self.hold.set(protocol.memory_factor * len(request.body))
        decoded = await asyncio.to_thread(protocol.read, request, fast=False)
        assert decoded is not None  # only `fast=True` returns None
        self._note(decoded)
        return decoded

    @asynccontextmanager
    async def decoding_slot(
        self, size: int, request: Received, *, likely: int | None = None, whole: bool = True
    ) -> AsyncIterator[BodyReading]:
        """Has one of the few slots in which large bodies are inflated and decoded, for the time of the block.

        It first waits until it is this call's turn (`Turns`). The body may name a deadline, so it is searched for one
        first.

        Args:
            size: How many bytes the body has when it is inflated, as far as that is known.
            request: The request with its body, or with the beginning of the inflated body.
            likely: The same, for predicting the end (`Turns.turn`).
            whole: Whether `request` has the whole body.

        Raises:
            ClientLeft: The call was withdrawn.
            DeadlineExceeded: The turn does not come before the call's deadline.
        """  # noqa: DOC502 - `turn` raises it, too
        if self._is_over:
            raise ClientLeft
        # The deadline, and whether the caller has set it: only then a call is refused before it has passed.
        deadline, is_certain = self.deadline, self.has_deadline
        large_bodies = self._protocol.large_bodies
        if not is_certain and not large_bodies.free:
            default = self._protocol.serving.settings.default_timeout_ms / 1000
            seconds, is_certain = read_timeout(self._protocol.options_of(request)._replace(whole=whole), default)
            deadline = self.record.arrived + seconds
        self._slot = asyncio.get_running_loop().create_future()
        async with large_bodies.turn(
            self.peer,
            size,
            deadline,
            work=self._protocol.name,
            likely=likely,
            certain=is_certain,
            slot=self._slot,
        ) as reading:
            yield reading

    def submit(self, decoded: Decoded, write: Write, waiter: Waiter | None = None) -> None:
        """Queues the sequences of a decoded call, and counts the memory of the sequences and of the answer.

        Args:
            decoded: The call, and the function that encodes its answers.
            write: Makes what the transport sends from the encoded answer and the timing; called in the thread that has
                run the last batch.
            waiter: Gets what `write` returns, or an error; None: `answer` returns or raises that.

        Raises:
            ClientLeft: The call was withdrawn.
            DeadlineExceeded: The deadline that the transport named has passed.
            RequestError: There is no memory for the call (`InflightFull`), or its queue does not take it.
        """  # noqa: DOC502 - what it calls raises them
        if self._is_over:
            raise ClientLeft
        call, encode = decoded
        if self.has_deadline:  # the earlier of the transport's deadline and the body's is valid
            timeout_ms = (self.deadline - self.record.arrived) * 1000
            if time.monotonic() >= self.deadline:
                raise DeadlineExceeded("the deadline had passed when the request was read")
            if call.timeout_ms is None or call.timeout_ms > timeout_ms:
                call = call._replace(timeout_ms=timeout_ms)
        self.hold.set(call.memory_bytes + answer_bytes(call))
        sequences = [item.steps for item in call.items]
        item_windows: windows.Windows | None = None
        if call.model.manifest.long == "window":
            sequences, item_windows = windows.split(call)
        finish = partial(self._finish, call, encode, item_windows, write)
        self._pending = self._protocol.serving.submit(
            call, sequences, finish, arrived=self.record.arrived, waiter=waiter, trace=self.record.trace
        )

    async def answer(self) -> Any:
        """Waits for the answer of a submitted call, and returns what `write` made of it.

        Raises the error with which the call has ended, which the caller passes to `fail`: `ClientLeft` if `withdraw`
        was called, a `RequestError`, or an error of the service itself.
        """
        assert self._pending is not None
        answer = await self._pending.future
        self._pending = None  # frees the sequences
        return answer

    def _finish(
        self,
        call: Call,
        encode: Callable[[list[Answer]], Any],
        item_windows: windows.Windows | None,
        write: Write,
        results: list[Answer | None],
        timing: Timing,
    ) -> Any:
        """Encodes the answers, and returns what `write` makes of them; also tells the monitoring of the answers.

        `submit` binds the arguments up to `write`. The batcher calls the rest once all sequences have run, in the
        thread that ran the last batch: a runner's, or the event loop's. `results` are the answers to the sequences that
        were queued, None for one that is not finite.
        """
        self._timing = timing
        # Nearly always the results are the answers; `answers_of` merges windows and refuses what is not finite.
        is_plain = item_windows is None and not (call.attention or call.states) and None not in results
        answers = cast("list[Answer]", results) if is_plain else windows.answers_of(call, results, item_windows)
        response = write(encode(answers), timing)
        if call.model.manifest.streaming is not None and (chunks := call.chunks):
            call.model.metrics.count("chunks", chunks)
        if (monitoring := self._protocol.serving.monitoring) is not None:
            monitoring.answered(call, answers, timing, request_id=self.request_id, arrived=self.record.arrived)
        return response

    def withdraw(self) -> None:
        """Ends the call with `ClientLeft` where it waits, or at its next step, because the client has left.

        A body that waits for its decoding slot is freed; sequences that do not run yet are taken out of the queue.
        """
        self._is_over = True
        if self._slot is not None:
            self._slot.cancel()
        if self._pending is not None:
            self._protocol.serving.batcher.withdraw(self._pending, ClientLeft())

    def fail(self, error: BaseException) -> RequestError | None:
        """Ends the work for a call that fails, and returns the refusal for the client; None if the client has left.

        This is the only function where an error becomes a refusal. The error is a `ClientLeft` or a cancellation, a
        `RequestError`, or an error of the service itself, which is logged and not shown to the client.
        """
        self.withdraw()
        self.hold.close()
        if isinstance(error, (ClientLeft, asyncio.CancelledError)):
            error.with_traceback(None)  # a traceback keeps the body in memory, and makes a cycle with the error
            return None
        if not isinstance(error, RequestError):
            log.error("request %s failed", self.request_id.decode(), exc_info=error)
            error = InferenceFailed("the request could not be answered")
        self._error = error.with_traceback(None)  # as in the first case
        return self._error

    def close(self, status: int, *, delivered: bool = True, ended: float | None = None) -> None:
        """Closes the call's record. Every transport ends with it; only the first call has an effect.

        Args:
            status: The HTTP status that the client got.
            delivered: The call's own answer or refusal, with this status, was sent. Else the connection sent another
                refusal, or the client had left (`CLIENT_LEFT`).
            ended: When the answer or the refusal was complete, in seconds of `time.monotonic`; default: now.
        """
        if self._closed:
            return
        self._closed = self._is_over = True
        self._pending = None  # breaks a reference cycle with this call
        if delivered:
            self.record.close(status, self._error, self._timing if self._error is None else None, ended)
        else:
            self.record.close(status, ended=ended)

    def _refuse_if_full(self, request: Received) -> None:
        """Raises `QueueFull` before the body is decoded if every queue is full, unless the request names a priority.

        A request with a priority may enter a queue that is full for others, so it is decoded. A refusal counts for the
        model if only one is served: the body, which may name another one, is not read.
        """
        serving, body = self._protocol.serving, request.body
        full = serving.full()
        # First a search for the byte "y" alone: it is several times as fast, and a body of numbers has none.
        if full is None or (PRIORITY[-1:] in body and PRIORITY in body) or PRIORITY in request.query:
            return
        if len(serving.served) == 1:
            self.record.count_for(serving.served[0].metrics)
        raise full

    def _note(self, decoded: Decoded) -> None:
        """Notes the decoded call and the time of decoding in the record; does nothing if the client has left."""
        if not self._closed:
            self.decode_seconds = self.record.decoded(decoded[0], self._decoding_since)


class DirectCall(ABC):
    """A call without a task or a future, from its body to its answer: it is the `Waiter` that the batcher completes.

    The batcher calls `done`, `set_result` and `set_exception`, as of a future.
    """

    __slots__ = ("_decoding", "call", "response_complete")

    def __init__(self, call: InferenceCall) -> None:
        self.call = call
        self.response_complete = False  # it has its answer or its refusal, or the client has left
        self._decoding: asyncio.Task[None] | None = None  # where the body is decoded in a thread

    def decode(self, request: Received) -> None:
        """Decodes a complete body, and submits its sequences; an error goes to `set_exception`."""
        call = self.call
        try:
            call.hold.set(len(request.body))
            call.begin_decoding()
            decoded = call.decode_at_once(request)
            if decoded is None:
                self._decoding = asyncio.ensure_future(self._decode_slowly(request))
            else:
                call.submit(decoded, self.write, self)
        except Exception as error:
            self.set_exception(error)

    async def _decode_slowly(self, request: Received) -> None:
        """Decodes, in a thread, a body that would block the event loop for too long, and submits its sequences."""
        try:
            self.call.submit(await self.call.decode_slowly(request), self.write, self)
        except Exception as error:
            self.set_exception(error)
        finally:
            self._decoding = None

    def done(self) -> bool:
        """The same as `response_complete`, under the name that the batcher calls."""
        return self.response_complete

    @abstractmethod
    def write(self, encoded: Any, timing: Timing) -> bytes:
        """Turns an encoded answer into the bytes that are sent, in the thread that ran the last batch."""

    @abstractmethod
    def set_result(self, answer: bytes) -> None:
        """Sends the answer, which `write` has made."""

    @abstractmethod
    def set_exception(self, error: BaseException) -> None:
        """Sends the refusal for an error; sends nothing if the client has left."""


def timeout_of(header: bytes) -> float:
    """The timeout in the header `TIMEOUT`, in milliseconds, at most `MAX_TIMEOUT_MS`.

    Raises:
        InvalidRequest: The header is not a number above 0.
    """
    value = float(header) if _MILLISECONDS.fullmatch(header) else 0.0
    if not value:
        raise InvalidRequest(
            [Problem("", "the header x-lengthwise-timeout-ms must be a number of milliseconds, above 0")]
        )
    return min(value, MAX_TIMEOUT_MS)


def server_timing(decode_seconds: float, timing: Timing) -> tuple[bytes, bytes]:
    """The header `server-timing` of an answer: how long its call was decoded, queued and run, in milliseconds."""
    milliseconds = (decode_seconds * 1e3, timing.queue * 1e3, timing.inference * 1e3)
    return b"server-timing", b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f" % milliseconds

"""One inference call over HTTP, whatever its protocol: read the body, decode, ask, answer, count.

An `Endpoint` is a plain ASGI callable: no request object is built, and its answer is two messages. Everything that can
be refused is refused before the queue; the answer's bytes are written by the runner thread that computed them. What a
protocol adds is how a body is decoded and how a refusal looks, so every one of them counts, watches and ends alike.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from starlette.types import Receive, Scope, Send

from lengthwise.batching.queues import PendingRequest, Timing, Waiter
from lengthwise.decoding.calls import Call, answer_bytes
from lengthwise.errors import DeadlineExceeded, InferenceFailed, RequestError
from lengthwise.inflight import Hold
from lengthwise.protocols import problems
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft, Inflating, headers_of, is_packed, read_body, told
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving
from lengthwise.telemetry.call_record import CallRecord

log = logging.getLogger("lengthwise.endpoint")

LARGE_BODY_BYTES: Final = 65_536
"""Bodies past it are decoded in a thread, so that the event loop is not held for milliseconds."""
CAREFUL_BYTES: Final = 4096
"""The same for bodies that the fast reader leaves to the careful one, which takes many times as long."""
TENSORS_BYTES: Final = 32_768
"""The same for tensors, whose JSON only Python's reader reads."""
LARGE_BODIES_AT_ONCE: Final = 2
"""The careful reader may need forty times a body's size, so few bodies are decoded in threads at once; the others wait,
and the deadline of each counts while it does."""
JSON: Final = (b"content-type", b"application/json")

_PROCESS: Final = secrets.token_hex(4).encode()
_numbers: Final = itertools.count(1)
_ID_CHARACTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=")

Headers: TypeAlias = list[tuple[bytes, bytes]]
Encode: TypeAlias = Callable[[list[Answer]], tuple[bytes, Headers]]
"""Writes the body of a 200 and the headers that it needs; runs in a runner thread."""


class Received(NamedTuple):
    """A request whose body is here, read and inflated.

    Attributes:
        scope: ASGI's.
        headers: By lower-case name.
        body: Its bytes.
    """

    scope: Scope
    headers: dict[bytes, bytes]
    body: bytes


class Endpoint(ABC):
    """The inference calls of one protocol.

    Args:
        serving: What answers.
        large_bodies: How many of them may be decoded at once; shared by all protocols.
    """

    name: ClassVar[str]
    """For the log and for traces."""

    def __init__(self, serving: Serving, large_bodies: asyncio.Semaphore) -> None:
        self.serving = serving
        self._large_bodies = large_bodies

    @abstractmethod
    def check(self, headers: dict[bytes, bytes]) -> None:
        """Refuses what the headers alone show, before the body is read.

        Raises:
            RequestError: See the protocol.
        """

    def admit(self, headers: dict[bytes, bytes]) -> None:
        """Refuses what the headers alone show: a caller without a key, where keys are set, and what `check` refuses.

        Raises:
            RequestError: See `Keys.check` and the protocol.
        """
        if self.serving.keys is not None:
            self.serving.keys.check(headers.get(b"authorization"))
        self.check(headers)

    def knows(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the headers have a key, where keys are set."""
        if self.serving.keys is None:
            return True
        try:
            self.serving.keys.check(headers.get(b"authorization"))
        except RequestError:
            return False
        return True

    def account(self, headers: dict[bytes, bytes]) -> CallRecord:
        """The account of a call that arrives now with these headers."""
        return self.serving.accounts.open(f"POST {self.name}", request_id_of(headers.get(b"x-request-id")), headers)

    @abstractmethod
    def decode(self, request: Received) -> tuple[Call, Encode]:
        """What a request asks, and how its answer is written.

        Raises:
            RequestError: It is wrong, or its model is not served.
        """

    def decode_quickly(self, request: Received) -> tuple[Call, Encode] | None:
        """The same where it takes no longer than the event loop can spare; None where a thread has to do it.

        Raises:
            RequestError: As `decode` does.
        """
        return self.decode(request) if len(request.body) <= CAREFUL_BYTES else None

    async def decode_in_thread(self, request: Received, deadline: float) -> tuple[Call, Encode]:
        """The same in a thread, when one of the few places for that is free.

        Args:
            request: What to decode.
            deadline: How long it may wait for a place, on the clock of `time.monotonic`.

        Raises:
            DeadlineExceeded: It waited until then.
            RequestError: As `decode` does.
        """
        async with place(self._large_bodies, deadline):
            return await asyncio.to_thread(self.decode, request)

    def ask(
        self,
        call: Call,
        finish: Callable[[list[Answer], Timing], Any],
        account: CallRecord,
        hold: Hold,
        waiter: Waiter | None = None,
    ) -> PendingRequest:
        """Queues a call, for whose sequences and answer there has to be room; see `Serving.ask`.

        Raises:
            InflightFull: There is none now.
            RequestError: It cannot be queued.
        """
        hold.set(call.held_bytes + answer_bytes(call))
        return self.serving.ask(call, account.arrived, finish, waiter, account.trace)

    @abstractmethod
    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """Status, body and headers of a refusal."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; every path out of it closes its account once."""
        hold = Hold(self.serving.inflight)
        try:
            await self._respond(scope, receive, send, hold)
        finally:
            hold.close()

    async def _respond(self, scope: Scope, receive: Receive, send: Send, hold: Hold) -> None:
        headers = headers_of(scope["headers"])
        account = self.account(headers)
        status, refused, timing = 200, None, None
        try:
            self.admit(headers)
            call, encode, decoded = await self._read(scope, receive, headers, account, hold)
            payload, made, timing = await self._answer(call, encode, account, hold, receive)
            del call, encode
            hold.holds(len(payload))
            extra = [*made, server_timing(decoded, timing)]
        except (ClientLeft, asyncio.CancelledError) as left:
            account.close(told(scope, CLIENT_LEFT))
            if isinstance(left, asyncio.CancelledError):
                raise
            left.with_traceback(None)  # which holds this frame, which holds the body and what holds it
            return
        except RequestError as error:
            refused = error.with_traceback(None)  # as above
            status, payload, extra = self.refuse(error)
            hold.close()
        except Exception:  # nothing of it may reach the client
            log.exception("request %s failed", account.request_id.decode())
            status, payload, extra = self.refuse(InferenceFailed("the request could not be answered"))
            hold.close()
        if self.serving.batcher.draining and problems.CLOSE not in extra:
            extra.append(problems.CLOSE)
        ended = time.monotonic()
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [
                        *extra,
                        (b"content-length", str(len(payload)).encode()),
                        (b"x-request-id", account.request_id),
                    ],
                }
            )
            await send({"type": "http.response.body", "body": payload})
        finally:  # only now it is known whether it left
            given = told(scope, status)
            if given == status:
                account.close(status, refused, timing, ended)
            else:
                account.close(given, ended=ended)

    async def _read(
        self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], account: CallRecord, hold: Hold
    ) -> tuple[Call, Encode, float]:
        """What is asked, and the seconds that decoding took. The body is let go of with the end of this.

        Raises:
            ClientLeft: The client closed the connection.
            RequestError: The body is wrong, too large or too late, or there is no room for it.
        """
        settings = self.serving.settings
        deadline = account.arrived + settings.default_timeout_ms / 1000  # its own stands in the body, if anywhere
        body = await read_body(receive, headers, settings.max_body_bytes, hold, late_at=deadline)
        started = time.monotonic()
        if is_packed(headers):
            inflating = Inflating(body, settings.max_body_bytes, hold)
            inflated = inflating.at_once()
            if inflated is None:
                async with place(self._large_bodies, deadline):
                    started = time.monotonic()
                    body = await inflating.inflated()
                    del inflating
                    hold.holds(len(body))
                    call, encode = await asyncio.to_thread(self.decode, Received(scope, headers, body))
                return call, encode, account.decoded(call, started)
            body = inflated
            hold.holds(len(body))
        request = Received(scope, headers, body)
        found = self.decode_quickly(request)
        if found is None:
            found = await self.decode_in_thread(request, deadline)
        return *found, account.decoded(found[0], started)

    async def _answer(
        self, call: Call, encode: Encode, account: CallRecord, hold: Hold, receive: Receive
    ) -> tuple[bytes, Headers, Timing]:
        """The answer, unless the client leaves first.

        Raises:
            ClientLeft: It did; what it asked is not run if it had not begun.
        """

        def finish(answers: list[Answer], timing: Timing) -> tuple[bytes, Headers, Timing]:
            return *encode(answers), timing

        ticket = self.ask(call, finish, account, hold)
        watch = asyncio.ensure_future(self._watch(receive, ticket))
        try:
            answer: tuple[bytes, Headers, Timing] = await ticket.future
            return answer
        except asyncio.CancelledError:
            self.serving.batcher.withdraw(ticket, ClientLeft())
            raise
        finally:
            watch.cancel()

    async def _watch(self, receive: Receive, ticket: PendingRequest) -> None:
        """Withdraws a ticket whose client leaves; cancelled when the answer is there first."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.serving.batcher.withdraw(ticket, ClientLeft())


@asynccontextmanager
async def place(places: asyncio.Semaphore, deadline: float) -> AsyncIterator[None]:
    """One of few places, as soon as one is free.

    Args:
        places: All of them.
        deadline: How long to wait, on the clock of `time.monotonic`.

    Raises:
        DeadlineExceeded: None was free until then.
    """
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            await places.acquire()
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the body could be read") from None
    try:
        yield
    finally:
        places.release()


def media_type(headers: dict[bytes, bytes]) -> bytes:
    """What a request says that its body is, in lower case and without parameters; empty where it says nothing."""
    given = headers.get(b"content-type", b"")
    return given if given == JSON[1] else given.partition(b";")[0].strip().lower()


def request_id_of(given: bytes | None) -> bytes:
    """The caller's id where it is one that is safe to echo and to log, else a new one."""
    if given and len(given) <= 128 and _ID_CHARACTERS.issuperset(given):
        return given
    return b"%s-%x" % (_PROCESS, next(_numbers))


def server_timing(decoded: float, timing: Timing) -> tuple[bytes, bytes]:
    """The header that says where a request's time went."""
    milliseconds = (decoded * 1e3, timing.queue * 1e3, timing.inference * 1e3)
    return b"server-timing", b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f" % milliseconds

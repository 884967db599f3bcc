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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

from starlette.types import Receive, Scope, Send

from service import problems
from service.answers import Answer
from service.body import ClientLeft, headers_of, read_body
from service.calls import Call
from service.errors import InferenceFailed, Refused, RequestError
from service.lanes import Ticket, Timing
from service.metrics import ModelMetrics
from service.serving import Served, Serving

log = logging.getLogger("lengthwise.endpoint")
access = logging.getLogger("lengthwise.access")

LARGE_BODY_BYTES: Final = 65_536
"""Bodies past it are decoded in a thread, so that the event loop is not held for milliseconds."""
LARGE_BODIES_AT_ONCE: Final = 2
"""The careful reader may need forty times a body's size, so few large bodies are read at once; the others wait."""
JSON: Final = (b"content-type", b"application/json")

CLIENT_LEFT: Final = 499
_PROCESS: Final = secrets.token_hex(4).encode()
_numbers: Final = itertools.count(1)
_ID_CHARACTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=")

Headers: TypeAlias = list[tuple[bytes, bytes]]
Encode: TypeAlias = Callable[[list[Answer]], tuple[bytes, Headers]]
"""Writes the body of a 200 and the headers that it needs; runs in a runner thread."""


@dataclass(slots=True)
class Received:
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
    """For the log."""

    def __init__(self, serving: Serving, large_bodies: asyncio.Semaphore) -> None:
        self.serving = serving
        self._large_bodies = large_bodies

    @abstractmethod
    def check(self, headers: dict[bytes, bytes]) -> None:
        """Refuses what the headers alone show, before the body is read.

        Raises:
            RequestError: See the protocol.
        """

    @abstractmethod
    def decode(self, request: Received) -> tuple[Call[Served], Encode]:
        """What a request asks, and how its answer is written.

        Raises:
            RequestError: It is wrong, or its model is not served.
        """

    @abstractmethod
    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """Status, body and headers of a refusal."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; every path out of it is counted once."""
        arrived = time.monotonic()
        headers = headers_of(scope["headers"])
        request_id = request_id_of(headers.get(b"x-request-id"))
        metrics = self.serving.metrics.unknown
        status, reason = 200, None
        try:
            self.check(headers)
            body = await read_body(receive, headers, self.serving.settings.max_body_bytes)
            started = time.monotonic()
            request = Received(scope, headers, body)
            if len(body) > LARGE_BODY_BYTES:
                async with self._large_bodies:
                    call, encode = await asyncio.to_thread(self.decode, request)
            else:
                call, encode = self.decode(request)
            decoded = time.monotonic() - started
            metrics = call.model.metrics
            metrics.decoded(decoded, [len(item.steps) for item in call.items])
            payload, made, timing = await self._answer(call, encode, arrived, receive)
            extra = [*made, (b"server-timing", _server_timing(decoded, timing))]
        except (ClientLeft, asyncio.CancelledError) as left:
            self._count(metrics, CLIENT_LEFT, arrived, None, request_id)
            if isinstance(left, asyncio.CancelledError):
                raise
            return
        except RequestError as error:
            status, payload, extra = self.refuse(error)
            reason = error.reason if isinstance(error, Refused) else None
        except Exception:  # nothing of it may reach the client
            log.exception("request %s failed", request_id.decode())
            status, payload, extra = self.refuse(InferenceFailed("the request could not be answered"))
        self._count(metrics, status, arrived, reason, request_id)
        if self.serving.batcher.draining and problems.CLOSE not in extra:
            extra.append(problems.CLOSE)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *extra,
                    (b"content-length", str(len(payload)).encode()),
                    (b"x-request-id", request_id),
                ],
            }
        )
        await send({"type": "http.response.body", "body": payload})

    async def _answer(
        self, call: Call[Served], encode: Encode, arrived: float, receive: Receive
    ) -> tuple[bytes, Headers, Timing]:
        """The answer, unless the client leaves first.

        Raises:
            ClientLeft: It did; what it asked is not run if it had not begun.
        """

        def finish(answers: list[Answer], timing: Timing) -> tuple[bytes, Headers, Timing]:
            return *encode(answers), timing

        ticket = self.serving.ask(call, arrived, finish)
        watch = asyncio.ensure_future(self._watch(receive, ticket))
        try:
            answer: tuple[bytes, Headers, Timing] = await ticket.future
            return answer
        except asyncio.CancelledError:
            self.serving.batcher.withdraw(ticket, ClientLeft())
            raise
        finally:
            watch.cancel()

    async def _watch(self, receive: Receive, ticket: Ticket[Any]) -> None:
        """Withdraws a ticket whose client leaves; cancelled when the answer is there first."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.serving.batcher.withdraw(ticket, ClientLeft())

    def _count(self, metrics: ModelMetrics, status: int, arrived: float, reason: str | None, request_id: bytes) -> None:
        seconds = time.monotonic() - arrived
        metrics.request(status, seconds, reason)
        if access.isEnabledFor(logging.DEBUG):
            access.debug("%s POST %s %d %.1f ms", request_id.decode(), self.name, status, seconds * 1000)


def media_type(headers: dict[bytes, bytes]) -> bytes:
    """What a request says that its body is, in lower case and without parameters; empty where it says nothing."""
    given = headers.get(b"content-type", b"")
    return given if given == JSON[1] else given.partition(b";")[0].strip().lower()


def request_id_of(given: bytes | None) -> bytes:
    """The caller's id where it is one that is safe to echo and to log, else a new one."""
    if given and len(given) <= 128 and _ID_CHARACTERS.issuperset(given):
        return given
    return b"%s-%x" % (_PROCESS, next(_numbers))


def _server_timing(decoded: float, timing: Timing) -> bytes:
    milliseconds = (decoded * 1e3, timing.queue * 1e3, timing.inference * 1e3)
    return b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f" % milliseconds

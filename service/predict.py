"""`POST /predict`: the endpoint that carries the load.

It is a plain ASGI callable: no request object is built, and its answer is two messages. Everything that can be refused
is refused before the queue; the answer's bytes are written by the runner thread that computed them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from service import problems, wire
from service.answers import Answer
from service.batcher import Ticket, Timing
from service.body import ClientLeft, headers_of, read_body
from service.calls import Call
from service.errors import InferenceFailed, Refused, RequestError, UnsupportedMedia
from service.metrics import ModelMetrics
from service.serving import Served, Serving

log = logging.getLogger("lengthwise.predict")
access = logging.getLogger("lengthwise.access")

LARGE_BODY_BYTES: Final = 65_536
"""Bodies past it are decoded in a thread, so that the event loop is not held for milliseconds."""
LARGE_BODIES_AT_ONCE: Final = 2
"""The careful reader may need forty times a body's size, so few large bodies are read at once; the others wait."""

CLIENT_LEFT: Final = 499
_PROCESS: Final = secrets.token_hex(4).encode()
_numbers: Final = itertools.count(1)
_ID_CHARACTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=")


class Predict:
    """The endpoint.

    Args:
        serving: What answers.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._large_bodies = asyncio.Semaphore(LARGE_BODIES_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; every path out of it is counted once."""
        arrived = time.monotonic()
        headers = headers_of(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id"))
        metrics = self._serving.metrics.unknown
        reason = None
        decoded: float | None = None
        try:
            _check_media_type(headers)
            body = await read_body(receive, headers, self._serving.settings.max_body_bytes)
            started = time.monotonic()
            call = await self._decode(body)
            decoded = time.monotonic() - started
            metrics = call.model.metrics
            metrics.decoded(decoded, [len(item.steps) for item in call.items])
            status, payload, timing = await self._answer(call, arrived, receive)
            extra = [(b"content-type", b"application/json"), (b"server-timing", _server_timing(decoded, timing))]
        except (ClientLeft, asyncio.CancelledError) as left:
            self._count(metrics, CLIENT_LEFT, arrived, None, request_id)
            if isinstance(left, asyncio.CancelledError):
                raise
            return
        except RequestError as error:
            status, payload, extra = error.status, problems.encode(error), problems.headers(error)
            reason = error.reason if isinstance(error, Refused) else None
        except Exception:  # nothing of it may reach the client
            log.exception("request %s failed", request_id.decode())
            failure = InferenceFailed("the request could not be answered")
            status, payload, extra = failure.status, problems.encode(failure), problems.headers(failure)
        self._count(metrics, status, arrived, reason, request_id)
        if self._serving.batcher.draining and problems.CLOSE not in extra:
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

    async def _decode(self, body: bytes) -> Call[Served]:
        limit = self._serving.settings.max_sequences
        if len(body) > LARGE_BODY_BYTES:
            async with self._large_bodies:
                return await asyncio.to_thread(wire.decode, body, self._serving, max_sequences=limit)
        return wire.decode(body, self._serving, max_sequences=limit)

    async def _answer(self, call: Call[Served], arrived: float, receive: Receive) -> tuple[int, bytes, Timing]:
        """The answer, unless the client leaves first.

        Raises:
            ClientLeft: It did; what it asked is not run if it had not begun.
        """

        def finish(answers: list[Answer], timing: Timing) -> tuple[int, bytes, Timing]:
            return 200, wire.encode(call, answers), timing

        ticket = self._serving.ask(call, arrived, finish)
        watch = asyncio.ensure_future(self._watch(receive, ticket))
        try:
            answer: tuple[int, bytes, Timing] = await ticket.future
            return answer
        except asyncio.CancelledError:
            self._serving.batcher.withdraw(ticket, ClientLeft())
            raise
        finally:
            watch.cancel()

    async def _watch(self, receive: Receive, ticket: Ticket[Any]) -> None:
        """Withdraws a ticket whose client leaves; cancelled when the answer is there first."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._serving.batcher.withdraw(ticket, ClientLeft())

    def _count(self, metrics: ModelMetrics, status: int, arrived: float, reason: str | None, request_id: bytes) -> None:
        seconds = time.monotonic() - arrived
        metrics.request(status, seconds, reason)
        if access.isEnabledFor(logging.DEBUG):
            access.debug("%s POST /predict %d %.1f ms", request_id.decode(), status, seconds * 1000)


def _check_media_type(headers: dict[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type not in (b"application/json", b""):
        raise UnsupportedMedia(
            "content-type must be application/json, or none (curl: --json, or -H 'content-type: application/json')"
        )


def _request_id(given: bytes | None) -> bytes:
    """The caller's id where it is one that is safe to echo and to log, else a new one."""
    if given and len(given) <= 128 and _ID_CHARACTERS.issuperset(given):
        return given
    return b"%s-%x" % (_PROCESS, next(_numbers))


def _server_timing(decoded: float, timing: Timing) -> bytes:
    milliseconds = (decoded * 1e3, timing.queue * 1e3, timing.inference * 1e3)
    return b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f" % milliseconds

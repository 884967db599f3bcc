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
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from starlette.types import Receive, Scope, Send

from service import problems
from service.accounts import Account
from service.answers import Answer
from service.body import ClientLeft, headers_of, read_body
from service.calls import Call
from service.errors import InferenceFailed, RequestError
from service.lanes import Ticket, Timing
from service.protocol import REFUSED
from service.serving import Served, Serving

log = logging.getLogger("lengthwise.endpoint")

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

    def account(self, headers: dict[bytes, bytes]) -> Account:
        """The account of a call that arrives now with these headers."""
        return self.serving.accounts.open(f"POST {self.name}", request_id_of(headers.get(b"x-request-id")), headers)

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
        """Answers one request; every path out of it closes its account once."""
        headers = headers_of(scope["headers"])
        account = self.account(headers)
        status, refused, timing = 200, None, None
        try:
            self.admit(headers)
            body = await read_body(receive, headers, self.serving.settings.max_body_bytes)
            started = time.monotonic()
            request = Received(scope, headers, body)
            if len(body) > LARGE_BODY_BYTES:
                async with self._large_bodies:
                    call, encode = await asyncio.to_thread(self.decode, request)
            else:
                call, encode = self.decode(request)
            decoded = account.decoded(call, started)
            payload, made, timing = await self._answer(call, encode, account, receive)
            extra = [*made, server_timing(decoded, timing)]
        except (ClientLeft, asyncio.CancelledError) as left:
            account.close(scope.get("extensions", {}).get(REFUSED, {"status": CLIENT_LEFT})["status"])
            if isinstance(left, asyncio.CancelledError):
                raise
            left.with_traceback(None)  # which holds this frame, which holds the body and what holds it
            return
        except RequestError as error:
            refused = error.with_traceback(None)  # as above
            status, payload, extra = self.refuse(error)
        except Exception:  # nothing of it may reach the client
            log.exception("request %s failed", account.request_id.decode())
            status, payload, extra = self.refuse(InferenceFailed("the request could not be answered"))
        account.close(status, refused, timing)
        if self.serving.batcher.draining and problems.CLOSE not in extra:
            extra.append(problems.CLOSE)
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

    async def _answer(
        self, call: Call[Served], encode: Encode, account: Account, receive: Receive
    ) -> tuple[bytes, Headers, Timing]:
        """The answer, unless the client leaves first.

        Raises:
            ClientLeft: It did; what it asked is not run if it had not begun.
        """

        def finish(answers: list[Answer], timing: Timing) -> tuple[bytes, Headers, Timing]:
            return *encode(answers), timing

        ticket = self.serving.ask(call, account.arrived, finish, trace=account.trace)
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

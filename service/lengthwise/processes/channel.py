"""The channel between the parent of several workers and one of them: a pair of sockets, and JSON lines on it.

| field of a message | is |
|---|---|
| `kind` | the name of its handler at the other end; `answer` for the answer to a call |
| `content` | the arguments of the handler; of an answer, what the handler returned |
| `number` | of a call and of its answer; absent where no answer is expected |

A worker inherits one descriptor, its end of the pair. The first message, of the kind `start`, is the parent's: it says
what to serve. With its first byte come the descriptors that both use (`socket.send_fds`).
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

log = logging.getLogger("lengthwise.workers")

_LINE_BYTES: Final = 2**26  # of a message: the metrics of one worker
_FIRST_BYTES: Final = 65_536
_MOST_DESCRIPTORS: Final = 8


def encode(kind: str, *content: Any, number: int | None = None) -> bytes:
    """A message as a line."""
    numbered = {} if number is None else {"number": number}
    return json.dumps({"kind": kind, "content": content} | numbered).encode() + b"\n"


def send_descriptors(end: socket.socket, descriptors: Sequence[int]) -> None:
    """Sends the descriptors that a worker is to have, before its first message: with a blank, which JSON ignores."""
    socket.send_fds(end, [b" "], descriptors)


def receive_start(end: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The content of the first message, and the descriptors that come with it; ends a process without a parent."""
    line, descriptors, _, _ = socket.recv_fds(end, _FIRST_BYTES, _MOST_DESCRIPTORS)
    while not line.endswith(b"\n"):
        part = end.recv(_FIRST_BYTES)
        if not part:
            os._exit(1)
        line += part
    return json.loads(line)["content"][0], descriptors


class Channel:
    """One end of a channel: it sends messages, and has `handlers`, by kind, for those of the other end.

    A handler gets the content of a message as its arguments. Of a call, what it returns is the answer, once it is there
    if it is awaitable; an exception is the answer `{"error": text}`.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: dict[str, Callable[..., Any]]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._calls: dict[int, asyncio.Future[Any]] = {}  # that have no answer yet
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, end: socket.socket, handlers: dict[str, Callable[..., Any]]) -> Channel:
        """Opens one end; messages are handled once it runs `receive`."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_LINE_BYTES), handlers)

    async def receive(self) -> None:
        """Handles messages until the other end is closed, also within a line: its process may be killed at any time."""
        with suppress(ConnectionError, ValueError):  # ValueError: a line that has no end within `_LINE_BYTES`
            while (line := await self._reader.readline()).endswith(b"\n"):
                try:
                    self._handle(**json.loads(line))
                except Exception:  # of one message, or of its handler: it ends nothing
                    log.exception("a message between the parent and a worker had no effect: %.200r", line)
                await asyncio.sleep(0)  # an answer has its effect before the next message is handled

    def _handle(self, kind: str, content: list[Any], number: int | None = None) -> None:
        if number is None:
            self._handlers[kind](*content)
        elif kind != "answer":
            task = asyncio.ensure_future(self._answer(number, kind, content))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif (call := self._calls.get(number)) is not None and not call.done():
            call.set_result(*content)

    async def _answer(self, number: int, kind: str, content: list[Any]) -> None:
        try:
            answer = self._handlers[kind](*content)
            if inspect.isawaitable(answer):
                answer = await answer
            self.send("answer", answer, number=number)
        except Exception as error:  # of any handler; or its answer is no JSON: the caller waits for either
            self.send("answer", {"error": f"{type(error).__name__}: {error}"}, number=number)

    async def call(self, kind: str, *content: Any) -> Any:
        """Sends a message and awaits its answer; None if the channel is closed before."""
        if self._writer.is_closing():  # also since the caller made a task of this
            return None
        number = next(self._numbers)
        self._calls[number] = call = asyncio.get_running_loop().create_future()
        self.send(kind, *content, number=number)
        try:
            return await call
        finally:
            del self._calls[number]

    def send(self, kind: str, *content: Any, number: int | None = None) -> None:
        """Sends a message; nothing once the channel is closed."""
        if not self._writer.is_closing():
            self._writer.write(encode(kind, *content, number=number))

    def close(self) -> None:
        """Closes this end; calls without an answer get None."""
        self._writer.close()
        for call in self._calls.values():
            if not call.done():
                call.set_result(None)

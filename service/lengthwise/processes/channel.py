"""The channel between the parent of several workers and one of them: a pair of sockets, and JSON lines on it.

| field of a message | is |
|---|---|
| `kind` | the name of its handler at the other end; `answer` for the answer to a call |
| `content` | the list of the handler's arguments; of an answer, what the handler returned |
| `number` | of a call and of its answer; absent where no answer is expected |

A worker inherits one descriptor, its end of the pair. The first message, of the kind `start`, is the parent's: it says
what to serve. The descriptors that both use are sent with the first byte of that message (`socket.send_fds`).
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

_LINE_BYTES: Final = 2**26  # the largest message: the metrics of one worker
_FIRST_BYTES: Final = 65_536  # read at once of the first message
_MOST_DESCRIPTORS: Final = 8


def encode(kind: str, *content: Any, number: int | None = None) -> bytes:
    """A message as a line of JSON."""
    numbered = {} if number is None else {"number": number}
    return json.dumps({"kind": kind, "content": content} | numbered).encode() + b"\n"


def send_descriptors(end: socket.socket, descriptors: Sequence[int]) -> None:
    """Sends the descriptors for a worker before its first message, with a blank, which JSON ignores."""
    socket.send_fds(end, [b" "], descriptors)


def receive_start(end: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The content of the first message, and the descriptors that come with it.

    If the channel ends before, the parent is gone, and this process ends with exit code 1.
    """
    line, descriptors, _, _ = socket.recv_fds(end, _FIRST_BYTES, _MOST_DESCRIPTORS)
    while not line.endswith(b"\n"):
        part = end.recv(_FIRST_BYTES)
        if not part:
            os._exit(1)
        line += part
    return json.loads(line)["content"][0], descriptors


class Channel:
    """One end of a channel: it sends messages, and calls `handlers`, by kind, for those of the other end.

    A handler gets the content of a message as its arguments. If the message is a call, the answer is what the handler
    returns, awaited if it is awaitable; an exception becomes the answer `{"error": text}`.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: dict[str, Callable[..., Any]]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._calls: dict[int, asyncio.Future[Any]] = {}  # calls without an answer so far, by number
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()  # calls of the other end that are being answered

    @classmethod
    async def open(cls, end: socket.socket, handlers: dict[str, Callable[..., Any]]) -> Channel:
        """Opens one end; messages are handled once it runs `receive`."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_LINE_BYTES), handlers)

    async def receive(self) -> None:
        """Handles messages until the other end is closed, or sends a line of more than `_LINE_BYTES`.

        A process may be killed while it writes, so the last line may have no end: it is dropped.
        """
        with suppress(ConnectionError, ValueError):  # ValueError: the line is too long
            while (line := await self._reader.readline()).endswith(b"\n"):
                try:
                    self._handle(**json.loads(line))
                except Exception:  # a wrong message, or an error of its handler, does not end the channel
                    log.exception("a message between the parent and a worker had no effect: %.200r", line)
                await asyncio.sleep(0)  # an answer has its effect before the next message is handled

    def _handle(self, kind: str, content: list[Any], number: int | None = None) -> None:
        """Handles a message: a call is answered in a task; an answer ends the call of its number."""
        if number is None:
            self._handlers[kind](*content)
        elif kind != "answer":
            task = asyncio.ensure_future(self._answer(number, kind, content))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif (call := self._calls.get(number)) is not None and not call.done():
            call.set_result(*content)

    async def _answer(self, number: int, kind: str, content: list[Any]) -> None:
        """Runs the handler of a call, and sends what it returns, or its error."""
        try:
            answer = self._handlers[kind](*content)
            if inspect.isawaitable(answer):
                answer = await answer
            self.send("answer", answer, number=number)
        except Exception as error:  # also if the answer cannot be sent as JSON: the caller waits for one
            self.send("answer", {"error": f"{type(error).__name__}: {error}"}, number=number)

    async def call(self, kind: str, *content: Any) -> Any:
        """Sends a message and waits for its answer; None if the channel is closed before it comes."""
        if self._writer.is_closing():  # perhaps since the caller made a task of this call
            return None
        number = next(self._numbers)
        self._calls[number] = call = asyncio.get_running_loop().create_future()
        self.send(kind, *content, number=number)
        try:
            return await call
        finally:
            del self._calls[number]

    def send(self, kind: str, *content: Any, number: int | None = None) -> None:
        """Sends a message, with a `number` if an answer is expected; does nothing once the channel is closed."""
        if not self._writer.is_closing():
            self._writer.write(encode(kind, *content, number=number))

    def close(self) -> None:
        """Closes this end; calls without an answer get None."""
        self._writer.close()
        for call in self._calls.values():
            if not call.done():
                call.set_result(None)

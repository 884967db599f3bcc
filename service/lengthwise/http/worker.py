"""One of several processes that serve together: what it knows of the others, and says to them.

```
shared memory: pid, state, connections, start, restarts of each ──> who accepts the next connection; /healthz
channel to the parent, JSON lines: ask ──> the parent calls all workers ──> answers of all
```

Connections are taken from sockets that all share. The kernel wakes every worker for each, so without more one of them
may take all of a few long-lived ones. So a worker that has more connections than another leaves a new one to that, for
`GIVE_WAY_SECONDS`; one that is not ready leaves them to those that are.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import mmap
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise.settings import worker_task
from lengthwise.telemetry import shared_counts
from lengthwise.telemetry.shared_counts import SharedCounts
from lengthwise.telemetry.snapshots import Snapshot

GIVE_WAY_SECONDS: Final = 0.005  # the loop of a worker that is busy takes milliseconds to look at its socket
NOT_READY_SECONDS: Final = 0.01  # a worker that has just become ready takes new ones after so long at most
TOGETHER_SECONDS: Final = 5.0  # that a worker waits for others that start as it does
ABSENT, STARTING, LOADED, READY, ENDING = range(5)
_PR_SET_PDEATHSIG: Final = 1
_ROW: Final = np.dtype([(name, "f8") for name in ("pid", "state", "connections", "started", "restarts")])
_LINE_BYTES: Final = 2**26  # of a line of a channel: the metrics of one worker


class SharedMemory:
    """What all workers share, in a file that has zeros at first: a `table` with a row for each, and their counts."""

    def __init__(self, file: int, workers: int) -> None:
        first = _ROW.itemsize * workers
        size = first + shared_counts.BYTES * workers
        os.ftruncate(file, size)
        memory = memoryview(mmap.mmap(file, size))
        self.table: Any = np.frombuffer(memory, _ROW, workers)  # written by name and place
        self.counts = [
            SharedCounts(memory[place : place + shared_counts.BYTES])
            for place in range(first, size, shared_counts.BYTES)
        ]

    def put(self, place: int, **numbers: float) -> None:
        """Sets numbers of one worker."""
        for name, number in numbers.items():
            self.table[name][place] = number

    def described(self) -> list[dict[str, Any]]:
        """The workers as `/healthz` shows them."""
        return [
            {
                "pid": int(row["pid"]),
                "ready": bool(row["state"] == READY),
                "started": float(row["started"]),
                "restarts": int(row["restarts"]),
            }
            for row in self.table
        ]


class Channel:
    """JSON lines between the parent and one worker: either of them calls the other, and is answered, or tells it."""

    def __init__(self, answers: Mapping[str, Callable[..., Awaitable[Any]]], told: Mapping[str, Callable[..., Any]]):
        self._answers = answers
        self._told = told
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, end: socket.socket) -> asyncio.StreamReader:
        """Opens this end of it; the caller has it listen."""
        reader, self._writer = await asyncio.open_connection(sock=end, limit=_LINE_BYTES)
        return reader

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hears what comes, until the other end is closed."""
        with suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                if "number" not in message:
                    self._told[message["tell"]](*message["given"])
                elif "call" in message:
                    task = asyncio.ensure_future(self._answer(**message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                elif (asked := self._asked.get(message["number"])) is not None and not asked.done():
                    asked.set_result(message["found"])

    async def _answer(self, number: int, call: str, given: list[Any]) -> None:
        try:
            found = await self._answers[call](*given)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        self._write(number=number, found=found)

    async def call(self, name: str, *given: Any) -> Any:
        """What the other end answers."""
        number = next(self._numbers)
        self._asked[number] = answered = asyncio.get_running_loop().create_future()
        self._write(number=number, call=name, given=given)
        try:
            return await answered
        finally:
            del self._asked[number]

    def tell(self, name: str, *given: Any) -> None:
        """Tells the other end something that has no answer."""
        self._write(tell=name, given=given)

    def _write(self, **message: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def drain(self) -> None:
        """Waits until all was sent."""
        if self._writer is not None:
            with suppress(ConnectionError):
                await self._writer.drain()

    def close(self, found: Any) -> None:
        """Closes this end; whatever was asked is answered with this."""
        if self._writer is not None:
            self._writer.close()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(found)


class Connections(set[Any]):
    """Connections; each that ends is noted, with those that are left."""

    def __init__(self, note: Callable[[int], None]) -> None:
        super().__init__()
        self._note = note

    def discard(self, connection: Any) -> None:
        """Removes one."""
        super().discard(connection)
        self._note(len(self))


class Worker:
    """This process among the workers."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.place: int = task["place"]
        self._sockets: dict[str, int] = task["sockets"]
        self.judgements = Path(task["judgements"])
        self.memory = SharedMemory(task["memory"], task["workers"])
        self.counts = self.memory.counts[self.place]  # the memory of its counts
        self.answers: dict[str, Callable[..., Awaitable[Any]]] = {}  # what it does when all are called, by name
        self.commands: dict[str, Callable[[], None]] = {}  # what it does when the parent says so
        self._channel = Channel(self.answers, self.commands)
        self._end: int = task["channel"]
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    def of_this_process(cls) -> Worker | None:
        """What the parent of this process made it; None if it serves alone."""
        task = worker_task()
        if task is None:
            return None
        if sys.platform == "linux":  # the system ends it with its parent; elsewhere the end of the channel does
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != task["parent"]:  # the parent ended before this was set
            os._exit(1)
        return cls(task)

    @property
    def first(self) -> bool:
        """Whether it says what all of them do."""
        return self.place == 0 and not self.memory.table["restarts"][0]

    @property
    def restarts(self) -> int:
        """How many workers were replaced."""
        return int(self.memory.table["restarts"].sum())

    def _others(self, name: str) -> Any:
        """A number of each other worker."""
        return np.delete(self.memory.table[name], self.place)

    @property
    def _state(self) -> float:
        return float(self.memory.table["state"][self.place])

    def is_ready(self, ready: bool) -> None:
        """Notes whether it would answer."""
        if self._state != ENDING:
            self.memory.put(self.place, state=READY if ready else min(self._state, LOADED))

    async def together(self) -> None:
        """Returns when all have loaded their models, so that connections are spread from the first one on.

        It waits for `TOGETHER_SECONDS` at most.
        """
        if self._state != ENDING:
            self.memory.put(self.place, state=LOADED)
        with suppress(TimeoutError):
            async with asyncio.timeout(TOGETHER_SECONDS):
                while STARTING in self._others("state"):
                    await asyncio.sleep(0.002)

    def turn(self, connections: int) -> float:
        """How many seconds it leaves a new connection to others, with so many of its own; see `Listener`."""
        self.memory.put(self.place, connections=connections)
        counts = self._others("connections")[self._others("state") == READY]
        if not len(counts):
            return 0.0
        if self._state != READY:
            return -NOT_READY_SECONDS
        return GIVE_WAY_SECONDS if connections > counts.min() else 0.0

    def connections(self) -> Connections:
        """A set of its connections, of which the others know how many they are."""
        return Connections(lambda count: self.memory.put(self.place, connections=count))

    def ends(self) -> bool:
        """Notes that it accepts no more; whether it is the last."""
        self.memory.put(self.place, state=ENDING)
        return not np.isin(self._others("state"), (STARTING, LOADED, READY)).any()

    async def open(self) -> None:
        """Listens to the parent, and says that it does; without a parent this process ends."""
        end = socket.socket(fileno=self._end)
        end.setblocking(False)
        reader = await self._channel.open(end)
        self._listening = asyncio.ensure_future(self._listen(reader))
        self._channel.tell("up")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        await self._channel.listen(reader)
        os._exit(1)  # the parent is gone, and its ports are wanted

    def socket(self, name: str) -> socket.socket:
        """A socket that the parent holds, and listens on."""
        shared = socket.socket(fileno=self._sockets[name])
        shared.setblocking(False)
        return shared

    async def close(self, last: Snapshot) -> None:
        """Tells the parent what was counted in the end."""
        self._channel.tell("last", last)
        await self._channel.drain()

    async def ask(self, call: str, *given: Any) -> list[Any]:
        """What the parent answers.

        `metrics`: those of all others; `change`: what came of it at each worker; `unloaded`: the names, before a scan.
        """
        return list(await self._channel.call(call, *given))

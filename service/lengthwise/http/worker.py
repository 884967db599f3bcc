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
from collections.abc import Awaitable, Callable, MutableSequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from lengthwise.settings import worker_task
from lengthwise.telemetry import shared_counts
from lengthwise.telemetry.shared_counts import SharedCounts
from lengthwise.telemetry.snapshots import Snapshot

GIVE_WAY_SECONDS: Final = 0.005
"""The loop of a worker that is busy takes milliseconds to look at its socket."""
NOT_READY_SECONDS: Final = 0.1
ABSENT, STARTING, READY, ENDING = range(4)
_PR_SET_PDEATHSIG: Final = 1
_FIELDS: Final = ("pid", "state", "connections", "started", "restarts")
LINE_BYTES: Final = 2**26
"""Longest line of a channel: the metrics of one worker."""


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """What all workers share: `[workers, 5]` numbers, and the counts of each."""

    cells: MutableSequence[float]
    counts: tuple[SharedCounts, ...]

    @classmethod
    def of(cls, file: int, workers: int) -> SharedMemory:
        """That of a file, which has zeros at first."""
        table = 8 * len(_FIELDS) * workers
        size = table + shared_counts.BYTES * workers
        os.ftruncate(file, size)
        memory = memoryview(mmap.mmap(file, size))
        places = range(table, size, shared_counts.BYTES)
        regions = tuple(SharedCounts(memory[first : first + shared_counts.BYTES]) for first in places)
        return cls(cast("MutableSequence[float]", memory[:table].cast("d")), regions)

    def get(self, place: int, name: str) -> float:
        """A number of one worker."""
        return float(self.cells[len(_FIELDS) * place + _FIELDS.index(name)])

    def put(self, place: int, **numbers: float) -> None:
        """Sets numbers of one worker."""
        for name, number in numbers.items():
            self.cells[len(_FIELDS) * place + _FIELDS.index(name)] = number

    def described(self) -> list[dict[str, Any]]:
        """The workers as `/healthz` shows them."""
        return [
            {
                "pid": int(self.get(place, "pid")),
                "ready": self.get(place, "state") == READY,
                "started": self.get(place, "started"),
                "restarts": int(self.get(place, "restarts")),
            }
            for place in range(len(self.counts))
        ]


class Connections(set[Any]):
    """Connections; each that ends is noted, with those that are left."""

    def __init__(self, note: Callable[[int], None]) -> None:
        super().__init__()
        self._note = note

    def discard(self, connection: Any) -> None:
        """Removes one."""
        super().discard(connection)
        self._note(len(self))


AnswerCall = Callable[..., Awaitable[Any]]


class Worker:
    """This process among the workers.

    Attributes:
        answers: What it does when all are called, by name.
        commands: What it does when the parent says so, by name.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.place: int = task["place"]
        self._sockets: dict[str, int] = task["sockets"]
        self.judgements = Path(task["judgements"])
        self.unloaded = frozenset(task["unloaded"])
        self.memory = SharedMemory.of(task["memory"], task["workers"])
        self.answers: dict[str, AnswerCall] = {}
        self.commands: dict[str, Callable[[], None]] = {}
        self._channel = socket.socket(fileno=task["channel"])
        self._channel.setblocking(False)
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of_this_process(cls) -> Worker | None:
        """What the parent of this process made it; None if it serves alone."""
        task = worker_task()
        if task is None:
            return None
        _end_with(task["parent"])
        return cls(task)

    @property
    def counts(self) -> SharedCounts:
        """The memory of its counts."""
        return self.memory.counts[self.place]

    @property
    def first(self) -> bool:
        """Whether it says what all of them do."""
        return self.place == 0 and not self.memory.get(0, "restarts")

    @property
    def beside_ready(self) -> bool:
        """Whether another is ready."""
        return READY in self._states()

    def _states(self) -> list[float]:
        return [self.memory.get(place, "state") for place in self._others()]

    def _others(self) -> list[int]:
        return [place for place in range(len(self.memory.counts)) if place != self.place]

    def is_ready(self, ready: bool) -> None:
        """Notes whether it would answer."""
        if self.memory.get(self.place, "state") != ENDING:
            self.memory.put(self.place, state=READY if ready else STARTING)

    def turn(self, connections: int) -> float:
        """How many seconds it leaves a new connection to others, with so many of its own; see `Listener`."""
        self.memory.put(self.place, connections=connections)
        ready = [place for place in self._others() if self.memory.get(place, "state") == READY]
        if not ready:
            return 0.0
        if self.memory.get(self.place, "state") != READY:
            return -NOT_READY_SECONDS
        fewest = min(self.memory.get(one, "connections") for one in ready)
        return GIVE_WAY_SECONDS if connections > fewest else 0.0

    def connections(self) -> Connections:
        """A set of its connections, of which the others know how many they are."""
        return Connections(lambda count: self.memory.put(self.place, connections=count))

    def ends(self) -> bool:
        """Notes that it accepts no more; whether it is the last."""
        self.memory.put(self.place, state=ENDING)
        return not {STARTING, READY} & {*self._states()}

    @property
    def restarts(self) -> int:
        """How many workers were replaced."""
        return sum(int(self.memory.get(place, "restarts")) for place in range(len(self.memory.counts)))

    async def open(self) -> None:
        """Listens to the parent, and says that it does; without a parent this process ends."""
        reader, self._writer = await asyncio.open_connection(sock=self._channel, limit=LINE_BYTES)
        self._run(self._listen(reader))
        self.say(up=True)

    def socket(self, name: str) -> socket.socket:
        """A socket that the parent holds, and listens on."""
        shared = socket.socket(fileno=self._sockets[name])
        shared.setblocking(False)
        return shared

    def drop(self) -> None:
        """Closes its channel."""
        self._channel.close()

    async def close(self, last: Snapshot) -> None:
        """Tells the parent what was counted in the end."""
        self.say(last=last)
        if self._writer is not None:
            with suppress(ConnectionError):
                await self._writer.drain()

    def say(self, **message: Any) -> None:
        """Sends a message to the parent."""
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def ask(self, call: str, *given: Any, all_of_them: bool = False) -> list[dict[str, Any]]:
        """What each other worker answers to a call, and what is known of those that have ended.

        With `all_of_them` this one is called too, and no other such call is made at the same time.
        """
        number = next(self._numbers)
        self._asked[number] = answered = asyncio.get_running_loop().create_future()
        self.say(ask=number, call=call, given=given, all=all_of_them)
        try:
            return list(await answered)
        finally:
            self._asked.pop(number, None)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                self._heard(json.loads(line))
        os._exit(1)  # the parent is gone, and its ports are wanted

    def _heard(self, message: dict[str, Any]) -> None:
        if "call" in message:
            self._run(self._answer(message))
        elif "answer" in message:
            asked = self._asked.get(message["answer"])
            if asked is not None and not asked.done():
                asked.set_result(message["found"])
        else:
            self.commands[message["do"]]()

    async def _answer(self, message: dict[str, Any]) -> None:
        try:
            found = await self.answers[message["call"]](*message["given"])
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        self.say(reply=message["number"], found=found)

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _end_with(parent: int) -> None:
    """Has the system end this process with its parent, where it can; elsewhere the end of the channel does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before this was set
        os._exit(1)

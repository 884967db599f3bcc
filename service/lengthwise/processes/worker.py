"""One of several processes that serve together: what it knows of the others, and says to them.

```
shared memory: pid, state, beat, connections, ... of each ──> who accepts the next connection; /healthz; who hangs
channel to the parent, JSON lines: ask ──> the parent calls all workers ──> answers of all
```

Connections are taken from sockets that all share. The kernel wakes every worker for each, so without more one of them
may take all of a few long-lived ones. So a worker that has more connections than another leaves a new one to that, for
`GIVE_WAY_SECONDS`; one that is not ready leaves them to those that are. Nobody leaves any to a worker that hangs: whose
event loop has noted no beat for `SILENT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import itertools
import json
import logging
import mmap
import os
import signal
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import IO, Any, Final

import numpy as np

from lengthwise.batching.runners import Cores
from lengthwise.errors import ConfigurationError
from lengthwise.files import shared_cores
from lengthwise.repository.stopping import Stopped, Stopping
from lengthwise.settings import worker_task
from lengthwise.telemetry import shared_counts
from lengthwise.telemetry.shared_counts import SharedCounts
from lengthwise.telemetry.snapshots import Snapshot

log = logging.getLogger("lengthwise.workers")

BEAT_SECONDS: Final = 0.5
SILENT_SECONDS: Final = 3.0  # without a beat: it is not ready for others
GIVE_WAY_SECONDS: Final = 0.001  # at a time: the loop of a worker that is busy takes some to look at its socket
NOT_READY_SECONDS: Final = 0.01  # a worker that has just become ready takes new ones after so long at most
TOGETHER_SECONDS: Final = 5.0  # that a worker waits for others that start as it does
ABSENT, STARTING, LOADED, READY, ENDING = range(5)
_PR_SET_PDEATHSIG: Final = 1
_ROW: Final = np.dtype(
    [
        (name, "f8")
        for name in (
            "pid",
            "state",
            "beat",
            "connections",
            "inflight",
            "started",
            "restarts",
            "reason",
            "verifying",
            "batches",
        )
    ]
)
_LINE_BYTES: Final = 2**26  # of a line of a channel: the metrics of one worker


def shared_file(workers: int) -> IO[bytes]:
    """A file for `SharedMemory`, open and without a name.

    On Linux it is in memory and in no mount, so a full or missing `/dev/shm` does not matter. All of it is allocated
    now: memory that cannot be had at the first touch would end the process with SIGBUS.

    Raises:
        ConfigurationError: There is no room for it.
    """
    size = (_ROW.itemsize + shared_counts.BYTES) * workers
    try:
        try:
            file: IO[bytes] = os.fdopen(os.memfd_create("lengthwise"), "w+b")
        except (AttributeError, OSError):  # another system, or it is forbidden
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise ConfigurationError(
            f"there is no room for the {size} bytes that {workers} workers share: {error.strerror}; --workers 1 needs "
            "none"
        ) from error
    return file


class SharedMemory:
    """What all workers share, in a `shared_file`: a `table` with a row for each, and their counts.

    | number of a row | is |
    |---|---|
    | `pid`, `started`, `restarts` | of the process that has this place, by the parent |
    | `state` | `ABSENT` to `ENDING` |
    | `beat` | when its event loop ran last, on the clock of `time.monotonic`, which is one for all; 0 at first |
    | `connections` | that are open |
    | `inflight` | bytes of calls in hand: above 0 until the last is answered |
    | `reason` | a digest of why it could not start |
    | `verifying` | whether it verifies a model, or waits for another one that does |
    | `batches` | that run; where none does, minus the time of the last end or request: `batching.runners.Cores` |
    """

    def __init__(self, file: int, workers: int) -> None:
        self._file = file
        first = _ROW.itemsize * workers
        size = first + shared_counts.BYTES * workers
        memory = memoryview(mmap.mmap(file, size))
        self.table: Any = np.frombuffer(memory, _ROW, workers)  # written by name and place
        self.counts = [
            SharedCounts(memory[place : place + shared_counts.BYTES])
            for place in range(first, size, shared_counts.BYTES)
        ]

    def is_silent(self) -> Any:
        """Of each worker, whether its event loop does not run."""
        return time.monotonic() - self.table["beat"] > SILENT_SECONDS

    def is_first(self, place: int, reason: str) -> bool:
        """Whether no other worker has given this reason for its end; notes it."""
        digest = zlib.crc32(reason.encode(errors="replace")) or 1
        with self.locked(digest):
            first = digest not in self.table["reason"]
            self.put(place, reason=digest)
        return bool(first)

    @contextmanager
    def locked(self, digest: int) -> Iterator[None]:
        """Waits until no other process has the lock of a digest, and has it, until its end at most."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, digest)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, digest)

    def put(self, place: int, **numbers: float) -> None:
        """Sets numbers of one worker."""
        for name, number in numbers.items():
            self.table[name][place] = number

    def described(self) -> list[dict[str, Any]]:
        """The workers as `/healthz` shows them."""
        return [
            {
                "pid": int(row["pid"]),
                "ready": bool(row["state"] == READY and not silent),
                "started": float(row["started"]),
                "restarts": int(row["restarts"]),
            }
            for row, silent in zip(self.table, self.is_silent(), strict=True)
        ]


class Channel:
    """JSON lines between the parent and one worker: calls of methods, which are answered, and notifications."""

    def __init__(
        self, methods: Mapping[str, Callable[..., Awaitable[Any]]], notifications: Mapping[str, Callable[..., Any]]
    ):
        self._methods = methods
        self._notifications = notifications
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, end: socket.socket) -> asyncio.StreamReader:
        """Opens this end of it; the caller has it listen."""
        reader, self._writer = await asyncio.open_connection(sock=end, limit=_LINE_BYTES)
        return reader

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hears what comes, until the other end is closed: also in the middle of a line, if its process was killed."""
        with suppress(ConnectionError, ValueError):  # ValueError: a line that has no end within `_LINE_BYTES`
            while (line := await reader.readline()).endswith(b"\n"):
                try:
                    self._hear(json.loads(line))
                except Exception:  # one message, or what it brought about, ends nothing
                    log.exception("a message between the parent and a worker had no effect: %.200r", line)
                await asyncio.sleep(0)  # an answer has its effect before that of the next line

    def _hear(self, message: dict[str, Any]) -> None:
        if "number" not in message:
            self._notifications[message["tell"]](*message["given"])
        elif "call" in message:
            task = asyncio.ensure_future(self._answer(**message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif (asked := self._asked.get(message["number"])) is not None and not asked.done():
            asked.set_result(message["found"])

    async def _answer(self, number: int, call: str, given: list[Any]) -> None:
        try:
            found = await self._methods[call](*given)
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
        self.number: int = task["workers"]  # of all workers
        self.reason: str = task["reason"]  # why there are so many
        self._others = [place for place in range(self.number) if place != self.place]
        self._sockets: dict[str, int] = task["sockets"]
        self.memory = SharedMemory(task["memory"], self.number)
        self.counts = self.memory.counts[self.place]  # the memory of its counts
        self.answers: dict[str, Callable[..., Awaitable[Any]]] = {}  # what it does when all are called, by name
        self.commands: dict[str, Callable[[], None]] = {}  # what it does when the parent says so
        self._channel = Channel(self.answers, self.commands)
        self._end: int = task["channel"]
        self._listening: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self.lives: Callable[[], bool] = lambda: True  # whether it can heal itself, as its event loop runs

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

    @property
    def inflight(self) -> tuple[Any, int]:
        """Where the bytes of calls in hand are noted, of each worker, and which of them are this one's."""
        return memoryview(self.memory.table["inflight"]), self.place

    def _states(self) -> Any:
        """The state of each other worker; one that hangs counts as absent."""
        states, silent = self.memory.table["state"][self._others], self.memory.is_silent()[self._others]
        return np.where(silent & (states != STARTING), ABSENT, states)

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
                while STARTING in self._states():
                    await asyncio.sleep(0.002)

    def accept_delay(self, connections: int) -> float:
        """Seconds to wait before accepting, so that a worker with fewer connections goes first; see `Listener`.

        Negative: wait always, also where nobody else is ready.
        """
        self.memory.put(self.place, connections=connections)
        counts = self.memory.table["connections"][self._others][self._states() == READY]
        if not len(counts):
            return 0.0
        if self._state != READY:
            return -NOT_READY_SECONDS
        return GIVE_WAY_SECONDS if connections > 9 * counts.min() // 8 else 0.0  # of many, an eighth more is no matter

    def cores(self, own: int) -> Cores:
        """The cores of this worker, and those of all, which it may borrow."""
        batches: Any = memoryview(self.memory.table["batches"])
        return Cores(own, shared_cores(), batches, self.place)

    def connections(self) -> Connections:
        """A set of its connections, of which the others know how many they are."""
        return Connections(lambda count: self.memory.put(self.place, connections=count))

    def ends(self) -> bool:
        """Notes that it accepts no more; whether it is the last."""
        self.memory.put(self.place, state=ENDING)
        return not np.isin(self._states(), (STARTING, LOADED, READY)).any()

    def _beat(self) -> None:
        if self.lives():
            self.memory.put(self.place, beat=time.monotonic())
        self._loop.call_later(BEAT_SECONDS, self._beat)

    async def open(self) -> None:
        """Listens to the parent, and says that it does; without a parent this process ends."""
        self._loop = asyncio.get_running_loop()
        self._beat()
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

    def forget(self, model: tuple[str, str], counts: Snapshot) -> None:
        """Tells the parent what was counted of a model that is not counted any more."""
        self._channel.tell("forgot", model, counts)

    async def close(self, last: Snapshot) -> None:
        """Tells the parent what was counted in the end."""
        await self._channel.call("last", last)

    async def ask(self, call: str, *given: Any) -> list[Any]:
        """What the parent answers.

        `metrics`, with its own: those of all others; `statistics`: those of all others that answer; `change`: what
        came of it at each worker; `unloaded`: the names, before a scan.
        """
        return list(await self._channel.call(call, *given))

    def ask_from_thread(self, stopping: Stopping, call: str, *given: Any) -> Any:
        """The same in another thread than that of the event loop.

        Raises:
            Stopped: That thread is to stop.
        """
        asked = asyncio.run_coroutine_threadsafe(self._channel.call(call, *given), self._loop)
        try:
            with stopping.ending(asked.cancel):
                return asked.result()
        except CancelledError:
            raise Stopped from None

    @contextmanager
    def verifying(self, digest: str) -> Iterator[None]:
        """Waits until no other worker verifies the model of a digest; see `SharedVerifier`."""
        try:
            self.memory.put(self.place, verifying=1)
            with self.memory.locked(zlib.crc32(digest.encode())):
                yield
        finally:
            self.memory.put(self.place, verifying=0)

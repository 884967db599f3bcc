"""The parent of several workers: it holds the listening sockets, and starts, watches and replaces the processes.

```
parent: sockets, shared memory ──exec, with inherited files──> worker 0, worker 1, ...: each a whole service
   │ a worker ended ──> its counts are kept, and after a pause its place gets another one
   │ SIGHUP, SIGTERM ──> said to all, on their channels: a signal could come before they handle it
   └ asked by a worker ──> all others are called, and their answers go back
```

It opens no model and answers nothing. A worker is the same command again, never a fork: threads of libraries do not
survive one. Connections wait in the sockets while no worker takes them, so a worker that ends loses only its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lengthwise.connections.listener import listening
from lengthwise.errors import ConfigurationError
from lengthwise.http.addresses import announce
from lengthwise.http.worker import ABSENT, LINE_BYTES, STARTING, SharedMemory
from lengthwise.settings import Settings, flag, passed_to_worker
from lengthwise.telemetry.metrics import Bounds, Metrics
from lengthwise.telemetry.snapshots import Snapshot, added, lasting, taken

log = logging.getLogger("lengthwise.workers")

EARLY_SECONDS: Final = 10.0
"""A worker that ends so soon after its start counts against `MOST_EARLY`."""
MOST_EARLY: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.2
"""The pause before a worker that ended early is started again; it doubles each time."""
_ANSWER_SECONDS: Final = 2.0
"""How long a worker may take to tell its metrics; then those of its last answer count."""
_END_SECONDS: Final = 6.0
"""How long after the drain workers may run: they end themselves sooner."""
_NOT_STARTED: Final = 2
"""The exit code of a worker that cannot start: an option, or the repository, is wrong."""


_MEMORY: Final = "/dev/shm"
"""Where files are in memory; a container has it, though nothing else there may be written."""


@dataclass(slots=True)
class Place:
    """One place for a worker, and the process that has it now."""

    number: int
    process: asyncio.subprocess.Process | None = None
    writer: asyncio.StreamWriter | None = None
    up: bool = False  # it handles its signals
    early: int = 0  # processes in a row that ended early
    last: Snapshot = field(default_factory=dict)
    replies: dict[int, asyncio.Future[Any]] = field(default_factory=dict)

    def say(self, **message: Any) -> None:
        """Sends a message, where there is somebody."""
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")


class Supervisor:
    """Starts the workers and watches them until a signal; `run` returns the exit code."""

    def __init__(self, settings: Settings, sockets: dict[str, int], folder: Path) -> None:
        self._settings = settings
        self._sockets = sockets
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - until the process ends
        self._memory = SharedMemory.of(self._file.fileno(), settings.workers)
        self._places = [Place(number) for number in range(settings.workers)]
        self._ended: Snapshot = {}
        self._unloaded: set[str] = set()
        self._changing = asyncio.Lock()
        self._calls = 0
        self._announced = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._code: int | None = None
        self._ending = asyncio.Event()

    async def run(self) -> int:
        """Runs the workers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle_exit, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tell("reload"))
        keeping = [asyncio.ensure_future(self._keep(place)) for place in self._places]
        await self._ending.wait()
        self._tell("drain")
        for place in self._places:
            if not place.up and place.process is not None:
                with suppress(ProcessLookupError):
                    place.process.terminate()
        _, late = await asyncio.wait(keeping, timeout=self._settings.drain_seconds + _END_SECONDS)
        if late:
            log.error("%d workers have not ended within the time of the drain, and are killed", len(late))
            self._kill()
            await asyncio.wait(late)
        self._file.close()
        for done in keeping:
            done.result()
        log.info("stopped, with all workers")
        return 1 if late else self._code or 0

    def _handle_exit(self, number: int) -> None:
        """The first signal begins the drain; the second ends all at once."""
        if self._ending.is_set():
            self._kill()
            os._exit(128 + number)
        self._end(0)

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code
        self._ending.set()

    def _kill(self) -> None:
        for place in self._places:
            if place.process is not None:
                with suppress(ProcessLookupError):
                    place.process.kill()

    def _tell(self, what: str) -> None:
        for place in self._places:
            if place.up:  # one that is not reads everything anew
                place.say(do=what)

    async def _keep(self, place: Place) -> None:
        """Has a worker in a place until the service ends."""
        while not self._ending.is_set():
            started = time.monotonic()
            self._memory.put(place.number, pid=0, state=STARTING, connections=0, started=time.time())
            try:
                was_up, code = await self._life(place)
            except OSError as error:  # no memory, no processes or files left
                log.error("worker %d cannot be started: %s", place.number, error.strerror)
                was_up, code = False, 1
            self._memory.put(place.number, pid=0, state=ABSENT, connections=0)
            self._bury(place)
            if self._ending.is_set():
                if was_up and code:
                    self._end_badly(code)
                return
            restarts = self._memory.get(place.number, "restarts")
            if code == _NOT_STARTED and not restarts:
                self._end(_NOT_STARTED)  # it has said why
                return
            seconds = time.monotonic() - started
            place.early = place.early + 1 if seconds < EARLY_SECONDS else 0
            if place.early >= MOST_EARLY:
                log.error("worker %d has ended %d times early: the service ends", place.number, place.early)
                self._end(1)
                return
            pause = FIRST_PAUSE_SECONDS * 2 ** (place.early - 1) if place.early else 0.0
            log.error(
                "worker %d has ended after %.1f s (%s); another one starts in %g s",
                place.number,
                seconds,
                _told(code),
                pause,
            )
            self._memory.put(place.number, restarts=restarts + 1)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause or 1e-3)

    def _end_badly(self, code: int) -> None:
        log.error("a worker ended with %s instead of draining", _told(code))
        self._code = self._code or 1

    async def _life(self, place: Place) -> tuple[bool, int]:
        """Runs one worker: whether it came to handle its signals, and its exit code."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            files = [theirs.fileno(), self._file.fileno(), *self._sockets.values()]
            task = {
                "place": place.number,
                "workers": self._settings.workers,
                "parent": os.getpid(),
                "channel": theirs.fileno(),
                "memory": self._file.fileno(),
                "sockets": self._sockets,
                "judgements": str(self._folder),
                "unloaded": sorted(self._unloaded),
                "settings": self._settings.of_worker(),
            }
            place.process = process = await asyncio.create_subprocess_exec(
                sys.executable, *sys.orig_argv[1:], pass_fds=files, env=passed_to_worker(task)
            )
            self._memory.put(place.number, pid=process.pid)
            theirs.close()
            reader, place.writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
            was_up = False
            with suppress(ConnectionError):
                while line := await reader.readline():
                    self._heard(place, json.loads(line))
                    was_up = place.up
            code = await process.wait()
            place.up = False
            place.writer.close()
            for reply in place.replies.values():
                if not reply.done():
                    reply.set_result({"pid": process.pid, "error": "it has ended"})
            place.process = place.writer = None
        return was_up, code

    def _heard(self, place: Place, message: dict[str, Any]) -> None:
        if "up" in message:
            if not self._announced:  # until now connections wait
                self._announced = True
                announce(self._settings)
            place.up = True
            if self._ending.is_set():
                place.say(do="drain")
        elif "last" in message:
            place.last = message["last"]
        elif "reply" in message:
            reply = place.replies.get(message["reply"])
            if reply is not None and not reply.done():
                reply.set_result(message["found"])
        elif message["call"] == "metrics":
            self._run(self._tell_metrics(place, message["ask"]))
        else:
            self._run(self._change(place, message))

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self, place: Place, message: dict[str, Any]) -> None:
        """Has all workers make a change, one change after the other."""
        async with self._changing:
            called = [self._call(one, message["call"], *message["given"]) for one in self._places if one.up]
            found = await asyncio.gather(*called)
            change, name = message["given"][:2]
            if all(one["error"] is None for one in found):
                (self._unloaded.add if change == "unload" else self._unloaded.discard)(name)
        place.say(answer=message["ask"], found=found)

    async def _call(self, place: Place, call: str, *given: Any) -> Any:
        """What a worker answers; that it has ended, if it does."""
        self._calls += 1
        number = self._calls
        place.replies[number] = reply = asyncio.get_running_loop().create_future()
        place.say(call=call, given=given, number=number)
        try:
            return await reply
        finally:
            del place.replies[number]

    async def _tell_metrics(self, asking: Place, number: int) -> None:
        """Answers with the metrics of all other workers, and of those that have ended."""
        others = [place for place in self._places if place is not asking and place.up]
        if others:
            calls = {asyncio.ensure_future(self._ask_metrics(place)) for place in others}
            await asyncio.wait(calls, timeout=_ANSWER_SECONDS)
        # One that has ended meanwhile is among the ended, and one that does not answer has its last answer.
        found = [place.last for place in others if place.up]
        asking.say(answer=number, found=[*found, self._ended])

    async def _ask_metrics(self, place: Place) -> None:
        found = await self._call(place, "metrics")
        if "error" not in found:
            place.last = found

    def _bury(self, place: Place) -> None:
        """Adds what an ended worker has counted to that of all before it: from its memory what is exact there."""
        counts = self._memory.counts[place.number]
        exact = taken(Metrics(dict, lambda: Bounds(0, 0, 0, 0, 0), models=counts.models()).collect())
        self._ended = added([self._ended, lasting(place.last | exact)])
        counts.clear()
        place.last = {}


def _told(code: int) -> str:
    """An exit code, or the signal that it stands for."""
    try:
        return f"code {code}" if code >= 0 else signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def supervise(settings: Settings) -> int:
    """Serves with several workers until a signal: the exit code.

    Raises:
        ConfigurationError: The server cannot listen on an address.
    """
    with ExitStack() as stack:
        sockets = {"port": stack.enter_context(listening(settings.host, settings.port, flag("port")))}
        if settings.admin_port is not None:
            admin = listening(settings.host, settings.admin_port, flag("admin_port"))
            sockets["admin_port"] = stack.enter_context(admin)
        if settings.grpc_port is not None:
            stack.enter_context(_reserved(settings.host, settings.grpc_port))
        memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lengthwise-", dir=memory)))
        share = {name: value for name, value in settings.of_worker().items() if name.startswith("max_")}
        log.info("%d workers, each with %s", settings.workers, ", ".join(f"{name} {share[name]}" for name in share))
        files = {name: one.fileno() for name, one in sockets.items()}
        return asyncio.run(_run(settings, files, folder))


async def _run(settings: Settings, sockets: dict[str, int], folder: Path) -> int:
    return await Supervisor(settings, sockets, folder).run()


def _reserved(host: str, port: int, *, check: bool = True) -> socket.socket:
    """A socket that holds a port on which each worker listens by itself, as gRPC does; it accepts nothing.

    Raises:
        ConfigurationError: Another program has the port.
    """
    with listening(host, port, flag("grpc_port")) if check else nullcontext():  # SO_REUSEPORT would share a port in use
        pass
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return held

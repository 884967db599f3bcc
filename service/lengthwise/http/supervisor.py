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
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from lengthwise.connections.listener import listening
from lengthwise.connections.places import announce
from lengthwise.errors import ConfigurationError
from lengthwise.http.worker import ABSENT, ENDING, READY, STARTING, Channel, SharedMemory
from lengthwise.settings import Settings, flag, passed_to_worker
from lengthwise.telemetry.metrics import KEPT_GONE, Bounds, Metrics
from lengthwise.telemetry.snapshots import EndedCounts, Snapshot, taken

log = logging.getLogger("lengthwise.workers")

EARLY_SECONDS: Final = 10.0  # a worker that ends so soon after its start counts against `MOST_EARLY`
MOST_EARLY: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.2  # before a worker that ended early is started again; it doubles each time
_ANSWER_SECONDS: Final = 2.0  # that a worker may take to tell its metrics; then those of its last answer count
_END_SECONDS: Final = 6.0  # that workers may run after the drain: they end themselves sooner
_NOT_STARTED: Final = 2  # the exit code of a worker that cannot start: an option, or the repository, is wrong
_MEMORY: Final = "/dev/shm"  # where files are in memory; a container has it, though nothing else there may be written


@dataclass(slots=True)
class Place:
    """One place for a worker, and the process that has it now."""

    number: int
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    up: bool = False  # it handles its signals
    scans: bool = False  # it knows what is unloaded, and has to be told of changes
    early: int = 0  # processes in a row that ended early
    last: Snapshot = field(default_factory=dict)


class Supervisor:
    """Starts the workers and watches them until a signal; `run` returns the exit code."""

    def __init__(self, settings: Settings, sockets: dict[str, int], folder: Path) -> None:
        self._settings = settings
        self._sockets = sockets
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - until the process ends
        self._memory = SharedMemory(self._file.fileno(), settings.workers)
        self._places = [Place(number) for number in range(settings.workers)]
        self._ended = EndedCounts()
        self._unloaded: set[str] = set()
        self._changing = asyncio.Lock()
        self._announced = False
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
        starting = [place for place in self._places if not place.up]
        for place in starting:
            self._memory.put(place.number, state=ENDING)  # the last of the others takes the connections that wait
        self._signal(starting, signal.SIGTERM)
        self._tell("drain")
        _, late = await asyncio.wait(keeping, timeout=self._settings.drain_seconds + _END_SECONDS)
        if late:
            log.error("%d workers have not ended within the time of the drain, and are killed", len(late))
            self._signal(self._places, signal.SIGKILL)
            await asyncio.wait(late)
        self._file.close()
        for done in keeping:
            done.result()
        if self._code != _NOT_STARTED:
            log.info("stopped, with all workers")
        return 1 if late else self._code or 0

    def _handle_exit(self, number: int) -> None:
        """The first signal begins the drain; the second ends all at once."""
        if self._ending.is_set():
            self._signal(self._places, signal.SIGKILL)
            os._exit(128 + number)
        self._end(0)

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code
        self._ending.set()

    def _signal(self, places: list[Place], number: signal.Signals) -> None:
        for place in places:
            if place.process is not None:
                with suppress(ProcessLookupError):
                    os.kill(place.process.pid, number)  # asyncio's own may take its exit code away

    def _tell(self, what: str) -> None:
        for channel in self._up():  # one that is not reads everything anew
            channel.tell(what)

    def _up(self) -> list[Channel]:
        """The channels of the workers that handle their signals."""
        return [place.channel for place in self._places if place.up and place.channel is not None]

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
                if was_up and code not in (0, self._code):
                    log.error("a worker ended with %s instead of draining", _told(code))
                    self._code = self._code or 1
                return
            restarts = self._memory.table["restarts"][place.number]
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
                "restarts": int(self._memory.table["restarts"][place.number]),
                "judgements": str(self._folder),
                "settings": self._settings.of_worker(),
            }
            place.process = process = await asyncio.create_subprocess_exec(
                sys.executable, *sys.orig_argv[1:], pass_fds=files, env=passed_to_worker(task)
            )
            self._memory.put(place.number, pid=process.pid)
            theirs.close()
            answers: dict[str, Callable[..., Any]] = {
                "metrics": partial(self._metrics_beside, place),
                "change": self._change,
                "unloaded": partial(self._unloaded_before, place),
            }
            told = {"up": partial(self._is_up, place), "last": partial(setattr, place, "last")}
            place.channel = channel = Channel(answers, told)
            await channel.listen(await channel.open(ours))
            was_up = place.up
            code = await process.wait()
            place.up = place.scans = False
            channel.close(None)
            place.process = place.channel = None
        return was_up, code

    def _is_up(self, place: Place) -> None:
        if not self._announced:  # until now connections wait
            self._announced = True
            share = {name: value for name, value in self._settings.of_worker().items() if name.startswith("max_")}
            each = ", ".join(f"{name} {share[name]}" for name in share)
            log.info("%d workers, each with %s", self._settings.workers, each)
            announce(self._settings)
        place.up = True
        if self._ending.is_set() and place.channel is not None:
            place.channel.tell("drain")

    async def _unloaded_before(self, asking: Place) -> list[str]:
        """What is unloaded before the first scan of a worker, which takes part in all later changes."""
        asking.scans = True
        return sorted(self._unloaded)

    async def _change(self, change: str, name: str, call: str) -> list[Any]:
        """Has all workers make a change, one change after the other; one that starts asks for what is unloaded."""
        async with self._changing:
            before = self._unloaded
            self._unloaded = before | {name} if change == "unload" else before - {name}
            channels = [place.channel for place in self._places if place.scans and place.channel is not None]
            all_found = await asyncio.gather(*[channel.call("change", change, name, call) for channel in channels])
            found = [one for one in all_found if one is not None]  # the successor of one that ended asks
            if found:  # as they have it now: a load whose highest version is refused has been made all the same
                is_unloaded = all(name in one.get("unloaded", ()) for one in found)
                self._unloaded = before | {name} if is_unloaded else before - {name}
        return found

    async def _metrics_beside(self, asking: Place) -> list[Snapshot]:
        """The metrics of all other workers, and of those that have ended."""

        async def ask(place: Place, channel: Channel) -> None:
            found = await channel.call("metrics")
            if found is not None and "error" not in found:
                place.last = found

        others = [place for place in self._places if place is not asking and place.up]
        asked = {asyncio.ensure_future(ask(place, place.channel)) for place in others if place.channel is not None}
        if asked:
            await asyncio.wait(asked, timeout=_ANSWER_SECONDS)
        if self._ended.snapshot and (self._memory.table["state"] == READY).all():  # one that starts may count them yet
            self._ended.forget({model for counts in self._memory.counts for model in counts.places()}, KEPT_GONE)
        # One that has ended meanwhile is among the ended, and one that does not answer has its last answer.
        return [*(place.last for place in others if place.up), self._ended.snapshot]

    def _bury(self, place: Place) -> None:
        """Adds what an ended worker has counted to that of all before it: from its memory what is exact there."""
        counts = self._memory.counts[place.number]
        exact = taken(Metrics(dict, lambda: Bounds(0, 0, 0, 0, 0), models=counts.models()).collect())
        self._ended.add(place.last | exact, counts.places())
        counts.clear()
        place.last = {}


def _told(code: int) -> str:
    """An exit code, or the signal that it stands for."""
    try:
        return f"code {code}" if code >= 0 else signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def supervise(settings: Settings) -> int:
    """Serves with several workers until a signal: the exit code; ConfigurationError if an address is taken."""
    with ExitStack() as stack:
        sockets = {"port": stack.enter_context(listening(settings.host, settings.port, flag("port")))}
        if settings.admin_port is not None:
            admin = listening(settings.host, settings.admin_port, flag("admin_port"))
            sockets["admin_port"] = stack.enter_context(admin)
        if settings.grpc_port is not None:
            stack.enter_context(_reserved(settings.host, settings.grpc_port))
        memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lengthwise-", dir=memory)))
        files = {name: one.fileno() for name, one in sockets.items()}
        return asyncio.run(Supervisor(settings, files, folder).run())


def _reserved(host: str, port: int, *, check: bool = True) -> socket.socket:
    """A socket that holds a port on which each worker listens by itself, as gRPC does; it accepts nothing."""
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

"""The parent of several workers: it holds the listening sockets, and starts, watches and replaces the processes.

```
parent: sockets, shared memory ──exec, with inherited files──> worker 0, worker 1, ...: each a whole service
   │ a worker ended ──> its counts are kept, and after a pause its place gets another one
   │ no beat in the shared memory for `hung_seconds` ──> the worker is killed
   │ SIGHUP, SIGTERM ──> said to all, on their channels: a signal could come before they handle it
   └ asked by a worker ──> all others are called, and their answers go back
```

It opens no model and answers nothing. A worker is the same command again, never a fork: threads of libraries do not
survive one. Connections wait in the sockets while no worker takes them, so a worker that ends loses only its own.

It expects the worst of a worker: to hang, to end in the middle of a line, not to start. While one serves, the others
are tried again for ever; the service ends only when none does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Final

from lengthwise.connections.limits import announce
from lengthwise.connections.listener import listening, reserved
from lengthwise.processes.worker import (
    ABSENT,
    BEAT_SECONDS,
    ENDING,
    READY,
    SILENT_SECONDS,
    STARTING,
    Channel,
    SharedMemory,
    shared_file,
)
from lengthwise.processes.worker_count import WorkerCount
from lengthwise.repository.modest import memory_bytes
from lengthwise.repository.verification_process import SIGNALS, Verdicts
from lengthwise.settings import Settings, flag, passed_to_worker
from lengthwise.telemetry.metrics import KEPT_GONE
from lengthwise.telemetry.snapshots import EndedCounts, Snapshot, drop, renewed, taken, with_rows

log = logging.getLogger("lengthwise.workers")

EARLY_SECONDS: Final = 10.0  # a worker that ends so soon after its start counts against `MOST_EARLY`
MOST_EARLY: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.2  # before a worker that ended early is started again; it doubles each time
MOST_PAUSE_SECONDS: Final = 30.0
CHANGE_SECONDS: Final = 30.0  # that a worker may take for an admin call while none verifies a model
_START_SECONDS: Final = 120.0  # without a beat until the models are loaded: imports, a slow disk
_ANSWER_SECONDS: Final = 5.0  # that a worker may take to tell its metrics; then those of its last answer count
_END_SECONDS: Final = 6.0  # that workers may run after the drain: they end themselves sooner
_NOT_STARTED: Final = 2  # the exit code of a worker that cannot start: an option, or the repository, is wrong
_HELD: Final = (signal.SIGHUP, signal.SIGINT)  # by a new worker, until it handles them


@dataclass(slots=True, eq=False)
class Place:
    """One place for a worker, and the process that has it now."""

    number: int
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    started: float = 0.0
    up: bool = False  # it handles its signals
    scans: bool = False  # it knows what is unloaded, and has to be told of changes
    change: asyncio.Future[Any] | None = None  # the last admin call that it was asked for
    beat: float = -1.0  # as the last look saw it
    silent_seconds: float = 0.0  # for how long its event loop has not run
    early: int = 0  # processes in a row that ended early
    last: Snapshot = field(default_factory=dict)


class Supervisor:
    """Starts the workers and watches them until a signal; `run` returns the exit code."""

    def __init__(self, settings: Settings, workers: WorkerCount, sockets: dict[str, int], file: IO[bytes]) -> None:
        self._settings = settings
        self._count, self._reason = workers
        self._options = settings.of_worker(workers.number)
        self._sockets = sockets
        self._file = file
        self._memory = SharedMemory(file.fileno(), workers.number)
        self._places = [Place(number) for number in range(workers.number)]
        self._ended = EndedCounts()
        self._verdicts = Verdicts()
        self._unloaded: set[str] = set()
        self._changing = asyncio.Lock()
        self._announced = False
        self._code: int | None = None
        self._ending = asyncio.Event()
        self._drained = False  # the time of the drain is over

    async def run(self) -> int:
        """Runs the workers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle_exit, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tell("reload"))
        keeping = [asyncio.ensure_future(self._noting(self._keep(place))) for place in self._places]
        watching = asyncio.ensure_future(self._noting(self._watch()))
        await self._ending.wait()
        starting = [place for place in self._places if not place.up]
        for place in starting:
            self._memory.put(place.number, state=ENDING)  # the last of the others takes the connections that wait
        self._signal(starting, signal.SIGTERM)
        self._tell("drain")
        await asyncio.wait(keeping, timeout=self._settings.drain_seconds)
        self._drained = True
        _, late = await asyncio.wait(keeping, timeout=_END_SECONDS)
        if late:
            log.error("%d workers have not ended within the time of the drain, and are killed", len(late))
            self._signal(self._places, signal.SIGKILL)
            await asyncio.wait(late)
        watching.cancel()
        if self._code != _NOT_STARTED:
            log.info("stopped, with all workers")
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # the event loop's end would let them end this process
        return 1 if late else self._code or 0

    async def _noting(self, work: Coroutine[Any, Any, None]) -> None:
        """Does work that has to last; if it fails, the service drains and ends with 1 rather than be without it."""
        try:
            await work
        except Exception:
            log.critical("the workers cannot be supervised any more, which is a bug: the service ends", exc_info=True)
            self._end(1)
            self._code = self._code or 1

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
        for place in self._places:
            if place.up and place.channel is not None:  # one that is not reads everything anew
                place.channel.tell(what)

    async def _watch(self) -> None:
        """Kills workers that hang.

        Time is counted in looks, not by a clock: while this process is stopped too, nothing becomes late.
        """
        told = False
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if not told and (self._memory.table["state"] == READY).all():
                told = True
                each = sum(memory_bytes(int(pid)) for pid in self._memory.table["pid"]) / self._count
                log.info("all %d workers are ready; each has %.0f MiB in memory", self._count, each / 2**20)
            for place in self._places:
                row = self._memory.table[place.number]
                place.silent_seconds = place.silent_seconds + BEAT_SECONDS if row["beat"] == place.beat else 0.0
                place.beat = float(row["beat"])
                if place.process is None:
                    continue
                if time.monotonic() - place.started >= EARLY_SECONDS:
                    place.early = 0
                if place.silent_seconds > self._patience(place):
                    log.error(
                        "worker %d (pid %d) hangs: its event loop has not run for %g s, and it is killed",
                        *(place.number, place.process.pid, place.silent_seconds),
                    )
                    place.silent_seconds = 0.0
                    self._signal([place], signal.SIGKILL)

    def _patience(self, place: Place) -> float:
        """For how many seconds the event loop of a worker may not run."""
        row = self._memory.table[place.number]
        if row["state"] in (STARTING, ABSENT):
            return max(_START_SECONDS, self._settings.hung_seconds)
        if self._ending.is_set() and row["state"] != ENDING and (self._drained or not row["inflight"]):
            return SILENT_SECONDS  # it does not drain, as it was told to
        # A busy machine, or a library that keeps the interpreter, stops a loop for a while. And the worker itself is to
        # log the stack of its event loop first, if it can.
        return max(SILENT_SECONDS, self._settings.hung_seconds) + 2 * BEAT_SECONDS

    async def _keep(self, place: Place) -> None:
        """Has a worker in a place until the service ends."""
        while not self._ending.is_set():
            place.started = time.monotonic()
            self._memory.put(place.number, pid=0, state=STARTING, connections=0, started=time.time(), beat=0, batches=0)
            was_up, code = False, 1
            try:
                was_up, code = await self._life(place)
            except OSError as error:  # no memory, no processes or files left
                log.error("worker %d cannot be started: %s", place.number, error.strerror)
            finally:
                inflight = self._memory.table["inflight"][place.number]
                self._memory.put(place.number, pid=0, state=ABSENT, connections=0, inflight=0, verifying=0, batches=0)
                self._keep_counts(place)
            if self._ending.is_set():
                if was_up and code not in (0, self._code) and (inflight or code != -signal.SIGKILL):
                    log.error("a worker ended with %s instead of draining", _told(code))
                    self._code = self._code or 1
                return
            pause = self._pause_after(place, code)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)

    def _pause_after(self, place: Place, code: int) -> float:
        """Logs and counts the end of a worker, and says when another one starts; or ends the service."""
        seconds = time.monotonic() - place.started
        serves = ((self._memory.table["state"] == READY) & ~self._memory.is_silent()).any()
        if code == _NOT_STARTED and not self._memory.table["restarts"][place.number] and not serves:
            self._end(_NOT_STARTED)  # it has said why
            return 0.0
        place.early = place.early + 1 if seconds < EARLY_SECONDS else 0
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (min(place.early, 10) - 1), MOST_PAUSE_SECONDS) if place.early else 1e-3
        what = f"worker {place.number} has ended after {seconds:.1f} s ({_told(code)})"
        if not serves and all(other.early >= MOST_EARLY for other in self._places):
            log.error("%s; no worker is ready, and each has ended %d times early: the service ends", what, MOST_EARLY)
            self._end(1)
        else:
            log.error("%s; another one starts in %.3g s", what, pause)
            self._memory.table["restarts"][place.number] += 1
        return pause

    async def _life(self, place: Place) -> tuple[bool, int]:
        """Runs one worker: whether it came to handle its signals, and its exit code."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            files = [theirs.fileno(), self._file.fileno(), *self._sockets.values()]
            task = {
                "place": place.number,
                "workers": self._count,
                "reason": self._reason,
                "parent": os.getpid(),
                "channel": theirs.fileno(),
                "memory": self._file.fileno(),
                "sockets": self._sockets,
                "restarts": int(self._memory.table["restarts"][place.number]),
                "settings": self._options,
            }
            signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # the new process inherits that
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, *sys.orig_argv[1:], pass_fds=files, env=passed_to_worker(task)
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
            ended = asyncio.ensure_future(process.wait())
            place.process, place.silent_seconds = process, 0.0
            self._memory.put(place.number, pid=process.pid)
            theirs.close()
            methods: dict[str, Callable[..., Any]] = {
                "metrics": partial(self._metrics_beside, place),
                "statistics": partial(self._answers_beside, place, "statistics"),
                "change": self._change,
                "unloaded": partial(self._unloaded_before, place),
                "verdict": self._verdicts.find,
                "keep_verdict": self._verdicts.keep,
                "last": partial(self._note_last, place),
            }
            notifications = {"up": partial(self._is_up, place), "forgot": partial(self._note_forgotten, place)}
            place.channel = channel = Channel(methods, notifications)
            try:
                heard = asyncio.ensure_future(channel.listen(await channel.open(ours)))
                await asyncio.wait((heard, ended), return_when=asyncio.FIRST_COMPLETED)
                self._memory.put(place.number, state=ABSENT)
                # It may end a little after its channel; and what it said before its end may be read after that.
                await asyncio.wait((heard, ended), timeout=_END_SECONDS)
                heard.cancel()
            finally:
                if not ended.done():
                    self._signal([place], signal.SIGKILL)
                await asyncio.wait((ended,), timeout=_END_SECONDS)  # one that waits for a mount cannot even be killed
                code = ended.result() if ended.done() else -signal.SIGKILL
                was_up = place.up
                place.up = place.scans = False
                channel.close(None)
                place.process = place.channel = None
        return was_up, code

    def _is_up(self, place: Place) -> None:
        if not self._announced:  # until now connections wait
            self._announced = True
            each = ", ".join(f"{name} {value}" for name, value in self._options.items() if name.startswith("max_"))
            log.info("%d workers (%s), each with %s", self._count, self._reason, each)
            announce(self._settings)
        place.up = True
        if self._ending.is_set() and place.channel is not None:
            place.channel.tell("drain")

    async def _unloaded_before(self, asking: Place) -> list[str]:
        """What is unloaded before the first scan of a worker, which takes part in all later changes."""
        asking.scans = True
        return sorted(self._unloaded)

    async def _change(self, change: str, name: str, call: str) -> list[Any]:
        """Has all workers make a change, one change after the other; one that starts asks for what is unloaded.

        Who does not answer in time makes it later, or ends and has a successor that asks. Later changes wait for it
        a moment only.
        """
        async with self._changing:
            before = self._unloaded
            self._unloaded = before | {name} if change == "unload" else before - {name}
            asked = {
                place: asyncio.ensure_future(place.channel.call("change", change, name, call))
                for place in self._places
                if place.scans and place.channel is not None
            }
            late, verifying = {one for place, one in asked.items() if place.change is None or place.change.done()}, True
            if skipped := {*asked.values()} - late:  # they may have come back
                await asyncio.wait(skipped, timeout=_ANSWER_SECONDS)
            while late and verifying:
                verifying = self._memory.table["verifying"].any()
                _, late = await asyncio.wait(late, timeout=CHANGE_SECONDS)
                verifying = verifying or self._memory.table["verifying"].any()
            found: list[dict[str, Any]] = []
            for place, one in asked.items():
                place.change = one
                answer = one.result() if one.done() else {"error": f"it has not answered within {CHANGE_SECONDS:g} s"}
                if answer is not None and place.process is not None:  # else it has ended: its successor asks
                    found.append({"pid": place.process.pid, **answer})
            told = [one["unloaded"] for one in found if "unloaded" in one]
            if told:  # as they have it now: a load whose highest version is refused has been made all the same
                self._unloaded = before | {name} if all(name in one for one in told) else before - {name}
        return found

    def _note_forgotten(self, place: Place, model: list[str], counts: Snapshot) -> None:
        """Keeps what a worker has counted of a model, which others may count yet: the sum must not go back."""
        drop(place.last, [(model[0], model[1])])
        self._ended.add(counts, [(model[0], model[1])])

    async def _answers_beside(self, asking: Place, call: str, *given: Any) -> list[Any]:
        """What the other workers answer to a call within a moment; those that start or hang are left out."""
        asked = [
            asyncio.ensure_future(place.channel.call(call, *given))
            for place in self._places
            if place is not asking and place.channel is not None and place.up and place.silent_seconds <= SILENT_SECONDS
        ]
        done, _ = await asyncio.wait(asked, timeout=_ANSWER_SECONDS) if asked else (set(), set())
        return [answer for one in done if isinstance(answer := one.result(), list)]

    async def _note_last(self, place: Place, last: Snapshot) -> None:
        place.last = last

    async def _metrics_beside(self, asking: Place, own: Snapshot) -> list[Snapshot]:
        """The metrics of all other workers, and of those that have ended; `own` are those that are shown with them.

        A family that a worker lacks for once, as it has no files left to read it from, is that of its last answer.
        """
        missing = renewed(asking.last, own)["families"].keys() - own["families"].keys()
        asking.last = renewed(asking.last, own)

        async def ask(place: Place, channel: Channel) -> None:
            found = await channel.call("metrics")
            if found is not None and "error" not in found:
                place.last = renewed(place.last, found)

        others = [place for place in self._places if place is not asking and place.up]
        asked = {
            asyncio.ensure_future(ask(place, place.channel))
            for place in others
            if place.channel is not None and place.silent_seconds <= SILENT_SECONDS
        }
        if asked:
            await asyncio.wait(asked, timeout=_ANSWER_SECONDS)
        if self._ended.snapshot and (self._memory.table["state"] == READY).all():  # one that starts may count them yet
            self._ended.forget({model for counts in self._memory.counts for model in counts.places()}, KEPT_GONE)
        # One that has ended meanwhile is among the ended, and one that does not answer has its last answer.
        lacked = {"families": {name: asking.last["families"][name] for name in missing}}
        return [lacked, *(place.last for place in others if place.up), self._ended.snapshot]

    def _keep_counts(self, place: Place) -> None:
        """Adds an ended worker's counters to the totals; exact counts come from shared memory."""
        counts = self._memory.counts[place.number]
        # A model without a place in the memory has the numbers that it told last.
        self._ended.add(with_rows(place.last, taken(*counts.counts())), counts.places())
        counts.clear()
        place.last = {}


def _told(code: int) -> str:
    """An exit code, or the signal that it stands for."""
    return f"code {code}" if code >= 0 else SIGNALS.get(code, f"signal {-code}")


def supervise(settings: Settings, workers: WorkerCount) -> int:
    """Serves with several workers until a signal: the exit code; ConfigurationError if an address is taken."""
    with ExitStack() as stack:
        sockets = {"port": stack.enter_context(listening(settings.host, settings.port, flag("port")))}
        if settings.admin_port is not None:
            admin = listening(settings.host, settings.admin_port, flag("admin_port"))
            sockets["admin_port"] = stack.enter_context(admin)
        if settings.grpc_port is not None:
            stack.enter_context(reserved(settings.host, settings.grpc_port, flag("grpc_port")))
        file = stack.enter_context(shared_file(workers.number))
        files = {name: one.fileno() for name, one in sockets.items()}
        return asyncio.run(Supervisor(settings, workers, files, file).run())

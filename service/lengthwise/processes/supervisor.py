"""The parent of several workers: it has the listening sockets, and starts, watches and replaces the processes.

```
parent: sockets, shared memory ──exec, with a channel──> worker 0, worker 1, ...: each a whole service
   │ a worker ended ──> its counts are kept, and after a pause its slot gets another one
   │ no beat in the shared memory for `hung_seconds` ──> the worker is killed
   │ SIGHUP, SIGTERM ──> sent to all as messages: a signal could come before they handle it
   └ a worker asks ──> all other workers are called, and their answers go back
```

It opens no model and answers no request. A worker is the same command again, never a fork: threads of libraries do not
survive a fork. Connections wait in the sockets while no worker takes them, so a worker that ends loses only its own.

It expects the worst of a worker: to hang, to end in the middle of a line, not to start. As long as one worker serves,
the others are started again for ever; the service ends only when none serves.
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

from lengthwise.connections.limits import announce, invitation, pages_to_try
from lengthwise.connections.listener import context, listening, reserved
from lengthwise.errors import ConfigurationError
from lengthwise.files import is_bundled
from lengthwise.processes.changes import ANSWER_SECONDS, Changes
from lengthwise.processes.channel import Channel, send_descriptors
from lengthwise.processes.shared_memory import (
    ABSENT,
    ENDING,
    READY,
    SILENT_SECONDS,
    STARTING,
    SharedMemory,
    shared_file,
)
from lengthwise.processes.worker import BEAT_SECONDS
from lengthwise.processes.worker_count import WorkerCount
from lengthwise.processes.worker_counts import WorkerCounts
from lengthwise.repository.modest import memory_bytes
from lengthwise.repository.source import SharedSource
from lengthwise.repository.verification_process import SIGNALS, Verdicts
from lengthwise.settings import Settings, flag, passed_to_worker
from lengthwise.telemetry.snapshots import Snapshot

log = logging.getLogger("lengthwise.workers")

EARLY_SECONDS: Final = 10.0  # a worker that ends sooner after its start has ended *early*
MOST_EARLY: Final = 5  # early ends in a row of every worker, after which the service ends
FIRST_PAUSE_SECONDS: Final = 0.2  # before a worker that ended early is started again; it doubles each time
MOST_PAUSE_SECONDS: Final = 30.0
TOGETHER_SECONDS: Final = 5.0  # that a worker waits until the others have loaded their models, too
_START_SECONDS: Final = 120.0  # without a beat before the models are loaded: imports, a slow disk
_END_SECONDS: Final = 6.0  # that workers may run after the drain: they end themselves sooner
_NOT_STARTED: Final = 2  # the exit code of a worker that cannot start: an option, or the repository, is wrong
_BLOCKED_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT)  # in a new worker, until it handles them


@dataclass(slots=True, eq=False)
class WorkerSlot:
    """A slot for a worker, and the process that has it now."""

    index: int
    process: asyncio.subprocess.Process | None = None  # None between two processes
    channel: Channel | None = None
    started: float = 0.0  # on the clock of `time.monotonic`
    up: bool = False  # it handles the messages of the parent
    loaded: asyncio.Event = field(default_factory=asyncio.Event)  # its models are loaded, or it has ended
    scans: bool = False  # it has asked for the unloaded models, and so takes part in changes
    change: asyncio.Future[Any] | None = None  # its answer to the last change
    beat: float = -1.0  # at the last look of `_watch`
    silent_seconds: float = 0.0  # for how long its event loop has not run
    early: int = 0  # processes in a row that ended early


class Supervisor:
    """Starts the workers and watches them until a signal; `run` returns the exit code."""

    def __init__(self, settings: Settings, workers: WorkerCount, sockets: dict[str, int], file: IO[bytes]) -> None:
        self._settings = settings
        self._count, self._reason = workers
        self._options = settings.of_worker(workers.number)
        self._sockets = sockets  # descriptors by option, such as `port`
        self._file = file
        self._memory = SharedMemory(file.fileno(), workers.number)
        self._slots = [WorkerSlot(index) for index in range(workers.number)]
        self._counts = WorkerCounts(self._memory)
        self._verdicts = Verdicts()
        self._source = SharedSource(settings)
        self._changes = Changes(self._slots, lambda: self._verdicts.verifying or self._source.is_fetching)
        self._announced = False  # the addresses were logged
        self._code: int | None = None  # the exit code, once the service ends
        self.failures: list[str] = []  # why workers could not start
        self._ending = asyncio.Event()
        self._drained = False  # the time of the drain is over

    async def run(self) -> int:
        """Runs the workers until they have ended after a signal; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle_exit, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._send("reload"))
        # Run until a signal, or until no worker can serve.
        keeping = [asyncio.ensure_future(self._supervised(self._keep(slot))) for slot in self._slots]
        watching = asyncio.ensure_future(self._supervised(self._watch()))
        await self._ending.wait()
        # End the workers that are starting, and drain the others.
        starting = [slot for slot in self._slots if not slot.up]
        for slot in starting:
            self._memory.put(slot.index, state=ENDING)  # so the last of the others takes the waiting connections
        self._signal(starting, signal.SIGTERM)
        self._send("drain")
        await asyncio.wait(keeping, timeout=self._settings.drain_seconds)
        self._drained = True
        _, late = await asyncio.wait(keeping, timeout=_END_SECONDS)
        if late:
            log.error("%d workers have not ended within the time of the drain, and are killed", len(late))
            self._signal(self._slots, signal.SIGKILL)
            await asyncio.wait(late)
        watching.cancel()
        if self._code != _NOT_STARTED:
            log.info("stopped, with all workers")
        # The end of the event loop restores the default action of signals, which is to end this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
        return 1 if late else self._code or 0

    async def _supervised(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine that must not fail; if it does, the service drains, and ends with exit code 1."""
        try:
            await work
        except Exception:
            log.critical("the workers cannot be supervised any more, which is a bug: the service ends", exc_info=True)
            self._end(1)
            self._code = self._code or 1

    def _handle_exit(self, number: int) -> None:
        """Handles SIGTERM and SIGINT: the first one begins the drain, the second ends all processes at once."""
        if self._ending.is_set():
            self._signal(self._slots, signal.SIGKILL)
            os._exit(128 + number)
        self._end(0)

    def _end(self, code: int) -> None:
        """Begins the end of the service; the first exit code is kept."""
        if self._code is None:
            self._code = code
        self._ending.set()

    def _signal(self, slots: list[WorkerSlot], number: signal.Signals) -> None:
        """Sends a signal to the processes of these slots."""
        for slot in slots:
            if slot.process is not None:
                with suppress(ProcessLookupError):
                    os.kill(slot.process.pid, number)  # not `process.send_signal`, which may lose the exit code

    def _send(self, kind: str) -> None:
        """Sends a message without content to all workers that are up."""
        for slot in self._slots:
            if slot.up and slot.channel is not None:  # others are starting, and read everything then
                slot.channel.send(kind)

    async def _watch(self) -> None:
        """Kills workers that hang, and logs once that all are ready, with the pages to try.

        Time is counted in looks, not by a clock: while this process itself is stopped, no worker becomes late.
        """
        is_logged = False
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if not is_logged and (self._memory.table["state"] == READY).all():
                is_logged = True
                mean_bytes = sum(memory_bytes(int(pid)) for pid in self._memory.table["pid"]) / self._count
                log.info("all %d workers are ready; each has %.0f MiB in memory", self._count, mean_bytes / 2**20)
                log.info(invitation(pages_to_try(self._settings)))
            # A worker whose beat has not changed since the last look is silent.
            for slot in self._slots:
                row = self._memory.table[slot.index]
                slot.silent_seconds = slot.silent_seconds + BEAT_SECONDS if row["beat"] == slot.beat else 0.0
                slot.beat = float(row["beat"])
                if slot.process is None:
                    continue
                if time.monotonic() - slot.started >= EARLY_SECONDS:
                    slot.early = 0
                if slot.silent_seconds > self._patience(slot):
                    log.error(
                        "worker %d (pid %d) hangs: its event loop has not run for %g s, and it is killed",
                        *(slot.index, slot.process.pid, slot.silent_seconds),
                    )
                    slot.silent_seconds = 0.0
                    self._signal([slot], signal.SIGKILL)

    def _patience(self, slot: WorkerSlot) -> float:
        """For how many seconds the event loop of a worker may stand still; after that, the worker counts as hanging.

        - While it starts: `_START_SECONDS`, or the option `hung_seconds` if that is longer.
        - While the service ends: `SILENT_SECONDS`, if the worker has not begun to drain, and has no call in hand or the
          time of the drain is over.
        - Else `hung_seconds`, and two beats more, in which the worker itself logs the stack of its event loop: a busy
          machine, or a library that keeps the interpreter lock, stops a loop for a while.
        """
        row = self._memory.table[slot.index]
        if row["state"] in (STARTING, ABSENT):
            return max(_START_SECONDS, self._settings.hung_seconds)
        if self._ending.is_set() and row["state"] != ENDING and (self._drained or not row["inflight"]):
            return SILENT_SECONDS
        return max(SILENT_SECONDS, self._settings.hung_seconds) + 2 * BEAT_SECONDS

    async def _keep(self, slot: WorkerSlot) -> None:
        """Runs one worker process after the other in a slot, until the service ends.

        After each one it adds the counts of the process to the ended ones, and waits for a pause. A worker that ends
        with an error while the service ends makes the exit code of the service 1.
        """
        while not self._ending.is_set():
            slot.started = time.monotonic()
            slot.loaded.clear()
            self._memory.put(slot.index, pid=0, state=STARTING, connections=0, started=time.time(), beat=0, batches=0)
            was_up, code = False, 1
            try:
                was_up, code = await self._run_worker(slot)
            except OSError as error:  # no memory, no processes or files left
                log.error("worker %d cannot be started: %s", slot.index, error.strerror)
            finally:  # the numbers of the ended process
                inflight = self._memory.table["inflight"][slot.index]
                self._memory.put(slot.index, pid=0, state=ABSENT, connections=0, inflight=0, batches=0)
                slot.loaded.set()
                self._counts.end(slot.index)
            if self._ending.is_set():
                # A worker that was killed while it had no call in hand has lost nothing: that is no error.
                if was_up and code not in (0, self._code) and (inflight or code != -signal.SIGKILL):
                    log.error("a worker ended with %s instead of draining", _end_text(code))
                    self._code = self._code or 1
                return
            pause = self._pause_after(slot, code)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)

    def _pause_after(self, slot: WorkerSlot, code: int) -> float:
        """Logs and counts the end of a worker with exit code `code`; returns the seconds until another one starts.

        The pause doubles with each *early* end in a row, within `EARLY_SECONDS` of the start. If no worker is ready,
        and this one cannot start or all have ended early too often, it begins the end of the service; then no other
        worker starts.
        """
        seconds = time.monotonic() - slot.started
        serves = ((self._memory.table["state"] == READY) & ~self._memory.is_silent()).any()
        if code == _NOT_STARTED and not self._memory.table["restarts"][slot.index] and not serves:
            self._end(_NOT_STARTED)  # the worker has reported why
            return 0.0
        slot.early = slot.early + 1 if seconds < EARLY_SECONDS else 0
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (min(slot.early, 10) - 1), MOST_PAUSE_SECONDS) if slot.early else 1e-3
        event = f"worker {slot.index} has ended after {seconds:.1f} s ({_end_text(code)})"
        if not serves and all(other_slot.early >= MOST_EARLY for other_slot in self._slots):
            log.error("%s; no worker is ready, and each has ended %d times early: the service ends", event, MOST_EARLY)
            self._end(1)
        else:
            log.error("%s; another one starts in %.3g s", event, pause)
            self._memory.table["restarts"][slot.index] += 1
        return pause

    async def _run_worker(self, slot: WorkerSlot) -> tuple[bool, int]:
        """Runs one worker process until it has ended; returns whether it was up, and its exit code.

        It was *up* if it has handled the parent's messages. The process is killed if its channel is closed and it does
        not end; if even that fails, the exit code is -SIGKILL.
        """
        parent_end, worker_end = socket.socketpair()
        with parent_end, worker_end:
            process = await self._start(worker_end.fileno())
            process_end = asyncio.ensure_future(process.wait())
            slot.process, slot.silent_seconds = process, 0.0
            self._memory.put(slot.index, pid=process.pid)
            worker_end.close()
            try:
                slot.channel = channel = await Channel.open(parent_end, self._handlers(slot, process_end))
                with suppress(ConnectionError):  # the worker has ended, and its exit code says more
                    send_descriptors(parent_end, [self._file.fileno(), *self._sockets.values()])
                channel.send(
                    "start",
                    {
                        "index": slot.index,
                        "workers": self._count,
                        "reason": self._reason,
                        "sockets": [*self._sockets],
                        "settings": self._options | {"models": str(self._source.folder)},
                    },
                )
                receiving = asyncio.ensure_future(channel.receive())
                await asyncio.wait((receiving, process_end), return_when=asyncio.FIRST_COMPLETED)
                self._memory.put(slot.index, state=ABSENT)
                # The process may end a little after its channel, or its last messages may be read after its end.
                await asyncio.wait((receiving, process_end), timeout=_END_SECONDS)
                receiving.cancel()
            finally:
                if not process_end.done():
                    self._signal([slot], signal.SIGKILL)
                # A process that waits for a mount cannot even be killed.
                await asyncio.wait((process_end,), timeout=_END_SECONDS)
                code = process_end.result() if process_end.done() else -signal.SIGKILL
                was_up = slot.up
                slot.up = slot.scans = False
                if slot.channel is not None:
                    slot.channel.close()
                slot.process = slot.channel = None
        return was_up, code

    async def _start(self, channel: int) -> asyncio.subprocess.Process:
        """Starts a worker process, which inherits the descriptor of its channel.

        Its signals are blocked until it handles them.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)  # the new process inherits the blocked signals
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable, *sys.orig_argv[1:], pass_fds=(channel,), env=passed_to_worker(channel)
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)

    def _handlers(self, slot: WorkerSlot, end: asyncio.Future[int]) -> dict[str, Callable[..., Any]]:
        """The handlers of a worker's messages, by kind; `end` is done when its process has ended."""
        return {
            "alive": lambda: True,
            "up": partial(self._note_up, slot),
            "failed": self.failures.append,
            "loaded": partial(self._wait_until_loaded, slot),
            "metrics": partial(self._metrics_of_others, slot),
            "statistics": partial(self._statistics_of_others, slot),
            "change": self._changes.make,
            "models": self._source.refresh,
            "unloaded": partial(self._changes.unloaded_before, slot),
            "verdict": partial(
                self._verdicts.verdict_or_turn, slot.index > 0 and not is_bundled(self._settings.folder), end
            ),
            "keep_verdict": self._verdicts.keep,
            "forgot": partial(self._counts.forget, slot.index),
            "last": partial(self._counts.note, slot.index),
        }

    async def _wait_until_loaded(self, slot: WorkerSlot, serves: bool) -> None:
        """Notes that a worker has loaded its models, and waits for the others, at most `TOGETHER_SECONDS`.

        One that takes the place of another has read the folder as it is now. If it serves a model, the others read it
        again, so that all serve the same. A copy of models at an address is the one that all have read.
        """
        slot.loaded.set()
        if serves and self._memory.table["restarts"][slot.index] and self._settings.address is None:
            self._send("reload")
        with suppress(TimeoutError):
            async with asyncio.timeout(TOGETHER_SECONDS):
                for other_slot in self._slots:
                    await other_slot.loaded.wait()

    def _note_up(self, slot: WorkerSlot) -> None:
        """Notes that a worker is up: it handles the parent's messages. If the service ends already, it has to drain.

        When the first worker is up, the parent logs what serves where.
        """
        if not self._announced:  # connections have waited until now
            self._announced = True
            limits = ", ".join(f"{name} {value}" for name, value in self._options.items() if name.startswith("max_"))
            log.info("%d workers (%s), each with %s", self._count, self._reason, limits)
            announce(self._settings)
        slot.up = True
        if self._ending.is_set() and slot.channel is not None:
            slot.channel.send("drain")

    async def _ask_others(
        self, asking: WorkerSlot, note: Callable[[WorkerSlot, Any], object], kind: str, *content: Any
    ) -> None:
        """Calls all workers but `asking`, and passes each answer to `note(slot, answer)` as it comes.

        Workers that start, hang or fail are left out.
        """

        async def ask(slot: WorkerSlot, channel: Channel) -> None:
            """Calls one worker, and notes its answer."""
            answer = await channel.call(kind, *content)
            if answer is not None and "error" not in answer:
                note(slot, answer)

        calls = [
            asyncio.ensure_future(ask(slot, slot.channel))
            for slot in self._slots
            if slot is not asking and slot.channel is not None and slot.up and slot.silent_seconds <= SILENT_SECONDS
        ]
        if calls:
            await asyncio.wait(calls, timeout=ANSWER_SECONDS)

    async def _statistics_of_others(self, asking: WorkerSlot, *content: Any) -> list[Any]:
        """The answers of all workers but `asking` to `statistics`."""
        answers = list[Any]()
        await self._ask_others(asking, lambda _, answer: answers.append(answer), "statistics", *content)
        return answers

    async def _metrics_of_others(self, asking: WorkerSlot, own_metrics: Snapshot) -> list[Snapshot]:
        """The metrics that the worker `asking` has to add to its `own_metrics`, to report those of the whole service.

        They are those of all other workers, and of the workers that have ended. A worker that does not answer counts
        with its last answer.
        """
        self._counts.note(asking.index, own_metrics)
        await self._ask_others(asking, lambda slot, answer: self._counts.note(slot.index, answer), "metrics")
        other_indices = [slot.index for slot in self._slots if slot is not asking and slot.up]
        return self._counts.snapshots_to_add(asking.index, own_metrics, other_indices)


def _end_text(code: int) -> str:
    """An exit code in words, or the signal that ended the process."""
    return f"code {code}" if code >= 0 else SIGNALS.get(code, f"signal {-code}")


def supervise(settings: Settings, workers: WorkerCount) -> int:
    """Serves with several workers until a signal; returns the exit code.

    Raises:
        ConfigurationError: A certificate is wrong, an address is taken, or no worker can start with these options.
    """
    context(settings)  # a wrong certificate ends the service before its ports are open
    with ExitStack() as stack:
        ports = {"port": settings.port, "admin_port": settings.admin_port}  # by option; None: it is off
        sockets = {
            option: stack.enter_context(listening(settings.host, port, flag(option)))
            for option, port in ports.items()
            if port is not None
        }
        if settings.grpc_port is not None:
            stack.enter_context(reserved(settings.host, settings.grpc_port, flag("grpc_port")))
        file = stack.enter_context(shared_file(workers.number))
        supervisor = Supervisor(settings, workers, {option: end.fileno() for option, end in sockets.items()}, file)
        code = asyncio.run(supervisor.run())
    if code == _NOT_STARTED and supervisor.failures:
        raise ConfigurationError(supervisor.failures[0])
    return code

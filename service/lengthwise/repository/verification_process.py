"""Verifies each model in a separate process, which may crash or hang without harm to the service.

    files, limits, devices ──stdin──> a new interpreter (`verification_child`) ──stdout──> Verification, or why not
                                           │ it crashes: the signal is the reason
                                           │ it takes too long, or the service stops: it is killed

A graph may crash the process that runs it, hang, or use all of its memory. Here that only refuses one version. The
process gets the bytes that will run, only those environment variables that running a model needs, and no open file, and
it never outlives the service. Several processes that serve together verify a model once (`SharedVerifier`). To import
modules takes a process half a second: the first one may start early (`begin_process`), while the service imports its
own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from asyncio import Future
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

from lengthwise.errors import ModelError, NotVerified
from lengthwise.files import is_bundled
from lengthwise.repository.modest import LEAST_BYTES, share_of_memory
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import Verification, VerificationTask, Verifier
from lengthwise.settings import flag, passed_to_children

log = logging.getLogger("lengthwise.verification")

FIRST_SECONDS: Final = 5.0  # that workers wait for the first one to verify
REFUSED_SECONDS: Final = 60.0  # so long a refusal counts for other workers, which load the version at about that time
MOST_VERDICTS: Final = 1024  # of a few kilobytes each; the oldest are forgotten
# Exit codes of a process that somebody else has killed, perhaps the kernel, as the machine has no memory left
_KILLED: Final = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}
SIGNALS: Final = {-number: number.name for number in signal.Signals}  # names of signals, by exit code
_MEMORY_OPTION, _TIMEOUT_OPTION = flag("judge_memory_bytes"), flag("judge_timeout_seconds")


@dataclass
class VerificationProcess:
    """Verifies each model in a separate process of limited time and memory. It is a `Verifier`."""

    timeout_seconds: float
    memory_bytes: int  # most that a process may use
    _changed: threading.Condition = field(default_factory=threading.Condition)  # of `_allotted_bytes`
    _allotted_bytes: int = 0  # to the processes that run

    def __call__(self, task: VerificationTask, stopping: Stopping) -> Verification:
        """Verifies a model.

        Raises:
            ModelError: The model must not be served; the message says why.
            NotVerified: The process could not be started, or was killed from outside.
        """
        key = task.manifest.key
        with self._reserved_memory(stopping) as memory_bytes:
            if memory_bytes < min(LEAST_BYTES, self.memory_bytes):
                raise NotVerified(f"{key}: the container has no memory left to verify it; a later scan verifies it")
            try:
                process = waiting_process()
            except OSError as error:
                raise NotVerified(f"{key}: no process can be started to verify it: {error.strerror}") from error
            with process, stopping.ending(process.kill):
                try:
                    with suppress(BrokenPipeError):  # it has ended; `communicate` reads why
                        pickle.dump((self.timeout_seconds, memory_bytes), cast("IO[bytes]", process.stdin))
                    output, errors = process.communicate(pickle.dumps(task), timeout=self.timeout_seconds)
                except subprocess.TimeoutExpired as error:
                    raise ModelError(
                        f"{key}: verifying it timed out after {self.timeout_seconds:g} s ({_TIMEOUT_OPTION}): its "
                        "graph hangs, or is far too slow"
                    ) from error
                finally:
                    process.kill()
            stopping.check()
            return self.read_verdict(key, process.returncode, output, errors, memory_bytes)

    @contextmanager
    def _reserved_memory(self, stopping: Stopping) -> Iterator[int]:
        """Reserves memory for a process while the block runs, and yields how many bytes the process may use.

        These are `memory_bytes`. If the container has less left, it first waits until the processes that run have
        ended: with less memory, a version could be refused that would pass if it were verified by itself. If it still
        has less, that is what the process may use.
        """

        def wake() -> None:
            """Ends the wait, so that it looks at the stop signal."""
            with self._changed:
                self._changed.notify_all()

        with stopping.ending(wake), self._changed:
            limit = self.memory_bytes
            while (reserved := share_of_memory(limit, self._allotted_bytes)) < limit and self._allotted_bytes:
                stopping.check()
                self._changed.wait()
            self._allotted_bytes += reserved
        try:
            yield reserved
        finally:
            with self._changed:
                self._allotted_bytes -= reserved
                self._changed.notify_all()

    def read_verdict(self, key: str, code: int, output: bytes, errors: bytes, memory_bytes: int) -> Verification:
        """Returns the verdict of a process that has ended, and logs what the process logged.

        Args:
            key: The name and version of the model, for messages.
            code: The exit code.
            output: What the process wrote to stdout: its answer.
            errors: What it wrote to stderr.
            memory_bytes: How much memory it could use.

        Raises:
            ModelError: The model must not be served: verifying it failed, or its graph crashed the process.
            NotVerified: The process was killed from outside, or the machine has no memory left.
        """
        # 1. Its answer, empty if it crashed before, or its output was damaged
        answer: Any = {}
        with suppress(ValueError, RecursionError):
            answer = json.loads(output)
        if not isinstance(answer, dict):
            answer = {}
        with suppress(TypeError, ValueError, OverflowError):
            for level, name, text in answer.get("log", ()):
                logging.getLogger(str(name)).log(int(level), "%s", text)
        stderr = errors.decode(errors="replace")
        last_line = stderr.strip().rpartition("\n")[2][:300]
        # 2. It ran out of memory.
        if answer.get("memory") or (code and "bad_alloc" in last_line):
            why = f"{key}: verifying it ran out of memory: it takes more than {memory_bytes} bytes"
            if memory_bytes < self.memory_bytes:
                raise NotVerified(f"{why}, most of what the container has left")
            raise ModelError(f"{why} ({_MEMORY_OPTION})")
        # 3. It has answered.
        if answer.get("trace"):
            log.error("%s: verifying it failed\n%s", key, answer["trace"])
        if "refused" in answer or (code == 0 and "accepted" in answer):
            try:
                return Verification.from_json(answer)
            except ValueError as error:
                raise ModelError(f"{key}: the process that verified it gave no valid answer: {error}") from error
        # 4. It was killed, or crashed.
        log.error("%s: the process that verified it ended with %s\n%s", key, code, stderr[-4000:])
        if code in _KILLED:
            raise NotVerified(
                f"{key}: the process that verified it was killed from outside, by {SIGNALS[code]}; if nobody did "
                f"that, the machine ran out of memory ({_MEMORY_OPTION} limits the process)"
            )
        ended = f"was ended by {SIGNALS.get(code, f'signal {-code}')}" if code < 0 else f"ended with code {code}"
        raise ModelError(
            f"{key}: the process that verified it {ended}: its graph crashes the process that runs it. {last_line}"
        )


early: Final = list[subprocess.Popen[bytes]]()  # the process of `begin_process`, until it gets a task


def begin_process(folder: Path) -> None:
    """Starts the process for the first model of a folder, which then waits for its task.

    Bundled models need none, and a container with little memory left should not have it used up before it is divided.
    If no process can be started now, the load of the model tries again, and says why.

    Args:
        folder: The model repository.
    """
    if not is_bundled(folder) and share_of_memory(4 * LEAST_BYTES) == 4 * LEAST_BYTES:
        with suppress(OSError):
            early.append(waiting_process())


def end_unused_process() -> None:
    """Ends the process of `begin_process`, if no model needed it."""
    with suppress(IndexError), early.pop() as process:
        process.kill()


def waiting_process() -> subprocess.Popen[bytes]:
    """Returns a process that waits for a task, with its limits of time and memory: the early one, or a new one.

    Raises:
        OSError: No process can be started.
    """  # noqa: DOC502 - Popen raises it
    with suppress(IndexError):
        if (process := early.pop()).poll() is None:
            return process
    return subprocess.Popen(
        [sys.executable, "-P", "-m", f"{__package__}.verification_child", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what is written is sent, or the error is raised, at once
        process_group=0,  # Ctrl-C in a terminal goes to the service, which ends this process
        env={
            **passed_to_children(),
            # As `multiprocessing` does: the child can import what this process can. In the place of what is no absolute
            # path, such as a hook of an editable installation, stands the folder of this package: the working
            # directory, to which it is relative, may be gone.
            "PYTHONPATH": os.pathsep.join(
                entry if os.path.isabs(entry) else str(Path(__file__).parents[2]) for entry in sys.path
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime would begin with it when it is imported
        },
    )


@dataclass
class Verdicts:
    """The verdicts on models that the parent keeps for its workers, by the digest of all that a verdict depends on.

    A verdict is `{"accepted": ...}` or `{"refused": ..., "kind": ...}`, as `Verification.from_json` reads it. One
    worker at a time verifies a model; the others wait for its verdict, or until it has ended. At the start that is the
    first worker, where its process for that was started early (`begin_process`).
    """

    # Set when the first worker has asked for a verdict, or another one has waited for it long enough
    _first_worker_asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    # Of each model: when the verdict was stored, and the verdict
    _verdicts: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict, init=False)
    # Of each model that a worker verifies: a future of its verdict, and one of the worker's end
    _verifying: dict[str, tuple[Future[Any], Future[Any]]] = field(default_factory=dict, init=False)

    @property
    def verifying(self) -> bool:
        """Whether a worker verifies a model now."""
        return any(not any(map(Future.done, futures)) for futures in self._verifying.values())

    async def verdict_or_turn(
        self, lets_first_begin: bool, worker_end: Future[Any], digest: str
    ) -> dict[str, Any] | None:
        """Returns the verdict on a model; or None, which is the turn of the worker that asks to verify it.

        That worker then calls `keep`, or ends. While another worker has its turn, the verdict is waited for. Before the
        first worker has asked for anything, a worker that lets it begin waits for it, `FIRST_SECONDS` at most.

        Args:
            lets_first_begin: Whether the worker that asks lets the first one begin.
            worker_end: Done when the worker that asks has ended.
            digest: The digest of all that the verdict depends on.
        """
        if lets_first_begin:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._first_worker_asked.wait(), FIRST_SECONDS)
        self._first_worker_asked.set()
        while (turn := self._verifying.get(digest)) is not None and not any(map(Future.done, turn)):
            await asyncio.wait(turn, return_when=asyncio.FIRST_COMPLETED)
        if (stored := self._verdicts.get(digest)) is not None:
            stored_at, verdict = stored
            if "accepted" in verdict or time.monotonic() - stored_at < REFUSED_SECONDS:
                return verdict
        self._verifying[digest] = Future(), worker_end
        return None

    def keep(self, digest: str, verdict: dict[str, Any] | None) -> None:
        """Stores the verdict of a worker, and lets the workers that wait for it go on.

        `verdict` is None if the worker could not verify the model: then the next worker that waits verifies it.
        """
        self._verifying.pop(digest, (Future(), None))[0].set_result(None)
        if verdict is not None:
            self._verdicts[digest] = time.monotonic(), verdict
        if len(self._verdicts) > MOST_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]


@dataclass
class SharedVerifier:
    """A `Verifier` of one of several workers: it verifies a model only if no other worker has a verdict on it.

    The parent keeps the verdicts in memory (`Verdicts`). So a worker that starts later, or a reload that reaches all
    workers, verifies nothing again, and all have the same kernels, promise and costs. No folder needs to be writable.
    """

    verifier: Verifier
    ask: Callable[..., Any]
    """Asks the parent for the `verdict` of a digest, once no other process verifies its model."""
    send: Callable[..., object]
    """Sends the parent the message `keep_verdict` with a digest and a verdict, or None: see `Verdicts.keep`."""

    def __call__(self, task: VerificationTask, stopping: Stopping) -> Verification:
        """Returns the verification of a model: that of another worker, or else its own, which the parent then keeps.

        The parent gets a message after each verification here: without a verdict, another worker verifies the model.

        Raises:
            ModelError: The model must not be served; the message says why.
            NotVerified: It could not be verified now.
        """
        devices = [(device.label, device.recurrent_kernels, device.timed, device.tf32) for device in task.devices]
        # The manifest has the digests of all files.
        digest = hashlib.sha256(repr((task.manifest.to_json(), task.limits, devices)).encode()).hexdigest()
        if earlier_verdict := self.ask(stopping, "verdict", digest):
            return Verification.from_json(earlier_verdict)
        verdict: dict[str, Any] | None = None
        try:
            verification = self.verifier(task, stopping)
            # Other workers need not store beside the model what this worker stores there.
            verdict = {"accepted": verification.model_dump(exclude={"cases", "measured", "choice"})}
            return verification
        except NotVerified:
            raise
        except ModelError as error:
            verdict = {"refused": str(error), "kind": type(error).__name__}
            raise
        finally:
            self.send("keep_verdict", digest, verdict)

"""Judging in a process of its own: the side of the process that serves.

    files, limits, devices ──stdin──> a fresh interpreter (`repository.judge_child`) ──stdout──> Judged, or why not
                                           │ ends by itself: the signal is the reason
                                           │ takes too long, or the service stops: it is killed

A graph may end the process that runs it, hang it, or take all of its memory. Here that is the refusal of one version.
The process gets what was read of the model, so it judges the very bytes that will be opened; of the environment it gets
what running models needs, and no open file. It never outlives the process that started it.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ModelError, NotJudged, VerificationError
from lengthwise.repository.judging import Judged, ModelFiles
from lengthwise.runtime.provider import Device
from lengthwise.settings import flag, memory_left_bytes, passed_to_children
from lengthwise.stopping import Stopping

log = logging.getLogger("lengthwise.judging")

NICER: Final = 5
"""How much lower the priority of judging is than that of serving: about a third of its share of a busy core."""
SHARE_OF_MEMORY: Final = 0.8
"""Most that judging may take of the memory that the container has left."""
LEAST_BYTES: Final = 2**27
"""With less than this the process cannot even start; a version that finds less is judged at the next look."""
_FROM_OUTSIDE: Final = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}
"""Ends that are not the graph's doing: somebody wanted it, or the system needed the memory."""
_LIMITS: Final = flag("judge_memory_bytes"), flag("judge_timeout_seconds")


class _OutOfMemory(Exception):
    """Judging met the bound on its memory."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the process is to do.

    Attributes:
        files: The model's.
        limits: What one batch may be.
        budget_seconds: Time to spend on measuring.
        devices: Where the model runs.
    """

    files: ModelFiles
    limits: BatchLimits
    budget_seconds: float
    devices: tuple[Device, ...]


class JudgeProcess:
    """Judges each model in a process of its own; a `Judge`.

    Args:
        timeout_seconds: Longest that it may take.
        memory_bytes: Most memory that it may take.
        nicer: How much lower its priority is.
    """

    def __init__(self, timeout_seconds: float, memory_bytes: int, *, nicer: int = NICER) -> None:
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._nicer = nicer
        self._lock = threading.Lock()
        self._allotted_bytes = 0

    def __call__(
        self,
        files: ModelFiles,
        limits: BatchLimits,
        budget_seconds: float,
        devices: Sequence[Device],
        stopping: Stopping,
    ) -> Judged:
        """Judges a model.

        Raises:
            ModelError: It must not be served; says why.
            NotJudged: The process could not be started, or was ended from outside.
            Stopped: It was stopped.
        """
        key = files.manifest.key
        task = Task(files, limits, budget_seconds, tuple(devices))
        with self._memory() as most:
            return self._run(key, task, most, stopping)

    @contextmanager
    def _memory(self) -> Iterator[int]:
        """The bytes that a process may take; other processes that judge at the same time keep theirs."""
        left = memory_left_bytes()
        with self._lock:
            most = self._memory_bytes
            if left is not None:  # where a container's memory is used up, the system may end all that is in it
                most = min(most, int(SHARE_OF_MEMORY * max(0, left - self._allotted_bytes)))
            self._allotted_bytes += most
        try:
            yield most
        finally:
            with self._lock:
                self._allotted_bytes -= most

    def _run(self, key: str, task: Task, most: int, stopping: Stopping) -> Judged:
        """Runs the process, which may take `most` bytes."""
        if most < min(LEAST_BYTES, self._memory_bytes):
            raise NotJudged(f"{key}: the container has no memory left to judge it; it is judged at the next look")
        try:
            process = self._started(most)
        except OSError as error:
            raise NotJudged(
                f"{key}: no process can be started to judge it: {error.strerror}; where that is not to be had, "
                f"{flag('judge_in_process')} judges in the process that serves"
            ) from error
        with process, stopping.ending(process.kill):
            try:
                told, said = process.communicate(pickle.dumps(task), timeout=self._timeout_seconds)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise ModelError(
                    f"{key}: judging it timed out after {self._timeout_seconds:g} s ({_LIMITS[1]}): its graph hangs, "
                    "or is far too slow"
                ) from error
            finally:
                process.kill()
        stopping.check()
        try:
            return self._judged(key, process.returncode, told, said)
        except _OutOfMemory as error:
            if most < self._memory_bytes:
                raise NotJudged(
                    f"{key}: judging it ran out of memory: it takes more than {most} bytes, which is most of what the "
                    "container has left"
                ) from error
            raise ModelError(
                f"{key}: judging it ran out of memory: it takes more than {most} bytes ({_LIMITS[0]})"
            ) from error

    def _started(self, memory_bytes: int) -> subprocess.Popen[bytes]:
        """The process, which waits for its task, and may take so much memory."""
        # As `multiprocessing` does it: whatever this process can import, that one can.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        arguments = [str(os.getpid()), str(self._nicer), str(memory_bytes), str(self._timeout_seconds)]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.judge_child", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **passed_to_children(),
                "PYTHONPATH": path,
                "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )

    def _judged(self, key: str, code: int, told: bytes, said: bytes) -> Judged:
        """What the process said of the model."""
        answer = _read(told)
        for level, name, text in answer.get("log", ()):
            logging.getLogger(str(name)).log(int(level), "%s", text)
        if code == 0 and "judged" in answer:
            try:
                return Judged.from_json(answer["judged"])
            except Exception as error:
                raise ModelError(f"{key}: the process that judged it gave no sense: {error}") from error
        last = said.decode(errors="replace").strip().rpartition("\n")[2][:300]
        if answer.get("memory") or (code and "bad_alloc" in last):
            raise _OutOfMemory
        if "refused" in answer:
            if answer.get("trace"):
                log.error("%s: judging it failed\n%s", key, answer["trace"])
            kind = VerificationError if answer.get("kind") == "VerificationError" else ModelError
            raise kind(str(answer["refused"]))
        log.error("%s: the process that judged it ended with %s\n%s", key, code, said.decode(errors="replace")[-4000:])
        if code in _FROM_OUTSIDE:
            raise NotJudged(
                f"{key}: the process that judged it was ended from outside, by {_name(code)}; where nobody did that, "
                f"the machine ran out of memory ({_LIMITS[0]} bounds what it takes)"
            )
        how = f"was ended by {_name(code)}" if code < 0 else f"ended with code {code}"
        raise ModelError(f"{key}: the process that judged it {how}: its graph ends the process that runs it. {last}")


def _read(told: bytes) -> dict[str, Any]:
    """The answer of the process; empty where it gave none."""
    try:
        answer = json.loads(told)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"

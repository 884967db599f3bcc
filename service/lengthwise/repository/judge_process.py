"""Judges each model in a separate process, which may crash or hang without harm to the service.

    files, limits, devices ──stdin──> a new interpreter (`repository.judge_child`) ──stdout──> Judged, or why not
                                           │ it crashes: the signal is the reason
                                           │ it takes too long, or the service stops: it is killed

A graph may crash the process that runs it, hang, or use all of its memory. Here that only rejects one version. The
process gets the bytes that will run, only those environment variables that running a model needs, and no open file, and
it never outlives the service.
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
from lengthwise.repository.modest import LEAST_BYTES, NICER, share_of_memory
from lengthwise.repository.stopping import Stopping
from lengthwise.runtime.provider import Device
from lengthwise.settings import flag, passed_to_children

log = logging.getLogger("lengthwise.judging")

_FROM_OUTSIDE: Final = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}  # killed, or no memory
_LIMITS: Final = flag("judge_memory_bytes"), flag("judge_timeout_seconds")


class _OutOfMemory(Exception):
    """The process reached its memory limit."""


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """What the process gets, pickled: the arguments of `judging.judge`."""

    files: ModelFiles
    limits: BatchLimits
    budget_seconds: float
    devices: tuple[Device, ...]


class JudgeProcess:
    """Judges each model in a separate process of limited time and memory. It is a `Judge`."""

    def __init__(self, timeout_seconds: float, memory_bytes: int, *, nicer: int = NICER) -> None:
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._nicer = nicer
        self._changed = threading.Condition()
        self._allotted_bytes = 0

    def __call__(
        self,
        files: ModelFiles,
        limits: BatchLimits,
        budget_seconds: float,
        devices: Sequence[Device],
        stopping: Stopping,
    ) -> Judged:
        """Judges a model; NotJudged if the process could not be started or was killed from outside."""
        key = files.manifest.key
        task = JudgeTask(files, limits, budget_seconds, tuple(devices))
        with self._memory(stopping) as most:
            return self._run(key, task, most, stopping)

    @contextmanager
    def _memory(self, stopping: Stopping) -> Iterator[int]:
        """Reserves memory for a process: its limit in bytes.

        Where the container has too little for the full limit beside the processes that run, it waits for these to end:
        with less memory a good version could be rejected, which alone is served.
        """
        with stopping.ending(self._wake), self._changed:
            while (most := self._most_bytes()) < self._memory_bytes and self._allotted_bytes:
                stopping.check()
                self._changed.wait()
            self._allotted_bytes += most
        try:
            yield most
        finally:
            with self._changed:
                self._allotted_bytes -= most
                self._changed.notify_all()

    def _most_bytes(self) -> int:
        return share_of_memory(self._memory_bytes, self._allotted_bytes)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self, key: str, task: JudgeTask, most: int, stopping: Stopping) -> Judged:
        if most < min(LEAST_BYTES, self._memory_bytes):
            raise NotJudged(f"{key}: the container has no memory left to verify it; it is verified at the next scan")
        try:
            process = self.start(most)
        except OSError as error:
            raise NotJudged(f"{key}: no process can be started to verify it: {error.strerror}") from error
        with process, stopping.ending(process.kill):
            try:
                output, errors = process.communicate(pickle.dumps(task), timeout=self._timeout_seconds)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise ModelError(
                    f"{key}: verifying it timed out after {self._timeout_seconds:g} s ({_LIMITS[1]}): its graph hangs, "
                    "or is far too slow"
                ) from error
            finally:
                process.kill()
        stopping.check()
        try:
            return self.read_verdict(key, process.returncode, output, errors)
        except _OutOfMemory as error:
            if most < self._memory_bytes:
                raise NotJudged(
                    f"{key}: verifying it ran out of memory: it takes more than {most} bytes, most of what the "
                    "container has left"
                ) from error
            raise ModelError(
                f"{key}: verifying it ran out of memory: it takes more than {most} bytes ({_LIMITS[0]})"
            ) from error

    def start(self, memory_bytes: int) -> subprocess.Popen[bytes]:
        """Starts the process, which waits for its task and limits its own memory."""
        # As `multiprocessing` does: the child can import what this process can.
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

    def read_verdict(self, key: str, code: int, output: bytes, errors: bytes) -> Judged:
        """The result, from the exit code and the output of the process."""
        answer = _read(output)
        for level, name, text in answer.get("log", ()):
            logging.getLogger(str(name)).log(int(level), "%s", text)
        if code == 0 and "judged" in answer:
            try:
                return Judged.from_json(answer["judged"])
            except Exception as error:
                raise ModelError(f"{key}: the process that verified it gave no valid answer: {error}") from error
        last = errors.decode(errors="replace").strip().rpartition("\n")[2][:300]
        if answer.get("memory") or (code and "bad_alloc" in last):
            raise _OutOfMemory
        if "refused" in answer:
            if answer.get("trace"):
                log.error("%s: verifying it failed\n%s", key, answer["trace"])
            kind = VerificationError if answer.get("kind") == "VerificationError" else ModelError
            raise kind(str(answer["refused"]))
        log.error(
            "%s: the process that verified it ended with %s\n%s", key, code, errors.decode(errors="replace")[-4000:]
        )
        if code in _FROM_OUTSIDE:
            raise NotJudged(
                f"{key}: the process that verified it was killed from outside, by {_name(code)}; if nobody did that, "
                f"the machine ran out of memory ({_LIMITS[0]} limits the process)"
            )
        how = f"was ended by {_name(code)}" if code < 0 else f"ended with code {code}"
        raise ModelError(
            f"{key}: the process that verified it {how}: its graph crashes the process that runs it. {last}"
        )


def _read(output: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"

"""Judges each model in a separate process, which may crash or hang without harm to the service.

    files, limits, devices ──stdin──> a new interpreter (`repository.judge_child`) ──stdout──> Judged, or why not
                                           │ it crashes: the signal is the reason
                                           │ it takes too long, or the service stops: it is killed

A graph may crash the process that runs it, hang, or use all of its memory. Here that only rejects one version. The
process gets the bytes that will run, only those environment variables that running a model needs, and no open file, and
it never outlives the service. Several processes that serve together judge a model once (`SharedJudge`).
"""

from __future__ import annotations

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lengthwise import files
from lengthwise.errors import ModelError, NotJudged
from lengthwise.repository.judging import Judge, Judged, JudgeTask
from lengthwise.repository.modest import LEAST_BYTES, share_of_memory
from lengthwise.repository.stopping import Stopping
from lengthwise.settings import flag, passed_to_children

log = logging.getLogger("lengthwise.judging")

REFUSED_SECONDS: Final = 60.0  # how long a refusal counts for others, which load the same version at about that time
_FROM_OUTSIDE: Final = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}  # killed, or no memory
_SIGNALS: Final = {-number: number.name for number in signal.Signals}
_LIMITS: Final = flag("judge_memory_bytes"), flag("judge_timeout_seconds")


@dataclass
class JudgeProcess:
    """Judges each model in a separate process of limited time and memory. It is a `Judge`."""

    timeout_seconds: float
    memory_bytes: int
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _allotted_bytes: int = 0

    def __call__(self, task: JudgeTask, stopping: Stopping) -> Judged:
        """Judges a model; NotJudged if the process could not be started or was killed from outside."""
        key = task.manifest.key
        with self._memory(stopping) as most:
            if most < min(LEAST_BYTES, self.memory_bytes):
                raise NotJudged(f"{key}: the container has no memory left to verify it; the next scan verifies it")
            try:
                process = self.start(most)
            except OSError as error:
                raise NotJudged(f"{key}: no process can be started to verify it: {error.strerror}") from error
            with process, stopping.ending(process.kill):
                try:
                    output, errors = process.communicate(pickle.dumps(task), timeout=self.timeout_seconds)
                except subprocess.TimeoutExpired as error:
                    raise ModelError(
                        f"{key}: verifying it timed out after {self.timeout_seconds:g} s ({_LIMITS[1]}): its graph "
                        "hangs, or is far too slow"
                    ) from error
                finally:
                    process.kill()
            stopping.check()
            return self.read_verdict(key, process.returncode, output, errors, most)

    @contextmanager
    def _memory(self, stopping: Stopping) -> Iterator[int]:
        """Reserves memory for a process: its limit in bytes.

        Where the container has too little for the full limit beside the processes that run, it waits for these to end:
        with less memory a good version could be rejected, which alone is served.
        """

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        with stopping.ending(wake), self._changed:
            limit = self.memory_bytes
            while (most := share_of_memory(limit, self._allotted_bytes)) < limit and self._allotted_bytes:
                stopping.check()
                self._changed.wait()
            self._allotted_bytes += most
        try:
            yield most
        finally:
            with self._changed:
                self._allotted_bytes -= most
                self._changed.notify_all()

    def start(self, memory_bytes: int) -> subprocess.Popen[bytes]:
        """Starts the process, which waits for its task and limits its own memory."""
        # As `multiprocessing` does: the child can import what this process can.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        arguments = [str(os.getpid()), str(memory_bytes), str(self.timeout_seconds)]
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

    def read_verdict(self, key: str, code: int, output: bytes, errors: bytes, most: int) -> Judged:
        """The result, from the exit code and the output of a process that could use `most` bytes of memory."""
        answer: Any = {}
        with suppress(ValueError, RecursionError):
            answer = json.loads(output)
        if not isinstance(answer, dict):
            answer = {}
        for level, name, text in answer.get("log", ()):
            logging.getLogger(str(name)).log(int(level), "%s", text)
        said = errors.decode(errors="replace")
        last = said.strip().rpartition("\n")[2][:300]
        if answer.get("memory") or (code and "bad_alloc" in last):
            why = f"{key}: verifying it ran out of memory: it takes more than {most} bytes"
            if most < self.memory_bytes:
                raise NotJudged(f"{why}, most of what the container has left")
            raise ModelError(f"{why} ({_LIMITS[0]})")
        if answer.get("trace"):
            log.error("%s: verifying it failed\n%s", key, answer["trace"])
        if "refused" in answer or (code == 0 and "judged" in answer):
            try:
                return Judged.of_verdict(answer)
            except ValueError as error:
                raise ModelError(f"{key}: the process that verified it gave no valid answer: {error}") from error
        log.error("%s: the process that verified it ended with %s\n%s", key, code, said[-4000:])
        if code in _FROM_OUTSIDE:
            raise NotJudged(
                f"{key}: the process that verified it was killed from outside, by {_SIGNALS[code]}; if nobody did "
                f"that, the machine ran out of memory ({_LIMITS[0]} limits the process)"
            )
        ended = f"was ended by {_SIGNALS.get(code, f'signal {-code}')}" if code < 0 else f"ended with code {code}"
        raise ModelError(
            f"{key}: the process that verified it {ended}: its graph crashes the process that runs it. {last}"
        )


@dataclass
class SharedJudge:
    """A `Judge` that asks another one, if no other process that serves the same has done so.

    What was found is kept in a folder of their parent under the digest of all that the judgement depends on, so a
    worker that is started later, or a reload that reaches all of them, verifies nothing again, and all have the same
    kernels, promise and costs. Not even the model directory needs to be writable.
    """

    judge: Judge
    folder: Path

    def __call__(self, task: JudgeTask, stopping: Stopping) -> Judged:
        """Judges a model; arguments and errors are those of `judging.judge`."""
        on = [(device.label, device.recurrent_kernels, device.timed, device.tf32) for device in task.devices]
        # The manifest has the digests of all files.
        depends = repr((task.manifest.to_json(), task.limits, on)).encode()
        path = self.folder / hashlib.sha256(depends).hexdigest()
        with path.with_suffix(".lock").open("w") as lock:
            files.lock(lock.fileno(), wait=True)
            stopping.check()
            with suppress(FileNotFoundError):
                found = json.loads(path.read_bytes())
                if "judged" in found or time.time() - path.stat().st_mtime < REFUSED_SECONDS:
                    return Judged.of_verdict(found)
            try:
                judged = self.judge(task, stopping)
            except NotJudged:
                raise
            except ModelError as error:
                files.replace(path, json.dumps({"refused": str(error), "kind": type(error).__name__}).encode())
                raise
            # The first one stores the rest beside the model.
            others = judged.model_copy(update={"cases": (), "measured": None, "choice": None})
            files.replace(path, json.dumps({"judged": others.model_dump()}).encode())
            return judged

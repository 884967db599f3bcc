"""Judges a model once for several processes that serve it: the first one judges, the others read what it found.

What was found is kept in a folder of their parent under the digest of all that the judgement depends on, so a worker
that is started later, or a reload that reaches all of them, verifies nothing again, and all have the same kernels,
promise and costs. Not even the model directory needs to be writable.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lengthwise import files
from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ModelError, NotJudged, VerificationError
from lengthwise.repository.judging import Judge, Judged, ModelFiles
from lengthwise.repository.stopping import Stopping
from lengthwise.runtime.provider import Device

REFUSED_SECONDS: Final = 60.0
"""How long a refusal counts for others: they load the same version at about the same time."""


class SharedJudge:
    """A `Judge` that asks another one, if no process with the same folder has done so."""

    def __init__(self, judge: Judge, folder: Path) -> None:
        self._judge = judge
        self._folder = folder

    def __call__(
        self,
        model: ModelFiles,
        limits: BatchLimits,
        budget_seconds: float,
        devices: Sequence[Device],
        stopping: Stopping,
    ) -> Judged:
        """Judges a model; arguments and errors are those of `judging.judge`."""
        on = [(device.label, device.recurrent_kernels, device.timed, device.tf32) for device in devices]
        # The manifest has the digests of all files.
        path = self._folder / hashlib.sha256(repr((model.manifest.to_json(), limits, on)).encode()).hexdigest()
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stopping.check()
            found = _read(path)
            if found is not None:
                return found
            try:
                judged = self._judge(model, limits, budget_seconds, devices, stopping)
            except NotJudged:
                raise
            except ModelError as error:
                _write(path, {"refused": str(error), "verification": isinstance(error, VerificationError)})
                raise
            # The first one stores the rest beside the model.
            _write(path, replace(judged, cases=(), measured=None, choice=None).to_json())
            return judged


def _read(path: Path) -> Judged | None:
    """What was found; None if that is to be found out.

    Raises:
        ModelError: The model was refused a moment ago.
    """
    with suppress(FileNotFoundError):
        found = json.loads(path.read_bytes())
        if "refused" not in found:
            return Judged.from_json(found)
        if time.time() - path.stat().st_mtime < REFUSED_SECONDS:
            raise (VerificationError if found["verification"] else ModelError)(found["refused"])
    return None


def _write(path: Path, found: dict[str, Any]) -> None:
    files.replace(path, json.dumps(found).encode())

"""One section in a process of its own: `python -m benchmarks.gpu.section JOB.json`, started by `runner`.

A crash of a driver, a hang and memory that is not given back end with the process, and take no other section along.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.device import module
from benchmarks.gpu.figures import Figures, read, write
from benchmarks.gpu.sections import NotHere
from benchmarks.gpu.stage import Stage

MEASURED, FAILED, LEFT_OUT, IN_PART = 0, 1, 3, 4
"""Exit codes."""


@dataclass(frozen=True)
class Job:
    """What a section's process is told.

    Attributes:
        module: Holds `measure`.
        figures: Where they are written.
        reason: Where it is written why there are none.
        provider: See `Stage`, as are the others.
    """

    module: str
    figures: str
    reason: str
    provider: Literal["cuda", "cpu"]
    models: str
    quick: bool
    seed: int
    seconds: float
    earlier: dict[str, Any]

    def write(self, path: Path) -> None:
        """For the process."""
        write(path, asdict(self))


def main(path: str) -> int:
    job = Job(**read(Path(path)))
    stage = Stage(job.provider, Path(job.models), job.quick, job.seed, job.seconds, job.earlier)
    if job.provider == "cuda":
        module("torch")  # it brings CUDA's libraries and cuDNN, which onnxruntime may not find by itself
    figures = Figures(Path(job.figures))
    try:
        importlib.import_module(job.module).measure(stage, figures)
    except NotHere as missing:
        Path(job.reason).write_text(str(missing), encoding="utf-8")
        return LEFT_OUT
    except Exception as error:  # whatever it is, it is told, and the other sections run
        Path(job.reason).write_text("".join(traceback.format_exception(error)[-4:]), encoding="utf-8")
        traceback.print_exc()
        return FAILED
    return IN_PART if {"failures", "cut_short"} & figures.found.keys() else MEASURED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""The sections, and the process that runs one: `python -m benchmarks.gpu.section JOB.json`, started by `runner`.

A crash of the driver, a hang and memory that is not given back end with that process; the other sections still run.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.device import module
from benchmarks.gpu.figures import Figures, read
from benchmarks.gpu.stage import Stage

MEASURED, FAILED, IN_PART = 0, 1, 4
"""Exit codes."""


@dataclass(frozen=True)
class Section:
    """One part of the measurement."""

    name: str  # in results, on the command line, and of the module with its `measure`
    question: str  # what its figures answer
    most_seconds: float  # after this time its process is ended; the figures so far are kept

    @property
    def module(self) -> str:
        """Where its `measure(stage, figures)` is."""
        return f"benchmarks.gpu.{self.name}"


SECTIONS = (
    Section("placement", "does every node run where it should", 90),
    Section("parity", "how far are the answers from the CPU's", 150),
    Section("isolation", "do other rows or padding change an answer", 180),
    Section("throughput", "how many sequences a second, beside other ways to batch", 480),
    Section("over_http", "how many answers a second over HTTP, and how late, beside a hand-made peer", 300),
)


def main(path: str) -> int:
    job = read(Path(path))
    stage = Stage(job["provider"], Path(job["models"]), job["quick"], job["seed"], job["seconds"])
    if stage.provider == "cuda":
        module("torch")  # it brings CUDA's libraries and cuDNN, which onnxruntime may not find by itself
    figures = Figures(Path(job["figures"]))
    try:
        importlib.import_module(job["module"]).measure(stage, figures)
    except Exception as error:  # the runner reports every kind of error
        Path(job["reason"]).write_text("".join(traceback.format_exception(error)[-4:]), encoding="utf-8")
        traceback.print_exc()
        return FAILED
    return IN_PART if {"failures", "cut_short"} & figures.values.keys() else MEASURED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""The service with one part replaced, to measure that part: `python -m benchmarks.variants PART serve ...`.

| part | instead |
|---|---|
| `arrival-order` | batches are planned in order of arrival |
| `by-length` | batches are planned as if a padding step cost as much as a valid one |
| `no-help` | no idle core helps with a batch |
| `empty-run` | the graph is not run; HTTP, JSON, queue, planning and answers remain |
| `device:FILE` | a run sleeps as long as a device of these costs, which runs one batch at a time (`gpu/costs`) |
| `sleeping-run:CORES:SECONDS` | a run sleeps for so many seconds a step, its lock released, as on so many cores |
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from lengthwise.batching import batcher, buckets
from lengthwise.batching.batcher import Batcher
from lengthwise.batching.buckets import BucketedCosts
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch
from lengthwise.processes import worker_count
from lengthwise.repository import loading
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import OutputName, Outputs, Session
from lengthwise.serving import collaborators


def plan_by_arrival(pool: PendingSequences, cost: CostTable, limits: BatchLimits, now: float) -> list[WaitingSequence]:
    """The sequences that wait longest, as many as a batch may hold; replaces `lengthwise.batching.plan.plan`."""
    chosen: list[WaitingSequence] = []
    width = valid = 0
    while (first := pool.most_urgent()) is not None:
        width = max(width, first.width)
        rows = len(chosen) + 1
        if chosen and (rows > limits.rows or rows * width > limits.padded_steps):
            break
        if chosen and cost.seconds_of(rows, width, valid + first.width) * cost.drift > limits.seconds:
            break
        pool.remove(first)
        valid += first.width
        chosen.append(first)
    return chosen


@dataclass(frozen=True)
class EmptyRun:
    """A session whose runs take no time: all logits are 0."""

    session: Session
    manifest: Manifest

    def __getattr__(self, name: str) -> Any:
        """All else is that of the session it replaces."""
        return getattr(self.session, name)

    def run(self, batch: PaddedBatch, outputs: Sequence[OutputName] = ("logits",)) -> Outputs:
        """Zeros in the shapes that the graph's outputs would have."""
        logits = np.zeros((batch.rows, self.manifest.classes), dtype=np.float32)
        attention = np.zeros((batch.rows, batch.width), dtype=np.float32) if "attention" in outputs else None
        return Outputs(logits, attention)


class Fixed(CostTable):
    """A cost table that does not learn."""

    def observe(self, rows: int, width: int, seconds: float, valid_steps: int | None = None) -> None:
        """Ignores the measurement."""


def _arrival_order() -> None:
    batcher.plan = plan_by_arrival


def _by_length() -> None:
    prove = loading.load

    def load(directory: Path, limits: BatchLimits, **options: Any) -> LoadedModel:
        model = prove(directory, limits, **options)
        model.cost.padding_cost = 1.0
        return model

    loading.load = load


def _no_help() -> None:
    recurrent_kernels.lend_cores = lambda count, soon=False: None


def _empty_run() -> None:
    prove = loading.load

    # Loaded, verified and measured as usual: only the served session is empty, and planned at the true cost.
    def load(directory: Path, limits: BatchLimits, **options: Any) -> LoadedModel:
        model = prove(directory, limits, **options)
        table = model.cost
        costs = table.rows.tolist(), table.widths.tolist(), table.seconds
        kept = Fixed(*costs, padding_cost=table.padding_cost, clock=table.clock)
        return replace(model, session=cast(Session, EmptyRun(model.session, model.manifest)), cost=kept)

    loading.load = load


_BYTES_A_SECOND = 2.1e6 * 50 / 309e-6
"""Of weights, for each step: a BiLSTM of 128 has 2.1 MB and takes 309 us for 50 steps on one core."""


class SleepingRun(EmptyRun):
    """A session whose runs sleep as long as one core would compute."""

    seconds_a_step: float
    slept = threading.local()

    def run(self, batch: PaddedBatch, outputs: Sequence[OutputName] = ("logits",)) -> Outputs:
        """Sleeps, and answers zeros."""
        seconds = batch.valid_steps * self.seconds_a_step
        time.sleep(seconds)
        self.slept.seconds = self.clock() - time.thread_time() + seconds
        return super().run(batch, outputs)

    @classmethod
    def clock(cls) -> float:
        """Processor time of the thread, as if it had computed while it slept."""
        return time.thread_time() + float(getattr(cls.slept, "seconds", 0.0))


def _sleeping_run(cores: str, seconds_a_step: str) -> None:
    setattr(os, "sched_getaffinity", lambda _process: set(range(int(cores))))  # noqa: B010 - mypy takes no assignment to it
    SleepingRun.seconds_a_step = float(seconds_a_step)
    prove = loading.load

    def load(directory: Path, limits: BatchLimits, **options: Any) -> LoadedModel:
        model = prove(directory, limits, **options)
        rows, widths = model.cost.rows, model.cost.widths
        seconds = np.multiply.outer(rows, widths) * SleepingRun.seconds_a_step
        cost = CostTable(rows.tolist(), widths.tolist(), seconds, padding_cost=0.0, clock=SleepingRun.clock)
        return replace(model, session=cast(Session, SleepingRun(model.session, model.manifest)), cost=cost)

    loading.load = load
    size = int(SleepingRun.seconds_a_step * _BYTES_A_SECOND)
    setattr(worker_count, "graph_bytes", lambda _state: size)  # noqa: B010 - a name that it imports


class SimulatedDevice(EmptyRun):
    """A session whose runs sleep, one at a time in all processes, as long as a device of these costs would compute."""

    bound = True
    path: Path  # of the costs; its lock is the device
    costs: CostTable
    clock = staticmethod(time.perf_counter)

    def run(self, batch: PaddedBatch, outputs: Sequence[OutputName] = ("logits",)) -> Outputs:
        """Sleeps, and answers zeros."""
        with self.path.open() as device:
            fcntl.flock(device, fcntl.LOCK_EX)
            time.sleep(self.costs.predict(batch.rows, batch.width))
        return super().run(batch, outputs)

    def warm(self, shape: tuple[int, int]) -> None:
        """No shape has a slow first run."""


def _device(path: str) -> None:
    SimulatedDevice.path = Path(path)
    SimulatedDevice.costs = table = CostTable.from_json(json.loads(Path(path).read_bytes()), clock=time.perf_counter)
    prove = loading.load

    def load(directory: Path, limits: BatchLimits, **options: Any) -> LoadedModel:
        model = prove(directory, limits, **options)
        manifest, session = model.manifest, cast(Session, SimulatedDevice(model.session, model.manifest))
        limits = buckets.lowered(table, replace(limits, rows=buckets.DEVICE_ROWS, padded_steps=buckets.DEVICE_STEPS))
        shapes = buckets.choose(table, limits, max_length=manifest.max_length, multiple=manifest.width_multiple)
        return replace(model, session=session, cost=BucketedCosts(table, shapes), buckets=shapes)

    loading.load = load
    setattr(collaborators, "Batcher", lambda **options: Batcher(**{**options, "devices": 1}))  # noqa: B010 - a name that it imports


PARTS: dict[str, Callable[..., None]] = {
    "arrival-order": _arrival_order,
    "by-length": _by_length,
    "no-help": _no_help,
    "empty-run": _empty_run,
    "sleeping-run": _sleeping_run,
    "device": _device,
}


def main() -> None:
    part, *given = "".join(sys.argv[1:2]).split(":")
    if part not in PARTS:
        raise ConfigurationError(f"the first argument is one of {', '.join(PARTS)}")
    PARTS[part](*given)
    sys.argv = ["lengthwise", *sys.argv[2:]]
    runpy.run_module("lengthwise", run_name="__main__")


if __name__ == "__main__":
    main()

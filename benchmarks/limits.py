"""How fast the graph can be run at all: every sequence known in advance, batched as cheaply as the machine allows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import partition as cheapest
from benchmarks.workloads import Work
from service.cost import CostTable, measure
from service.manifest import Manifest
from service.padding import PaddedBatch, Steps, pad, rounded_width
from service.session import Session

_MAX_ROWS = 64
_MAX_COST_STEPS = 16_384


@dataclass(frozen=True)
class BestCase:
    """All sequences of a workload in the batches that cost least together.

    Attributes:
        session: Runs them.
        batches: Padded beforehand.
    """

    session: Session
    batches: list[PaddedBatch]

    @property
    def sequences(self) -> int:
        """How many there are in all batches."""
        return sum(batch.rows for batch in self.batches)

    @property
    def padding_share(self) -> float:
        """Padding over all steps computed."""
        return 1 - sum(batch.valid_steps for batch in self.batches) / sum(batch.cost for batch in self.batches)

    @property
    def rows_per_batch(self) -> float:
        """The mean."""
        return self.sequences / len(self.batches)

    def seconds_per_sequence(self, cores: Sequence[int], *, repetitions: int = 2) -> tuple[float, float]:
        """t_compute, by the clock and in processor time: all batches one after the other, in this thread.

        Args:
            cores: Where to run.
            repetitions: Of which the fastest counts.
        """
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            clock, cpu = zip(*(self._run_all() for _ in range(repetitions)), strict=True)
        finally:
            os.sched_setaffinity(0, before)
        return min(clock) / self.sequences, min(cpu) / self.sequences

    def _run_all(self) -> tuple[float, float]:
        clock, cpu = time.perf_counter(), time.thread_time()
        for batch in self.batches:
            self.session.run(batch)
        return time.perf_counter() - clock, time.thread_time() - cpu


def best_case(work: Work, *, table_seconds: float) -> BestCase:
    """Measures a cost table, and partitions all sequences by it.

    Args:
        work: Which sequences; of few, each is taken several times, as under a load that goes round.
        table_seconds: Time for measuring the table.
    """
    manifest = Manifest.read(work.directory)
    session = Session.load(work.directory, manifest)
    table = measured_table(session, work, manifest, table_seconds)
    sequences = work.sequences * -(-2000 // len(work.sequences))
    groups = partition(sequences, table, manifest)
    return BestCase(session, [pad(group, multiple=manifest.width_multiple) for group in groups])


def measured_table(session: Session, work: Work, manifest: Manifest, seconds: float) -> CostTable:
    """What batches cost in processor time, so that what else runs on the machine does not spoil the partition."""

    def run(rows: int, width: int) -> None:
        values = np.zeros((rows, width, manifest.input.features or 1), dtype=np.float32)
        session.run(PaddedBatch(values, np.full(rows, width, dtype=np.int32)))

    return measure(
        run,
        max_rows=_MAX_ROWS,
        # No wider than what occurs: the time goes into the shapes that matter.
        max_width=rounded_width(max(len(steps) for steps in work.sequences), manifest.width_multiple),
        max_cost_steps=_MAX_COST_STEPS,
        multiple=manifest.width_multiple,
        budget_seconds=seconds,
        clock=time.thread_time,
    )


def partition(sequences: Sequence[Steps], table: CostTable, manifest: Manifest) -> list[list[Steps]]:
    """The batches of as many rows as the service takes that cost least together."""
    return cheapest.partition(sequences, table, multiple=manifest.width_multiple, rows=_MAX_ROWS)

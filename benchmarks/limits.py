"""Limits of the graph: its time in the cheapest batches of all sequences, and in batches planned as they arrive."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from benchmarks.workloads import Work
from lengthwise.batching.cost import CostTable
from lengthwise.batching.cost_measurement import measure
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from lengthwise.batching.queues import TURN_SECONDS, ModelQueue
from lengthwise.batching.runners import ONE_CORE_INLINE_SECONDS
from lengthwise.padding import PaddedBatch, Steps, pad, rounded_width
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU
from lengthwise.runtime.session import Session
from lengthwise.telemetry.metrics import ModelMetrics

_MAX_ROWS = 64
_MAX_COST_STEPS = 16_384


@dataclass(frozen=True)
class Batches:
    """The sequences of a workload in batches."""

    session: Session  # runs them
    batches: list[PaddedBatch]  # padded beforehand

    @property
    def sequences(self) -> int:
        """Number of sequences in all batches."""
        return sum(batch.rows for batch in self.batches)

    @property
    def padding_share(self) -> float:
        """Padding over all steps computed."""
        return 1 - sum(batch.valid_steps for batch in self.batches) / sum(batch.padded_steps for batch in self.batches)

    @property
    def rows_per_batch(self) -> float:
        """Mean rows of a batch."""
        return self.sequences / len(self.batches)

    def seconds_per_sequence(self, cores: Sequence[int], *, repetitions: int = 2) -> tuple[float, float]:
        """Wall time and processor time per sequence, of the fastest repetition, in this thread on these cores."""
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
        cpu = time.thread_time() - cpu  # started last and read first, so it lies within the wall time
        return time.perf_counter() - clock, cpu


@dataclass(frozen=True)
class Graph:
    """A workload's graph, and its batch costs on this machine."""

    session: Session
    manifest: Manifest
    table: CostTable  # predicted seconds of a batch
    sequences: list[Steps]  # in order of arrival

    @classmethod
    def of(cls, work: Work, *, table_seconds: float, recurrent_kernels: bool = True) -> Graph:
        """Loads it, and measures its batch costs; few sequences are repeated, as under a load that starts again."""
        manifest = Manifest.read(work.directory)
        session = Session.load(work.directory, manifest, devices=(CPU_DEVICE if recurrent_kernels else PLAIN_CPU,))
        table = measured_table(session, work, manifest, table_seconds)
        return cls(session, manifest, table, work.sequences * -(-2000 // len(work.sequences)))

    def best(self) -> Batches:
        """All sequences, known in advance, in the cheapest batches."""
        return self._padded(partition(self.sequences, self.table, self.manifest))

    def as_they_come(self, waiting: int) -> Batches:
        """The batches of the service's planner with `waiting` sequences in the queue and no knowledge of later ones.

        Each answer brings the next sequence, which can be planned one batch later: another batch runs while it arrives.
        Sequences that still wait at the end are in no batch.
        """
        return self._padded(planned(self.sequences, waiting, self.table, self.manifest))

    def _padded(self, groups: Sequence[Sequence[Steps]]) -> Batches:
        return Batches(self.session, [pad(group, multiple=self.manifest.width_multiple) for group in groups])


def measured_table(session: Session, work: Work, manifest: Manifest, seconds: float) -> CostTable:
    """Batch costs in processor time, which other work on the machine disturbs little."""

    def run_lengths(lengths: Sequence[int]) -> None:
        values = np.zeros((len(lengths), max(lengths), manifest.input.features or 1), dtype=np.float32)
        session.run(PaddedBatch(values, np.array(lengths, dtype=np.int32)))

    return measure(
        lambda rows, width: run_lengths([width] * rows),
        max_rows=_MAX_ROWS,
        # No wider than the longest sequence: the time goes into the shapes that occur.
        max_width=rounded_width(max(len(steps) for steps in work.sequences), manifest.width_multiple),
        max_padded_steps=_MAX_COST_STEPS,
        multiple=manifest.width_multiple,
        budget_seconds=seconds,
        clock=time.thread_time,
        run_lengths=run_lengths,
    )


def partition(sequences: Sequence[Steps], table: CostTable, manifest: Manifest) -> list[list[Steps]]:
    """The cheapest batches, within the service's limit of rows, when all sequences are known in advance.

    For a cost that does not fall with the width, some cheapest partition of the sequences into batches is contiguous in
    order of length, so a dynamic program over that order finds it exactly (Fang et al., TurboTransformers, PPoPP 2021):

        best[i] = min over j < i of best[j] + seconds(i - j rows, width of the i-th)
    """
    ordered = sorted(sequences, key=len)
    best = np.zeros(len(ordered) + 1)
    start = np.zeros(len(ordered) + 1, dtype=np.int64)
    for end, steps in enumerate(ordered, start=1):
        first = max(0, end - _MAX_ROWS)
        column = table.column(rounded_width(len(steps), manifest.width_multiple), _MAX_ROWS)
        # Candidates by where the last batch starts: the earlier, the more rows.
        totals = best[first:end] + np.array(column.seconds[end - first : 0 : -1])
        cut = int(totals.argmin())
        best[end], start[end] = totals[cut], first + cut
    groups = []
    end = len(ordered)
    while end:
        groups.append(ordered[start[end] : end])
        end = int(start[end])
    return groups[::-1]


@dataclass(eq=False, slots=True)
class _Asked(WaitingSequence):
    steps: Steps = field(kw_only=True)


def planned(sequences: Sequence[Steps], waiting: int, table: CostTable, manifest: Manifest) -> list[list[Steps]]:
    """The batches of a server on one core with `waiting` connections, each of which sends again after its answer."""
    limits = BatchLimits().at_most(manifest.max_batch_rows)
    queue = ModelQueue(
        manifest.key,
        lambda batch, _: [None] * batch.rows,
        table,
        ModelMetrics(),
        limits,
        multiple=manifest.width_multiple,
    )
    pool = queue.pending
    asked = iter([_Asked(queue.width_of(len(steps)), steps=steps) for steps in sequences])
    coming = list(islice(asked, waiting))
    groups: list[list[Steps]] = []
    while True:
        if not pool:  # all were answered together, and the runner waits for the first new one
            _ask(pool, coming)
        seconds = ONE_CORE_INLINE_SECONDS if queue.fits(ONE_CORE_INLINE_SECONDS) else float("inf")
        chosen = plan(pool, table, queue.limits_within(seconds, TURN_SECONDS), 0.0)
        groups.append([each.steps for each in chosen if isinstance(each, _Asked)])
        _ask(pool, coming)
        coming = list(islice(asked, len(chosen)))
        if len(coming) < len(chosen):
            return groups


def _ask(pool: PendingSequences, coming: list[_Asked]) -> None:
    """Adds the arrived sequences to the queue."""
    for each in coming:
        pool.add(each)
    coming.clear()

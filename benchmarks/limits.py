"""How fast the graph can be run at all: every sequence known in advance, batched as cheaply as the machine allows.

For a cost that does not fall with the width, some cheapest partition of the sequences into batches is contiguous in
order of length, so a dynamic program over that order finds it exactly (Fang et al., TurboTransformers, PPoPP 2021):

    best[i] = min over j < i of best[j] + seconds(i - j rows, width of the i-th)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.workloads import Work
from service.cost import CostTable
from service.manifest import Manifest
from service.padding import PaddedBatch, Steps, pad, rounded_width
from service.plan import BatchLimits
from service.repository import measure_cost
from service.session import Session

_MAX_ROWS = 64


@dataclass(frozen=True)
class ComputeLimit:
    """What the graph alone takes.

    Attributes:
        seconds_per_sequence: t_compute, the fastest of the repetitions.
        padding_share: Of the partition.
        rows_per_batch: Likewise, the mean.
    """

    seconds_per_sequence: float
    padding_share: float
    rows_per_batch: float


def compute_limit(work: Work, *, table_seconds: float, repetitions: int) -> ComputeLimit:
    """Measures a table, partitions all sequences by it, and runs the batches one after the other, in one thread.

    Args:
        work: Which sequences; of few, each is taken several times, as under a load that goes round.
        table_seconds: Time for measuring the table.
        repetitions: How often all batches are run.
    """
    manifest = Manifest.read(work.directory)
    session = Session.load(work.directory, manifest)
    longest = max(len(steps) for steps in work.sequences)
    # No wider than what occurs: the time goes into the shapes that matter.
    narrow = manifest.model_copy(update={"max_length": longest})
    table = measure_cost(session, narrow, BatchLimits(rows=_MAX_ROWS), budget_seconds=table_seconds)
    sequences = work.sequences * -(-2000 // len(work.sequences))
    batches = [pad(group, multiple=manifest.width_multiple) for group in partition(sequences, table, manifest)]
    seconds = min(_run_all(session, batches) for _ in range(repetitions))
    cost = sum(batch.cost for batch in batches)
    return ComputeLimit(
        seconds_per_sequence=seconds / len(sequences),
        padding_share=1 - sum(batch.valid_steps for batch in batches) / cost,
        rows_per_batch=len(sequences) / len(batches),
    )


def partition(sequences: Sequence[Steps], table: CostTable, manifest: Manifest) -> list[list[Steps]]:
    """The batches that cost least together."""
    ordered = sorted(sequences, key=len)
    best = np.zeros(len(ordered) + 1)
    start = np.zeros(len(ordered) + 1, dtype=np.int64)
    for end, steps in enumerate(ordered, start=1):
        column = table.column(rounded_width(len(steps), manifest.width_multiple), _MAX_ROWS)
        first = max(0, end - _MAX_ROWS)
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


def _run_all(session: Session, batches: Sequence[PaddedBatch]) -> float:
    began = time.perf_counter()
    for batch in batches:
        session.run(batch)
    return time.perf_counter() - began

"""Who is held against whom, on the same graph and device, without HTTP: each takes sequences and gives their logits.

| contender | does |
|---|---|
| `service` | the service's own batcher, planner and session; see `in_process` |
| `partition` | the cheapest batches there are, all sequences known in advance and padded beforehand: a limit |
| `alone` | one run a sequence |
| `arrival` | batches in the order of arrival, padded to their longest |
| `torch` | torch with packed sequences, in the order of arrival |

A contender that takes rows is measured with several numbers of them, and stands with its best.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from benchmarks.gpu.packed import Packed
from benchmarks.gpu.stage import Precision, Stage
from benchmarks.partition import partition
from lengthwise.batching.cost import CostTable
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime.session import Session

B = TypeVar("B")


@dataclass(frozen=True)
class Peer(Generic[B]):
    """Somebody else's way to run sequences.

    Attributes:
        name: In results.
        rows: Most sequences of a batch.
        run: Runs one batch.
        batch: Makes what `run` takes of sequences that arrived together.
        threads: How many batches it runs at once.
    """

    name: str
    rows: int
    run: Callable[[B], Any]
    batch: Callable[[list[Steps]], B]
    threads: int = 1

    def in_turn(self, sequences: Sequence[Steps]) -> list[list[Steps]]:
        """The sequences in batches, by arrival."""
        return [[*sequences[first : first + self.rows]] for first in range(0, len(sequences), self.rows)]

    def work(self, group: list[Steps]) -> int:
        """Makes a batch, runs it, and says how many sequences it had."""
        self.run(self.batch(group))
        return len(group)


def alone(stage: Stage, precision: Precision = "fp32") -> list[Peer[PaddedBatch]]:
    """One run a sequence, with one thread and with two."""
    multiple = stage.manifest(precision).width_multiple
    session = stage.session(precision)
    return [
        Peer(f"alone, {threads} at once", 1, session.run, lambda group: pad(group, multiple=multiple), threads)
        for threads in stage.pick((1, 2), (1,))
    ]


def arrival(stage: Stage, precision: Precision = "fp32") -> list[Peer[PaddedBatch]]:
    """Batches in the order of arrival, two at once as the service has them."""
    multiple = stage.manifest(precision).width_multiple
    session = stage.session(precision)
    return [
        Peer(f"arrival, {rows} rows", rows, session.run, lambda group: pad(group, multiple=multiple), 2)
        for rows in stage.pick((4, 16, 64, 256), (4,))
    ]


def torch_packed(stage: Stage, precision: Precision = "fp32") -> list[Peer[list[Steps]]]:
    """Packed sequences in torch; more threads gain nothing, as the device's work is one stream."""
    model = Packed(stage, precision)
    return [
        Peer(f"torch, {rows} rows", rows, model.logits, lambda group: group)
        for rows in stage.pick((64, 256, 1024), (8,))
    ]


def rate(work: Callable[[B], int], batches: Sequence[B], seconds: float, threads: int = 1) -> float:
    """Sequences a second: the batches one after another, round and round, until the time is over.

    Args:
        work: Runs one batch, and says how many sequences it had.
        batches: In an order in which any part of them is like the whole.
        seconds: After them no batch is begun, but for one in each thread.
        threads: Take the next batch each.
    """
    numbers = itertools.count()
    done: list[int] = []
    failed: list[BaseException] = []
    start = time.perf_counter()

    def take() -> None:
        try:
            while not failed:
                done.append(work(batches[next(numbers) % len(batches)]))
                if time.perf_counter() - start > seconds:
                    return
        except BaseException as error:  # told to the thread that waits
            failed.append(error)

    workers = [threading.Thread(target=take) for _ in range(threads - 1)]
    for worker in workers:
        worker.start()
    take()
    for worker in workers:
        worker.join()
    if failed:
        raise failed[0]
    return sum(done) / (time.perf_counter() - start)


def best_partition(
    sequences: Sequence[Steps], table: CostTable, *, multiple: int, rows: int, cost_steps: int, seed: int
) -> list[PaddedBatch]:
    """All sequences in the batches that cost least together, padded, in an order that says nothing of their length."""
    groups = partition(sequences, table, multiple=multiple, rows=rows, cost_steps=cost_steps)
    batches = [pad(group, multiple=multiple) for group in groups]
    return [batches[place] for place in np.random.default_rng(seed).permutation(len(batches))]


def partition_rate(session: Session, batches: Sequence[PaddedBatch], seconds: float) -> float:
    """Sequences a second of batches padded beforehand, two at once."""

    def work(batch: PaddedBatch) -> int:
        session.run(batch)
        return batch.rows

    return rate(work, batches, seconds, threads=2)

"""A batcher whose models are functions, for tests of what it does with them: what runs, where, and with whom."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.queues import ModelQueue, PendingRequest, Timing
from lengthwise.errors import DeadlineExceeded, InferenceFailed
from lengthwise.padding import PaddedBatch, Steps
from lengthwise.telemetry.metrics import ModelMetrics

PATIENCE_SECONDS = 180.0
"""Longer than anything here takes; only a test that fails waits for it."""


def sequence(number: int, length: int = 4) -> Steps:
    """A sequence that says which one it is."""
    return np.full((length, 1), number, dtype=np.float32)


def names(batch: PaddedBatch, attention: bool) -> list[int]:
    """A run that answers each row with the number in it, after looking at every valid step of it."""
    return [int(row[:length].mean()) for row, length in zip(batch.steps, batch.lengths, strict=True)]


class Noted:
    """A run that keeps for each batch whether the event loop ran it; its processor time moves by `seconds` each."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.on_the_loop: list[bool] = []
        self.seconds, self.effort = seconds, 0.0

    def __call__(self, batch: PaddedBatch, attention: bool) -> list[int]:
        self.on_the_loop.append(threading.current_thread() is threading.main_thread())
        self.effort += self.seconds
        return names(batch, attention)


def answers(results: list[int], timing: Timing) -> list[int]:
    return list(results)


def model_queue(
    run: Any = names,
    *,
    seconds: float = 0.01,
    name: str = "m/1",
    steady: bool = True,
    first_runs: int = 0,
    padding_cost: float = 1.0,
    **limits: Any,
) -> ModelQueue:
    """A queue whose shortest run is predicted to take `seconds`: by default none is the event loop's own work."""
    times = np.array([[seconds, 16 * seconds], [2 * seconds, 32 * seconds]])
    cost = CostTable([1, 64], [4, 64], times, padding_cost=padding_cost)
    made = ModelQueue(name, run, cost, ModelMetrics("m", "1"), BatchLimits(**limits), steady=steady)
    for _ in range(made.inline.first_runs - first_runs):
        made.inline.count_run()
    return made


@asynccontextmanager
async def running(*queues: ModelQueue, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(**options)
    for one in queues:
        batcher.open(one)
    await batcher.start()
    while not batcher.at_rest:  # a thread that is not there yet takes work differently
        await asyncio.sleep(0)
    try:
        yield batcher
    finally:
        await batcher.drain(PATIENCE_SECONDS)


class Gate:
    """A run that waits until it is opened, and keeps what it ran."""

    def __init__(self, run: Callable[[PaddedBatch, bool], list[int]] = names) -> None:
        self.run = run
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: PaddedBatch, attention: bool) -> list[int]:
        self.batches.append([int(number) for number in batch.steps[:, 0, 0]])
        self.entered.set()
        assert self.open.wait(PATIENCE_SECONDS)
        return self.run(batch, attention)

    async def busy(self) -> None:
        """Returns when a run is inside."""
        assert await asyncio.to_thread(self.entered.wait, PATIENCE_SECONDS)


@asynccontextmanager
async def held(rows: int = 64, **options: Any) -> AsyncIterator[tuple[Batcher, ModelQueue, Gate, PendingRequest]]:
    """A batcher whose runner is inside a run of one sequence, number 0, that waits at the gate."""
    gate = Gate()
    only = model_queue(gate, rows=rows)
    async with running(only, **options) as batcher:
        first = batcher.submit(only, [sequence(0)], answers)
        await gate.busy()
        yield batcher, only, gate, first


async def outcome(request: PendingRequest) -> Any:
    """The request's answer, or the error that it was given."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await request.future
    except DeadlineExceeded as error:
        return error
    except InferenceFailed as error:
        return error

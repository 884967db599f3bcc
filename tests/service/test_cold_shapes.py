"""Shapes of a device that have not run yet run once the model is ready, while nothing else waits or runs."""

import asyncio
import threading
from functools import partial

import pytest

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.buckets import BatchShape
from lengthwise.batching.device_turns import Run
from lengthwise.batching.watchdog import Watchdog
from tests.support.batching import PATIENCE_SECONDS, answers, model_queue, outcome, running, sequence


class Device:
    """Notes what runs; the first cold shape waits until it is let go."""

    def __init__(self, shapes: list[BatchShape], *, fails: bool = False) -> None:
        self.ran: list[BatchShape | str] = []
        self.fails = fails
        self.left = len(shapes)
        self.entered, self.free, self.done = threading.Event(), threading.Event(), threading.Event()
        self.queue = model_queue(self.answer)
        self.queue.cold = {shape: partial(self.warm, shape) for shape in shapes}

    def answer(self, batch: object, attention: bool) -> list[int]:
        self.ran.append("a request")
        return [0]

    def warm(self, shape: BatchShape) -> None:
        self.ran.append(shape)
        self.entered.set()
        assert self.free.wait(PATIENCE_SECONDS)
        self.left -= 1
        if not self.left:
            self.done.set()
        if self.fails:
            raise RuntimeError("no memory for it")


SHAPES: list[BatchShape] = [(64, 8), (2, 8), (3, 4), (2, 4)]


@pytest.mark.parametrize("fails", [False, True], ids=["they run", "they fail"])
async def test_those_of_widths_that_came_run_few_rows_first(fails: bool):
    device = Device(SHAPES, fails=fails)
    device.free.set()
    device.left = 2
    async with running(device.queue) as batcher:
        assert device.ran == []  # nothing came yet
        assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]
        assert await asyncio.to_thread(device.done.wait, PATIENCE_SECONDS)
        assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]  # the runner is as it was
    assert device.ran == ["a request", (2, 4), (3, 4), "a request"]


async def test_a_request_waits_for_one_of_them_at_most():
    device = Device(SHAPES)
    async with running(device.queue) as batcher:
        assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]
        assert await asyncio.to_thread(device.entered.wait, PATIENCE_SECONDS)
        request = batcher.submit(device.queue, [sequence(0, 8)], answers)
        device.free.set()
        assert await outcome(request) == [0]
        assert await asyncio.to_thread(device.done.wait, PATIENCE_SECONDS)
    assert device.ran == ["a request", (2, 4), "a request", (2, 8), (3, 4), (64, 8)]


async def test_one_that_hangs_is_seen_as_any_run_is():
    device = Device(SHAPES[-2:])
    async with running(device.queue) as batcher:
        watchdog = Watchdog(batcher.execution.turns.running, hung_seconds=1.0)
        assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]
        assert await asyncio.to_thread(device.entered.wait, PATIENCE_SECONDS)
        for _ in range(1000):
            watchdog.look_at_runs()
        assert watchdog.problem is not None
        assert "2 rows of 4 steps" in watchdog.problem
        device.free.set()
        assert await asyncio.to_thread(device.done.wait, PATIENCE_SECONDS)
        assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]
        watchdog.look_at_runs()
        assert watchdog.problem is None


def test_what_runs_changes_with_the_lock_held():
    device = Device(SHAPES[-1:])
    device.free.set()
    held: list[bool] = []

    class Runs(dict[int, Run]):
        """Notes at each change whether the batcher's lock is held: other threads iterate with it."""

        def __setitem__(self, thread: int, run: Run) -> None:
            held.append(execution.lock.locked())
            super().__setitem__(thread, run)

        def __delitem__(self, thread: int) -> None:
            held.append(execution.lock.locked())
            super().__delitem__(thread)

    execution = Batcher(runners=1).execution
    execution.turns.running = Runs()
    execution.run_at_rest(device.queue, *device.queue.cold.popitem())
    assert (device.ran, held, execution.turns.running) == (SHAPES[-1:], [True, True], {})


async def test_no_more_of_them_run_than_may():
    device = Device(SHAPES)
    device.free.set()
    device.queue.runs_at_rest = 1
    async with running(device.queue) as batcher:
        assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]
        assert await asyncio.to_thread(device.entered.wait, PATIENCE_SECONDS)
        assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]
    assert device.ran == ["a request", (2, 4), "a request"]


async def test_none_runs_while_another_runner_is_at_work_or_while_the_service_drains():
    device, work = Device(SHAPES), Device([])
    gate = threading.Event()

    def held(batch: object, attention: bool) -> list[int]:
        work.entered.set()
        assert gate.wait(PATIENCE_SECONDS)
        return [0]

    work.queue.run = held
    batcher = Batcher(runners=2)
    batcher.open(work.queue)
    await batcher.start()
    request = batcher.submit(work.queue, [sequence(0)], answers)
    assert await asyncio.to_thread(work.entered.wait, PATIENCE_SECONDS)
    batcher.open(device.queue)
    other = batcher.submit(device.queue, [sequence(0)], answers)
    assert await outcome(other) == [0]
    assert device.ran == ["a request"]
    batcher.begin_draining()
    gate.set()
    assert await outcome(request) == [0]
    await batcher.drain(PATIENCE_SECONDS)
    assert device.ran == ["a request"]

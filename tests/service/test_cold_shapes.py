"""Shapes of a device that have not run yet run once the model is ready, while nothing else waits or runs."""

import asyncio
import threading
from functools import partial

import pytest

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.buckets import BatchShape
from tests.support.batching import PATIENCE_SECONDS, answers, model_queue, outcome, sequence


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


SHAPES: list[BatchShape] = [(64, 8), (1, 4), (1, 8), (2, 4)]


@pytest.mark.parametrize("fails", [False, True], ids=["they run", "they fail"])
async def test_they_run_in_their_order_before_any_request_comes(fails: bool):
    device = Device(SHAPES, fails=fails)
    device.free.set()
    batcher = Batcher()
    await batcher.start()
    batcher.open(device.queue)
    assert await asyncio.to_thread(device.done.wait, PATIENCE_SECONDS)
    assert device.ran == SHAPES
    assert await outcome(batcher.submit(device.queue, [sequence(0)], answers)) == [0]  # the runner is as it was
    await batcher.drain(PATIENCE_SECONDS)


async def test_a_request_waits_for_one_of_them_at_most_and_those_of_its_width_are_next():
    device = Device(SHAPES)
    batcher = Batcher()
    batcher.open(device.queue)
    await batcher.start()
    assert await asyncio.to_thread(device.entered.wait, PATIENCE_SECONDS)
    request = batcher.submit(device.queue, [sequence(0)], answers)
    (waiting,) = device.queue.pending
    device.free.set()
    assert await outcome(request) == [0]
    assert await asyncio.to_thread(device.done.wait, PATIENCE_SECONDS)
    await batcher.drain(PATIENCE_SECONDS)
    assert device.ran[:2] == [SHAPES[0], "a request"]
    same = [shape for shape in SHAPES[1:] if shape[1] == waiting.width]
    assert device.ran[2 : 2 + len(same)] == same


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

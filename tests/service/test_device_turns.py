"""A device runs one batch at a time: the next one is planned shortly before it is free, with all that wait then."""

import asyncio
import threading

import pytest

from lengthwise.batching.device_turns import DeviceTurns
from lengthwise.padding import PaddedBatch
from tests.support.batching import PATIENCE_SECONDS, Gate, answers, model_queue, names, outcome, running, sequence
from tests.support.waiting import until


class Clock:
    """A time in seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def in_another_thread(call):
    """Calls a function in a thread of its own, as a runner would."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_plan_waits_until_shortly_before_the_device_is_free():
    clock = Clock()
    turns = DeviceTurns(threading.Lock(), 1, clock)
    assert turns.seconds_to_wait() == 0
    turns.begin(0.1)
    assert 0.09 < turns.seconds_to_wait() < 0.1
    clock.now = 0.0999
    assert turns.seconds_to_wait() < 0


def test_a_plan_waits_for_all_batches_that_are_ready_before_it():
    turns = DeviceTurns(threading.Lock(), 1, Clock())
    in_another_thread(lambda: turns.begin(0.1))
    turns.begin(0.2)
    assert 0.29 < turns.seconds_to_wait() < 0.3


def test_on_several_devices_a_plan_waits_for_the_first_that_is_free():
    turns = DeviceTurns(threading.Lock(), 2, Clock())
    in_another_thread(lambda: turns.begin(0.1))
    assert turns.seconds_to_wait() == 0
    turns.begin(0.2)
    assert 0.09 < turns.seconds_to_wait() < 0.1


def test_on_the_cpu_no_plan_waits():
    turns = DeviceTurns(threading.Lock(), 0, Clock())
    turns.begin(0.1)
    assert turns.seconds_to_wait() == 0
    assert turns.end(0.1, 0.0) == float("inf")


def test_the_longer_preparations_take_the_earlier_the_next_plan_is():
    lock = threading.Lock()
    turns = DeviceTurns(lock, 1, Clock())
    turns.begin(0.1)
    quick = turns.seconds_to_wait()
    with lock:
        turns.end(0.0, 0.05)
    turns.begin(0.1)
    assert turns.seconds_to_wait() < quick - 0.005


async def test_what_arrives_while_the_device_is_busy_runs_together_once_it_is_free(monkeypatch: pytest.MonkeyPatch):
    waits = threading.Event()
    wait = DeviceTurns.wait

    def note_and_wait(turns: DeviceTurns, seconds: float) -> None:
        waits.set()
        wait(turns, seconds)

    monkeypatch.setattr(DeviceTurns, "wait", note_and_wait)
    gate = Gate()
    queue = model_queue(gate, seconds=PATIENCE_SECONDS)  # predicted
    async with running(queue, runners=2, devices=1) as batcher:
        requests = [batcher.submit(queue, [sequence(0)], answers)]
        await gate.busy()
        requests.append(batcher.submit(queue, [sequence(1)], answers))
        assert await asyncio.to_thread(waits.wait, PATIENCE_SECONDS)
        requests += [batcher.submit(queue, [sequence(number)], answers) for number in (2, 3)]
        gate.open.set()
        assert [await outcome(request) for request in requests] == [[0], [1], [2], [3]]
    assert gate.batches == [[0], [1, 2, 3]]


async def test_the_wait_for_the_device_does_not_count_as_the_cost_of_a_batch(monkeypatch: pytest.MonkeyPatch):
    clock, observed = Clock(), list[float]()
    gates, entered = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        number = int(batch.steps[0, 0, 0])
        entered[number].set()
        assert gates[number].wait(PATIENCE_SECONDS)
        return names(batch, attention)

    queue = model_queue(run, seconds=1e-6)
    queue.cost.clock = clock
    queue.inline.possible = False
    monkeypatch.setattr(queue.cost, "observe", lambda rows, width, seconds, valid_steps: observed.append(seconds))
    async with running(queue, runners=2, devices=1, clock=clock) as batcher:
        first = batcher.submit(queue, [sequence(0)], answers)
        assert await asyncio.to_thread(entered[0].wait, PATIENCE_SECONDS)
        clock.now = 1.0  # the first run should have ended: the second batch is made ready
        second = batcher.submit(queue, [sequence(1)], answers)
        assert await asyncio.to_thread(entered[1].wait, PATIENCE_SECONDS)
        clock.now = 100.0
        gates[0].set()
        assert await outcome(first) == [0]
        clock.now = 102.0
        gates[1].set()
        assert await outcome(second) == [1]
        await until(lambda: len(observed) == 2)
    assert observed == [100.0, 2.0]

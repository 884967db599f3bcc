"""A device runs one batch at a time: the next one is planned shortly before it is free, with all that wait then."""

import asyncio
import threading
from queue import SimpleQueue

import pytest

from lengthwise.batching.device_turns import DeviceTurns, Run
from lengthwise.errors import InferenceFailed
from lengthwise.padding import PaddedBatch
from lengthwise.telemetry.metrics import ModelMetrics
from tests.support.batching import (
    PATIENCE_SECONDS,
    Gate,
    Noted,
    answers,
    model_queue,
    names,
    outcome,
    running,
    sequence,
)
from tests.support.waiting import until


class Clock:
    """A time in seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begin(turns: DeviceTurns, seconds: float) -> None:
    turns.begin(Run("m/1", 3, 40, seconds, ModelMetrics("m", "1")), seconds)


def in_another_thread(call):
    """Calls a function in a thread of its own, as a runner would."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_plan_waits_until_shortly_before_the_device_is_free():
    clock = Clock()
    turns = DeviceTurns(threading.Lock(), 1, clock)
    assert turns.seconds_to_wait() == 0
    begin(turns, 0.1)
    assert 0.09 < turns.seconds_to_wait() < 0.1
    clock.now = 0.0999
    assert turns.seconds_to_wait() < 0


def test_a_plan_waits_for_all_batches_that_are_ready_before_it():
    turns = DeviceTurns(threading.Lock(), 1, Clock())
    in_another_thread(lambda: begin(turns, 0.1))
    begin(turns, 0.2)
    assert 0.29 < turns.seconds_to_wait() < 0.3


def test_a_batch_that_ends_out_of_turn_says_nothing_about_the_run_of_an_earlier_one():
    lock = threading.Lock()
    turns = DeviceTurns(lock, 1, Clock())
    begin(turns, 0.1)

    def fail() -> None:
        begin(turns, 0.1)
        with lock:
            turns.end(9.9, 0.0)

    in_another_thread(fail)
    with lock:
        assert turns.end(10.0, 0.0) == float("inf")


def test_a_run_at_rest_that_goes_on_hides_no_end_of_a_batch():
    lock = threading.Lock()
    turns = DeviceTurns(lock, 1, Clock())
    turns.running[-1] = Run("m/1", 3, 40, 0.1, ModelMetrics("m", "1"))  # of another thread
    ends = []
    for end in (10.0, 10.5):
        begin(turns, 0.1)
        with lock:
            ends.append(turns.end(end, 0.0))
    assert ends == [float("inf"), 0.5]


def test_a_plan_waits_for_a_batch_whose_seconds_cannot_be_predicted_until_that_ends():
    lock = threading.Lock()
    turns = DeviceTurns(lock, 1, Clock())
    begin(turns, float("inf"))  # `ModelQueue.predict` where the cost table fails
    waits, ended = threading.Event(), threading.Event()

    def wait() -> None:
        with lock:
            waits.set()
            turns.wait(turns.seconds_to_wait())
            ended.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    assert waits.wait(PATIENCE_SECONDS)
    with lock:  # the waiter has it until it waits
        turns.end(0.1, 0.0)
    waiter.join(PATIENCE_SECONDS)
    assert ended.is_set()


def test_on_the_cpu_no_plan_waits():
    turns = DeviceTurns(threading.Lock(), 0, Clock())
    begin(turns, 0.1)
    assert turns.seconds_to_wait() == 0
    assert turns.end(0.1, 0.0) == float("inf")


def test_the_longer_preparations_take_the_earlier_the_next_plan_is():
    lock = threading.Lock()
    turns = DeviceTurns(lock, 1, Clock())
    begin(turns, 0.1)
    quick = turns.seconds_to_wait()
    with lock:
        turns.end(0.0, 0.05)
    begin(turns, 0.1)
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


async def test_a_batch_that_fails_beside_another_does_not_make_that_one_cheap(monkeypatch: pytest.MonkeyPatch):
    clock, observed, gate = Clock(), list[float](), Gate()

    def fail(batch: PaddedBatch, attention: bool) -> list[int]:
        clock.now = 99.0
        raise RuntimeError("no memory")

    slow, broken = (model_queue(run, seconds=1e-6, name=name) for run, name in ((gate, "slow/1"), (fail, "broken/1")))
    for queue in (slow, broken):
        queue.cost.clock = clock
        queue.inline.possible = False
    monkeypatch.setattr(slow.cost, "observe", lambda rows, width, seconds, valid_steps: observed.append(seconds))
    async with running(slow, broken, runners=2, devices=1, clock=clock) as batcher:
        request = batcher.submit(slow, [sequence(0)], answers)
        await gate.busy()
        clock.now = 1.0  # the run should have ended: the next batch is made ready
        assert isinstance(await outcome(batcher.submit(broken, [sequence(1)], answers)), InferenceFailed)
        clock.now = 100.0
        gate.open.set()
        assert await outcome(request) == [0]
        await until(lambda: observed)
    assert observed == [100.0]


async def test_a_device_that_is_free_gets_a_batch_though_another_is_busy_for_long():
    """A session gives batches to its devices in turns: the third is for the first device, and the second is free."""
    slots, devices = SimpleQueue[int](), [threading.Lock(), threading.Lock()]
    for slot in (0, 1, 0, 1):
        slots.put(slot)
    entered, gates = list[int](), [threading.Event() for _ in range(4)]

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        device, number = slots.get(), int(batch.steps[0, 0, 0])
        with devices[device]:
            entered.append(number)
            assert gates[number].wait(PATIENCE_SECONDS)
        slots.put(device)
        return names(batch, attention)

    queue = model_queue(run, seconds=PATIENCE_SECONDS)  # predicted
    async with running(queue, runners=4, devices=2) as batcher:
        requests = []
        for number in range(2):
            requests.append(batcher.submit(queue, [sequence(number)], answers))
            await until(lambda: len(entered) == len(requests))
        gates[1].set()
        assert await outcome(requests[1]) == [1]
        requests.append(batcher.submit(queue, [sequence(2)], answers))
        await until(lambda: slots.qsize() == 2)  # it waits for the first device
        requests.append(batcher.submit(queue, [sequence(3)], answers))
        await until(lambda: entered == [0, 1, 3])
        for gate in gates:
            gate.set()
        assert [await outcome(request) for request in requests] == [[0], [1], [2], [3]]


async def test_the_event_loop_does_not_wait_for_a_batch_of_another_model():
    gate, noted = Gate(), Noted()
    slow, short = model_queue(gate, seconds=PATIENCE_SECONDS, name="slow/1"), model_queue(noted, seconds=1e-6)
    async with running(slow, short, runners=2, devices=1) as batcher:
        requests = [batcher.submit(short, [sequence(1)], answers), batcher.submit(slow, [sequence(0)], answers)]
        assert gate.entered.wait(PATIENCE_SECONDS)  # before the event loop has its turn
        for _ in range(3):
            await asyncio.sleep(0)
        assert noted.on_the_loop == []
        gate.open.set()
        assert [await outcome(request) for request in requests] == [[1], [0]]
    assert noted.on_the_loop == [False]


async def test_runners_that_waited_for_the_device_rest_once_nothing_is_left_to_run(monkeypatch: pytest.MonkeyPatch):
    waiting = set[int]()
    wait = DeviceTurns.wait

    def note_and_wait(turns: DeviceTurns, seconds: float) -> None:
        waiting.add(threading.get_ident())
        wait(turns, seconds)

    monkeypatch.setattr(DeviceTurns, "wait", note_and_wait)
    gate = Gate()
    queue = model_queue(gate, seconds=10 * PATIENCE_SECONDS)  # predicted
    async with running(queue, runners=5, devices=1) as batcher:
        requests = [batcher.submit(queue, [sequence(0)], answers)]
        await gate.busy()
        for number in range(1, 5):
            requests.append(batcher.submit(queue, [sequence(number)], answers))
            await until(lambda: len(waiting) == len(requests) - 1)
        gate.open.set()
        assert [await outcome(request) for request in requests] == [[0], [1], [2], [3], [4]]
        await until(lambda: batcher.at_rest)

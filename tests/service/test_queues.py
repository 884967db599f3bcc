"""Several models share the runners by time, and the queue by room."""

import threading

import numpy as np
import pytest

from lengthwise.batching.pending import WaitingSequence
from lengthwise.batching.queues import (
    ARRIVAL_TURN_SECONDS,
    SHARED_TURN_SECONDS,
    TURN_SECONDS,
    ModelQueue,
    ModelQueues,
    QueuedSequence,
)
from lengthwise.padding import PaddedBatch
from tests.support.batching import Gate, answers, model_queue, names, outcome, running, sequence


class Clock:
    """Time that only a run moves: each takes a second, and the first of the model called other what it is held up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.held_up = 0.0
        self.ran: list[str] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self) -> float:
        return self.now

    def model_queue(self, name: str, *, predicted: float = 0.01) -> ModelQueue:
        def run(batch: PaddedBatch, attention: bool) -> list[int]:
            assert self.may_run.wait(60)
            self.now += 1 if name in self.ran else 1 + self.held_up * (name == "other")
            self.ran.append(name)
            return names(batch, attention)

        made = model_queue(run, seconds=predicted, name=name, rows=1)
        made.cost.clock = self
        return made


@pytest.mark.parametrize("held_up", [0, 1000], ids=["", "held up"])
async def test_a_flooded_model_starves_no_other_and_one_held_up_keeps_its_turns(held_up: int):
    clock = Clock()
    flooded, other = clock.model_queue("flooded", predicted=1), clock.model_queue("other", predicted=1)
    async with running(flooded, other, clock=clock) as batcher:
        clock.held_up = held_up  # seconds that the first run of the other one takes
        clock.may_run.clear()  # fifty runs that take no time may be over before the other model is asked
        flood = batcher.submit(flooded, [sequence(number) for number in range(50)], answers)
        few = batcher.submit(other, [sequence(number) for number in range(5)], answers)
        clock.may_run.set()
        await outcome(few)
        await outcome(flood)
    assert clock.now > held_up
    first, second, *_, last = (i for i, name in enumerate(clock.ran) if name == "other")
    assert first < 5
    assert second - first <= 3, "two of the other model's between them, as where nothing is held up"
    assert held_up or last < 20


@pytest.mark.parametrize("predicted", [1e-4, 1e-2, 1.0, 1e2, 1e4])
async def test_a_model_has_half_of_the_time_whatever_its_cost_table_says(predicted: float):
    clock = Clock()
    wrong, right = clock.model_queue("wrong", predicted=predicted), clock.model_queue("right", predicted=1.0)
    async with running(wrong, right, clock=clock) as batcher:
        clock.may_run.clear()
        many = [batcher.submit(queue, [sequence(number) for number in range(50)], answers) for queue in (wrong, right)]
        clock.may_run.set()
        for request in many:
            await outcome(request)
    assert 8 <= clock.ran[:20].count("wrong") <= 12


async def test_a_run_that_was_held_up_costs_its_model_the_turns_of_some_runs():
    clock = Clock()
    held_up, other = (clock.model_queue(name, predicted=1e-3) for name in ("held up", "other"))
    async with running(held_up, other, clock=clock) as batcher:
        await outcome(batcher.submit(held_up, [sequence(number) for number in range(20)], answers))
        await outcome(batcher.submit(other, [sequence(number) for number in range(20)], answers))
        clock.ran.clear()
        before = held_up.used_seconds, other.used_seconds
        clock.held_up = 1000
        await outcome(batcher.submit(other, [sequence(0)], answers))
    assert held_up.used_seconds == before[0]
    assert 1 < other.used_seconds - before[1] < 12


async def test_a_model_that_was_idle_has_no_claim_on_the_time_it_did_not_use():
    clock = Clock()
    steady, idle = clock.model_queue("steady"), clock.model_queue("idle")
    async with running(steady, idle, clock=clock) as batcher:
        await outcome(batcher.submit(steady, [sequence(number) for number in range(100)], answers))
        clock.ran.clear()
        clock.may_run.clear()
        flood = batcher.submit(idle, [sequence(number) for number in range(50)], answers)
        few = batcher.submit(steady, [sequence(number) for number in range(5)], answers)
        clock.may_run.set()
        await outcome(few)
        await outcome(flood)
    assert max(i for i, name in enumerate(clock.ran) if name == "steady") < 20


async def test_a_closed_model_answers_what_waits_and_a_call_that_was_read_for_it():
    gate = Gate()
    old, new = model_queue(gate), model_queue()
    async with running(old, new) as batcher:
        first = batcher.submit(old, [sequence(0)], answers)
        await gate.busy()
        waiting = batcher.submit(old, [sequence(1)], answers)
        batcher.close(old)
        assert batcher.queues == [old, new]
        gate.open.set()
        assert await outcome(first) == [0]
        assert await outcome(waiting) == [1]
        assert batcher.queues == [new]
        assert await outcome(batcher.submit(old, [sequence(2)], answers)) == [2]
        assert batcher.queues == [new]
        assert await outcome(batcher.submit(new, [sequence(3)], answers)) == [3]


@pytest.mark.parametrize(("waiting", "seconds", "fits"), [(2, 0.1, True), (3, 0.1, False), (64, 1.0, False)])
def test_in_order_of_arrival_the_next_batch_has_all_that_wait(waiting: int, seconds: float, fits: bool):
    only = model_queue(seconds=0.01, padding_cost=0.0, rows=32)
    for _ in range(waiting):
        only.pending.add(WaitingSequence(4))
    only.seconds = 0.04 * waiting  # predicted, of what waits
    assert only.fits(seconds) is fits
    only.seconds = 0.0
    assert not only.fits(0.009)  # one alone takes longer


def test_the_wait_for_a_larger_batch_ends_before_a_deadline():
    only = model_queue(seconds=0.01)
    queues = ModelQueues(max_wait_seconds=10)
    queues.append(only)
    steps, nobody = np.zeros((4, 1), dtype=np.float32), None
    only.pending.add(
        QueuedSequence(4, 1.0, steps=steps, padded_steps=4, seconds=0.0, arrival=0.0, index=0, request=nobody)
    )  # type: ignore[arg-type]
    _, wait = queues.next(0.0, draining=False)
    assert wait == pytest.approx(1.0 - 2 * 0.01 - 0.005)
    assert queues.next(1.0 - 2 * 0.01 - 0.004, draining=False)[0] is only


@pytest.mark.parametrize("by_arrival", [True, False])
def test_a_turn_is_longest_in_order_of_arrival_and_short_for_several_models(by_arrival: bool):
    made, other = model_queue(names, padding_cost=float(not by_arrival)), model_queue(names, name="other")
    queues = ModelQueues()
    queues.append(made)
    alone = queues.turn_seconds(made)
    assert alone == (ARRIVAL_TURN_SECONDS if by_arrival else TURN_SECONDS)
    queues.append(other)
    assert queues.turn_seconds(made) == SHARED_TURN_SECONDS < alone


@pytest.mark.parametrize(
    ("padding_cost", "by_table", "steps"),
    [(1.0, True, 16_384), (0.5, True, 32_768), (0.0, True, 65_536), (0.0, False, 16_384)],
    ids=["computed", "half", "skipped", "of the operator"],
)
def test_where_padding_is_skipped_a_batch_may_have_more_of_it(padding_cost: float, by_table: bool, steps: int):
    queue = model_queue(padding_cost=padding_cost, by_table=by_table)
    assert queue.limits_within(1.0, 1.0).padded_steps == steps

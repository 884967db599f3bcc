"""Exactly one answer for everything accepted, whatever fails, leaves or comes late."""

import asyncio
import random
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from lengthwise.batching import batcher as batcher_module
from lengthwise.batching.batcher import Batcher
from lengthwise.batching.queues import ModelQueue, Timing
from lengthwise.batching.runners import Cores
from lengthwise.errors import DeadlineExceeded, Draining, InferenceFailed, NotReady, QueueFull, TooLarge, Unauthorized
from lengthwise.padding import PaddedBatch
from tests.support.batching import PATIENCE_SECONDS, Gate, answers, held, model_queue, names, outcome, running, sequence

FOREVER = float("inf")


# What a batch is


async def test_what_arrives_while_a_batch_runs_shares_the_next_one():
    async with held() as (batcher, only, gate, first):
        others = [batcher.submit(only, [sequence(number)], answers) for number in (1, 2, 3)]
        gate.open.set()
        assert await outcome(first) == [0]
        assert [await outcome(request) for request in others] == [[1], [2], [3]]
    assert gate.batches[0] == [0]
    assert sorted(gate.batches[1]) == [1, 2, 3]


async def test_the_sequences_of_one_request_come_back_in_order_from_several_batches():
    gate = Gate()
    gate.open.set()
    only = model_queue(gate, rows=3)
    async with running(only, runners=2) as batcher:
        lengths = [9, 1, 5, 12, 2, 7, 3, 30, 4, 11]
        request = batcher.submit(only, [sequence(n, length) for n, length in enumerate(lengths)], answers)
        assert await outcome(request) == list(range(10))
    assert len(gate.batches) >= 4
    assert max(map(len, gate.batches)) <= 3


async def test_attention_is_computed_where_one_of_the_batch_wants_it():
    wanted: list[bool] = []

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        wanted.append(attention)
        return names(batch, attention)

    only = model_queue(run)
    async with running(only) as batcher:
        await outcome(batcher.submit(only, [sequence(1)], answers))
        await outcome(batcher.submit(only, [sequence(1)], answers, attention=True))
    assert wanted == [False, True]


async def test_what_a_batch_costs_counts_from_its_plan_to_its_results():
    effort = iter(range(0, 10_000, 7))
    only = model_queue()
    only.cost.clock = lambda: next(effort)  # planning begins at 0, and its results are there at 7
    observed: list[tuple[object, ...]] = []
    only.cost.observe = lambda *given: observed.append(given)  # type: ignore[method-assign]
    async with running(only) as batcher:
        assert await outcome(batcher.submit(only, [sequence(1, 5)], answers)) == [1]
    assert observed == [(1, 5, 7, 5)]


async def test_counted_steps_are_those_that_ran():
    gate = Gate()
    only = model_queue(gate)
    async with running(only) as batcher:
        first = batcher.submit(only, [sequence(0, 3)], answers)
        await gate.busy()
        second = batcher.submit(only, [sequence(1, 5), sequence(2, 6)], answers)
        gate.open.set()
        await outcome(first)
        await outcome(second)
    metrics = only.metrics
    assert (metrics.number("steps", "valid"), metrics.number("steps", "padding")) == (3 + 5 + 6, 1 + 3 + 2)
    assert metrics.batch_rows.total == 3
    assert metrics.batch_width.total == 4 + 8


@pytest.mark.parametrize("runners", [1, 2, 3])
async def test_in_order_of_arrival_idle_runners_share_what_waits(runners: int):
    gate = Gate()
    only = model_queue(gate, padding_cost=0.0)
    async with running(only, runners=runners, cores=Cores(runners)) as batcher:
        request = batcher.submit(only, [sequence(number) for number in range(6)], answers)
        while len(gate.batches) < runners:
            await asyncio.sleep(0)
        gate.open.set()
        assert await outcome(request) == list(range(6))
    share = 6 // runners
    assert sorted(gate.batches) == [list(range(first, first + share)) for first in range(0, 6, share)]


async def test_a_short_sequence_that_is_the_most_urgent_keeps_no_idle_runner_from_the_long_ones():
    gate = Gate()
    only = model_queue(gate, seconds=0.0002, padding_cost=0.0)  # 3.2 ms of 64 steps
    async with running(only, runners=2, cores=Cores(2)) as batcher:
        request = batcher.submit(only, [sequence(number, 64 if number else 1) for number in range(4)], answers)
        while len(gate.batches) < 2:
            await asyncio.sleep(0)
        gate.open.set()
        assert await outcome(request) == list(range(4))
    assert sorted(gate.batches) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("seconds", "options"),
    [(0.01, {"cores": Cores(1)}), (0.0001, {"cores": Cores(2)}), (0.01, {"cores": Cores(2), "max_wait_seconds": 60.0})],
    ids=["without a core of its own", "too short", "what waited to be full"],
)
async def test_what_waits_runs_together_where_sharing_it_gains_nothing(seconds: float, options: dict[str, Any]):
    gate = Gate()
    gate.open.set()
    only = model_queue(gate, seconds=seconds, padding_cost=0.0, rows=6)
    async with running(only, runners=2, **options) as batcher:
        request = batcher.submit(only, [sequence(number) for number in range(6)], answers)
        assert await outcome(request) == list(range(6))
    assert gate.batches == [list(range(6))]


# What fails


async def test_a_failed_batch_fails_only_the_requests_in_it():
    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        if 13 in batch.steps[:, 0, 0]:
            raise RuntimeError("internals: /secret/path")
        return names(batch, attention)

    only = model_queue(run, rows=1)
    async with running(only) as batcher:
        requests = [batcher.submit(only, [sequence(number)], answers) for number in (12, 13, 14)]
        good, failed, after = [await outcome(request) for request in requests]
    assert (good, after) == ([12], [14])
    assert isinstance(failed, InferenceFailed)
    assert "secret" not in failed.detail
    assert only.metrics.number("batch_failures") == 1
    assert (len(only.pending), only.padded_steps, only.inflight) == (0, 0, 0)


async def test_a_run_with_too_few_results_is_a_failure():
    only = model_queue(lambda batch, attention: [])
    async with running(only) as batcher:
        assert isinstance(await outcome(batcher.submit(only, [sequence(1)], answers)), InferenceFailed)
    assert only.metrics.number("batch_failures") == 1


@pytest.mark.parametrize(
    ("raised", "told"), [(Unauthorized("not for you"), Unauthorized), (ZeroDivisionError(), InferenceFailed)]
)
async def test_a_finish_that_raises_costs_nobody_else_his_answer(raised: Exception, told: type[Exception]):
    def finish(results: list[int], timing: Timing) -> None:
        raise raised

    async with held() as (batcher, only, gate, _):
        failed = batcher.submit(only, [sequence(1)], finish)
        mate = batcher.submit(only, [sequence(2)], answers)
        gate.open.set()
        with pytest.raises(told):
            await failed.future
        assert await outcome(mate) == [2]


class BrokenWaiter:
    """One whose connection breaks when its answer is given to it."""

    def done(self) -> bool:
        return False

    def set_result(self, result: Any) -> None:
        raise OSError("broken")

    def set_exception(self, exception: BaseException) -> None:
        raise OSError("broken")


async def test_an_answer_that_cannot_be_delivered_does_not_fail_the_others(caplog: pytest.LogCaptureFixture):
    async with held() as (batcher, only, gate, _):
        batcher.submit(only, [sequence(1)], answers, waiter=BrokenWaiter())
        mate = batcher.submit(only, [sequence(2)], answers)
        gate.open.set()
        assert await outcome(mate) == [2]
        assert batcher.unanswered == 0
    assert "could not be given" in caplog.text


async def test_a_broken_connection_in_a_drain_costs_no_other_caller_its_error():
    async with held() as (batcher, only, gate, first):
        batcher.submit(only, [sequence(1)], answers, waiter=BrokenWaiter())
        mate = batcher.submit(only, [sequence(2)], answers)
        assert not await batcher.drain(0.01)
        for request in (first, mate):
            with pytest.raises(Draining):
                await request.future
        assert batcher.unanswered == 0
        gate.open.set()


def broken(*arguments: Any, **named: Any) -> Any:
    raise ZeroDivisionError("broken")


async def test_a_plan_that_raises_does_not_end_the_runner(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batcher_module, "plan", broken)
    only = model_queue()
    async with running(only) as batcher:
        requests = [batcher.submit(only, [sequence(number)], answers) for number in range(5)]
        assert [await outcome(request) for request in requests] == [[number] for number in range(5)]
    assert (len(only.pending), only.padded_steps, only.inflight) == (0, 0, 0)


@pytest.mark.parametrize("seconds", [0.01, 1e-6], ids=["in a runner", "on the loop"])
async def test_what_cannot_be_counted_costs_no_answer(monkeypatch: pytest.MonkeyPatch, seconds: float):
    only = model_queue(seconds=seconds)
    monkeypatch.setattr(only.metrics, "batch", broken)
    async with running(only) as batcher:
        for number in (1, 2):
            assert await outcome(batcher.submit(only, [sequence(number)], answers)) == [number]


# What is refused


async def test_nothing_is_taken_before_the_start():
    only = model_queue()
    with pytest.raises(NotReady):
        Batcher().submit(only, [sequence(1)], answers)


async def test_the_queue_is_bounded_in_padded_steps_and_says_when_to_come_back():
    async with held(max_queue_cost_steps=40) as (batcher, only, gate, running_now):
        waiting = [batcher.submit(only, [sequence(1, 17)], answers), batcher.submit(only, [sequence(2, 18)], answers)]
        assert only.padded_steps == 40
        with pytest.raises(QueueFull) as full:
            batcher.submit(only, [sequence(3, 1)], answers)
        assert full.value.retry_after_seconds == pytest.approx((only.row_seconds(17) + only.row_seconds(18)) / 2)
        gate.open.set()
        for request in (running_now, *waiting):
            await outcome(request)
        assert await outcome(batcher.submit(only, [sequence(4, 40)], answers)) == [4]
    assert only.padded_steps == 0


async def test_what_even_an_idle_queue_cannot_hold_is_too_large():
    only = model_queue()
    async with running(only, max_queue_cost_steps=40) as batcher:
        with pytest.raises(TooLarge):
            batcher.submit(only, [sequence(0, 21), sequence(1, 20)], answers)
        assert await outcome(batcher.submit(only, [sequence(0, 20), sequence(1, 20)], answers)) == [0, 1]


async def test_of_several_workers_each_takes_what_all_queues_together_could_hold():
    async with held(max_queue_cost_steps=40, workers=4) as (batcher, only, gate, running_now):
        with pytest.raises(TooLarge, match=r"16\d padded steps; the queue holds 160 in all"):
            batcher.submit(only, [sequence(1, 80), sequence(2, 81)], answers)
        small = batcher.submit(only, [sequence(3, 21)], answers)
        with pytest.raises(QueueFull) as full:  # more than half of this worker's share waits
            batcher.submit(only, [sequence(4, 41)], answers)
        assert 0 < full.value.retry_after_seconds < only.row_seconds(21)
        gate.open.set()
        assert [await outcome(request) for request in (running_now, small)] == [[0], [3]]
        large = batcher.submit(only, [sequence(5, 80), sequence(6, 80)], answers)
        assert await outcome(large) == [5, 6]
    assert only.padded_steps == 0


# Who comes late or leaves


def soon() -> float:
    return asyncio.get_running_loop().time() + 0.02


async def test_what_is_late_when_a_batch_is_planned_is_not_run():
    now = [0.0]
    async with held(rows=1, clock=lambda: now[0]) as (batcher, only, gate, first):
        late = batcher.submit(only, [sequence(1)], answers, deadline=1000.0)
        last = batcher.submit(only, [sequence(2)], answers)
        now[0] = 1000.0
        gate.open.set()
        assert await outcome(first) == [0]
        assert isinstance(await outcome(late), DeadlineExceeded)
        assert await outcome(last) == [2]
    assert gate.batches == [[0], [2]]
    assert only.padded_steps == 0


async def test_a_deadline_that_passes_in_a_run_is_reported_once():
    finished: list[int] = []
    gate = Gate()
    only = model_queue(gate)
    async with running(only) as batcher:
        late = batcher.submit(only, [sequence(0)], lambda results, timing: finished.extend(results), deadline=soon())
        assert isinstance(await outcome(late), DeadlineExceeded)
        gate.open.set()
        assert await outcome(batcher.submit(only, [sequence(1)], answers)) == [1]
    assert finished == []
    assert (len(only.pending), only.padded_steps, only.inflight) == (0, 0, 0)


@pytest.mark.parametrize("seconds", [1e-6, 0.01], ids=["on the event loop", "in a runner"])
async def test_a_deadline_that_passes_while_running_counts_though_its_timer_has_not_fired(seconds: float):
    now = [0.0]

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        now[0] = 1000.0
        return names(batch, attention)

    only = model_queue(run, seconds=seconds)
    async with running(only, clock=lambda: now[0]) as batcher:
        late = batcher.submit(only, [sequence(0)], answers, deadline=1000.0)
        mate = batcher.submit(only, [sequence(1)], answers, deadline=2000.0)
        assert isinstance(await outcome(late), DeadlineExceeded)
        assert await outcome(mate) == [1]


async def test_a_caller_that_is_cancelled_leaves_its_batch_mates_their_answers():
    async with held() as (batcher, only, gate, leaver):
        mates = [batcher.submit(only, [sequence(number)], answers) for number in (1, 2, 3)]
        mates[1].future.cancel()
        leaver.future.cancel()
        gate.open.set()
        assert await outcome(mates[0]) == [1]
        assert await outcome(mates[2]) == [3]
    assert (len(only.pending), only.padded_steps, only.inflight) == (0, 0, 0)


async def test_a_withdrawn_request_is_not_run_and_withdrawing_again_does_nothing():
    async with held() as (batcher, only, gate, first):
        leaver = batcher.submit(only, [sequence(1), sequence(2)], answers)
        for _ in range(2):
            batcher.withdraw(leaver, InferenceFailed("left"))
        assert only.padded_steps == 0
        gate.open.set()
        assert await outcome(first) == [0]
        batcher.withdraw(first, InferenceFailed("too late to leave"))
        assert await outcome(first) == [0]
        assert isinstance(await outcome(leaver), InferenceFailed)
    assert gate.batches == [[0]]


async def begun(only: ModelQueue, **options: Any) -> Batcher:
    """A batcher that has started; the test ends it."""
    batcher = Batcher(**options)
    batcher.open(only)
    await batcher.start()
    return batcher


# Waiting for company


async def test_with_a_wait_a_lone_request_runs_after_it():
    timings: list[Timing] = []
    only = model_queue()
    async with running(only, max_wait_seconds=0.05) as batcher:
        await outcome(batcher.submit(only, [sequence(0)], lambda results, timing: timings.append(timing)))
    assert 0.05 <= timings[0].queue < PATIENCE_SECONDS / 2


async def test_a_full_batch_waits_for_nobody():
    only = model_queue(rows=2)
    async with running(only, max_wait_seconds=10 * PATIENCE_SECONDS) as batcher:
        requests = [batcher.submit(only, [sequence(number)], answers) for number in (0, 1)]
        assert [await outcome(request) for request in requests] == [[0], [1]]


async def test_nobody_waits_for_company_past_his_deadline():
    only = model_queue(seconds=0.1)  # as predicted: it takes none, and a machine that stalls for as long spoils nothing
    async with running(only, max_wait_seconds=10 * PATIENCE_SECONDS) as batcher:
        deadline = asyncio.get_running_loop().time() + 0.4
        assert await outcome(batcher.submit(only, [sequence(0)], answers, deadline=deadline)) == [0]


async def test_a_drain_ends_the_wait_for_company(monkeypatch: pytest.MonkeyPatch):
    only = model_queue()
    looked = threading.Event()  # by a runner that then waits, under the lock that the drain needs
    monkeypatch.setattr(only.pending, "earliest_deadline", looked.set)
    batcher = await begun(only, runners=2, max_wait_seconds=10 * PATIENCE_SECONDS)
    request = batcher.submit(only, [sequence(0)], answers)
    assert await asyncio.to_thread(looked.wait, PATIENCE_SECONDS)
    assert await batcher.drain(PATIENCE_SECONDS)
    assert await outcome(request) == [0]


async def test_a_drain_answers_what_was_accepted_and_refuses_what_comes():
    gate = Gate()
    only = model_queue(gate, rows=1)
    batcher = await begun(only)
    requests = [batcher.submit(only, [sequence(number)], answers) for number in range(3)]
    await gate.busy()
    batcher.begin_draining()
    assert batcher.draining
    with pytest.raises(Draining):
        batcher.submit(only, [sequence(9)], answers)
    gate.open.set()
    assert await batcher.drain(PATIENCE_SECONDS)
    assert [await outcome(request) for request in requests] == [[0], [1], [2]]


async def test_a_drain_that_runs_out_of_time_refuses_what_is_left():
    gate = Gate()
    only = model_queue(gate, rows=1)
    batcher = await begun(only)
    requests = [batcher.submit(only, [sequence(number)], answers) for number in range(3)]
    await gate.busy()
    assert not await batcher.drain(0.01)
    for request in requests:
        with pytest.raises(Draining):
            await request.future
    gate.open.set()
    await batcher.drain(PATIENCE_SECONDS)
    assert gate.batches == [[0]]


async def test_a_run_that_hangs_does_not_hold_the_exit_once_its_callers_are_gone():
    gate = Gate()
    only = model_queue(gate)
    batcher = await begun(only)
    request = batcher.submit(only, [sequence(0)], answers, deadline=soon())
    assert isinstance(await outcome(request), DeadlineExceeded)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await batcher.drain(0.05)
    gate.open.set()
    await batcher.drain(PATIENCE_SECONDS)


def test_a_run_that_outlasts_the_event_loop_ends_quietly():
    gate = Gate()
    only = model_queue(gate)
    batcher = Batcher()
    batcher.open(only)

    async def left_running() -> None:
        await batcher.start()
        batcher.submit(only, [sequence(0)], answers)
        await gate.busy()
        assert not await batcher.drain(0.01)

    before = set(threading.enumerate())
    asyncio.run(left_running())
    gate.open.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


# All of it at once


class Unlucky:
    """A run that fails now and then."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def __call__(self, batch: PaddedBatch, attention: bool) -> list[int]:
        if self.random.random() < 0.05:
            raise RuntimeError("unlucky")
        return names(batch, attention)


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("seconds", "options"),
    [(0.01, {"runners": 3}), (1e-6, {"runners": 3}), (0.0005, {"one_core": True})],
    ids=["in runners", "on the loop too", "on one core"],
)
async def test_after_chaos_everything_was_settled_once_and_the_next_request_is_answered(
    seconds: float, options: dict[str, Any]
):
    choices = random.Random(4)
    queues = [model_queue(Unlucky(seed), seconds=seconds, rows=rows) for seed, rows in enumerate((4, 64))]
    finished: list[int] = []

    async def call(batcher: Batcher, number: int) -> str:
        loop = asyncio.get_running_loop()
        if number // 100 % 10 == 9:  # a burst of nine times what the queue holds, whoever takes from it meanwhile
            sequences = [sequence(number, 40)] * 9
        else:
            sequences = [sequence(number, choices.randint(1, 40)) for _ in range(choices.choice((1, 1, 1, 2, 9)))]
        fate = choices.random()

        def finish(results: Sequence[int], timing: Timing) -> list[int]:
            finished.append(number)
            if fate > 0.97:
                raise ValueError("unlucky too")
            return list(results)

        deadline = loop.time() + choices.uniform(0.0005, 0.02) if fate < 0.15 else FOREVER
        try:
            request = batcher.submit(
                choices.choice(queues), sequences, finish, deadline=deadline, priority=choices.choice((0, 0, 0, 9))
            )
            if 0.15 < fate < 0.25:
                loop.call_later(choices.uniform(0, 0.005), batcher.withdraw, request, InferenceFailed("left"))
            elif 0.25 < fate < 0.35:
                loop.call_later(choices.uniform(0, 0.005), request.future.cancel)
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await request.future == [number] * len(sequences)
        except (DeadlineExceeded, InferenceFailed, QueueFull) as error:
            return type(error).__name__
        except asyncio.CancelledError:
            batcher.withdraw(request, InferenceFailed("left"))
            return "cancelled"
        return "answered"

    async with running(*queues, **options, max_queue_cost_steps=4000) as batcher:
        outcomes: list[str] = []
        for start in range(0, 3000, 100):
            outcomes += await asyncio.gather(*(call(batcher, number) for number in range(start, start + 100)))
        for one in queues:
            one.run = names
            assert await outcome(batcher.submit(one, [sequence(1, 3)], answers)) == [1]
    counted = {kind: outcomes.count(kind) for kind in set(outcomes)}
    assert len(outcomes) == 3000
    assert counted["answered"] > 1000
    assert set(counted) == {"answered", "DeadlineExceeded", "InferenceFailed", "cancelled", "QueueFull"}
    assert len(finished) == len(set(finished)), "a request was finished twice"
    for one in queues:
        assert (len(one.pending), one.padded_steps, one.inflight) == (0, 0, 0)
    assert (batcher.admission.padded_steps, batcher.admission.seconds) == (0, 0.0)


@pytest.mark.parametrize("count", [1, 60])
async def test_the_steps_of_a_withdrawn_sequence_are_freed_at_once(count: int) -> None:
    async with held() as (batcher, one, gate, first):
        sequences = [sequence(number) for number in range(count)]
        gone = [weakref.ref(steps) for steps in sequences]
        requests = [batcher.submit(one, [steps], answers) for steps in sequences]  # each of a caller of its own
        requests.append(batcher.submit(one, sequences, answers))  # and all of one
        del sequences
        for request in requests:
            batcher.withdraw(request, DeadlineExceeded("gone"))
            assert isinstance(request.future.exception(), DeadlineExceeded)
        del request, requests
        assert [steps() for steps in gone] == [None] * count
        gate.open.set()
        assert await first.future == [0]

"""The queue is bounded in seconds, and tells the truth about when to come back."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from dataclasses import dataclass

import pytest

from lengthwise.batching.admission import REOPENING, Admission, DrainRate
from lengthwise.batching.device_turns import DeviceTurns
from lengthwise.batching.pending import PRIORITY_SECONDS
from lengthwise.batching.queues import ModelQueue, ModelQueues, QueuedSequence
from lengthwise.errors import DeadlineExceeded, QueueFull
from tests.support.batching import Gate, answers, model_queue, outcome, running, sequence
from tests.support.costs import linear_table

FOREVER = float("inf")


@dataclass
class Room:
    """Queues of models whose sequences take a second each, and what admits them."""

    admission: Admission
    queues: list[ModelQueue]
    now: float = 0.0

    @classmethod
    def of(cls, models: int = 1, *, seconds: float = FOREVER, steps: int = 10**9, runners: int = 1) -> Room:
        queues = ModelQueues()
        made = [model_queue(name=f"m{number}/1") for number in range(models)]
        for one in made:
            queues.append(one)
        turns = DeviceTurns(threading.Lock(), 0, lambda: 0.0)
        return cls(Admission(queues, turns, max_padded_steps=steps, max_seconds=seconds, runners=runners), made)

    def add(self, count: int = 1, *, model: int = 0, patience: float = FOREVER, priority: int = 0) -> None:
        queue = self.queues[model]
        for _ in range(count):
            deadline = self.now + patience
            self.admission.check(queue, 4, 1.0, widest=4, patience=patience, deadline=deadline, priority=priority)
            self.admission.add(queue, 4, 1.0)
            queue.pending.add(
                QueuedSequence(
                    4,
                    deadline,
                    priority,
                    steps=sequence(0),
                    padded_steps=4,
                    seconds=1.0,
                    arrival=self.now,
                    index=0,
                    request=None,  # type: ignore[arg-type]
                )
            )

    def run(self, seconds: float, *, model: int = 0) -> None:
        """The runner takes one sequence a second, for so long."""
        for _ in range(round(seconds)):
            queue = self.queues[model]
            first = queue.pending.most_urgent()
            if isinstance(first, QueuedSequence):
                queue.pending.remove(first)
                self.admission.remove(queue, [first])
            self.now += 1.0

    def refusal(self, *, model: int = 0, priority: int = 0) -> QueueFull | None:
        """That of a request now."""
        try:
            self.admission.check(
                self.queues[model], 4, 1.0, widest=4, patience=FOREVER, deadline=FOREVER, priority=priority
            )
        except QueueFull as refused:
            return refused
        return None

    def fill(self, **options: int) -> None:
        """Adds requests until one is refused."""
        with pytest.raises(QueueFull):
            self.add(10**6, **options)


def test_the_queue_holds_no_more_than_its_seconds() -> None:
    room = Room.of(seconds=100.0)
    room.fill()
    assert 50 < len(room.queues[0].pending) <= 100
    assert room.admission.seconds / room.admission.rate.value <= 100


def test_two_runners_hold_twice_the_work() -> None:
    one, two = Room.of(seconds=100.0), Room.of(seconds=100.0, runners=2)
    one.fill()
    two.fill()
    assert len(two.queues[0].pending) == 2 * len(one.queues[0].pending)


@pytest.mark.parametrize("limits", [{"seconds": 100.0}, {"steps": 400}], ids=["seconds", "padded steps"])
def test_a_retry_is_refused_until_the_time_it_was_given_and_then_accepted(limits: dict[str, float]) -> None:
    room = Room.of(**limits)  # type: ignore[arg-type]
    room.fill()
    refused = room.refusal()
    assert refused is not None
    promised = refused.retry_after_seconds
    assert promised is not None
    assert promised > 10
    waited = 0
    while room.refusal() is not None:
        room.run(1)
        waited += 1
    assert waited == pytest.approx(promised, abs=1.01)


def test_many_who_come_back_in_time_find_room() -> None:
    room = Room.of(seconds=100.0)
    room.fill()
    held = len(room.queues[0].pending)
    refused = room.refusal()
    assert refused is not None
    room.run(refused.retry_after_seconds + 1)  # type: ignore[operator]
    room.add(int(held * (1 - REOPENING)) - 1)


def test_a_priority_is_refused_only_while_the_queue_is_full() -> None:
    room = Room.of(seconds=100.0)
    room.fill()
    assert room.refusal(priority=9) is not None
    room.run(5)
    assert room.refusal() is not None
    assert room.refusal(priority=1) is None


def test_a_request_too_large_for_the_room_that_is_left_does_not_close_the_queue() -> None:
    room = Room.of(steps=400)
    room.add(60)
    with pytest.raises(QueueFull) as large:
        room.admission.check(room.queues[0], 200, 50.0, widest=4, patience=FOREVER, deadline=FOREVER, priority=0)
    assert large.value.retry_after_seconds == pytest.approx(10)
    assert room.refusal() is None


def test_a_request_of_more_seconds_than_the_limit_runs_when_the_queue_has_drained() -> None:
    room = Room.of(seconds=10.0)
    room.admission.check(room.queues[0], 4, 1e6, widest=4, patience=FOREVER, deadline=FOREVER, priority=0)
    room.add(3)
    room.admission.check(room.queues[0], 4, 1e6, widest=4, patience=FOREVER, deadline=FOREVER, priority=0)


def test_another_model_may_use_its_share_of_the_seconds() -> None:
    room = Room.of(2, seconds=100.0)
    room.fill(model=0)
    flooded = len(room.queues[0].pending)
    room.fill(model=1)
    assert len(room.queues[1].pending) == pytest.approx(flooded / 2, abs=1)


def test_only_where_every_queue_is_closed_a_body_need_not_be_read() -> None:
    room = Room.of(2, seconds=100.0)
    room.fill(model=0)
    assert room.admission.closed() is None
    room.fill(model=1)
    assert room.admission.closed() is room.queues[1]
    room.run(10**3, model=0)
    room.run(10**3, model=1)
    assert room.admission.closed() is None
    assert room.refusal(model=0) is None


def test_a_drained_model_opens_though_the_others_fill_the_queue() -> None:
    room = Room.of(2, seconds=100.0)
    room.fill(model=0)
    room.fill(model=1)
    room.run(10**3, model=1)
    while not room.refusal(model=0, priority=1):  # requests with a priority keep it full
        room.add(model=0, priority=1)
    assert room.admission.closed() is None
    assert room.refusal(model=1) is None


def test_a_request_that_would_begin_after_its_deadline_is_refused_at_once() -> None:
    room = Room.of()
    room.add(10, patience=60.0)
    with pytest.raises(DeadlineExceeded):
        room.admission.check(room.queues[0], 4, 1.0, widest=4, patience=9.0, deadline=100.0, priority=0)
    room.admission.check(room.queues[0], 4, 1.0, widest=4, patience=11.0, deadline=100.0, priority=0)


def test_a_request_with_the_earliest_deadline_is_accepted() -> None:
    room = Room.of()
    room.add(10, patience=60.0)
    room.add(patience=2.0)


def test_a_priority_is_not_refused_for_those_it_overtakes() -> None:
    room = Room.of()
    room.add(9, patience=60.0)
    assert PRIORITY_SECONDS == 1.0
    with pytest.raises(DeadlineExceeded):
        room.admission.check(room.queues[0], 4, 1.0, widest=4, patience=9.5, deadline=FOREVER, priority=0)
    room.admission.check(room.queues[0], 4, 1.0, widest=4, patience=9.5, deadline=FOREVER, priority=2)


def test_where_nothing_waits_every_deadline_is_accepted() -> None:
    room = Room.of(seconds=1.0)
    room.admission.check(room.queues[0], 4, 1e6, widest=4, patience=1e-3, deadline=1e-3, priority=0)


@pytest.mark.parametrize("rate", [0.25, 1.0, 1.9])
def test_the_rate_is_learned_from_what_is_taken_while_anything_waits(rate: float) -> None:
    noise = random.Random(3)
    learned = DrainRate(1)
    now = 0.0
    for number in range(2000):
        if number % 50 == 0:  # nothing waited for a while
            learned.count_batch(0.0, now, more_waits=False)
            now += 10.0
        work = noise.uniform(0.001, 0.02)
        learned.count_batch(work, now, more_waits=True)
        now += work / rate
    assert learned.value == pytest.approx(rate, rel=0.1)


def test_one_stop_of_the_process_changes_the_rate_a_little() -> None:
    learned = DrainRate(1)
    for number in range(1000):
        learned.count_batch(0.01, 0.01 * number, more_waits=True)
    before = learned.value
    learned.count_batch(0.01, 1000.0, more_waits=True)
    assert before / 2 < learned.value < before


def test_short_times_of_waiting_are_added_up() -> None:
    learned = DrainRate(1)
    now = 0.0
    for _ in range(1000):
        learned.count_batch(0.01, now, more_waits=True)
        now += 0.02
        learned.count_batch(0.01, now, more_waits=False)
        now += 5.0
    assert learned.value == pytest.approx(0.5, rel=0.1)


async def test_a_cost_table_that_fails_ends_neither_the_loop_nor_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> float:
        raise ZeroDivisionError("broken")

    for options in ({}, {"one_core": True}, {"max_wait_seconds": 0.001}):
        only = model_queue(seconds=1e-6)
        for name in ("predict", "column", "observe"):
            monkeypatch.setattr(only.cost, name, broken)
        async with running(only, **options) as batcher:  # type: ignore[arg-type]
            for number in range(5):
                requests = [batcher.submit(only, [sequence(number)], answers, deadline=1e9) for _ in range(3)]
                assert [await outcome(request) for request in requests] == [[number]] * 3
        assert (len(only.pending), only.padded_steps, only.inflight) == (0, 0, 0)


@pytest.mark.parametrize(("length", "admitted"), [(76, 0), (4, 1)], ids=["no time is left", "there is time for one"])
async def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_not_admitted(length: int, admitted: int) -> None:
    """Behind 26 requests that may wait long: what runs counts, and those that are due as early."""
    gate = Gate()
    only = model_queue(gate, rows=4)
    only.cost = linear_table(0.0, 0.025)  # 0.1 s for a sequence of four steps
    async with running(only, clock=lambda: 0.0) as batcher:
        batcher.submit(only, [sequence(0, length)], answers)
        await gate.busy()
        for _ in range(26):
            batcher.submit(only, [sequence(1)] * 4, answers, deadline=30.0)
        accepted = 0
        for _ in range(16):
            with suppress(DeadlineExceeded):
                batcher.submit(only, [sequence(2)] * 4, answers, deadline=1.0)
                accepted += 1
        gate.open.set()
    assert accepted == admitted

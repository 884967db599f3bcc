"""Which thread runs a batch, and when the event loop, which runs the short ones, may sleep."""

import asyncio
import random
import threading
import weakref
from functools import partial

import pytest

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.queues import FIRST_RUNS
from lengthwise.batching.runners import Cores, Runners
from lengthwise.padding import PaddedBatch
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


async def at_rest(batcher: Batcher) -> None:
    """Returns when every runner waits: an answer is there a little before."""
    while not batcher.at_rest:
        await asyncio.sleep(0)


async def test_short_work_at_rest_runs_on_the_event_loop():
    run = Noted()
    quick, slow = model_queue(run, seconds=1e-6), model_queue(run)
    async with running(quick, slow) as batcher:
        assert await outcome(batcher.submit(quick, [sequence(1)], answers)) == [1]
        assert await outcome(batcher.submit(slow, [sequence(2)], answers)) == [2]
    assert run.on_the_loop == [True, False]


async def test_a_request_right_after_an_answer_runs_before_the_batch_is_counted():
    events: list[str] = []

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        events.append("run")
        return names(batch, attention)

    class NextOne:
        """Sends the next request as soon as it has its answer, as a client in a closed loop does."""

        def __init__(self, left: int) -> None:
            self.left = left

        def done(self) -> bool:
            return False

        def set_result(self, _: object) -> None:
            if self.left:
                batcher.submit(only, [sequence(self.left)], answers, waiter=NextOne(self.left - 1))
            else:
                ended.set_result(None)

        def set_exception(self, error: BaseException) -> None:
            ended.set_exception(error)

    only = model_queue(run, seconds=1e-6)
    async with running(only) as batcher:
        batcher.execution.watch = lambda _finished, _waits: events.append("count")
        ended = asyncio.get_running_loop().create_future()
        batcher.submit(only, [sequence(0)], answers, waiter=NextOne(19))
        await ended
    assert events[:3] == ["run", "run", "run"]
    assert events[8] == "count"
    assert events.count("run") == events.count("count") == 20


async def test_on_one_core_short_work_runs_on_the_event_loop_long_in_a_runner():
    threads: dict[int, threading.Thread] = {}

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        numbers = names(batch, attention)
        threads.update(dict.fromkeys(numbers, threading.current_thread()))
        return numbers

    only = model_queue(run, seconds=0.001, rows=2)
    async with running(only, one_core=True) as batcher:
        lengths = [4, 64, 4, 4, 64, 4, 4, 4]
        requests = [batcher.submit(only, [sequence(n, length)], answers) for n, length in enumerate(lengths)]
        assert [await outcome(request) for request in requests] == [[number] for number in range(8)]
        after = batcher.submit(only, [sequence(9), sequence(10)], answers)
        assert await outcome(after) == [9, 10]
    on_the_loop = {number for number, thread in threads.items() if thread is threading.main_thread()}
    assert on_the_loop == {0, 2, 3, 5, 6, 7, 9, 10}


async def test_on_one_core_no_batch_that_runs_on_the_event_loop_is_long():
    ran: list[tuple[bool, int, int]] = []

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        ran.append((threading.current_thread() is threading.main_thread(), batch.rows, int(batch.lengths.max())))
        return names(batch, attention)

    only = model_queue(run, seconds=0.0008)
    choices = random.Random(5)
    async with running(only, one_core=True) as batcher:
        for _ in range(20):
            lengths = [choices.randint(1, 24) for _ in range(64)]
            requests = [batcher.submit(only, [sequence(n, length)], answers) for n, length in enumerate(lengths)]
            assert [await outcome(request) for request in requests] == [[number] for number in range(64)]
    on_the_loop = [only.cost.predict(rows, longest) for inline, rows, longest in ran if inline]
    assert on_the_loop
    assert max(on_the_loop) <= 0.0045  # what the table has learned since is not held against a batch
    assert not all(inline for inline, _, _ in ran)


async def test_on_one_core_whoever_may_wait_for_company_waits_in_the_runner():
    gate = Gate()
    gate.open.set()
    only = model_queue(gate, seconds=1e-6)
    async with running(only, one_core=True, max_wait_seconds=0.02) as batcher:
        requests = [batcher.submit(only, [sequence(number)], answers) for number in (1, 2)]
        assert [await outcome(request) for request in requests] == [[1], [2]]
    assert gate.batches == [[1, 2]]


async def test_a_model_much_slower_than_predicted_moves_off_the_event_loop_and_may_return():
    now, run = [0.0], Noted(seconds=1.0)
    only = model_queue(run, seconds=1e-6)
    only.cost.clock = lambda: run.effort
    async with running(only, one_core=True, clock=lambda: now[0]) as batcher:
        for number in range(3):
            assert await outcome(batcher.submit(only, [sequence(number)], answers)) == [number]
        now[0] = 101.0
        assert await outcome(batcher.submit(only, [sequence(3)], answers)) == [3]
    assert run.on_the_loop == [True, False, False, True]


@pytest.mark.parametrize("one_core", [False, True])
async def test_a_model_whose_time_depends_on_values_never_runs_on_the_event_loop(one_core: bool):
    run = Noted()
    looping = model_queue(run, seconds=1e-6, steady=False)
    async with running(looping, one_core=one_core) as batcher:
        for number in range(20):
            assert await outcome(batcher.submit(looping, [sequence(number)], answers)) == [number]
    assert run.on_the_loop == [False] * 20


@pytest.mark.parametrize("one_core", [False, True])
async def test_the_first_runs_of_a_model_are_the_runners(one_core: bool):
    run = Noted()
    new = model_queue(run, seconds=1e-6, first_runs=FIRST_RUNS)
    async with running(new, one_core=one_core) as batcher:
        for number in range(FIRST_RUNS + 1):
            assert await outcome(batcher.submit(new, [sequence(number)], answers)) == [number]
            await at_rest(batcher)
    assert run.on_the_loop == [False] * FIRST_RUNS + [True]


async def test_a_model_that_is_slow_in_a_runner_does_not_get_to_the_event_loop():
    run = Noted(seconds=1.0)
    new = model_queue(run, seconds=1e-6, first_runs=1)
    new.cost.clock = lambda: run.effort
    async with running(new, clock=lambda: 0.0) as batcher:
        for number in range(3):
            assert await outcome(batcher.submit(new, [sequence(number)], answers)) == [number]
    assert run.on_the_loop == [False, False, False]


async def test_each_run_that_holds_the_event_loop_prolongs_the_runners_turn():
    now, run = [0.0], Noted()
    only = model_queue(run, seconds=1e-6)
    only.cost.clock = lambda: float(sum(run.on_the_loop))  # a second on the loop, none in a runner
    async with running(only, clock=lambda: now[0]) as batcher:
        for at, held in [(0, True), (99, False), (101, True), (300, False), (302, True), (700, False), (703, True)]:
            now[0] = at
            assert await outcome(batcher.submit(only, [sequence(at)], answers)) == [at]
            assert run.on_the_loop[-1] is held
            await at_rest(batcher)
        assert only.inline.cooldown_seconds == 800
        now[0] = 703 + 800 + 10 * 800 + 1  # long enough ago to be forgotten
        assert await outcome(batcher.submit(only, [sequence(0)], answers)) == [0]
        assert only.inline.cooldown_seconds == 100


async def test_the_event_loop_leaves_a_long_run_to_the_runners():
    ran: dict[int, str] = {}

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        numbers = names(batch, attention)
        ran.update(dict.fromkeys(numbers, threading.current_thread().name))
        return numbers

    only = model_queue(run, seconds=0.0005)
    async with running(only, runners=2) as batcher:
        requests = [
            batcher.submit(only, [sequence(1)], answers),
            batcher.submit(only, [sequence(2, length=64)], answers, priority=9),
        ]
        assert [await outcome(request) for request in requests] == [[1], [2]]
    assert ran[2].startswith("runner-")


async def test_a_runner_that_waits_keeps_no_model_that_is_gone():
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with running() as batcher:
        old = model_queue()
        watch = weakref.ref(old, lambda _: loop.call_soon_threadsafe(gone.set))
        batcher.open(old)
        assert await outcome(batcher.submit(old, [sequence(0)], answers)) == [0]
        batcher.close(old)
        del old
        await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)
    assert watch() is None


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the event loop looked for another request though it could have slept."""
    seen: list[float] = []
    busy_poll = Runners.busy_poll

    def counted(self: Runners, loop: asyncio.AbstractEventLoop) -> None:
        seen.append(loop.time())
        busy_poll(self, loop)

    monkeypatch.setattr(Runners, "busy_poll", counted)
    return seen


async def looked_again(looks: list[float]) -> None:
    """Returns when the event loop has looked some times more."""
    wanted = len(looks) + 3
    await until(lambda: len(looks) >= wanted)


async def looked_in_a_while(looks: list[float]) -> int:
    """How often the event loop looks from now on: once more is not again and again."""
    before = len(looks)
    await asyncio.sleep(0.02)  # whether it sleeps shows only where it has nothing to do
    return len(looks) - before


async def test_an_idle_event_loop_polls_for_requests_and_then_sleeps(looks: list[float]):
    now = [0.0]
    quick = model_queue(seconds=1e-6)
    async with running(quick, clock=lambda: now[0]) as batcher:
        assert await outcome(batcher.submit(quick, [sequence(1)], answers)) == [1]
        await looked_again(looks)
        now[0] = 0.001
        assert await looked_in_a_while(looks) <= 1
        assert await outcome(batcher.submit(quick, [sequence(2)], answers)) == [2]
        await looked_again(looks)


async def test_the_event_loop_does_not_poll_while_a_runner_computes(looks: list[float]):
    gate = Gate()
    quick, slow = model_queue(seconds=1e-6), model_queue(gate)
    async with running(quick, slow, clock=lambda: 0.0) as batcher:
        assert await outcome(batcher.submit(quick, [sequence(1)], answers)) == [1]
        request = batcher.submit(slow, [sequence(2)], answers)
        await gate.busy()
        assert await looked_in_a_while(looks) <= 1
        gate.open.set()
        assert await outcome(request) == [2]


async def test_while_anything_waits_the_event_loop_does_not_look_again(looks: list[float]):
    looked: list[int] = []

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        looked.append(len(looks))
        return names(batch, attention)

    quick = model_queue(run, seconds=1e-6, rows=1)
    async with running(quick, one_core=True, clock=lambda: 0.0) as batcher:
        await outcome(batcher.submit(quick, [sequence(number) for number in range(9)], answers))
    assert len(looked) == 9
    assert all(count <= run for run, count in enumerate(looked)), "once for each run, when it has ended"


async def test_a_batcher_that_drained_looks_for_nothing(looks: list[float]):
    quick = model_queue(seconds=1e-6)
    async with running(quick, clock=lambda: 0.0) as batcher:
        assert await outcome(batcher.submit(quick, [sequence(1)], answers)) == [1]
    assert await looked_in_a_while(looks) <= 1


# Cores that are lent


def note(lent: list[int], count: int, soon: bool) -> None:
    lent.append(count)


async def test_an_idle_runners_core_is_lent_until_its_runner_is_woken():
    gate = Gate()
    lent: list[int] = []
    only = model_queue(gate, rows=1)
    async with running(only, runners=2, lend_cores=partial(note, lent), cores=Cores(2)) as batcher:
        first = batcher.submit(only, [sequence(1)], answers)
        await gate.busy()
        assert lent[-1] == 1  # the other runner waits
        before = len(lent)
        second = batcher.submit(only, [sequence(2)], answers)
        assert lent[before] == 0  # at once, and not only when that runner runs
        gate.open.set()
        assert [await outcome(request) for request in (first, second)] == [[1], [2]]
        await at_rest(batcher)
    assert set(lent) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("seconds", "runners", "cores", "of_batch"),
    [(1e-6, 2, 2, 1), (0.01, 1, 1, 0), (0.01, 4, 1, 0), (0.01, 1, 2, 0)],
    ids=["on the event loop", "one runner", "one core", "no idle runner"],
)
async def test_to_a_batch_no_core_is_lent_that_runs_another_or_is_not_there(
    seconds: float, runners: int, cores: int, of_batch: int
):
    lent: list[int] = [0]
    seen: list[int] = []

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        seen.append(lent[-1])
        return names(batch, attention)

    only = model_queue(run, seconds=seconds)
    async with running(only, runners=runners, lend_cores=partial(note, lent), cores=Cores(cores)) as batcher:
        await at_rest(batcher)
        assert await outcome(batcher.submit(only, [sequence(1)], answers)) == [1]
    assert seen == [of_batch]


@pytest.mark.parametrize("runners", [2, 4])
async def test_more_cores_are_never_lent_than_are_left(runners: int):
    """With as many batches running as there are cores, nothing is lent, however many runners there are."""
    lent: list[int] = []
    running_now = 0
    too_many: list[tuple[int, int]] = []
    lock = threading.Lock()

    def run(batch: PaddedBatch, attention: bool) -> list[int]:
        nonlocal running_now
        with lock:
            running_now += 1
            if running_now + lent[-1] > max(running_now, 2):
                too_many.append((running_now, lent[-1]))
        result = names(batch, attention)
        with lock:
            running_now -= 1
        return result

    only = model_queue(run, rows=1)
    async with running(only, runners=runners, lend_cores=partial(note, lent), cores=Cores(2)) as batcher:
        for _ in range(20):
            requests = [batcher.submit(only, [sequence(number)], answers) for number in range(5)]
            assert [await outcome(request) for request in requests] == [[number] for number in range(5)]
    assert too_many == []


# Cores of other processes


@pytest.mark.parametrize(("busy", "helping"), [(0, 3), (1, 2), (2, 0), (3, 0)])
async def test_cores_of_other_processes_help_while_at_least_half_of_all_are_free(busy: int, helping: int):
    gate, lent = Gate(), list[int]()
    only, cores = model_queue(gate), Cores(1, 4, [0.0, *[1.0] * busy, *[0.0] * (3 - busy)])
    async with running(only, lend_cores=partial(note, lent), cores=cores) as batcher:
        request = batcher.submit(only, [sequence(1)], answers)
        await gate.busy()
        assert lent[-1] == helping
        gate.open.set()
        assert await outcome(request) == [1]


class Running:
    """A run that waits until it is released, and knows how many run at once."""

    def __init__(self) -> None:
        self.lock, self.released = threading.Lock(), threading.Semaphore(0)
        self.now = self.most = 0

    def __call__(self, batch: PaddedBatch, attention: bool) -> list[int]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.released.acquire(timeout=PATIENCE_SECONDS)
        with self.lock:
            self.now -= 1
        return names(batch, attention)


NOT_AT_REST = -1e18  # a request came there at a time to come


@pytest.mark.parametrize("one_core", [False, True])
@pytest.mark.parametrize(
    ("others", "at_once"),
    [([0.0, 0.0, 0.0], 4), ([1.0, 0.0, 0.0], 3), ([2.0, NOT_AT_REST, 0.0], 1), ([3.0, 4.0, 5.0], 1)],
    ids=["all rest", "one batch runs", "no core is left", "more batches than cores"],
)
async def test_as_many_batches_run_as_other_processes_leave_cores_and_one_in_any_case(
    others: list[float], at_once: int, one_core: bool
):
    run, batches = Running(), [0.0, *others]
    only = model_queue(run, rows=1)
    async with running(only, one_core=one_core, cores=Cores(1, 4, batches)) as batcher:
        request = batcher.submit(only, [sequence(number, 64) for number in range(9)], answers)
        await until(lambda: run.now == at_once)
        assert batches[0] == at_once
        for _ in range(9):
            run.released.release()
        assert await outcome(request) == list(range(9))
        await at_rest(batcher)
        assert batches[0] < 0, "nothing runs here, since then"
    assert run.most == at_once


async def test_a_core_that_another_process_takes_back_runs_no_further_batch():
    run, batches = Running(), [0.0, 0.0]
    only = model_queue(run, rows=1)
    async with running(only, cores=Cores(1, 2, batches)) as batcher:
        request = batcher.submit(only, [sequence(number) for number in range(6)], answers)
        await until(lambda: run.now == 2)
        batches[1] = 1.0
        for _ in range(2):
            run.released.release()
        await until(lambda: run.now == 1 and len(only.pending) == 3)
        run.most = 0
        for _ in range(4):
            run.released.release()
        assert await outcome(request) == list(range(6))
    assert run.most == 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seconds", [1e-6, 0.001, 0.01])
async def test_whatever_other_processes_do_meanwhile_every_request_is_answered(seconds: float):
    batches, ended, choices = [0.0, 0.0, 0.0], threading.Event(), random.Random(3)

    def other_processes() -> None:
        while not ended.wait(0.0001):
            batches[1:] = choices.choices([0.0, 1.0, 3.0, NOT_AT_REST], k=2)

    thread = threading.Thread(target=other_processes)
    thread.start()
    only = model_queue(seconds=seconds, rows=2)
    try:
        async with running(only, one_core=True, cores=Cores(1, 3, batches)) as batcher:
            for _ in range(100):
                sizes = [choices.randint(1, 5) for _ in range(choices.randint(1, 8))]
                requests = [batcher.submit(only, [sequence(n) for n in range(size)], answers) for size in sizes]
                for request, size in zip(requests, sizes, strict=True):
                    assert await outcome(request) == list(range(size))
    finally:
        ended.set()
        thread.join()


async def test_admission_counts_on_the_own_share_of_the_cores_only():
    now, run, batches = [0.0], Running(), [0.0, 0.0, 0.0, 0.0]
    only = model_queue(run, seconds=0.1, rows=1)
    async with running(only, cores=Cores(1, 4, batches), clock=lambda: now[0]) as batcher:
        request = batcher.submit(only, [sequence(number) for number in range(200)], answers)
        for left in range(196, -1, -4):
            await until(lambda left=left: len(only.pending) == left and run.now == 4)
            now[0] += 0.1  # in which four cores do the work of four
            for _ in range(4):
                run.released.release()
        assert await outcome(request) == list(range(200))
    assert batcher.admission.rate.value == pytest.approx(1.0, rel=0.1)


async def test_a_lone_sequence_in_the_service_runs_on_the_event_loop_as_on_one_core():
    run = Noted()
    only = model_queue(run, seconds=0.003)
    async with running(only, one_core=True, cores=Cores(1, 4, [0.0] * 4)) as batcher:
        for number in range(3):
            assert await outcome(batcher.submit(only, [sequence(number)], answers)) == [number]
    assert run.on_the_loop == [True] * 3

"""Defects that servers of this field are known for: each is a test here."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import orjson
import pytest

from lengthwise.batching import batcher as batcher_module
from lengthwise.errors import InferenceFailed, QueueFull, TooLarge
from lengthwise.padding import PaddedBatch
from lengthwise.settings import Settings
from tests.support.batching import Gate, answers, model_queue, names, outcome, running, sequence
from tests.support.numpy_models import manifest, model, serving

GOOD = {"sequences": [[[1, 3]]]}


async def test_a_request_cancelled_in_a_running_batch_does_not_leave_its_batch_mates_waiting() -> None:
    gate = Gate()
    only = model_queue(gate)
    async with running(only) as batcher:
        first = batcher.submit(only, [sequence(0)], answers)
        await gate.busy()
        leaving, mate = [batcher.submit(only, [sequence(number)], answers) for number in (1, 2)]
        gate.entered.clear()
        gate.open.set()
        await outcome(first)
        await gate.busy()
        batcher.withdraw(leaving, InferenceFailed("left"))
        leaving.future.exception()
        assert await outcome(mate) == [2]
        assert gate.batches == [[0], [1, 2]]


async def test_the_queue_is_counted_down_after_a_failure_so_nothing_is_refused_for_ever() -> None:
    def fails(batch: PaddedBatch, attention: bool) -> list[int]:
        raise RuntimeError("broken")

    only = model_queue(fails)
    async with running(only, max_queue_cost_steps=16, max_queue_seconds=1.0) as batcher:
        for _ in range(20):
            requests = [batcher.submit(only, [sequence(number)], answers) for number in range(4)]
            assert all([isinstance(await outcome(request), InferenceFailed) for request in requests])
            only.breaker.probed(None, 0.0, 0.0)
        assert (batcher.admission.padded_steps, batcher.admission.seconds, only.padded_steps, only.inflight) == (
            0,
            0,
            0,
            0,
        )
        only.run = names
        assert await outcome(batcher.submit(only, [sequence(7)], answers)) == [7]


async def test_a_sequence_over_the_limits_of_a_batch_runs_alone_and_one_over_the_queues_is_refused_for_good() -> None:
    only = model_queue(padded_steps=16)
    async with running(only, max_queue_cost_steps=64) as batcher:
        large = batcher.submit(only, [sequence(1, 60)], answers)
        assert await outcome(large) == [1]
        with pytest.raises(TooLarge):
            batcher.submit(only, [sequence(2, 68)], answers)
        assert await outcome(batcher.submit(only, [sequence(3)], answers)) == [3]


@pytest.mark.parametrize("what", ["predict", "column", "observe"])
async def test_an_exception_in_the_costs_does_not_end_the_loop(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("broken")

    only = model_queue(seconds=1e-6)
    monkeypatch.setattr(only.cost, what, broken)
    async with running(only) as batcher:
        for number in range(5):
            requests = [batcher.submit(only, [sequence(number, 5 + each)], answers) for each in range(4)]
            assert [await outcome(request) for request in requests] == [[number]] * 4


async def test_an_exception_in_the_lengths_fails_one_call_and_not_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = batcher_module.rounded_width

    def broken(width: int, multiple: int) -> int:
        if width == 13:
            raise ZeroDivisionError("broken")
        return rounded(width, multiple)

    monkeypatch.setattr(batcher_module, "rounded_width", broken)
    async with serving(model(manifest())) as service:
        for length, status in ((3, 200), (13, 500), (3, 200)):
            assert (await service.predict({"sequences": [[[1, 3]] * length]})).status_code == status
        assert service.serving.batcher.unanswered == 0


async def test_the_queue_is_limited_by_default() -> None:
    gate = Gate()
    only = model_queue(gate)
    defaults = Settings()
    limits = {
        "max_queue_cost_steps": defaults.max_queue_cost_steps,
        "max_queue_seconds": defaults.longest_wait_seconds,
    }
    async with running(only, **limits) as batcher:
        first = batcher.submit(only, [sequence(0)], answers)
        await gate.busy()
        many = [sequence(1, 1024)] * 16
        while not only.closed_to_new:
            with suppress(QueueFull):
                batcher.submit(only, many, answers)
        assert batcher.admission.padded_steps <= defaults.max_queue_cost_steps
        admission = batcher.admission
        assert admission.seconds / admission.rate.value <= defaults.longest_wait_seconds
        gate.open.set()
        await outcome(first)


@pytest.mark.parametrize(
    ("text", "value"), [("false", False), ("0", False), ("off", False), ("no", False), ("true", True), ("1", True)]
)
def test_a_flag_that_is_false_reads_as_false(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENGTHWISE_ADMIN_CALLS", text)
    assert Settings.load().admin_calls is value


async def test_a_shutdown_does_not_answer_that_the_model_is_unknown() -> None:
    release, entered = threading.Event(), threading.Event()

    def wait(_: PaddedBatch) -> None:
        entered.set()
        release.wait(60)

    async with serving(model(manifest(), wait)) as service:
        accepted = asyncio.create_task(service.predict(GOOD))  # type: ignore[arg-type]
        await asyncio.to_thread(entered.wait, 60)
        stopping = asyncio.create_task(service.serving.stop())
        while not service.serving.batcher.draining:
            await asyncio.sleep(0)
        refused = await service.predict(GOOD)
        assert (refused.status_code, orjson.loads(refused.content)["title"]) == (503, "Draining")
        release.set()
        assert (await accepted).status_code == 200
        await stopping
        assert (await service.predict(GOOD)).json()["title"] == "Draining"

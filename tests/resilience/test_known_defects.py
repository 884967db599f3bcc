"""Defects that servers of this field are known for: each is a test here."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import orjson
import pytest

from lengthwise.batching import batcher as batcher_module
from lengthwise.errors import QueueFull
from lengthwise.settings import Settings
from tests.support.batching import answers, held, outcome, sequence
from tests.support.numpy_models import held_batch, manifest, model, serving

GOOD = {"sequences": [[[1, 3]]]}


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
    defaults = Settings()
    limits = {"max_queue_cost_steps": defaults.max_queue_cost_steps, "max_queue_seconds": defaults.longest_wait_seconds}
    async with held(**limits) as (batcher, only, gate, first):
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
    release, entered, wait = held_batch()
    async with serving(model(manifest(), wait)) as service:
        accepted = asyncio.create_task(service.predict(GOOD))  # type: ignore[arg-type]
        await entered.wait()
        stopping = asyncio.create_task(service.serving.stop())
        while not service.serving.batcher.draining:
            await asyncio.sleep(0)
        refused = await service.predict(GOOD)
        assert (refused.status_code, orjson.loads(refused.content)["title"]) == (503, "Draining")
        release.set()
        assert (await accepted).status_code == 200
        await stopping
        assert (await service.predict(GOOD)).json()["title"] == "Draining"

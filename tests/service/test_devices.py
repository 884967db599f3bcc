"""Serving on a device: the same answers through slots and buckets, one planner for all devices, figures of what ran."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from lengthwise.batching import buckets
from lengthwise.batching.buckets import DEVICE_STEPS, BucketedCosts
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.errors import ConfigurationError, ModelError
from lengthwise.padding import pad
from lengthwise.repository import loading, verifier
from lengthwise.repository.contents import Repository
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import Verification, VerificationTask, Verifier
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.binding import Slot
from lengthwise.runtime.provider import PLAIN_CPU, DeviceChoice
from lengthwise.runtime.session import Session, begin_devices
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support.fake_device import ELSEWHERE, ONE, TWO
from tests.support.model_directories import measure_quickly, place
from tests.support.numpy_models import started
from tests.support.waiting import until

LIMITS = BatchLimits(16, 512)
"""Small, so that all shapes are warmed up soon."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    measure_quickly(monkeypatch)
    place(tmp_path / "models")
    return tmp_path / "models"


def directory(folder: Path) -> Path:
    return next(path for path in folder.glob("*/*") if path.is_dir())


@asynccontextmanager
async def serving_on(
    devices: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, verify: Verifier = verifier.verify, **options: Any
) -> AsyncIterator[tuple[Serving, httpx2.AsyncClient]]:
    monkeypatch.setattr(
        "lengthwise.serving.collaborators.choose", lambda *_, **__: DeviceChoice(tuple(devices), "a test asked for it")
    )
    settings = Settings(models=folder, max_batch_rows=16, max_batch_cost_steps=128, **options)
    async with started(Serving(settings, verify=verify)) as service:
        yield service.serving, service.client


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has hardly any batch fit: three rows, or as many as there may be."""
    choose = buckets.choose
    monkeypatch.setattr(buckets, "choose", lambda *given, **named: replace(choose(*given, **named), rows=(3, 16)))


def sequences(count: int, seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(length, 12)).round(3).tolist() for length in random.integers(1, 29, count)]


@pytest.mark.long
async def test_answers_are_those_of_the_cpu_whatever_fills_the_batches(folder: Path, monkeypatch: pytest.MonkeyPatch):
    fill(monkeypatch)
    bodies = [{"sequences": sequences(count, seed), "outputs": ["attention"]} for seed, count in enumerate((1, 7, 33))]

    async def answered(devices: Any) -> list[Any]:
        async with serving_on(devices, folder, monkeypatch) as (_, client):
            return [
                answer.json() for answer in await asyncio.gather(*(client.post("/predict", json=b) for b in bodies))
            ]

    assert await answered(TWO) == await answered((PLAIN_CPU,))


@pytest.mark.long
async def test_steps_and_widths_are_counted_as_they_ran_with_what_filled_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(monkeypatch)
    ran: list[tuple[int, int]] = []
    run = Slot.run

    def noted(slot: Slot, inputs: Any, outputs: Any) -> Any:
        ran.append(inputs["values"].shape[:2])
        return run(slot, inputs, outputs)

    async with serving_on(ONE, folder, monkeypatch) as (serving, client):
        monkeypatch.setattr(Slot, "run", noted)
        for served in serving.served:
            served.queue.runs_at_rest = 0  # they are no batches
        given = sequences(41)
        for part in (given[:1], given[1:]):  # a sequence alone is always filled up, the others perhaps
            answer = await client.post("/predict", json={"sequences": part})
            assert answer.status_code == 200, answer.text
        await until(lambda: serving.batcher.at_rest)  # a batch is counted after its answers are sent
        page = (await client.get("/metrics")).text
        (served,) = serving.served
        assert served.model.buckets is not None
        assert set(ran) <= set(served.model.buckets.shapes())

    def figure(pattern: str) -> float:
        return sum(float(value) for value in re.findall(rf"^lengthwise_{pattern} (\S+)$", page, re.MULTILINE))

    steps = sum(len(steps) for steps in given)
    assert figure(r'steps_total\{[^}]*kind="valid"[^}]*\}') == steps
    assert figure(r'steps_total\{[^}]*kind="padding"[^}]*\}') == sum(rows * width for rows, width in ran) - steps
    assert sum(rows for rows, _ in ran) > len(given), "some batch was filled up"
    assert figure(r"batch_rows_sum\{[^}]*\}") == sum(rows for rows, _ in ran)
    assert figure(r"batch_width_steps_sum\{[^}]*\}") == sum(width for _, width in ran)


async def test_rows_and_steps_of_a_batch_come_from_the_cost_table_unless_an_option_names_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "lengthwise.serving.collaborators.choose", lambda *_, **__: DeviceChoice(ONE, "a test asked for it")
    )
    # A device on which 300 rows take as long as one, and more rows as much longer.
    table = CostTable([1, 300, 3000], [4, 1024], np.array([[4.0, 1024.0], [4.0, 1024.0], [40.0, 10_240.0]]))
    monkeypatch.setattr(verifier, "measure", lambda *_, **__: table)
    monkeypatch.setattr(Session, "warm_up", lambda *_, **__: 0)  # of these shapes, on a CPU, it takes half a minute
    monkeypatch.setattr(Session, "run_zeros", lambda *_: None)

    async def limits(**options: Any) -> BatchLimits:
        async with started(Serving(Settings(models=folder, **options), verify=verifier.verify)) as service:
            (served,) = service.serving.served
            return served.queue.limits

    by_table, by_option = await limits(), await limits(max_batch_rows=48)
    assert 280 <= by_table.rows <= 300
    assert by_table.padded_steps == DEVICE_STEPS  # 280 rows of 1,024 steps would be more
    assert (by_option.rows, by_option.padded_steps) == (48, 16_384)


@pytest.mark.long
async def test_health_metrics_and_log_say_on_which_device_models_run_and_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="lengthwise")
    async with serving_on(TWO, folder, monkeypatch) as (serving, client):
        found, figures = (await client.get("/healthz")).json(), (await client.get("/metrics")).text
    label = "CPUExecutionProvider, Fake"
    assert found["provider"] == {"name": "fake", "devices": [label, label], "reason": "a test asked for it"}
    assert found["models"][0]["provider"] == label
    assert f'provider="{label}"' in figures
    assert serving.runners == 4
    assert "lengthwise_runners 4.0" in figures
    assert "models run on CPUExecutionProvider, Fake (2 of them): a test asked for it" in caplog.messages


def test_the_options_reach_the_choice(monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []

    def choose(wanted: str, **options: Any) -> DeviceChoice:
        seen.append((wanted, options))
        return DeviceChoice()

    monkeypatch.setattr("lengthwise.serving.collaborators.choose", choose)
    Serving(Settings(provider="cuda", gpu_memory_bytes=7, runners=3))
    Serving(Settings(recurrent_kernels=False))
    assert seen == [
        ("cuda", {"memory_limit_bytes": 7, "runners": 3, "recurrent_kernels": None}),
        ("auto", {"memory_limit_bytes": None, "runners": None, "recurrent_kernels": False}),
    ]


def test_cuda_where_it_cannot_be_had_ends_the_start():
    with pytest.raises(ConfigurationError, match="--provider cuda"):
        Serving(Settings(provider="cuda"))


def test_a_model_whose_nodes_would_run_elsewhere_is_not_served(folder: Path):
    with pytest.raises(ModelError):
        loading.load(directory(folder), LIMITS, devices=[ELSEWHERE])


@pytest.mark.long
def test_a_model_on_a_device_is_warmed_up_and_allocates_nothing_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def asked(*_: Any) -> Any:
        raise AssertionError("a buffer was made")

    caplog.set_level(logging.INFO, logger="lengthwise")
    model = loading.load(directory(folder), LIMITS, budget_seconds=600, devices=TWO)
    assert model.buckets is not None
    assert isinstance(model.cost, BucketedCosts)
    assert model.cost.clock is time.perf_counter
    count, first = len(model.buckets.shapes()), len(model.buckets.first_shapes())
    before = min(first, buckets.BEFORE_READY)
    assert any(f"; {before} of {count} shapes ran, others run at rest" in line for line in caplog.messages)
    assert len(model.cold) == count - before
    monkeypatch.setattr("lengthwise.runtime.device_memory.CudaMemory.on_host", asked)
    random = np.random.default_rng(0)
    for rows, width in model.buckets.shapes()[::7]:
        steps = [np.zeros((int(n), 12), np.float32) for n in random.integers(1, min(width, 29) + 1, rows)]
        assert len(model.answer(pad(steps, width=width), True)) == rows


def test_a_model_on_the_cpu_takes_any_shape_and_its_costs_are_those_of_the_thread(folder: Path):
    model = loading.load(directory(folder), LIMITS)
    assert model.buckets is None
    assert model.cost.clock is recurrent_kernels.processor_seconds


@pytest.mark.long
async def test_devices_make_their_first_run_while_the_models_are_verified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = threading.Event()

    def begin(devices: Any) -> None:
        begin_devices(devices)
        ran.set()

    def verify(task: VerificationTask, stopping: Stopping) -> Verification:
        assert ran.wait(60.0)  # would end the test if the first run began only after the verification
        return verifier.verify(task, stopping)

    monkeypatch.setattr("lengthwise.serving.service.begin_devices", begin)
    async with serving_on(ONE, folder, monkeypatch, verify=verify) as (serving, _):
        assert serving.ready


@pytest.mark.long
async def test_no_call_to_a_device_is_kept_for_a_check_of_its_answer(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async with serving_on(ONE, folder, monkeypatch, verify_share=1) as (serving, _):
        assert serving.monitoring is None  # nor is a call that waits for such a check dropped, and counted


@pytest.mark.long
async def test_a_process_that_ends_leaves_the_first_run_of_a_device_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    threads: list[threading.Thread] = []
    monkeypatch.setattr(
        "lengthwise.serving.service.begin_devices", lambda _: threads.append(threading.current_thread())
    )
    async with serving_on(ONE, folder, monkeypatch):
        assert [(thread.name, thread.daemon) for thread in threads] == [("first run", True)]  # as in `ending`


async def test_a_start_that_fails_waits_for_the_first_run_of_its_device(folder: Path, monkeypatch: pytest.MonkeyPatch):
    failing, ran = threading.Event(), threading.Event()

    def begin(devices: Any) -> None:
        failing.wait(60.0)
        begin_devices(devices)
        ran.set()

    def rescan(*_: Any) -> Repository:
        failing.set()
        raise ConfigurationError("the bucket does not answer")

    monkeypatch.setattr("lengthwise.serving.service.begin_devices", begin)
    monkeypatch.setattr("lengthwise.serving.collaborators.choose", lambda *_, **__: DeviceChoice(tuple(ONE), "a test"))
    serving = Serving(Settings(models=folder), rescan=rescan)
    with pytest.raises(ConfigurationError, match="the bucket does not answer"):
        await serving.start()
    assert ran.is_set()
    await serving.stop()


def test_the_first_run_of_a_device_is_one_row_of_the_bundled_model(monkeypatch: pytest.MonkeyPatch):
    ran: list[tuple[int, int]] = []
    warm_up = Session.warm_up

    def noted(session: Session, shapes: list[tuple[int, int]], *, seconds: float) -> int:
        ran.extend(shapes)
        return warm_up(session, shapes, seconds=seconds)

    monkeypatch.setattr(Session, "warm_up", noted)
    begin_devices(TWO)
    assert ran == [(1, 1)]


def test_a_first_run_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "lengthwise"):
        begin_devices([ELSEWHERE])
    assert "the first run failed" in caplog.text

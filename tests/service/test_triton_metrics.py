"""Triton's names: they mean here what they mean there, and are only there where they are wanted."""

from __future__ import annotations

import pytest

from lengthwise.telemetry import triton_metrics
from lengthwise.telemetry.metrics import ModelMetrics
from tests.support.numpy_models import Service, manifest, model, samples, serving

TWO = {"sequences": [[[1, 3], [2, 4]], [[1, 3]]]}
NAMES = [
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
]


async def figure(service: Service, name: str) -> float:
    return (await service.figures())[f'{name}{{model="sums",version="1"}}']


def of(metrics: ModelMetrics) -> dict[str, float]:
    return {sample.name: sample.value for family in triton_metrics.families([metrics]) for sample in family.samples}


async def test_by_default_there_is_none() -> None:
    async with serving(model(manifest())) as service:
        await service.predict(TWO)
        assert "nv_" not in (await service.client.get("/metrics")).text


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
async def test_every_name_is_there_as_triton_writes_it_in_either_format(accept: str) -> None:
    async with serving(model(manifest()), triton_metrics=True) as service:
        page = (await service.client.get("/metrics", headers={"accept": accept})).text.removesuffix("# EOF\n")
    assert {f'{name}{{model="sums",version="1"}}' for name in NAMES} == {
        name for name in samples(page) if name.startswith("nv_")
    }


async def test_answers_refusals_sequences_and_batches_are_counted() -> None:
    async with serving(model(manifest()), triton_metrics=True) as service:
        await service.predict(TWO)
        await service.predict(TWO)
        service.serving.batcher.begin_draining()
        await service.predict(TWO)
        await service.predict({"sequences": [], "model": "none"})  # nothing that is served
        assert [await figure(service, name) for name in NAMES[:4]] == [2, 1, 4, 2]


def test_durations_are_sums_over_the_answered_calls_in_microseconds() -> None:
    metrics = ModelMetrics("m", "1")
    metrics.request(200, 0.5, stages=(0.125, 0.25))
    metrics.request(200, 0.25, stages=(0.0, 0.125))
    metrics.request(504, 30.0, "deadline")
    found = of(metrics)
    assert [found[name] for name in NAMES[4:]] == [750_000, 125_000, 375_000]


async def test_a_call_spends_no_longer_in_its_stages_than_in_all() -> None:
    async with serving(model(manifest()), triton_metrics=True) as service:
        await service.predict(TWO)
        whole, queue, run = [await figure(service, name) for name in NAMES[4:]]
    assert 0 < queue + run <= whole


def test_nothing_is_told_of_what_is_not_served() -> None:
    metrics = ModelMetrics()
    metrics.request(404, 0.1)
    assert of(metrics) == {}

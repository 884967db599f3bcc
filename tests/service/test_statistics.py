"""Triton's statistics: the figures of the metrics, with the meanings of the protocol's extension."""

import time
from typing import Any

import pytest

from lengthwise.protocols import inventory
from lengthwise.telemetry.metrics import ModelMetrics
from tests.support.numpy_models import Service, manifest, model, serving

ONE = {"sequences": [[[1, 3]]]}
THREE = {"sequences": [[[1, 3], [2, 4]], [[1, 3]], [[0, 1]]]}


async def stats(service: Service, path: str = "/v2/models/sums/stats") -> list[dict[str, Any]]:
    answer = await service.client.get(path)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["model_stats"]
    return answer.json()["model_stats"]  # type: ignore[no-any-return]


async def test_requests_sequences_and_batches_are_counted_apart(service: Service) -> None:
    before = time.time()
    (empty,) = await stats(service)
    for body in (ONE, THREE, THREE):
        assert (await service.predict(body)).status_code == 200
    service.serving.batcher.begin_draining()
    assert (await service.predict(ONE)).status_code == 503
    (found,) = await stats(service)
    assert [empty[name] for name in ("last_inference", "inference_count", "execution_count")] == [0, 0, 0]
    assert empty["batch_stats"] == []
    assert all(duration == {"count": 0, "ns": 0} for duration in empty["inference_stats"].values())
    assert (found["name"], found["version"]) == ("sums", "1")
    assert (found["inference_count"], found["execution_count"]) == (7, 3)
    assert before * 1000 - 1 <= found["last_inference"] <= time.time() * 1000
    of_requests = found["inference_stats"]
    counts = {name: duration["count"] for name, duration in of_requests.items()}
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert counts == dict.fromkeys(stages, 3) | {"fail": 1, "cache_hit": 0, "cache_miss": 0}
    assert empty["inference_stats"].keys() == counts.keys()
    assert all(duration["ns"] > 0 for name, duration in of_requests.items() if counts[name])
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in found["batch_stats"]] == [
        (1, 1),
        (3, 2),
    ]
    for batch in found["batch_stats"]:
        assert all(batch[name]["ns"] > 0 for name in ("compute_input", "compute_infer", "compute_output"))


async def test_the_stages_of_a_call_or_a_batch_are_no_longer_than_it(service: Service) -> None:
    await service.predict(THREE)
    (found,) = await stats(service)
    durations = {name: duration["ns"] for name, duration in found["inference_stats"].items()}
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(durations[name] for name in stages) <= durations["success"]
    (batch,) = found["batch_stats"]
    of_batch = batch["compute_input"]["ns"] + batch["compute_infer"]["ns"]
    assert of_batch == pytest.approx(durations["compute_infer"], abs=2)
    assert batch["compute_output"]["ns"] == durations["compute_output"]


async def test_statistics_are_of_one_version_of_all_versions_or_of_all_models() -> None:
    async with serving(model(manifest()), model(manifest(version=2)), model(manifest(name="other"))) as service:
        await service.predict({**ONE, "model": "sums", "version": "2"})

        async def told(path: str) -> list[tuple[str, str, int]]:
            return [(one["name"], one["version"], one["inference_count"]) for one in await stats(service, path)]

        assert await told("/v2/models/sums/stats") == [("sums", "1", 0), ("sums", "2", 1)]
        assert await told("/v2/models/sums/versions/1/stats") == [("sums", "1", 0)]
        assert await told("/v2/models/stats") == [("other", "1", 0), ("sums", "1", 0), ("sums", "2", 1)]
        head = await service.client.head("/v2/models/stats")
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("none/stats", 404, "no such model is served: 'none'; served are sums"),
        ("stats/stats", 404, "no such model is served: 'stats'; served are sums"),
        ("sums%20/stats", 404, "no such model is served: 'sums '; served are sums"),
        ("%2e%2e/stats", 404, "no such model is served: '..'; served are sums"),
        (
            "sums/versions/3/stats",
            404,
            "the model 'sums' has no such version; served of it are 1; 'lengthwise serve --versions' chooses which",
        ),
        ("sums/versions/01/stats", 400, "a version is ASCII digits that do not start with 0"),
        ("sums/versions/-1/stats", 400, "a version is ASCII digits that do not start with 0"),
    ],
)
async def test_what_is_not_there_is_said(service: Service, path: str, status: int, said: str) -> None:
    answer = await service.client.get(f"/v2/models/{path}")
    assert (answer.status_code, answer.json()) == (status, {"error": said})


async def test_a_model_may_have_the_name_of_what_is_asked() -> None:
    async with serving(model(manifest(name="stats")), model(manifest(name="config"))) as service:
        assert [one["name"] for one in await stats(service, "/v2/models/stats")] == ["config", "stats"]
        assert [one["name"] for one in await stats(service, "/v2/models/stats/stats")] == ["stats"]
        assert (await service.client.get("/v2/models/stats/versions/1")).json()["name"] == "stats"
        assert (await service.client.get("/v2/models/config")).json()["inputs"]


async def test_what_is_served_no_more_is_told_no_more(service: Service) -> None:
    await service.predict(ONE)
    await service.serving.registry.unload("sums")
    assert await stats(service, "/v2/models/stats") == []
    assert (await service.client.get("/v2/models/sums/stats")).status_code == 503


def test_a_sum_that_lies_a_rounding_below_another_is_not_below_nothing() -> None:
    metrics = ModelMetrics("m", "1")
    for _ in range(10):
        metrics.request(200, 0.1, stages=(0.0, 0.1))
    metrics.answered.seconds += 1e-9
    served: Any = type("ServedModel", (), {"manifest": manifest(), "metrics": metrics})
    made: Any = type("Serving", (), {"served": [served]})
    (found,) = inventory.statistics_of_process(made, None, None)
    assert found["inference_stats"]["fail"] == {"count": 0, "ns": 0}

"""A model's configuration in Triton's words: what tools read there is what the service takes."""

from typing import Any

import pytest

from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import MANIFESTS, manifest, model, serving


async def config(*manifests: Manifest, path: str = "sums", **options: Any) -> dict[str, Any]:
    async with serving(*map(model, manifests), **options) as service:
        answer = await service.client.get(f"/v2/models/{path}/config")
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]


async def test_it_says_what_a_model_takes_and_answers_behind_the_batch() -> None:
    found = await config(manifest(), max_sequences=7, runners=3, max_wait_ms=2.5)
    assert (found["name"], found["platform"], found["backend"]) == ("sums", "onnxruntime_onnx", "onnxruntime")
    assert found["max_batch_size"] == 7
    assert found["input"] == [
        {"name": "values", "data_type": "TYPE_FP32", "dims": [-1, 2]},
        {"name": "lengths", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
    ]
    assert found["output"] == [
        {"name": "label", "data_type": "TYPE_STRING", "dims": []},
        {"name": "score", "data_type": "TYPE_FP32", "dims": []},
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "attention", "data_type": "TYPE_FP32", "dims": [-1]},
    ]
    assert found["dynamic_batching"] == {"max_queue_delay_microseconds": 2500}
    assert found["instance_group"] == [{"name": "sums", "kind": "KIND_CPU", "count": 3, "gpus": []}]
    assert found["parameters"]["labels"] == {"string_value": '["a","b","c"]'}
    assert found["parameters"]["task"] == {"string_value": "single-label"}


async def test_tokens_and_the_outputs_of_other_tasks_have_their_types() -> None:
    tokens = (await config(MANIFESTS["tokens"]))["input"][0]
    assert tokens == {"name": "tokens", "data_type": "TYPE_INT64", "dims": [-1]}
    assert (await config(manifest(task="multi-label", attention=False)))["output"] == [
        {"name": "assigned", "data_type": "TYPE_BOOL", "dims": [3]},
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]},
    ]
    assert (await config(manifest(task="per-step", attention=False)))["output"] == [
        {"name": "step_labels", "data_type": "TYPE_STRING", "dims": [-1]},
        {"name": "step_scores", "data_type": "TYPE_FP32", "dims": [-1]},
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [-1, 3]},
    ]


async def test_its_shapes_are_those_of_the_metadata_without_the_rows() -> None:
    for kind in MANIFESTS.values():
        async with serving(model(kind)) as service:
            metadata = (await service.client.get("/v2/models/sums")).json()
            found = (await service.client.get("/v2/models/sums/config")).json()
        for ours, theirs in (("inputs", "input"), ("outputs", "output")):
            assert [tensor["shape"] for tensor in metadata[ours]] == [[-1, *tensor["dims"]] for tensor in found[theirs]]


@pytest.mark.parametrize(
    ("versions", "policy"),
    [
        ("latest", {"latest": {"num_versions": 1}}),
        ("all", {"all": {}}),
        ("sums/2,sums/1,other/4", {"specific": {"versions": [1, 2]}}),
    ],
)
async def test_the_policy_is_that_of_versions(versions: str, policy: dict[str, Any]) -> None:
    assert (await config(manifest(), manifest(version=2), versions=versions))["version_policy"] == policy


async def test_a_version_may_stand_in_the_path_and_what_is_not_there_is_said() -> None:
    assert (await config(manifest(), path="sums/versions/1"))["name"] == "sums"
    async with serving(model(manifest())) as service:
        for path, status in (("none", 404), ("sums/versions/2", 404), ("sums/versions/01", 400), ("sums%20", 404)):
            answer = await service.client.get(f"/v2/models/{path}/config")
            assert (answer.status_code, list(answer.json())) == (status, ["error"])

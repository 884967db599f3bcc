from __future__ import annotations

from typing import Any

import pytest
from fastapi.openapi.utils import get_openapi
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from service import documents, wire
from service.errors import RequestError
from service.manifest import Manifest
from tests.service.bad_bodies import BAD_BODIES
from tests.service.numpy_models import MANIFESTS, OneModel, manifest, model, serving

KINDS = [*MANIFESTS.values(), manifest(long="tail", max_length=1), manifest(task="per-step")]
IDS = [*MANIFESTS, "one step", "per step"]


async def document(*manifests: Manifest) -> dict[str, Any]:
    async with serving(*map(model, manifests)) as service:
        return (await service.client.get("/openapi.json")).json()  # type: ignore[no-any-return]


async def test_the_document_is_valid_openapi() -> None:
    made = await document(manifest(), manifest(name="other", vocabulary=5))
    validate(made)
    assert set(made["paths"]) == {"/predict", "/livez", "/readyz", "/healthz", "/metrics"}


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
async def test_the_example_of_each_model_runs_and_is_answered_as_the_document_says(kind: Manifest) -> None:
    async with serving(model(kind)) as service:
        made = (await service.client.get("/openapi.json")).json()
        post = made["paths"]["/predict"]["post"]
        content = post["requestBody"]["content"]["application/json"]
        example = content["examples"][kind.key]["value"]
        answer = await service.predict(example)
    assert answer.status_code == 200
    Draft202012Validator(content["schema"]).validate(example)
    Draft202012Validator(post["responses"]["200"]["content"]["application/json"]["schema"]).validate(answer.json())
    assert [prediction.get("id") for prediction in answer.json()["predictions"]] == [None, "a"]


async def test_every_status_that_predict_answers_is_documented() -> None:
    responses = (await document(manifest()))["paths"]["/predict"]["post"]["responses"]
    # 401 and 403 are said before a call gets to it.
    statuses = {str(kind.status) for kind in _all(RequestError)} - {"401", "403"}
    assert statuses | {"200"} == set(responses)


async def test_a_refusal_is_as_the_document_says() -> None:
    async with serving(model(manifest())) as service:
        made = (await service.client.get("/openapi.json")).json()
        refusal = made["paths"]["/predict"]["post"]["responses"]["422"]["content"]["application/problem+json"]
        for bad in BAD_BODIES[::5]:
            Draft202012Validator(refusal["schema"]).validate((await service.predict(bad.body)).json())


def test_an_example_uses_what_the_model_knows_of_its_features() -> None:
    kind = manifest().model_copy(update={"input": manifest().input.model_copy(update={"mean": (1.004, -2.0)})})
    assert documents.example(kind)["sequences"][0] == [[1.0, -2.0], [1.0, -2.0]]
    assert wire.decode(b'{"sequences": [[[1.0, -2.0]]]}', OneModel(kind), max_sequences=1).items


def test_without_models_there_is_no_example() -> None:
    schema = get_openapi(title="x", version="1", routes=[])
    body = documents.with_predict(schema, [])["paths"]["/predict"]["post"]["requestBody"]
    assert "examples" not in body["content"]["application/json"]


def _all(kind: type[RequestError]) -> set[type[RequestError]]:
    """A class of refusals and all below it."""
    return {kind}.union(*(_all(below) for below in kind.__subclasses__()))

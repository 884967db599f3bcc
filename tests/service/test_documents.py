from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.utils import get_openapi
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from lengthwise.decoding import json_body
from lengthwise.errors import RequestError
from lengthwise.http import pages
from lengthwise.protocols import documents
from lengthwise.runtime.manifest import Manifest
from tests.support.bad_bodies import BAD_BODIES
from tests.support.numpy_models import MANIFESTS, OneModel, manifest, model, serving

KINDS = [*MANIFESTS.values(), manifest(long="tail", max_length=1), manifest(task="per-step")]
IDS = [*MANIFESTS, "one step", "per step"]


async def document(*manifests: Manifest) -> dict[str, Any]:
    async with serving(*map(model, manifests)) as service:
        return (await service.client.get("/openapi.json")).json()  # type: ignore[no-any-return]


async def test_the_document_is_valid_openapi() -> None:
    made = await document(manifest(), manifest(name="other", vocabulary=5))
    validate(made)


@pytest.mark.parametrize("options", [{}, {"admin_port": 9}], ids=["one port", "an admin port"])
async def test_every_path_that_is_served_is_described_and_no_other(options: dict[str, Any]) -> None:
    async with serving(model(manifest()), **options) as service:
        made = (await service.client.get("/openapi.json")).json()
        served = {path for path in paths(service.app.app.routes) if not path.startswith("/console/")}
    assert set(made["paths"]) == served - {"/openapi.json", "/docs", pages.START, *pages.FILES}
    validate(made)


async def test_where_keys_are_set_all_but_the_probes_say_so(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-many-characters")
    async with serving(model(manifest()), api_keys_file=keys) as service:
        answer = await service.client.get("/openapi.json", headers={"authorization": "Bearer a-key-of-many-characters"})
    made = answer.json()
    validate(made)
    for path, operations in made["paths"].items():
        for operation in operations.values():
            assert ("401" in operation["responses"]) == ("security" in operation) == (path not in {"/livez", "/readyz"})


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("path", ["/v1/models/{model}:predict", "/v2/models/{model}/versions/{version}/infer"])
async def test_the_examples_of_the_other_protocols_run_too(kind: Manifest, path: str) -> None:
    async with serving(model(kind)) as service:
        post = (await service.client.get("/openapi.json")).json()["paths"][path]["post"]
        content = post["requestBody"]["content"]["application/json"]
        example = content["examples"][kind.key]["value"]
        answer = await service.client.post(path.format(model="sums", version="1"), json=example)
    assert answer.status_code == 200, answer.text
    Draft202012Validator(content["schema"]).validate(example)
    Draft202012Validator(post["responses"]["200"]["content"]["application/json"]["schema"]).validate(answer.json())


async def test_every_answer_that_is_no_inference_is_as_the_document_says() -> None:
    async with serving(model(manifest()), admin_calls=True) as service:
        paths = (await service.client.get("/openapi.json")).json()["paths"]
        for path, operations in paths.items():
            for method, operation in operations.items():
                if method == "post" and "repository" not in path:
                    continue
                place = path.format(model="sums", version="1")
                answer = await service.client.request(method, place)
                described = operation["responses"][str(answer.status_code)]["content"]
                kind = answer.headers["content-type"].partition(";")[0]
                assert kind in described, path
                if kind == "application/json":
                    Draft202012Validator(described[kind].get("schema", {})).validate(answer.json())


@pytest.mark.parametrize("path", ["/v1/models/{model}:predict", "/v2/models/{model}/infer"])
async def test_every_status_of_the_other_protocols_is_documented(path: str) -> None:
    responses = (await document(manifest()))["paths"][path]["post"]["responses"]
    statuses = {str(kind.status) for kind in _all(RequestError)} - {"401", "403", "422"} | {"400"}
    assert statuses | {"200"} == set(responses)


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
    assert json_body.decode(b'{"sequences": [[[1.0, -2.0]]]}', OneModel(kind).find, max_sequences=1).items


async def test_without_models_the_document_is_valid_and_tells_what_is_common_to_all() -> None:
    made = await document()
    validate(made)
    body = made["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert Draft202012Validator(body).is_valid({"sequences": [[1]]})
    assert not Draft202012Validator(body).is_valid({"sequences": []})


def test_without_models_there_is_no_example() -> None:
    schema = get_openapi(title="x", version="1", routes=[])
    body = documents.with_predict(schema, [])["paths"]["/predict"]["post"]["requestBody"]
    assert "examples" not in body["content"]["application/json"]


def paths(routes: list[Any]) -> Iterator[str]:
    """The path of each route, those of included routers too."""
    for route in routes:
        router = getattr(route, "original_router", None)
        yield from [route.path] if router is None else paths(router.routes)


def _all(kind: type[RequestError]) -> set[type[RequestError]]:
    """A class of refusals and all below it."""
    return {kind}.union(*(_all(below) for below in kind.__subclasses__()))

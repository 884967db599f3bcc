import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from lengthwise.application import document as openapi
from lengthwise.application import pages
from lengthwise.batching.pending import MAX_PRIORITY
from lengthwise.decoding import json_body
from lengthwise.decoding.calls import MAX_ID_CHARACTERS
from lengthwise.decoding.sent_steps import FLOAT32_BEYOND
from lengthwise.errors import RequestError
from lengthwise.runtime.manifest import Manifest
from lengthwise.settings import Settings
from tests.support.bad_bodies import BAD_BODIES
from tests.support.numpy_models import MANIFESTS, OneModel, Service, manifest, model, serving
from tests.support.openapi import JSON, answer, body, checker

KINDS = [*MANIFESTS.values(), manifest(long="tail", max_length=1), manifest(task="per-step")]
IDS = [*MANIFESTS, "one step", "per step"]
CALLS = ("/predict", "/v1/models/{model}:predict", "/v2/models/{model}/versions/{version}/infer")


async def document(*manifests: Manifest, **options: Any) -> dict[str, Any]:
    async with serving(*map(model, manifests), **options) as service:
        return (await service.client.get("/openapi.json")).json()  # type: ignore[no-any-return]


def operations(made: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, operation) for path, calls in made["paths"].items() for operation in calls.values()]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("models", "options"),
    [
        ((), {}),
        ((manifest(), manifest(name="other.one", vocabulary=5), manifest(version=2)), {}),
        ((manifest(),), {"admin_port": 9}),
    ],
    ids=["no model", "several models", "an admin port"],
)
async def test_the_document_has_every_route_and_is_made_of_named_parts(
    models: tuple[Manifest, ...], options: dict[str, Any]
) -> None:
    async with serving(*map(model, models), **options) as service:
        made = (await service.client.get("/openapi.json")).json()
        served = {path for route in service.app.routes if not (path := route.path).startswith("/console/")}
    validate(made)
    assert set(made["paths"]) == served - {"/openapi.json", "/docs", pages.START, *pages.FILES}
    names = [operation["operationId"] for _, operation in operations(made)]
    assert len(names) == len({*names})
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)
    for path, operation in operations(made):
        schemas = [
            content.get("schema", {})
            for part in (operation.get("requestBody", {}), *operation["responses"].values())
            for kind, content in part.get("content", {}).items()
            if kind.endswith("json")
        ]
        assert not [schema for schema in schemas if "properties" in schema], path


async def test_without_models_the_document_tells_what_is_common_to_all() -> None:
    made = await document()
    assert body(made, "/predict").is_valid({"sequences": [[1]]})
    assert not body(made, "/predict").is_valid({"sequences": []})
    assert not [
        one for _, operation in operations(made) for one in operation.get("parameters", []) if "examples" in one
    ]


async def test_where_keys_are_set_all_but_the_probes_say_so(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-many-characters")
    async with serving(model(manifest()), api_keys_file=keys) as service:
        sent = await service.client.get("/openapi.json", headers={"authorization": "Bearer a-key-of-many-characters"})
    validate(sent.json())
    for path, operation in operations(sent.json()):
        keyless = path in {"/livez", "/readyz", "/ping"}
        assert ("401" in operation["responses"]) == ("security" in operation) == (not keyless)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("path", CALLS)
async def test_the_example_of_each_model_runs_and_is_answered_as_the_document_says(kind: Manifest, path: str) -> None:
    async with serving(model(kind)) as service:
        made = (await service.client.get("/openapi.json")).json()
        example = made["paths"][path]["post"]["requestBody"]["content"][JSON]["examples"][kind.key]["value"]
        answered = await service.client.post(path.format(model="sums", version="1"), json=example)
    assert answered.status_code == 200, answered.text
    body(made, path).validate(example)
    answer(made, path).validate(answered.json())
    if path == "/predict":
        assert [prediction.get("id") for prediction in answered.json()["predictions"]] == [None, "a"]


@pytest.mark.parametrize("models", [(), (manifest(),)], ids=["no model", "a model"])
async def test_every_answer_that_is_no_inference_is_as_the_document_says(models: tuple[Manifest, ...]) -> None:
    async with serving(*map(model, models), admin_calls=True) as service:
        made = (await service.client.get("/openapi.json")).json()
        for path, calls in made["paths"].items():
            for method, operation in calls.items():
                if method == "post" and "repository" not in path:
                    continue
                answered = await service.client.request(method, path.format(model="sums", version="1"))
                described = operation["responses"][str(answered.status_code)]["content"]
                kind = answered.headers["content-type"].partition(";")[0]
                assert kind in described, path
                if kind.endswith("json"):
                    checker(made, described[kind]["schema"]).validate(answered.json())


@pytest.mark.parametrize("path", CALLS)
async def test_every_status_of_a_call_is_documented(path: str) -> None:
    responses = (await document(manifest()))["paths"][path]["post"]["responses"]
    wrong = "422" if path == "/predict" else "400"  # 401 and 403 are said before a call gets to it
    statuses = {str(kind.status) for kind in _all(RequestError)} - {"401", "403", "422"} | {wrong}
    assert statuses | {"200"} == set(responses)
    assert path != "/predict" or responses["200"]["description"] == "One prediction for each sequence"


async def test_a_refusal_is_as_the_document_says(service: Service) -> None:
    made = (await service.client.get("/openapi.json")).json()
    refusal = answer(made, "/predict", 422, "application/problem+json")
    for bad in BAD_BODIES[::5]:
        refusal.validate((await service.predict(bad.body)).json())


@pytest.mark.parametrize("options", [{}, {"admin_port": 9000}], ids=["one port", "an admin port"])
async def test_every_schema_is_of_an_operation(options: dict[str, Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-many-characters")
    async with serving(model(manifest()), api_keys_file=keys, **options) as service:
        sent = await service.client.get("/openapi.json", headers={"authorization": "Bearer a-key-of-many-characters"})
    made = sent.json()
    validate(made)  # also that nothing refers to a schema that is not there
    names = re.findall(r"#/components/schemas/(\w+)", sent.text)
    assert {*made["components"]["schemas"]} == {*names}
    assert ("Health" in names) == ("admin_port" not in options)


async def test_the_bounds_of_the_schemas_are_those_of_the_readers() -> None:
    made = await document()
    schemas, parameters = made["components"]["schemas"], made["paths"]["/predict"]["post"]["parameters"]
    call, number = schemas["PredictRequest"]["properties"], schemas["Steps"]["items"]["anyOf"][0]["items"]["anyOf"][0]
    raw = {one["name"]: one["schema"] for one in parameters}
    assert call["priority"]["maximum"] == raw["priority"]["maximum"] == MAX_PRIORITY
    assert schemas["SequenceWithMasks"]["properties"]["id"]["maxLength"] == raw["id"]["maxLength"] == MAX_ID_CHARACTERS
    assert number["exclusiveMaximum"] == -number["exclusiveMinimum"] == float(FLOAT32_BEYOND)
    assert {*schemas["Limits"]["properties"]} == {*openapi.LIMITS} <= {*Settings.model_fields}


def test_an_example_uses_what_the_model_knows_of_its_features() -> None:
    kind = manifest().model_copy(update={"input": manifest().input.model_copy(update={"mean": (1.004, -2.0)})})
    assert openapi.examples(kind)["PredictRequest"]["sequences"][0] == [[1.0, -2.0], [1.0, -2.0]]
    assert json_body.decode(b'{"sequences": [[[1.0, -2.0]]]}', OneModel(kind).find, max_sequences=1).items


def _all(kind: type[RequestError]) -> set[type[RequestError]]:
    """A class of refusals and all below it."""
    return {kind}.union(*(_all(below) for below in kind.__subclasses__()))

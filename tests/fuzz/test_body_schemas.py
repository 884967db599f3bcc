"""The schemas of `/openapi.json` against what is taken: what they refuse is refused, what they allow is not malformed.

What JSON Schema cannot say is named here: `UNSAID` in one direction, `_unseen` in the other.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from jsonschema import Draft202012Validator

from lengthwise.errors import InvalidRequest, RequestError
from lengthwise.protocols.endpoint import Endpoint, Received
from lengthwise.protocols.predict import Predict, PredictV1
from lengthwise.protocols.turns import Turns
from lengthwise.protocols.v2 import Infer
from lengthwise.runtime.manifest import Manifest
from tests.fuzz.cases import MODELS, cases
from tests.fuzz.decoders import DECODERS
from tests.support import openapi
from tests.support.numpy_models import manifest, model, serving

PATHS: dict[str, type[Endpoint]] = {
    "/predict": Predict,
    "/v1/models/{model}:predict": PredictV1,
    "/v2/models/{model}/infer": Infer,
}
SERVED = [*MODELS, manifest(name="labels", task="multi-label", attention=False)]
UNSAID = re.compile(
    "|".join(
        (
            r"/step_mask: must have one entry for each of the \d+ steps",
            r"/data: must be \d+ numbers, flat or nested as the shape says",
            r"/data: (holds a number beyond |must hold whole numbers)",
            r"rows need 'lengths'",
            r"row \d+: a length is from 1 to the width",
            r"must have one entry for each of the \d+ rows",
            r"row \d+: step \d+ (lacks a value|is not a token id|holds a number that is not finite)",
            r"/outputs/\d+: stands twice",
            r"^the deadline ",
            r"^a request may (have|ask for) ",
            # What only one model refuses.
            r"the model takes \d+ features? a step|: a step must be an array of \d+ numbers",
            r": must be a token id|: is not a token id",
            r"got an object: (the features of \S+ have no names|a token has no)",
            r"/feature_mask: (must have one entry for each of the \d+ features|a token has no features)",
            r": the model \S+ refuses missing values",
            r"\d+ steps?; the model \S+ (takes at most|needs at least) ",
            r"/outputs/\d+: (the model \S+ has no attention|is not an output of )",
            r"/inputs(/\d+: is no input of this model|: the input '\w+' is missing|/\d+/shape: must be \[)",
            r"/model_(name|version): is not the model of the path",
            r"/(static|inputs): unknown field|'steps' is missing",
            r"/(state|offset|outputs/\d+): the model \S+ takes and gives no states",
            r"/state: is no state of this service|/offset: the state has seen",
        )
    )
)
"""Refusals of bodies that no schema of all models could have refused: of relations between fields, of limits, of
padding, and what differs from one model to the next."""


def drawn(document: dict[str, Any], path: str, count: int) -> list[Any]:
    """Bodies that the document allows at a path."""
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]
    found: dict[str, Any] = {}

    @seed(3)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(operation.as_strategy())
    def gather(case: Any) -> None:
        if case.media_type == openapi.JSON:
            found.setdefault(repr(case.body), whole(case.body))

    gather()
    return list(found.values())


def whole(value: Any) -> Any:
    """A value with 4 for 4.0, which is a whole number to JSON Schema and not to the service; no schema can say so."""
    if isinstance(value, dict):
        return {name: whole(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return list(map(whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def refusals(endpoint: Endpoint, one: Manifest, body: Any) -> list[str]:
    """Everything for which a body is refused for a model; empty where it is taken."""
    place = {"model": one.name, "version": str(one.version)}
    named = body | place if isinstance(endpoint, Predict) else body
    try:
        endpoint.read(Received({"path_params": place}, {}, json.dumps(named).encode()), fast=False)
    except InvalidRequest as error:
        return [f"{problem.pointer}: {problem.detail}" for problem in error.problems]
    except RequestError as error:
        return [str(error)]
    return []


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
async def test_what_the_document_allows_is_not_refused_as_malformed(path: str) -> None:
    async with serving(*map(model, SERVED)) as service:
        document = (await service.client.get("/openapi.json")).json()
        endpoint = PATHS[path](service.serving, Turns())
        told = [(body, refusals(endpoint, one, body)) for body in drawn(document, path, 200) for one in SERVED]
    assert not [(body, line) for body, said in told for line in said if not UNSAID.search(line)]
    assert sum(not said for _, said in told) > 5


def _unseen(sequences: Any) -> bool:
    """Whether a body has steps that nobody looks at: they may be anything, and the schema cannot know which."""
    entries = sequences if isinstance(sequences, list) else []
    masks = [entry.get("step_mask") for entry in entries if isinstance(entry, dict)]
    return any(isinstance(mask, list) and False in mask for mask in masks)


@pytest.mark.long
@pytest.mark.parametrize(("name", "path"), [*zip(("predict", "v1", "v2 json"), PATHS, strict=True)])
async def test_what_the_document_refuses_is_refused(name: str, path: str) -> None:
    (decoder,) = [one for one in DECODERS if one.name == name]
    sent = cases(decoder.built(), 2000, 5)
    taken = 0
    async with serving(*map(model, MODELS)) as service:
        document = (await service.client.get("/openapi.json")).json()
        check = openapi.body(document, path)
        for case in sent:
            if await decoder.decode(service, case) != "200":
                continue
            body = json.loads(case.body)
            if _unseen(body.get("sequences") or body.get("instances")):
                continue
            taken += 1
            assert check.is_valid(body), case
    assert taken > 200


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"sequences": []}),
        ("/predict", {"sequences": [[[]]]}),
        ("/predict", {"sequences": [[["1", 2.0]]]}),
        ("/predict", {"sequences": [[[1.0, 3.5e38]]]}),
        ("/predict", {"sequences": [{"steps": [[1.0, 2.0]], "step_mask": [False]}]}),
        ("/predict", {"sequences": [[[1.0, 2.0]]], "version": "02"}),
        ("/v1/models/{model}:predict", {"instances": [[]]}),
        ("/v1/models/{model}:predict", {"instances": [[[1.0, 2.0]]], "model": "sums"}),
        ("/v2/models/{model}/infer", {"inputs": []}),
        ("/v2/models/{model}/infer", {"inputs": [{"name": "lengths", "datatype": "INT32", "shape": [1], "data": [1]}]}),
        (
            "/v2/models/{model}/infer",
            {"inputs": [{"name": "values", "datatype": "FP16", "shape": [1, 1, 2], "data": [1.0, 2.0]}]},
        ),
        ("/v2/repository/index", {"redy": True}),
        ("/v2/repository/models/{model}/load", {"parameters": {"config": "{}"}}),
        ("/v2/repository/models/{model}/unload", {"more": 1}),
    ],
)
async def test_a_body_that_the_document_refuses_is_refused(path: str, body: Any) -> None:
    async with serving(model(manifest()), admin_calls=True) as service:
        document = (await service.client.get("/openapi.json")).json()
        answer = await service.client.post(path.format(model="sums"), json=body)
    assert not openapi.body(document, path).is_valid(body)
    assert answer.status_code in (400, 404, 422), answer.text


OCTETS: dict[str, tuple[str, list[str], list[str], list[str]]] = {
    "x-lengthwise-shape": ("header", ["1,2", "01,2"], ["", "1,2,3", "-1,2", "1;2", "x"], ["1", "1,3"]),
    "version": ("query", ["1"], ["", "01", "-1", "X"], ["x"]),
    "outputs": ("query", ["attention", "attention,attention"], ["", "label", "attention,"], []),
    "timeout_ms": ("query", ["1000", "1e9", "10000.5"], ["", "0", "-1", "x", "NaN"], []),
    "priority": ("query", ["0", "9"], ["", "10", "-1", "x"], []),
    "id": ("query", ["", "a" * 256], ["a" * 257], []),
    "model": ("query", ["sums"], [], ["others"]),
}
"""Where each parameter is, and texts that are taken, that none is taken for, and that only this model is not."""


@pytest.mark.parametrize("name", OCTETS)
async def test_a_parameter_of_a_raw_tensor_is_accepted_only_where_the_document_allows_it(name: str) -> None:
    place, good, bad, of_others = OCTETS[name]
    async with serving(model(manifest())) as service:
        parameters = (await service.client.get("/openapi.json")).json()["paths"]["/predict"]["post"]["parameters"]
        (described,) = [one for one in parameters if one["name"] == name]
        assert described["in"] == place
        check = Draft202012Validator(described["schema"])
        for text in [*good, *bad, *of_others]:
            headers = {"content-type": "application/octet-stream", "x-lengthwise-shape": "1,2"}
            if place == "header":
                headers[name] = text
            query = {name: text} if place == "query" else {}
            answer = await service.client.post("/predict", content=bytes(8), headers=headers, params=query)
            assert (answer.status_code == 200) == (text in good), (text, answer.text)
            assert check.is_valid(_value(text, described["schema"])) == (text not in bad), text


def _value(text: str, schema: dict[str, Any]) -> Any:
    """A parameter as a checker reads it: a number where one is wanted and it is one."""
    if schema["type"] == "string":
        return text
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        return text


@pytest.mark.parametrize("length", ["", "x", "-1", "+5", "9" * 20])
async def test_the_header_of_octets_is_digits(length: str) -> None:
    path = "/v2/models/{model}/infer"
    async with serving(model(manifest())) as service:
        parameters = (await service.client.get("/openapi.json")).json()["paths"][path]["post"]["parameters"]
        (described,) = [one for one in parameters if one["in"] == "header"]
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": length}
        answer = await service.client.post("/v2/models/sums/infer", content=b"{}", headers=headers)
    assert not Draft202012Validator(described["schema"]).is_valid(length)
    assert answer.status_code == 400, answer.text

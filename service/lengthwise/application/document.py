"""`/openapi.json`: the operations of this service as `openapi.json` beside this module describes them.

That file is a document of OpenAPI by itself: each operation, the schemas of bodies and answers, and what may be
refused. FastAPI adds the routes of its user. `completed` adds what only the running service knows: keys, and examples
of the models that are served now.

Bodies are read by `lengthwise.decoding`, and answers are encoded where they are made; tests compare both with the
schemas. What a schema refuses, the service refuses. A schema is the same for all models, so a body that it allows may
still be wrong for one of them: in the number of features, in missing values, in its length. JSON Schema also cannot
express that a mask is as long as its sequence, that `data` has as many numbers as `shape` says, or that masked steps
and padding are not read.
"""

from __future__ import annotations

import copy
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from starlette.responses import Response

from lengthwise.protocols import kserve, problems, tensor_specs
from lengthwise.runtime.manifest import Manifest

JSON: Final = "application/json"
_DOCUMENT: Final[dict[str, Any]] = orjson.loads(Path(__file__).with_name("openapi.json").read_bytes())
_OPERATIONS: Final = {call["operationId"]: call for calls in _DOCUMENT["paths"].values() for call in calls.values()}
_SCHEMAS: Final = "#/components/schemas/"
LIMITS: Final = tuple(_DOCUMENT["components"]["schemas"]["Limits"]["required"])  # limits that `GET /` shows


def operation(name: str, alias: str | None = None) -> dict[str, Any]:
    """The options of a FastAPI route for the operation of id `name`; at a second path it has the id `alias`."""
    return {
        "response_class": Response,
        "response_model": None,
        "openapi_extra": _OPERATIONS[name] | {"operationId": alias or name},
    }


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with `content` as JSON."""
    return Response(orjson.dumps(content), status, headers, media_type=JSON)


def completed(
    document: dict[str, Any], manifests: Sequence[Manifest], keyless: frozenset[str] | None
) -> dict[str, Any]:
    """FastAPI's document with the schemas of its operations, and examples that the served models answer.

    `keyless` are the paths that need no key; None where no key is needed. `document` is changed.
    """
    # Examples of bodies and parameters, for each model.
    parts = copy.deepcopy(_DOCUMENT["components"])
    for manifest in manifests:
        for form, example in examples(manifest).items():
            parts["requestBodies"][form]["content"][JSON].setdefault("examples", {})[manifest.key] = {"value": example}
        for name, value in (("model", manifest.name), ("version", str(manifest.version))):
            parts["parameters"][name].setdefault("examples", {})[value] = {"value": value}
    document["paths"] = _inlined(document["paths"], parts)
    # Where keys are set: 401 and the security scheme of each operation that needs one.
    components = document.setdefault("components", {})
    if keyless is not None:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in document["paths"].keys() - keyless:
            kind, form = (JSON, "Error") if kserve.is_path(path) else (problems.MEDIA_TYPE.decode(), "Problem")
            content = {kind: {"schema": {"$ref": _SCHEMAS + form}}}
            for call in document["paths"][path].values():
                call["responses"]["401"] = {"description": "No key, or a wrong one", "content": content}
                call["security"] = [{"key": []}]
    components["schemas"] = components.get("schemas", {}) | _referenced(parts["schemas"], document)
    return document


def _referenced(schemas: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas to which a document refers, directly or through another schema."""
    names, parts = set[str](), [document]  # the schemas so far; what is still to be searched for references
    while parts:
        new = {*re.findall(_SCHEMAS + r"([\w.-]+)", orjson.dumps(parts.pop()).decode())} & schemas.keys() - names
        names |= new
        parts += [schemas[name] for name in new]
    return {name: schema for name, schema in schemas.items() if name in names}


def _inlined(part: Any, parts: Mapping[str, Any]) -> Any:
    """A copy of a part of the document, with the components in place of the references to them (`$ref`).

    References to schemas stay, because every reader of OpenAPI follows these, but not all follow the others. `parts`
    are the components: `#/components/parameters/model` is `parts["parameters"]["model"]`.
    """
    if isinstance(part, list):
        return [_inlined(entry, parts) for entry in part]
    if not isinstance(part, dict):
        return part
    reference = part.get("$ref")
    if reference is None or reference.startswith(_SCHEMAS):
        return {name: _inlined(entry, parts) for name, entry in part.items()}
    return _inlined(functools.reduce(operator.getitem, reference.split("/")[2:], parts), parts)


def examples(manifest: Manifest) -> dict[str, Any]:
    """A valid body of each call for a model, `{schema: body}`.

    Each has two sequences: one as short as the model takes, and one with a step more, if the model takes so many.
    """
    # 1. The two sequences, of each name; and the input tensors with their shapes and elements, in which the shorter
    # sequence ends with a step of padding
    pairs: list[list[Any]] = []
    tensors: dict[tensor_specs.TensorSpec, tuple[list[int], list[Any]]] = {}
    for alone, steps, lengths in tensor_specs.sequences_of(manifest):
        step = [round(value, 2) for value in alone.input.mean or [0.0] * (alone.input.features or 1)]
        short = [0 if alone.input.kind == "tokens" else step] * alone.min_length
        long = (short + short[:1])[: alone.max_length]
        pairs.append([long, short])
        tensors[steps] = ([2, len(long), *steps.shape[2:]], [long, long])
        tensors[lengths] = ([2], [len(long), len(short)])
    # 2. What stands beside them
    fields: dict[str, Any] = {}
    if (static := manifest.input.static) is not None:
        fields["static"] = [static.categories.get(name, [0.0])[0] for name in static.value_names]
        (spec,) = [spec for spec in tensor_specs.inputs_of(manifest) if spec.name == tensor_specs.STATIC]
        tensors[spec] = ([2, static.count], [[0.0] * static.count] * 2)
    items = [{"steps": steps} | fields for steps in pairs[0]]
    if manifest.input.sequences:
        items = [
            {"inputs": dict(zip(manifest.by_sequence, row, strict=True))} | fields for row in zip(*pairs, strict=True)
        ]
    # 3. The bodies
    inputs = [
        {"name": spec.name, "datatype": spec.datatypes[0], "shape": shape, "data": data}
        for spec, (shape, data) in tensors.items()
    ]
    long_one, short_one = items if manifest.input.has_more else pairs[0]
    sequences = [long_one, {"id": "a"} | items[1]]
    return {
        "PredictRequest": {"model": manifest.name, "version": str(manifest.version), "sequences": sequences},
        "V1Request": {"instances": [long_one, short_one]},
        "InferRequest": {"inputs": inputs},
    }

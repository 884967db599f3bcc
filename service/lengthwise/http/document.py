"""`/openapi.json`: what FastAPI does not know of the operations, whose bodies it does not read.

The parts of an operation are written where its route is (`http.operations`, `http.health`) with `body`, `parameters`
and `refusals`. `completed` adds the schemas of bodies, and the examples, for the models that are served now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lengthwise.http import bodies, schemas
from lengthwise.protocols import kserve
from lengthwise.runtime.manifest import Manifest

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
TEXT: Final = {"schema": {"type": "string"}}
REASONS: Final[dict[int | str, str]] = {
    400: "The body is wrong, or that is no version",
    403: "It is off",
    404: "No such model or version",
    413: "More bytes, sequences or steps than the limits allow",
    415: "A content type or encoding that is not supported",
    421: "On a loopback address: the host is neither localhost nor an IP address",
    422: "The body, or items in it, are wrong; every problem with its pointer",
    429: "The queue is full; Retry-After says when to come back",
    500: "The runtime failed on this request's batch",
    503: "Starting, draining, or no good model",
    504: "The deadline passed",
}
"""Why a call may be refused, by status."""
OF_CALLS: Final = (404, 413, 415, 421, 422, 429, 500, 503, 504)
"""The statuses with which an inference call may be refused; KServe's protocols have 400 in the place of 422."""


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of an operation, as problems."""
    return {status: {"description": REASONS[status], "content": {PROBLEM: _ref("Problem")}} for status in statuses}


def errors(*statuses: int, answer: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """The refusals of an operation of KServe's protocols.

    Args:
        statuses: The statuses.
        answer: What a 503 may hold instead: the answer, which says that something is not ready.
    """
    kinds: dict[int, Any] = dict.fromkeys(statuses, schemas.Error)
    if answer is not None:
        kinds[503] = answer | schemas.Error
    return {status: {"description": REASONS[status], "model": kind} for status, kind in kinds.items()}


def body(name: str, *binary: str, required: bool = True) -> dict[str, Any]:
    """An operation's body: JSON of one of the schemas of `http.bodies`, or bytes of other media types."""
    return {"requestBody": {"required": required, "content": {JSON: _ref(name), **dict.fromkeys(binary, BYTES)}}}


def parameters(**models: type[BaseModel]) -> dict[str, Any]:
    """An operation's parameters: the fields of a model for each place, `path`, `query` or `header`."""
    return {"parameters": [one for place, model in models.items() for one in _parameters(place, model)]}


def _parameters(place: str, model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    for name, schema in model.model_json_schema()["properties"].items():
        found = {"name": name, "in": place, "required": place == "path", "schema": schema}
        if told := schema.pop("description", ""):
            found["description"] = told
        yield found


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def completed(document: dict[str, Any], manifests: Sequence[Manifest], keyless: frozenset[str] | None) -> Any:
    """The document with all its schemas, and examples that the served models answer; health is its last group.

    Args:
        document: FastAPI's.
        manifests: The models that are served.
        keyless: The paths that need no key; None where no key is needed.
    """
    problem = models_json_schema([(schemas.Problem, "serialization")], ref_template="#/components/schemas/{model}")[1][
        "$defs"
    ]
    components = document.setdefault("components", {})
    components["schemas"] = components.get("schemas", {}) | problem | bodies.components(manifests)
    shown = {one.key: bodies.examples(one) for one in manifests}
    of_paths = {"model": {one.name for one in manifests}, "version": {str(one.version) for one in manifests}}
    pattern = bodies.shape_pattern(manifests)
    for path, operation in _operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get(JSON, {})
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        found = {key: {"value": of_model[name]} for key, of_model in shown.items() if name in of_model}
        if found:
            content["examples"] = found
        for one in operation.get("parameters", []):
            if one["in"] == "path" and (named := of_paths.get(one["name"])):  # a user's route may have others
                one["examples"] = {value: {"value": value} for value in sorted(named)}
            elif one["name"] == "x-lengthwise-shape" and pattern:
                one["schema"]["pattern"] = pattern
        if keyless is not None and path not in keyless:
            _ask_for_key(path, operation)
    if keyless is not None:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    is_health = {path: "health" in next(iter(calls.values())).get("tags", ()) for path, calls in _paths(document)}
    document["paths"] = dict(sorted(_paths(document), key=lambda entry: is_health[entry[0]]))
    return document


def _ask_for_key(path: str, operation: dict[str, Any]) -> None:
    operation["security"] = [{"key": []}]
    content = {JSON: _ref("Error")} if kserve.is_path(path) else {PROBLEM: _ref("Problem")}
    operation["responses"]["401"] = {"description": "No key, or a wrong one", "content": content}


def _paths(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [*document["paths"].items()]


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((path, operation) for path, calls in _paths(document) for operation in calls.values())

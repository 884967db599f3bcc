"""`/openapi.json`: what FastAPI does not know of the operations, whose bodies and parameters it does not read.

An operation is described where its route is (`application.operations`, `application.health`), with `operation`.
`completed` adds the schemas, what paths name, and examples of the models that are served now.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import PlainTextResponse, Response

from lengthwise.application import bodies, schemas
from lengthwise.protocols import kserve
from lengthwise.runtime.manifest import Manifest

Responses = dict[int | str, dict[str, Any]]

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
TEXT: Final = {"schema": {"type": "string"}}
OR_A_PAGE: Final[Responses] = {200: {"description": "JSON; for a browser, a page", "content": {"text/html": TEXT}}}
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
}  # why a call may be refused, by status
OF_CALLS: Final = (404, 413, 415, 421, 422, 429, 500, 503, 504)  # KServe's protocols have 400 in the place of 422


def refusals(*statuses: int) -> Responses:
    """The refusals of an operation, as problems."""
    return {status: {"description": REASONS[status], "content": {PROBLEM: _ref("Problem")}} for status in statuses}


def errors(*statuses: int, answer: type[BaseModel] | None = None) -> Responses:
    """The refusals of an operation of KServe's protocols; a 503 may hold the `answer` instead, which says why."""
    kinds: dict[int, Any] = dict.fromkeys(statuses, schemas.Error)
    if answer is not None:
        kinds[503] = answer | schemas.Error
    return {status: {"description": REASONS[status], "model": kind} for status, kind in kinds.items()}


def operation(
    name: str,
    summary: str,
    answer: Any,
    refused: Responses | None = None,
    *,
    tag: str | None = None,
    body: type[BaseModel] | None = None,
    binary: Sequence[str] = (),
    required: bool = True,
    parameters: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The options of a route, whose answer is text if `answer` is None; without a `tag`, its name begins with it.

    Its body has the form of `body`, which is one of `bodies.BODIES`, or another media type, as its answer may have.
    """
    content = {} if body is None else {JSON: _ref(body.__name__), **dict.fromkeys(binary, BYTES)}
    more: dict[str, Any] = {"requestBody": {"required": required, "content": content}} if content else {}
    answers: Responses = {200: {"content": dict.fromkeys(binary, BYTES)}} if binary else {}
    return {
        "operation_id": name,
        "summary": summary,
        "tags": [tag or name.partition("_")[0]],
        "responses": answers | (refused or {}),
        "openapi_extra": more | ({"parameters": [*parameters]} if parameters else {}),
        **({"response_class": PlainTextResponse} if answer is None else {"response_model": answer}),
    }


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(content), status, headers, media_type=JSON)


def header(name: str, pattern: str, description: str) -> dict[str, Any]:
    """A header that an operation reads."""
    return {"name": name, "in": "header", "schema": {"type": "string", "pattern": pattern}, "description": description}


def query(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The fields of a model as parameters of the query."""
    fields = model.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in fields.items()
    ]


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def completed(
    document: dict[str, Any], manifests: Sequence[Manifest], keyless: frozenset[str] | None
) -> dict[str, Any]:
    """The document with all its schemas, and examples that the served models answer; health is its last group.

    `keyless` are the paths that need no key; None where no key is needed.
    """
    components = document.setdefault("components", {})
    parts: list[Any] = [(schemas.Problem, "serialization"), *((one, "validation") for one in bodies.BODIES)]
    _, made = models_json_schema(parts, ref_template="#/components/schemas/{model}")
    components["schemas"] = components.get("schemas", {}) | made["$defs"]
    shown = {one.key: bodies.examples(one) for one in manifests}
    named = {"model": {one.name for one in manifests}, "version": {str(one.version) for one in manifests}}
    health = {}
    for path, calls in document["paths"].items():
        health[path] = any("health" in operation.get("tags", ()) for operation in calls.values())
        for operation in calls.values():
            _add_examples(path, operation, shown, named)
            if keyless is not None and path not in keyless:
                content = {JSON: _ref("Error")} if kserve.is_path(path) else {PROBLEM: _ref("Problem")}
                operation["responses"]["401"] = {"description": "No key, or a wrong one", "content": content}
                operation["security"] = [{"key": []}]
    if keyless is not None:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["paths"] = {path: document["paths"][path] for path in sorted(health, key=health.__getitem__)}
    return document


def _add_examples(
    path: str, operation: dict[str, Any], shown: Mapping[str, dict[str, Any]], named: Mapping[str, set[str]]
) -> None:
    """Adds a body for each model, and what the path names; a user's route may have parameters of its own."""
    content = operation.get("requestBody", {}).get("content", {}).get(JSON, {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    if found := {key: {"value": of_model[name]} for key, of_model in shown.items() if name in of_model}:
        content["examples"] = found
    given = operation.get("parameters", [])
    of_path: list[dict[str, Any]] = []
    for name in re.findall(r"\{(\w+)\}", path):
        if name in named and name not in [one["name"] for one in given]:
            schema = {"type": "string"} | ({"pattern": bodies.VERSION} if name == "version" else {})
            of_path.append({"name": name, "in": "path", "required": True, "schema": schema})
            if named[name]:
                of_path[-1]["examples"] = {value: {"value": value} for value in sorted(named[name])}
    if of_path:
        operation["parameters"] = [*of_path, *given]

"""The OpenAPI document of `POST /predict`, with examples that the served models answer.

`kserve_documents` has the other protocols; health and metrics are described next to their endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lengthwise.decoding import arrow_stream
from lengthwise.decoding.calls import MAX_ID_CHARACTERS
from lengthwise.protocols import body_documents
from lengthwise.protocols.body_documents import Schema
from lengthwise.runtime.manifest import Manifest

PROBLEM: Final[Schema] = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "maxItems": 20,
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901, into the body as sent"},
                    "detail": {"type": "string"},
                },
            },
        },
        "errors_total": {"type": "integer"},
    },
}

_REFUSED = {"application/problem+json": {"schema": PROBLEM}}

NOT_READY: Final[dict[int | str, dict[str, Any]]] = {
    503: {"description": "Starting, draining, or no good model", "content": _REFUSED}
}

PREDICTIONS: Final[Schema] = {
    "type": "array",
    "description": "In request order.",
    "items": {
        "title": "Prediction",
        "type": "object",
        "required": ["probabilities", "length"],
        "properties": {
            "id": {"type": "string"},
            "label": {"type": "string"},
            "score": {"type": "number"},
            "assigned": {"type": "array", "items": {"type": "string"}},
            "step_labels": {"type": "array", "items": {"type": ["string", "null"]}},
            "step_scores": {"type": "array", "items": {"type": ["number", "null"]}},
            "probabilities": {"type": "array"},
            "length": {"type": "integer"},
            "attention": {"type": "array", "items": {"type": "number"}},
            "windows": {"type": "array", "items": {"type": "object"}},
        },
    },
}

_ANSWER: Final[Schema] = {
    "title": "Answer",
    "type": "object",
    "required": ["model", "version", "labels", "predictions"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "labels": {"type": "array", "items": {"type": "string"}},
        "predictions": PREDICTIONS,
    },
}

REFUSALS: Final[Mapping[str, str]] = {
    "404": "No such model or version",
    "413": "More bytes, sequences or steps than the limits allow",
    "415": "A content type or encoding that is not supported",
    "421": "On a loopback address: the host is neither localhost nor an IP address",
    "422": "The body, or items in it, are wrong; every problem with its pointer",
    "429": "The queue is full; Retry-After says when to come back",
    "500": "The runtime failed on this request's batch",
    "503": "Starting, draining, or no good model",
    "504": "The deadline passed",
}
"""Why an inference call may be rejected, by status."""
LIMITS: Final = ("max_body_bytes", "max_sequences", "max_queue_cost_steps")
"""The options that limit one request, by which a client splits many sequences into requests."""
NO_KEY: Final = "No key, or a wrong one"
BYTES: Final[Schema] = {"type": "string", "format": "binary"}
ARROW: Final = arrow_stream.MEDIA_TYPE.decode()

_IN_QUERY: Final[Mapping[str, Schema]] = {
    "model": {"type": "string", "description": "With a binary body: the model; required if several are served."},
    "version": {**body_documents.VERSION, "description": "With a binary body: its version."},
    "id": {
        "type": "string",
        "maxLength": MAX_ID_CHARACTERS,
        "description": "With raw steps: returned with the prediction.",
    },
    "outputs": {
        "type": "string",
        "pattern": "^attention(,attention)*$",
        "description": "With a binary body: attention.",
    },
    "timeout_ms": {
        **body_documents.TIMEOUT_MS,
        "description": "With a binary body: after which the client needs no answer.",
    },
    "priority": {**body_documents.PRIORITY, "description": "With a binary body: 0 (default) to 9, higher first."},
}
"""The options of binary bodies, which are in the query; with a JSON body they are an error."""


def with_predict(schema: Schema, manifests: Sequence[Manifest]) -> Schema:
    """Adds `POST /predict` to the OpenAPI document, with examples for the models that are served."""
    refusals = {status: {"description": text, "content": _REFUSED} for status, text in REFUSALS.items()}
    body: Schema = {"schema": body_documents.predict(manifests)}
    examples = {manifest.key: {"value": example(manifest)} for manifest in manifests}
    if examples:
        body["examples"] = examples
    schema["paths"]["/predict"] = {
        "post": {
            "tags": ["predict"],
            "summary": "Classifies sequences of different lengths",
            "description": "As JSON; as an Arrow stream with a list column `steps` (and `id`, `step_mask`, "
            "`feature_mask`); or as raw steps: one sequence as little-endian float32 (of a token model int64), with "
            "its shape in a header. The options of a binary body are in the query. The answer is JSON, or an Arrow "
            "stream if `accept` asks for one. To raw steps, if `accept` is `application/octet-stream`, it is the "
            "probabilities as float32.",
            "operationId": "predict",
            "parameters": [
                {
                    "name": "x-lengthwise-shape",
                    "in": "header",
                    "schema": body_documents.shape_header(manifests),
                    "description": "Required with raw steps: `STEPS,FEATURES`, or of a token model `STEPS`.",
                },
                *(
                    {
                        "name": name,
                        "in": "query",
                        "schema": {key: value for key, value in form.items() if key != "description"},
                        "description": form["description"],
                    }
                    for name, form in _IN_QUERY.items()
                ),
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": body,
                    "application/octet-stream": {"schema": BYTES},
                    **({ARROW: {"schema": BYTES}} if arrow_stream.installed() else {}),
                },
            },
            "responses": {
                "200": {
                    "description": "One prediction for each sequence",
                    "content": {
                        "application/json": {"schema": _ANSWER},
                        "application/octet-stream": {"schema": BYTES},
                        **({ARROW: {"schema": BYTES}} if arrow_stream.installed() else {}),
                    },
                },
                **refusals,
            },
        }
    }
    return schema


def with_figures(schema: Schema) -> Schema:
    """Adds to the document both formats of `/metrics`, if it is served, and the answer of `GET /`."""
    if "/metrics" in schema["paths"]:
        answer = schema["paths"]["/metrics"]["get"]["responses"]["200"]
        answer["content"] = {kind: {"schema": {"type": "string"}} for kind in _EXPOSITIONS}
    places: Schema = {name: {"type": "string"} for name in ("service", "predict", "docs", "openapi", "health")}
    places["media_types"] = {"type": "array", "items": {"type": "string"}, "description": "Bodies of /predict."}
    places["limits"] = {
        "type": "object",
        "description": "What one request may have.",
        "required": [*LIMITS],
        "properties": {name: {"type": "integer"} for name in LIMITS},
    }
    required = ["service", "predict", "docs", "openapi", "media_types", "limits"]
    index: Schema = {"type": "object", "required": required, "properties": places}
    schema["paths"]["/"] = {
        "get": {
            "tags": ["health"],
            "summary": "The paths and the limits of this server",
            "responses": {
                "200": {
                    "description": "Paths; for a browser, a page",
                    "content": {"application/json": {"schema": index}, "text/html": {"schema": {"type": "string"}}},
                }
            },
        }
    }
    return schema


_EXPOSITIONS: Final = ("text/plain", "application/openmetrics-text")


def with_keys(schema: Schema, keyless: frozenset[str]) -> Schema:
    """Adds the API key, and the status 401, to every operation outside some paths."""
    schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path not in keyless:
            for operation in operations.values():
                operation["security"] = [{"key": []}]
                kind = "application/json" if path.startswith(("/v1", "/v2")) else "application/problem+json"
                operation["responses"]["401"] = {"description": NO_KEY, "content": {kind: {}}}
    return schema


def example(manifest: Manifest) -> dict[str, Any]:
    """A valid body for the model: two sequences, one of them as short as the model accepts."""
    first, second = example_steps(manifest)
    return {
        "model": manifest.name,
        "version": str(manifest.version),
        "sequences": [first, {"id": "a", "steps": second}],
    }


def example_steps(manifest: Manifest) -> tuple[list[Any], list[Any]]:
    """The steps of two valid sequences for the model: the second as short as it accepts, the first one step longer."""
    least = manifest.min_length
    if manifest.input.kind == "tokens":
        first: list[Any] = [0] * least + [(manifest.input.vocabulary or 1) - 1]
        return first[: manifest.max_length], first[:least]
    middle = [round(value, 2) for value in manifest.input.mean or [0.0] * (manifest.input.features or 1)]
    return ([middle] * (least + 1))[: manifest.max_length], [middle] * least

"""What `/docs` and `/openapi.json` say of `POST /predict`, with examples that run against the models being served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.manifest import Manifest

_PROBLEM = {
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

_REFUSED = {"application/problem+json": {"schema": _PROBLEM}}

NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Starting, draining, or no good model", "content": _REFUSED}
}

_STEPS = {
    "type": "array",
    "minItems": 1,
    "description": "One entry for each step: its numbers (null where one is missing), a bare number for a model of one "
    "feature, or a token id.",
    "items": {
        "anyOf": [
            {"type": "array", "items": {"type": ["number", "null"]}},
            {"type": ["number", "null"]},
        ]
    },
}

_CALL = {
    "type": "object",
    "required": ["sequences"],
    "additionalProperties": False,
    "properties": {
        "sequences": {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    _STEPS,
                    {
                        "type": "object",
                        "required": ["steps"],
                        "additionalProperties": False,
                        "properties": {
                            "id": {"type": "string", "maxLength": 256},
                            "steps": _STEPS,
                            "step_mask": {
                                "type": "array",
                                "items": {"type": "boolean"},
                                "description": "false: that step is left out as if it had never been sent.",
                            },
                            "feature_mask": {
                                "type": "array",
                                "items": {"type": "boolean"},
                                "description": "false: that feature counts as missing in every step.",
                            },
                        },
                    },
                ]
            },
        },
        "model": {"type": "string", "description": "Needed where several are served."},
        "version": {"type": "string", "pattern": "^[1-9][0-9]*$", "description": "Default: the highest good one."},
        "outputs": {"type": "array", "items": {"enum": ["attention"]}},
        "timeout_ms": {"type": "number", "exclusiveMinimum": 0},
        "priority": {"type": "integer", "minimum": 0, "maximum": 9, "default": 0},
    },
}

_ANSWER = {
    "type": "object",
    "required": ["model", "version", "labels", "predictions"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "labels": {"type": "array", "items": {"type": "string"}},
        "predictions": {
            "type": "array",
            "description": "In request order.",
            "items": {
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
        },
    },
}

_REFUSALS = {
    "404": "No such model or version",
    "413": "More bytes, sequences or steps than the limits allow",
    "415": "A content type or encoding that is not read here",
    "422": "The body, or items in it, are wrong; every problem with its pointer",
    "429": "The queue is full; Retry-After says when to come back",
    "500": "The runtime failed on this request's batch",
    "503": "Starting, draining, or no good model",
    "504": "The deadline passed",
}


def with_predict(schema: dict[str, Any], manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The OpenAPI document with `POST /predict` in it, its examples made for the models that are served."""
    refusals = {status: {"description": text, "content": _REFUSED} for status, text in _REFUSALS.items()}
    body: dict[str, Any] = {"schema": _CALL}
    examples = {manifest.key: {"value": example(manifest)} for manifest in manifests}
    if examples:
        body["examples"] = examples
    schema["paths"]["/predict"] = {
        "post": {
            "tags": ["predict"],
            "summary": "Classifies sequences of different lengths",
            "operationId": "predict",
            "requestBody": {"required": True, "content": {"application/json": body}},
            "responses": {
                "200": {
                    "description": "One prediction for each sequence",
                    "content": {"application/json": {"schema": _ANSWER}},
                },
                **refusals,
            },
        }
    }
    return schema


def example(manifest: Manifest) -> dict[str, Any]:
    """A body that the model answers: two sequences, one of a single step."""
    if manifest.input.kind == "tokens":
        first: list[Any] = [0, (manifest.input.vocabulary or 1) - 1]
        second: list[Any] = [0]
    else:
        middle = [round(value, 2) for value in manifest.input.mean or [0.0] * (manifest.input.features or 1)]
        first, second = [middle, middle], [middle]
    return {
        "model": manifest.name,
        "version": str(manifest.version),
        "sequences": [first[: manifest.max_length], {"id": "a", "steps": second}],
    }

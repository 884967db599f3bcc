"""The OpenAPI document of KServe's two protocols and of the repository's calls, with examples that are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lengthwise.protocols import body_documents, documents, inventory
from lengthwise.protocols.body_documents import Schema
from lengthwise.protocols.documents import BYTES, PREDICTIONS, REFUSALS
from lengthwise.runtime.manifest import Manifest

_TEXT: Final[Schema] = {"type": "string"}
_TEXTS: Final[Schema] = {"type": "array", "items": _TEXT}
_ERROR: Final[Schema] = {"title": "Error", "type": "object", "required": ["error"], "properties": {"error": _TEXT}}
_NOTHING: Final[Schema] = {"type": "object"}
_TENSOR_METADATA: Final[Schema] = {
    "title": "TensorMetadata",
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {"name": _TEXT, "datatype": _TEXT, "shape": {"type": "array", "items": {"type": "integer"}}},
}
_INFERRED: Final[Schema] = {
    "title": "InferResponse",
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "outputs": {
            "type": "array",
            "items": {
                **_TENSOR_METADATA,
                "title": "OutputTensor",
                "properties": {
                    **_TENSOR_METADATA["properties"],
                    "data": {"type": "array"},
                    "parameters": {"type": "object"},
                },
            },
        },
    },
}
_INDEX: Final[Schema] = {
    "type": "array",
    "items": {
        "title": "IndexEntry",
        "type": "object",
        "required": ["name", "version", "state", "reason"],
        "properties": {"name": _TEXT, "version": _TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": _TEXT},
    },
}


def with_kserve(schema: Schema, manifests: Sequence[Manifest], served: frozenset[str]) -> Schema:
    """Adds the operations of these protocols to the OpenAPI document, if their paths are served."""
    for path, operation in _operations(manifests).items():
        if path in served:
            schema["paths"][path] = operation
    return schema


def _operations(manifests: Sequence[Manifest]) -> dict[str, Schema]:
    """All operations by path."""
    model = _in_path("model", _TEXT, {one.name: one.name for one in manifests})
    version = _in_path("version", body_documents.VERSION, {str(one.version): str(one.version) for one in manifests})
    operations = {
        "/v1/models": _get("v1", "The models that are served", _object(models=_TEXTS)),
        "/v1/models/{model}": _get("v1", "Whether a model is ready", _object(name=_TEXT, ready=_BOOLEAN), model),
        "/v1/models/{model}:predict": _post(
            "v1",
            "Classifies sequences of different lengths (KServe v1)",
            {"application/json": _body(body_documents.v1(manifests), {one.key: _v1_example(one) for one in manifests})},
            {"application/json": {"schema": _object(predictions=PREDICTIONS)}},
            model,
        ),
        "/v2": _get("v2", "The server's metadata", _object(name=_TEXT, version=_TEXT, extensions=_TEXTS)),
        "/v2/models/stats": _get("v2", "The statistics of all models that are served", _STATISTICS),
        "/v2/health/live": _get("v2", "Whether the process lives", _object(live=_BOOLEAN)),
        "/v2/health/ready": _get("v2", "Whether a request would be answered", _object(ready=_BOOLEAN), unready=True),
    }
    for part, places in (("", (model,)), ("/versions/{version}", (model, version))):
        path = f"/v2/models/{{model}}{part}"
        operations[path] = _get("v2", "A model's metadata, with -1 for a free axis", _METADATA, *places)
        operations[f"{path}/ready"] = _get(
            "v2", "Whether a model is ready", _object(name=_TEXT, ready=_BOOLEAN), *places, unready=True
        )
        operations[f"{path}/config"] = _get("v2", "A model's configuration, in Triton's format", _CONFIG, *places)
        operations[f"{path}/stats"] = _get("v2", "A model's statistics, in Triton's format", _STATISTICS, *places)
        operations[f"{path}/infer"] = _post(
            "v2",
            "Classifies padded sequences (Open Inference Protocol v2)",
            {
                "application/json": _body(
                    body_documents.infer(manifests), {one.key: infer_example(one) for one in manifests}
                ),
                "application/octet-stream": {"schema": BYTES},
            },
            {"application/json": {"schema": _INFERRED}, "application/octet-stream": {"schema": BYTES}},
            *places,
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
                "description": "Bytes of the JSON, if raw tensors follow it; required with application/octet-stream.",
            },
        )
    operations["/v2/repository/index"] = _repository(
        "Every version that is served or refused, with the reason",
        {**_object(ready={**_BOOLEAN, "description": "Only those that are ready."}, required=()), **_CLOSED},
        _INDEX,
        (400, 413, 415),
    )
    for change, what in (("load", "Loads a model, or its new versions"), ("unload", "Stops serving a model")):
        operations[f"/v2/repository/models/{{model}}/{change}"] = _repository(
            f"{what}; refused without --admin-calls",
            {**_object(parameters=_change_parameters(change), required=()), **_CLOSED},
            _NOTHING,
            (400, 403, 404, 413, 415, 503),
            model,
        )
    return operations


def infer_example(manifest: Manifest) -> dict[str, Any]:
    """A valid v2 body for the model: two rows, the second as short as the model accepts, and padded."""
    first, second = documents.example_steps(manifest)
    tokens = manifest.input.kind == "tokens"
    blank = 0 if tokens else [0.0] * (manifest.input.features or 1)
    padded = [first, second + [blank] * (len(first) - len(second))]
    shape = [2, len(first)] if tokens else [2, len(first), manifest.input.features]
    steps = {"name": "tokens" if tokens else "values", "datatype": "INT64" if tokens else "FP32"}
    lengths = {"name": "lengths", "datatype": "INT32", "shape": [2], "data": [len(first), len(second)]}
    return {"inputs": [{**steps, "shape": shape, "data": padded}, lengths]}


def _v1_example(manifest: Manifest) -> dict[str, Any]:
    return {"instances": list(documents.example_steps(manifest))}


def _object(*, required: Sequence[str] | None = None, **properties: Schema) -> Schema:
    """An object with these properties, all of them required unless `required` says otherwise."""
    return {
        "type": "object",
        "required": list(properties if required is None else required),
        "properties": properties,
    }


def _change_parameters(change: str) -> Schema:
    """The parameters of a call that loads or unloads a model. None sets the model: it comes from the repository."""
    return {"type": "object", "properties": {name: {} for name in sorted(inventory.PARAMETERS[change])}, **_CLOSED}


_BOOLEAN: Final[Schema] = {"type": "boolean"}
_CLOSED: Final[Schema] = {"additionalProperties": False}
_METADATA: Final[Schema] = _object(
    name=_TEXT,
    versions=_TEXTS,
    platform=_TEXT,
    inputs={"type": "array", "items": _TENSOR_METADATA},
    outputs={"type": "array", "items": _TENSOR_METADATA},
)
_DURATION: Final[Schema] = _object(count={"type": "integer", "minimum": 0}, ns={"type": "integer", "minimum": 0})


def _durations(*names: str) -> Schema:
    return {"type": "object", "required": list(names), "properties": {name: _DURATION for name in names}}


_STAGES: Final = ("compute_input", "compute_infer", "compute_output")
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_STATISTICS: Final[Schema] = _object(
    model_stats={
        "type": "array",
        "items": {
            "title": "ModelStatistics",
            **_object(
                name=_TEXT,
                version=_TEXT,
                last_inference={**_COUNT, "description": "Milliseconds since the epoch; 0 before the first."},
                inference_count={**_COUNT, "description": "Sequences."},
                execution_count={**_COUNT, "description": "Batches."},
                inference_stats=_durations("success", "fail", "queue", *_STAGES, "cache_hit", "cache_miss"),
                batch_stats={"type": "array", "items": _durations(*_STAGES)},
            ),
        },
    }
)
_CONFIG_TENSOR: Final[Schema] = {
    "type": "object",
    "required": ["name", "data_type", "dims"],
    "properties": {
        "name": _TEXT,
        "data_type": _TEXT,
        "dims": {"type": "array", "items": {"type": "integer"}},
        "optional": _BOOLEAN,
    },
}
_CONFIG: Final[Schema] = {
    "title": "ModelConfig",
    **_object(
        name=_TEXT,
        platform=_TEXT,
        backend=_TEXT,
        version_policy=_NOTHING,
        max_batch_size={"type": "integer"},
        input={"type": "array", "items": _CONFIG_TENSOR},
        output={"type": "array", "items": _CONFIG_TENSOR},
        instance_group={"type": "array", "items": _NOTHING},
        default_model_filename=_TEXT,
        dynamic_batching=_NOTHING,
        parameters=_NOTHING,
    ),
}


def _get(tag: str, summary: str, answer: Schema, *parameters: Schema, unready: bool = False) -> Schema:
    """A GET. With `unready` its 503 has the form of its answer."""
    responses = {"200": _answered("The answer", answer)}
    if parameters:
        responses["404"] = _refused(REFUSALS["404"])
    if len(parameters) > 1:
        responses["400"] = _refused("That is no version")
    if unready or parameters:
        responses["503"] = _answered(REFUSALS["503"], {"anyOf": [answer, _ERROR]})
    return {"get": {"tags": [tag], "summary": summary, "parameters": list(parameters), "responses": responses}}


def _post(
    tag: str, summary: str, bodies: Mapping[str, Schema], answers: Mapping[str, Schema], *parameters: Schema
) -> Schema:
    """The description of an inference call, in which 400 takes the place of 422."""
    refusals = {"400" if status == "422" else status: _refused(text) for status, text in REFUSALS.items()}
    return {
        "post": {
            "tags": [tag],
            "summary": summary,
            "parameters": list(parameters),
            "requestBody": {"required": True, "content": dict(bodies)},
            "responses": {"200": {"description": "One row for each sequence", "content": dict(answers)}, **refusals},
        }
    }


def _repository(summary: str, body: Schema, answer: Schema, refusals: Sequence[int], *parameters: Schema) -> Schema:
    """A call of the repository extension."""
    descriptions = {
        400: "The body is wrong",
        403: "It is off",
        **{int(status): text for status, text in REFUSALS.items()},
    }
    return {
        "post": {
            "tags": ["repository"],
            "summary": summary,
            "parameters": list(parameters),
            "requestBody": {"required": False, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": _answered("Done", answer),
                **{str(one): _refused(descriptions[one]) for one in refusals},
            },
        }
    }


def _in_path(name: str, schema: Schema, examples: Mapping[str, Any]) -> Schema:
    return {"name": name, "in": "path", "required": True, **_body(schema, examples)}


def _body(schema: Schema, examples: Mapping[str, Any]) -> Schema:
    """A schema, with its examples if there are any."""
    shown = {name: {"value": value} for name, value in examples.items()}
    return {"schema": schema, "examples": shown} if shown else {"schema": schema}


def _answered(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _refused(description: str) -> Schema:
    return _answered(description, _ERROR)

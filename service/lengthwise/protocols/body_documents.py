"""The JSON Schemas of request bodies, made for the models that are served.

A body that its schema allows is not rejected as malformed. The schemas are made for each request of `/openapi.json`,
so they have the number of features, whether a value may be missing, and the vocabulary. JSON Schema cannot express that
a mask is as long as what it masks, that `data` has as many numbers as `shape` says, that no output is named twice, and
that masked steps and padding are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from lengthwise.batching.pending import MAX_PRIORITY
from lengthwise.decoding.calls import MAX_ID_CHARACTERS
from lengthwise.decoding.explanations import FLOAT32_BEYOND
from lengthwise.protocols import request_parameters, tensors
from lengthwise.protocols.tensors import LENGTHS
from lengthwise.runtime.manifest import Manifest

Schema: TypeAlias = dict[str, Any]

_ROUNDS_TO_INFINITY: Final = float(FLOAT32_BEYOND)
_INT32_MAX: Final = 2**31 - 1
_NEVER: Final = False
_BINARY: Final[Schema] = {"type": "null", "description": "A number only where the elements stand behind the JSON."}
_IDENTIFIER: Final[Schema] = {"type": "string", "maxLength": MAX_ID_CHARACTERS}
VERSION: Final[Schema] = {"type": "string", "pattern": "^[1-9][0-9]*$", "description": "Default: the highest good one."}
TIMEOUT_MS: Final[Schema] = {"type": "number", "exclusiveMinimum": 0}
PRIORITY: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MAX_PRIORITY, "default": 0}


def predict(manifests: Sequence[Manifest]) -> Schema:
    """The body of `POST /predict`."""
    names = {manifest.name for manifest in manifests}
    highest = _highest(manifests)
    forms = []
    for manifest in manifests:
        required = ["sequences", *(["model"] if len(names) > 1 else [])]
        required += [] if manifest is highest[manifest.name] else ["version"]
        forms.append(
            _object(
                {
                    "sequences": _sequences(manifest),
                    "model": {"const": manifest.name, "description": "Needed where several are served."},
                    "version": {**VERSION, "const": str(manifest.version)},
                    **options(manifest),
                },
                required,
                title=f"Call of {manifest.key}",
            )
        )
    named = {"model": {"type": "string"}, "version": VERSION}
    return _any(forms) or _object({"sequences": _ANY_SEQUENCES, **named, **_ANY_OPTIONS}, ["sequences"], title="Call")


def v1(manifests: Sequence[Manifest]) -> Schema:
    """The body of `POST /v1/models/{model}:predict`."""
    forms = [
        _object(
            {"instances": _sequences(manifest), **options(manifest)}, ["instances"], title=f"Call of {manifest.key}"
        )
        for manifest in _highest(manifests).values()
    ]
    return _any(forms) or _object({"instances": _ANY_SEQUENCES, **_ANY_OPTIONS}, ["instances"], title="V1Call")


def infer(manifests: Sequence[Manifest]) -> Schema:
    """The body of `POST /v2/models/{model}/infer`, without binary data."""
    forms = [
        _object(
            {
                "id": {**_IDENTIFIER, "type": ["string", "null"]},
                "model_name": {
                    "enum": [None, "", manifest.name],
                    "description": "As in the path; may be absent.",
                },
                "model_version": {
                    "enum": [None, "", str(manifest.version)],
                    "description": "As in the path; may be absent.",
                },
                "parameters": PARAMETERS,
                "inputs": _inputs(manifest),
                "outputs": {
                    "type": "array",
                    "items": _any([_output(form.name) for form in tensors.outputs_of(manifest)]),
                },
            },
            ["inputs"],
            title=f"InferRequest of {manifest.key}",
        )
        for manifest in manifests
    ]
    return _any(forms) or _object(
        {"inputs": {"type": "array", "minItems": 1}}, ["inputs"], title="InferRequest", open=True
    )


def options(manifest: Manifest) -> dict[str, Schema]:
    """The fields of a body besides its sequences."""
    known = [] if manifest.graph.attention is None else ["attention"]
    outputs: Schema = {"type": "array", "items": {"enum": known}} if known else {"type": "array", "maxItems": 0}
    return {"outputs": outputs, "timeout_ms": TIMEOUT_MS, "priority": PRIORITY}


def shape_header(manifests: Sequence[Manifest]) -> Schema:
    """The shape header of raw steps: `STEPS,FEATURES`, or of a token model `STEPS`."""
    forms = sorted({r"[0-9]+" if one.input.kind == "tokens" else rf"[0-9]+,{one.input.features}" for one in manifests})
    return {"type": "string", "pattern": f"^({'|'.join(forms)})$"} if forms else {"type": "string"}


def _highest(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """The default version of each name: the highest."""
    return {one.name: one for one in sorted(manifests, key=lambda one: one.version)}


def _steps(manifest: Manifest) -> Schema:
    schema: Schema = {"title": "Steps", "type": "array", "minItems": manifest.min_length, "items": _step(manifest)}
    return schema | ({"maxItems": manifest.max_length} if manifest.long == "reject" else {})


def _step(manifest: Manifest) -> Schema:
    if manifest.input.kind == "tokens":
        return {"type": "integer", "minimum": 0, "maximum": (manifest.input.vocabulary or 1) - 1}
    features = manifest.input.features or 1
    value = {
        "type": "number" if manifest.missing == "refuse" else ["number", "null"],
        "exclusiveMinimum": -_ROUNDS_TO_INFINITY,
        "exclusiveMaximum": _ROUNDS_TO_INFINITY,
    }
    row = {"type": "array", "items": value, "minItems": features, "maxItems": features}
    return row if features > 1 else {"anyOf": [row, value]}


def _sequences(manifest: Manifest) -> Schema:
    fields: dict[str, Any] = {
        "id": _IDENTIFIER,
        "steps": _steps(manifest),
        "step_mask": {
            "type": "array",
            "items": {"type": "boolean"},
            "minItems": manifest.min_length,
            "contains": {"const": True},
            **({"minContains": manifest.min_length} if manifest.min_length > 1 else {}),
            "description": "One entry for each step; false: it is left out as if it had never been sent.",
        },
    }
    if manifest.input.kind != "tokens":
        features = manifest.input.features or 1
        fields["feature_mask"] = {
            "type": "array",
            "items": {"const": True} if manifest.missing == "refuse" else {"type": "boolean"},
            "minItems": features,
            "maxItems": features,
            "description": "false: that feature counts as missing in every step.",
        }
    return {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_steps(manifest), _object(fields, ["steps"], title="Sequence")]},
    }


_ANY_SEQUENCES: Final[Schema] = {"type": "array", "minItems": 1, "items": {"type": ["array", "object"]}}
_ANY_OPTIONS: Final[dict[str, Schema]] = {
    "outputs": {"type": "array", "items": {"enum": ["attention"]}},
    "timeout_ms": TIMEOUT_MS,
    "priority": PRIORITY,
}
"""The sequences where no model is served: their form is not known."""


def _without(*names: str) -> dict[str, Any]:
    """A schema that forbids some parameters; all others are ignored."""
    return dict.fromkeys((*names, *request_parameters.SHARED_MEMORY), _NEVER)


PARAMETERS: Final[Schema] = {
    "type": "object",
    "description": "Unknown ones are ignored.",
    "properties": {
        "timeout_ms": TIMEOUT_MS,
        "priority": PRIORITY,
        "timeout": {"type": ["integer", "null"], "minimum": 1, "description": "Microseconds."},
        "binary_data_output": {"type": "boolean", "default": False},
        **{name: {"enum": list(request_parameters.NOT_ASKED)} for name in request_parameters.STATEFUL},
        **_without(request_parameters.CLASSIFICATION),
    },
}
"""Of a request of the Open Inference Protocol."""


def _inputs(manifest: Manifest) -> Schema:
    steps, lengths = tensors.inputs_of(manifest)
    least = (1, manifest.min_length, 1)
    axes: list[Schema] = [
        {"const": size} if size > 0 else {**_AT_LEAST_1, "minimum": fewest}
        for size, fewest in zip(steps.shape, least, strict=False)
    ]
    number: Schema = {"type": "integer" if manifest.input.kind == "tokens" else ["number", "null"]}
    nested = number
    for axis, size in reversed([*enumerate(steps.shape)]):
        nested = {
            "type": "array",
            "items": nested,
            "minItems": least[axis],
            **({"minItems": size, "maxItems": size} if size > 0 else {}),
        }
    end: Schema = {"type": "integer", "minimum": manifest.min_length, "maximum": _INT32_MAX}
    column = {"type": "array", "items": {"type": "array", "items": end, "minItems": 1, "maxItems": 1}, "minItems": 1}
    forms = [
        _tensor(steps.name, steps.datatypes, [axes], [{"type": "array", "items": number, "minItems": 1}, nested]),
        _tensor(
            LENGTHS,
            lengths.datatypes,
            [[_AT_LEAST_1], [_AT_LEAST_1, {"const": 1}]],
            [{"type": "array", "items": end, "minItems": 1}, column],
        ),
    ]
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {"anyOf": forms},
        "contains": {"type": "object", "properties": {"name": {"const": steps.name}}, "required": ["name"]},
        "maxContains": 1,
    }


_AT_LEAST_1: Final[Schema] = {"type": "integer", "minimum": 1}


def _tensor(name: str, datatypes: Sequence[str], shapes: Sequence[Sequence[Schema]], data: Sequence[Schema]) -> Schema:
    sizes = [
        {"type": "array", "prefixItems": list(axes), "minItems": len(axes), "maxItems": len(axes)} for axes in shapes
    ]
    return _object(
        {
            "name": {"const": name},
            "datatype": {"enum": list(datatypes)},
            "shape": _any(sizes),
            "data": {
                "anyOf": list(data),
                "description": "Flat, or nested as the shape says; null where one is missing.",
            },
            "parameters": {"type": "object", "properties": {"binary_data_size": _BINARY, **_without()}},
        },
        ["name", "datatype", "shape", "data"],
        title=f"InputTensor {name}",
    )


def _output(name: str) -> Schema:
    classes: Any = _AT_LEAST_1 if name == "probabilities" else _NEVER
    parameters = {"binary_data": {"type": "boolean"}, request_parameters.CLASSIFICATION: classes, **_without()}
    return _object(
        {"name": {"const": name}, "parameters": {"type": "object", "properties": parameters}},
        ["name"],
        title=f"RequestedOutput {name}",
    )


def _any(forms: Sequence[Schema]) -> Schema:
    """A schema that allows what any of some schemas allows; anything if there are none."""
    if len(forms) < 2:
        return dict(forms[0]) if forms else {}
    return {"anyOf": list(forms)}


def _object(properties: Mapping[str, Any], required: Sequence[str], *, title: str, open: bool = False) -> Schema:
    schema = {"title": title, "type": "object", "required": list(required), "properties": dict(properties)}
    return schema if open else schema | {"additionalProperties": False}

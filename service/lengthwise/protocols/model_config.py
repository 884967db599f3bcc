"""A model's configuration as Triton's model configuration extension has it: `GET /v2/models/MODEL/config`.

Tools such as perf_analyzer read from it what they may send. A request is a batch of rows, so shapes have no first axis:
`values` is `[-1, features]` with any number of steps. `lengths` is optional, because one row needs none.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from lengthwise.protocols import tensor_specs
from lengthwise.protocols.tensor_specs import LENGTHS, TensorSpec
from lengthwise.repository.served import ServedModel
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.serving import Serving
from lengthwise.versions import Policy

_TYPES: Final = {"BYTES": "TYPE_STRING"}
"""Where the extension's name of a datatype is not `TYPE_` and the protocol's."""


def of(serving: Serving, served: ServedModel) -> dict[str, Any]:
    """The configuration of a model in the JSON form of Triton's message `ModelConfig`."""
    manifest, settings = served.manifest, serving.settings
    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": _policy(settings.versions, manifest.name),
        "max_batch_size": settings.max_sequences,
        "input": [
            _tensor(form) | ({"optional": True} if form.name == LENGTHS else {})
            for form in tensor_specs.inputs_of(manifest)
        ],
        "output": [_tensor(form) for form in tensor_specs.outputs_of(manifest)],
        "instance_group": [_instances(serving, manifest)],
        "default_model_filename": GRAPH_FILE,
        "dynamic_batching": {"max_queue_delay_microseconds": round(settings.max_wait_ms * 1000)},
        "parameters": {name: {"string_value": value} for name, value in _parameters(manifest).items()},
    }


def _tensor(form: TensorSpec) -> dict[str, Any]:
    datatype = form.datatypes[0]
    return {
        "name": form.name,
        "data_type": _TYPES.get(datatype, f"TYPE_{datatype}"),
        "dims": list(form.shape[1:]),  # empty for an output with one entry a row
    }


def _policy(versions: str, name: str) -> dict[str, Any]:
    policy = Policy.parse(versions)
    if policy.named is not None:
        return {"specific": {"versions": sorted(key.version for key in policy.named if key.name == name)}}
    return {"latest": {"num_versions": 1}} if policy.one else {"all": {}}


def _instances(serving: Serving, manifest: Manifest) -> dict[str, Any]:
    devices = serving.choice.devices
    on_gpus = serving.choice.provider.bound
    return {
        "name": manifest.name,
        "kind": "KIND_GPU" if on_gpus else "KIND_CPU",
        "count": serving.runners,
        "gpus": [device.index for device in devices] if on_gpus else [],
    }


def _parameters(manifest: Manifest) -> dict[str, str]:
    """Fields of the manifest that the extension does not have, by name; values as JSON."""
    fields = {
        "task": manifest.task,
        "labels": manifest.labels,
        "min_length": manifest.min_length,
        "max_length": manifest.max_length,
        "long": manifest.long,
        "missing": manifest.missing,
        **({} if manifest.input.vocabulary is None else {"vocabulary": manifest.input.vocabulary}),
    }
    return {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in fields.items()}

"""The server and its models as the Open Inference Protocol describes them, for HTTP and gRPC."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import ConfigurationError, Draining, Forbidden, InvalidRequest, NotReady, Problem
from lengthwise.protocols import tensor_specs
from lengthwise.protocols.tensor_specs import TensorSpec
from lengthwise.repository.served import ServedModel
from lengthwise.serving import Serving

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
"""The extensions of the protocol, by the names that clients know."""
PARAMETERS: Final[Mapping[str, frozenset[str]]] = {"load": frozenset(), "unload": frozenset({"unload_dependents"})}
"""The parameters of the calls that change what is served."""
_PLATFORM: Final = "onnx_onnxv1"
_REPLACED: Final = "the files that replaced it are not served"
_BROKEN: Final = "it does not work now, and is tried again on a schedule"
_FOLDERS: Final = re.compile(r"(?<![\w/.])(?:/[^\s/:,;'\"]+)+/")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version in the index of the repository.

    Attributes:
        name: The model's name.
        version: The digits of its version.
        state: `READY` or `UNAVAILABLE`.
        reason: Why it is unavailable, or why the files that replaced it are; without paths of the server.
    """

    name: str
    version: str
    state: str
    reason: str


def server() -> dict[str, Any]:
    """The server's metadata."""
    return {
        "name": "lengthwise",
        "version": metadata.version("lengthwise"),
        "extensions": list(EXTENSIONS),
    }


def model(serving: Serving, served: ServedModel) -> dict[str, Any]:
    """A model's metadata: its served versions, and its tensors with -1 for an axis of any size."""
    manifest = served.manifest
    versions = sorted(other.manifest.version for other in serving.served if other.manifest.name == manifest.name)
    return {
        "name": manifest.name,
        "versions": [str(version) for version in versions],
        "platform": _PLATFORM,
        "inputs": [_tensor(form) for form in tensor_specs.inputs_of(manifest)],
        "outputs": [_tensor(form) for form in tensor_specs.outputs_of(manifest)],
    }


def index(serving: Serving, *, ready: bool) -> list[dict[str, Any]]:
    """Every version that is served or refused, and every unloaded model; if `ready`, only what is served."""
    repository = serving.repository
    reasons = {refusal.key: without_folders(refusal.reason, serving.settings.models) for refusal in repository.refused}
    served = {one.key: reasons.get(one.key) for one in repository}
    broken = {one.model.key for one in serving.served if one.queue.breaker.open}
    entries = [
        IndexEntry(
            key.name,
            str(key.version),
            "READY" if serving.ready and key not in broken else "UNAVAILABLE",
            _BROKEN if key in broken else "" if reason is None else f"{_REPLACED}: {reason}",
        )
        for key, reason in served.items()
    ]
    entries += [
        IndexEntry(key.name, str(key.version), "UNAVAILABLE", reason)
        for key, reason in reasons.items()
        if key not in served
    ]
    entries += [IndexEntry(name, "", "UNAVAILABLE", "unloaded") for name in sorted(repository.unloaded)]
    return [asdict(entry) for entry in entries if not ready or entry.state == "READY"]


async def load(serving: Serving, name: str, parameters: Mapping[str, Any]) -> None:
    """Loads a model from the repository, or its new versions; returns when it is served.

    Raises:
        InvalidRequest: Its highest version failed its checks; or there are parameters: clients cannot send models.
        RequestError: The call is switched off, or cannot be answered now, or there is no such model.
    """
    _check_changes(serving, parameters, PARAMETERS["load"])
    try:
        refusal = await serving.registry.load(name)
    except ConfigurationError as error:
        raise NotReady("the model repository cannot be read", retry_after_seconds=5) from error
    if refusal is not None:
        reason = without_folders(refusal.reason, serving.settings.models)
        raise InvalidRequest([Problem("", f"{refusal.path} is not served: {reason}")])


async def unload(serving: Serving, name: str, parameters: Mapping[str, Any]) -> None:
    """Unloads a model: new requests do not find it; those that have are answered.

    Raises:
        RequestError: The call is switched off, or cannot be answered now, or there is no such model.
    """
    _check_changes(serving, parameters, PARAMETERS["unload"])
    await serving.registry.unload(name)


def _check_changes(serving: Serving, parameters: Mapping[str, Any], known: frozenset[str]) -> None:
    if not serving.settings.admin_calls:
        raise Forbidden("load and unload are off; --admin-calls turns them on")
    if serving.batcher.draining:
        raise Draining("the server is shutting down", retry_after_seconds=1)
    if not serving.started:
        raise NotReady("the server is starting", retry_after_seconds=1)
    unknown = sorted(parameters.keys() - known)
    if unknown:
        detail = "is not accepted: a model comes from the repository as it is"
        raise InvalidRequest([Problem(f"/parameters/{name}", detail) for name in unknown[:20]], total=len(unknown))


def without_folders(reason: str, models: Path) -> str:
    """A reason without the folders of this machine in its file names."""
    for folder in {str(models), str(models.resolve())}:
        reason = reason.replace(f"{folder}/", "")
    return _FOLDERS.sub("", reason)


def _tensor(form: TensorSpec) -> dict[str, Any]:
    return {"name": form.name, "datatype": form.datatypes[0], "shape": list(form.shape)}

"""What the Open Inference Protocol tells of a server and its models, over HTTP and over gRPC alike."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NoReturn

from service import tensors
from service.errors import Forbidden
from service.serving import Served, Serving
from service.tensors import Form

_PLATFORM: Final = "onnx_onnxv1"
_FOLDERS: Final = re.compile(r"(?<![\w/.])(?:/[^\s/:,;'\"]+)+/")


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the repository.

    Attributes:
        name: The model's name.
        version: Its digits.
        state: `READY` or `UNAVAILABLE`.
        reason: Why it is unavailable; no path of the server's stands in it.
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
        "extensions": ["binary_tensor_data", "model_repository"],
    }


def model(serving: Serving, served: Served) -> dict[str, Any]:
    """A model's metadata: its good versions, and its tensors with -1 for a free axis."""
    manifest = served.manifest
    versions = sorted(other.manifest.version for other in serving.served if other.manifest.name == manifest.name)
    return {
        "name": manifest.name,
        "versions": [str(version) for version in versions],
        "platform": _PLATFORM,
        "inputs": [_tensor(form) for form in tensors.inputs_of(manifest)],
        "outputs": [_tensor(form) for form in tensors.outputs_of(manifest)],
    }


def index(serving: Serving, *, ready: bool) -> list[dict[str, Any]]:
    """Every version in the repository; only those that are served, where `ready` is wanted."""
    entries = [
        Entry(served.manifest.name, str(served.manifest.version), "READY" if serving.ready else "UNAVAILABLE", "")
        for served in serving.served
    ]
    for refusal in serving.repository.refused:
        name, _, version = refusal.path.partition("/")
        entries.append(Entry(name, version, "UNAVAILABLE", without_folders(refusal.reason, serving.settings.models)))
    return [asdict(entry) for entry in entries if not ready or entry.state == "READY"]


def change(serving: Serving) -> NoReturn:
    """Loads or unloads a model.

    Raises:
        Forbidden: Always: models are loaded at the start; and without `admin_calls` nobody may ask.
    """
    if not serving.settings.admin_calls:
        raise Forbidden("load and unload are off; --admin-calls turns them on")
    raise Forbidden("this server loads its models at its start; to load or unload one, start it again")


def without_folders(reason: str, models: Path) -> str:
    """A reason in which files stand without the folders of this machine."""
    for folder in {str(models), str(models.resolve())}:
        reason = reason.replace(f"{folder}/", "")
    return _FOLDERS.sub("", reason)


def _tensor(form: Form) -> dict[str, Any]:
    return {"name": form.name, "datatype": form.datatypes[0], "shape": list(form.shape)}

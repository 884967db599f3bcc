"""What a device promised when a model was proved on it, kept in the model directory: the next start need not prove it.

`promises.json` is no part of what was published, so no digest names it, as of kept costs. An entry holds under its
conditions: provider and device, processor, onnxruntime and graph. Where the directory cannot be written, every start
proves anew. An entry tells the cases that were measured, each with its figure.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise import files
from lengthwise.runtime.installation import processor
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest, Promise
from lengthwise.runtime.session import RUNTIME_VERSION, Session

log = logging.getLogger("lengthwise.promises")

FILE = "promises.json"
MOST_BYTES: Final = 2**24
"""Largest file of promises that is read."""


def conditions(manifest: Manifest, session: Session) -> dict[str, str]:
    """Under which a promise holds: another device, runtime or graph is proved by itself."""
    return {
        "provider": session.provider,
        "recurrent_kernels": session.kernels,
        "processor": processor(),
        "onnxruntime": RUNTIME_VERSION,
        "graph": manifest.digests.get(GRAPH_FILE, ""),
    }


def read(directory: Path, wanted: dict[str, str]) -> Promise | None:
    """The promise that was kept under these conditions, or None."""
    return of(files.read_if_any(directory / FILE, MOST_BYTES), wanted, source=str(directory / FILE))


def of(kept: bytes | None, wanted: dict[str, str], *, source: str = FILE) -> Promise | None:
    """The same of the file's content; None where there is no file."""
    for entry in _entries(kept, source):
        if entry["conditions"] == wanted:
            return Promise.model_validate(entry["promise"])
    return None


def write(directory: Path, under: dict[str, str], promise: Promise, cases: Sequence[Mapping[str, Any]]) -> Path:
    """Keeps a promise beside those of other devices; whoever reads sees the old file or the new one.

    Args:
        directory: The model's.
        under: The conditions.
        promise: What holds under them.
        cases: What was measured, as `Case.as_json` writes it.

    Raises:
        OSError: The directory cannot be written.
    """
    before = _entries(files.read_if_any(directory / FILE, MOST_BYTES), str(directory / FILE))
    others = [entry for entry in before if entry["conditions"] != under]
    new = {"conditions": under, "promise": promise.model_dump(), "cases": list(cases)}
    path = directory / FILE
    content = json.dumps({"promises": [*others, new]}, indent=1, allow_nan=False) + "\n"
    files.replace(path, content.encode())
    return path


def _entries(kept: bytes | None, source: str) -> list[dict[str, Any]]:
    """The entries of the file; none where there is none, or one that cannot be read."""
    if kept is None:
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(kept)["promises"]
        for entry in entries:
            entry["conditions"].items()
            Promise.model_validate(entry["promise"])
        json.dumps(entries, allow_nan=False)
    except Exception as error:  # no digest vouches for it: whatever is in it, the model can be proved
        log.warning("%s is passed over, the model is proved anew: %.200r", source, error)
        return []
    return entries

"""`promises.json`: promises of devices, stored in the model directory, so that the next start need not measure.

The exporter does not publish this file, so the manifest has no digest of it (nor of `costs.json`). An entry is valid
under its conditions: provider and device, kernels, processor, onnxruntime and graph. It also has the measured cases. If
the directory is not writable, every start measures again.
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
from lengthwise.runtime.opening import RUNTIME_VERSION
from lengthwise.runtime.session import Session

log = logging.getLogger("lengthwise.promises")

FILE = "promises.json"
MOST_BYTES: Final = 2**24
"""Largest file that is read, in bytes."""


def conditions(manifest: Manifest, session: Session) -> dict[str, str]:
    """The conditions under which a promise of this session is valid; under others, it has to be measured again."""
    return {
        "provider": session.provider,
        "recurrent_kernels": session.kernels,
        "processor": processor(),
        "onnxruntime": RUNTIME_VERSION,
        "graph": manifest.digests.get(GRAPH_FILE, ""),
    }


def find(content: bytes | None, required: dict[str, str]) -> Promise | None:
    """Returns the stored promise that is valid under the required conditions; None if there is none.

    Args:
        content: The content of `promises.json`; None if there is no such file.
        required: The conditions here, as `conditions` returns them.
    """
    promises = (entry["promise"] for entry in _entries(content, FILE) if entry["conditions"] == required)
    return next(map(Promise.model_validate, promises), None)


def write(directory: Path, valid_under: dict[str, str], promise: Promise, cases: Sequence[Mapping[str, Any]]) -> None:
    """Stores a promise and its measured cases in `promises.json`, atomically.

    It replaces a stored promise that is valid under the same conditions; promises under other conditions stay.
    """
    path = directory / FILE
    entries = [
        entry
        for entry in _entries(files.read_if_any(path, MOST_BYTES), str(path))
        if entry["conditions"] != valid_under
    ]
    entries.append({"conditions": valid_under, "promise": promise.model_dump(), "cases": list(cases)})
    content = json.dumps({"promises": entries}, indent=1, allow_nan=False) + "\n"
    files.replace(path, content.encode())


def _entries(content: bytes | None, source: str) -> list[dict[str, Any]]:
    """Parses the entries of `promises.json`.

    Returns none if there is no file (`content` is None). If it is malformed, logs a warning, and returns none either.
    `source` is the file's name for the log.
    """
    if content is None:
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(content)["promises"]
        for entry in entries:
            entry["conditions"].items()
            Promise.model_validate(entry["promise"])
        json.dumps(entries, allow_nan=False)
    except Exception as error:  # no digest protects the file, so it may hold anything; the model can be verified again
        log.warning("%s is ignored, the model is verified again: %.200r", source, error)
        return []
    return entries

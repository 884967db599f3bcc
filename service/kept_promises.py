"""What a device promised when a model was proved on it, kept in the model directory: the next start need not prove it.

`promises.json` is no part of what was published, so no digest names it, as of kept costs. An entry holds under its
conditions: provider and device, processor, onnxruntime and graph. Where the directory cannot be written, every start
proves anew. An entry tells the cases that were measured, each with its figure.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.kept_costs import processor
from service.manifest import GRAPH_FILE, Manifest, Promise
from service.proof import Case
from service.session import RUNTIME_VERSION, Session

log = logging.getLogger("lengthwise.promises")

FILE = "promises.json"


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
    for entry in _entries(directory):
        if entry["conditions"] == wanted:
            return Promise.model_validate(entry["promise"])
    return None


def write(directory: Path, under: dict[str, str], promise: Promise, cases: Sequence[Case]) -> Path:
    """Keeps a promise beside those of other devices; whoever reads sees the old file or the new one.

    Raises:
        OSError: The directory cannot be written.
    """
    others = [entry for entry in _entries(directory) if entry["conditions"] != under]
    new = {"conditions": under, "promise": promise.model_dump(), "cases": [case.as_json() for case in cases]}
    path = directory / FILE
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps({"promises": [*others, new]}, indent=1, allow_nan=False) + "\n")
    aside.replace(path)
    return path


def _entries(directory: Path) -> list[dict[str, Any]]:
    """The entries of the file; none where there is none, or one that cannot be read."""
    path = directory / FILE
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_bytes())["promises"]
        for entry in entries:
            entry["conditions"].items()
            Promise.model_validate(entry["promise"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s is passed over, the model is proved anew: %r", path, error)
        return []
    return entries

"""`costs.json`: a cost table in the model directory, of no digest, so that the next start need not measure."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from lengthwise import files
from lengthwise.batching.cost import CostTable
from lengthwise.batching.plan import BatchLimits
from lengthwise.runtime.installation import processor
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.opening import RUNTIME_VERSION
from lengthwise.runtime.session import CPU_LABEL, Session

log = logging.getLogger("lengthwise.costs")

FILE = "costs.json"
MOST_BYTES: Final = 2**24  # of the file
_METHOD = 4  # of measuring; a table of another version is not used


def conditions(manifest: Manifest, session: Session, limits: BatchLimits) -> dict[str, str | int]:
    """The conditions under which a table is valid; another processor, runtime, graph or limit needs another table."""
    return {
        "processor": processor()
        if session.provider == CPU_LABEL
        else "",  # a device's own name is part of its provider's
        "provider": session.provider,
        "recurrent_kernels": session.kernels,
        "onnxruntime": RUNTIME_VERSION,
        "graph": manifest.digests.get(GRAPH_FILE, ""),
        "max_batch_rows": limits.rows,
        "max_batch_cost_steps": limits.padded_steps,
        "method": _METHOD,
    }


def of(
    content: bytes | None, wanted: dict[str, str | int], *, clock: Callable[[], float] = time.thread_time
) -> CostTable | None:
    """The table of a file's content, if stored under these conditions; `clock` is that of `CostTable`."""
    if content is None:
        return None
    try:
        stored: Any = json.loads(content)
        if stored["conditions"] != wanted:
            return None
        return CostTable.from_json(stored["table"], clock=clock)
    except Exception as error:  # no digest protects the file, so it may hold anything; the costs can be measured
        log.warning("%s is ignored, the costs are measured: %.200r", FILE, error)
        return None


def keep(directory: Path, under: Mapping[str, str | int], table: Mapping[str, Any]) -> None:
    """Stores a table (`CostTable.to_json`) in the model directory, if that is writable, for the next load."""
    try:
        files.replace(directory / FILE, (json.dumps({"conditions": under, "table": table}, indent=1) + "\n").encode())
    except OSError as error:
        log.info("the costs cannot be stored in %s, so every load measures them: %s", directory, error.strerror)

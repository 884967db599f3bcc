"""A cost table kept in its model directory, for services under the same conditions: they start without measuring.

`costs.json` is no part of what was published and proved, so no digest names it: a table that cannot be read, or was
measured elsewhere, is passed over, and the service measures. `lengthwise bench MODEL --costs --save` writes it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lengthwise import files
from lengthwise.batching.cost import CostTable
from lengthwise.batching.plan import BatchLimits
from lengthwise.runtime.installation import processor
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.session import CPU_LABEL, RUNTIME_VERSION, Session

log = logging.getLogger("lengthwise.costs")

FILE = "costs.json"
MOST_BYTES: Final = 2**24
"""Largest file of costs that is read."""
_METHOD = 2
"""Of measuring; a table that was measured by another is measured anew."""


def conditions(manifest: Manifest, session: Session, limits: BatchLimits) -> dict[str, str | int]:
    """Under which a table holds: another processor, runtime, graph or limit makes it another table."""
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


def read(
    directory: Path, wanted: dict[str, str | int], *, clock: Callable[[], float] = time.thread_time
) -> CostTable | None:
    """The table that was kept under these conditions, or None; serving learns by `clock`."""
    return of(files.read_if_any(directory / FILE, MOST_BYTES), wanted, clock=clock, source=str(directory / FILE))


def of(
    kept: bytes | None,
    wanted: dict[str, str | int],
    *,
    clock: Callable[[], float] = time.thread_time,
    source: str = FILE,
) -> CostTable | None:
    """The same of the file's content; None where there is no file."""
    if kept is None:
        return None
    try:
        told: Any = json.loads(kept)
        if told["conditions"] != wanted:
            return None
        return CostTable.from_json(told["table"], clock=clock)
    except Exception as error:  # no digest vouches for it: whatever is in it, the costs can be measured
        log.warning("%s is passed over, the costs are measured: %.200r", source, error)
        return None


def write(directory: Path, under: dict[str, str | int], table: CostTable) -> Path:
    """Keeps a table; whoever reads sees the old file or the new one.

    Raises:
        OSError: The directory cannot be written.
    """
    path = directory / FILE
    content = json.dumps({"conditions": under, "table": table.to_json()}, indent=1) + "\n"
    files.replace(path, content.encode())
    return path

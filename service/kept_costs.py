"""A cost table kept in its model directory, for services under the same conditions: they start without measuring.

`costs.json` is no part of what was published and proved, so no digest names it: a table that cannot be read, or was
measured elsewhere, is passed over, and the service measures. `lengthwise bench MODEL --costs --save` writes it.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from service import files
from service.cost import CostTable
from service.manifest import GRAPH_FILE, Manifest
from service.plan import BatchLimits
from service.session import CPU, RUNTIME_VERSION, Session

log = logging.getLogger("lengthwise.costs")

FILE = "costs.json"
MOST_BYTES: Final = 2**24
"""Largest file of this kind that is read."""
_METHOD = 2
"""Of measuring; a table that was measured by another is measured anew."""


def conditions(manifest: Manifest, session: Session, limits: BatchLimits) -> dict[str, str | int]:
    """Under which a table holds: another processor, runtime, graph or limit makes it another table."""
    return {
        "processor": processor() if session.provider == CPU else "",  # a device's own name is part of its provider's
        "provider": session.provider,
        "recurrent_kernels": session.kernels,
        "onnxruntime": RUNTIME_VERSION,
        "graph": manifest.digests.get(GRAPH_FILE, ""),
        "max_batch_rows": limits.rows,
        "max_batch_cost_steps": limits.cost_steps,
        "method": _METHOD,
    }


def read(
    directory: Path, wanted: dict[str, str | int], *, clock: Callable[[], float] = time.thread_time
) -> CostTable | None:
    """The table that was kept under these conditions, or None; serving learns by `clock`."""
    return of(content(directory, FILE), wanted, clock=clock, source=str(directory / FILE))


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


def content(directory: Path, name: str) -> bytes | None:
    """The content of a file that no digest vouches for; None where there is none that can be read."""
    try:
        return files.read(directory / name, MOST_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, MemoryError) as error:
        log.warning("%s is passed over: %.200r", directory / name, error)
        return None


def write(directory: Path, under: dict[str, str | int], table: CostTable) -> Path:
    """Keeps a table; whoever reads sees the old file or the new one.

    Raises:
        OSError: The directory cannot be written.
    """
    path = directory / FILE
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps({"conditions": under, "table": table.to_json()}, indent=1) + "\n")
    aside.replace(path)
    return path


def processor() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {platform.machine()}"

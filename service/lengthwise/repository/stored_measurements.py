"""What a load stores beside a model, so that the next load need not measure it: `costs.json` and `kernels.json`.

Each file has the *conditions* under which it was measured, and is valid only under the same. No digest protects these
files, so they may hold anything: stored costs are used only if some runs agree with them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from lengthwise import files
from lengthwise.batching.limits import BatchLimits
from lengthwise.runtime.installation import processor
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.opening import RUNTIME_VERSION
from lengthwise.runtime.session import CPU_LABEL, Session

log = logging.getLogger("lengthwise.measurements")

T = TypeVar("T")

COSTS_FILE: Final = "costs.json"
KERNELS_FILE: Final = "kernels.json"
_COSTS_METHOD: Final = 8  # the version of the way to measure, a condition: raised when that changes
_KERNELS_METHOD: Final = 1  # the same for kernels


def kernel_conditions(manifest: Manifest, session: Session) -> dict[str, str | int]:
    """The conditions under which a choice of kernels holds: on another processor they must be timed again."""
    return {
        "processor": processor() if session.provider == CPU_LABEL else "",  # a device's name is part of its provider's
        "recurrent_kernels": session.kernels,
        "onnxruntime": RUNTIME_VERSION,
        "graph": manifest.digests.get(GRAPH_FILE, ""),
        "method": _KERNELS_METHOD,
    }


def cost_conditions(manifest: Manifest, session: Session, limits: BatchLimits) -> dict[str, str | int]:
    """The conditions of a cost table: another processor, runtime, graph or limit needs another table."""
    return kernel_conditions(manifest, session) | {
        "provider": session.provider,
        "max_batch_rows": limits.rows,
        "max_batch_cost_steps": limits.padded_steps,
        "method": _COSTS_METHOD,
    }


def read(content: bytes | None, conditions: Mapping[str, str | int], parse: Callable[[Any], T], name: str) -> T | None:
    """Reads what was measured from a stored file; None if it has to be measured anew.

    That is so if there is no file, if it was stored under other conditions, or if it cannot be read, which is logged.

    Args:
        content: The content of the file; None if there is no file.
        conditions: The conditions here.
        parse: Gets the JSON of the file, and returns the result.
        name: The name of the file, for the log.
    """
    if content is None:
        return None
    try:
        stored: Any = json.loads(content)
        return parse(stored) if stored["conditions"] == conditions else None
    except Exception as error:
        log.warning("%s is ignored, and measured again: %.200r", name, error)
        return None


def write(path: Path, conditions: Mapping[str, str | int], **content: Any) -> None:
    """Stores the `content` that was measured under these conditions; OSError if the directory is not writable."""
    files.replace(path, (json.dumps({"conditions": conditions, **content}, indent=1) + "\n").encode())

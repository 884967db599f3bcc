"""What a section found, written down as soon as it is found: what is cut short keeps what it had."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import print_exception
from typing import Any

import numpy as np


class Figures:
    """A section's figures by name.

    Args:
        path: Where they are written at each change; None to keep them in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.found: dict[str, Any] = {}

    def note(self, **found: Any) -> None:
        """Adds figures; a mapping is merged into one of the same name."""
        for name, value in found.items():
            held = self.found.get(name)
            if isinstance(held, dict) and isinstance(value, dict):
                held.update(plain(value))
            else:
                self.found[name] = plain(value)
        if self._path is not None:
            write(self._path, self.found)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Notes what goes wrong in the block under `failures`, so that the rest can still be measured."""
        try:
            yield
        except Exception as error:  # whatever it is, it is told
            print_exception(error)
            self.note(failures={what: f"{type(error).__name__}: {error}"})


def write(path: Path, data: Any) -> None:
    """JSON, by rename: whoever reads sees the file before or the one after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read(path: Path) -> Any:
    """What `write` wrote; None where nothing can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def plain(value: Any) -> Any:
    """What JSON can hold: NumPy's scalars as Python's, and null for what is not finite."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

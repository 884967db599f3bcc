"""A section's figures, written at each change: a section that is cut short keeps those it had."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import print_exception
from typing import Any

import orjson


class Figures:
    """A section's figures by name, which are written to a file, where one is given, at each change."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.values: dict[str, Any] = {}

    def note(self, **figures: Any) -> None:
        """Adds figures; a mapping is merged into one of the same name."""
        for name, value in figures.items():
            held = self.values.get(name)
            if isinstance(held, dict) and isinstance(value, dict):
                held.update(plain(value))
            else:
                self.values[name] = plain(value)
        if self._path is not None:
            write(self._path, self.values)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Notes an error of the block under `failures`, so that the rest can still be measured."""
        try:
            yield
        except Exception as error:  # every kind is reported
            print_exception(error)
            self.note(failures={what: f"{type(error).__name__}: {error}"})


def write(path: Path, data: Any) -> None:
    """JSON, by rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read(path: Path) -> Any:
    """A file of `write`; None where it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def plain(value: Any) -> Any:
    """A value as JSON has it: NumPy's numbers and arrays as Python's, and null for what is not finite."""
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS))

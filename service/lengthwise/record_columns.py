"""The columns of record files (`monitoring.record_file`), and which of them an operator may leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

COLUMNS: Final = (
    "id",
    "steps",
    "length",
    "model",
    "version",
    "answer",
    "probabilities",
    "request",
    "arrived",
    "queue_seconds",
    "inference_seconds",
)
NEEDED: Final = frozenset({"length", "model", "version", "request", "arrived"})
"""Columns that hold nothing of a caller's data, and without which no load can be replayed."""


def check_columns(left_out: Sequence[str]) -> None:
    """Checks the columns that an operator leaves out.

    Raises:
        ValueError: There is no such column, or a replay needs it.
    """
    optional = ", ".join(name for name in COLUMNS if name not in NEEDED)
    for name in left_out:
        if name not in COLUMNS:
            raise ValueError(f"there is no column {name!r}; these can be left out: {optional}")
        if name in NEEDED:
            raise ValueError(f"the column {name!r} cannot be left out; these can: {optional}")

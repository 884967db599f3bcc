"""The counts of one process in memory that others can read, and that remains when the process has been killed.

The memory has a row for each model, with its labels and the cells of its `ModelMetrics`, and a row for each key with a
name that called it. A cell is written at once, at the end of each call and batch, so of a killed process only the
counts are missing that it had not made yet. (The multiprocess mode of prometheus-client looks up and packs a value and
its time for each count.)

The first byte of a label is written last and cleared first, so a process that is killed meanwhile leaves no incomplete
label. Before the rows is the number of rows that were ever in use: a reader looks at no others.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Final, cast

import numpy as np

from lengthwise.telemetry.families import CELLS
from lengthwise.telemetry.snapshots import CountRows

LABEL_BYTES: Final = 336
"""Of a row: a model's name of 255 bytes, the digits of a version, and the name of a key, on lines of their own."""
ROW_BYTES: Final = LABEL_BYTES + 8 * CELLS
_MODELS: Final = range(512)
"""The rows of models."""
_NAMES: Final = range(512, 1024)
"""The rows of keys with names: one for each key and model that it called."""
HEAD_BYTES: Final = 8
"""The number of rows in use, as int64."""
BYTES: Final = HEAD_BYTES + _NAMES.stop * ROW_BYTES


class SharedCounts:
    """The rows of one process in `[BYTES]` of shared memory, all zero at first."""

    def __init__(self, memory: memoryview) -> None:
        self._used = memory[:HEAD_BYTES].cast("q")  # rows that were ever in use
        self._memory = memory[HEAD_BYTES:]
        self._claimed: dict[tuple[str, ...], int] = {}  # the row of each (name, version[, key])

    def claim(self, name: str, version: str, *key: str) -> MutableSequence[float] | None:
        """Reserves a row for a model, or for a `key` that called the model; returns its cells, all zero.

        None if no row is free, or if the names are longer than a label may be.
        """
        claimed, label = set(self._claimed.values()), "\n".join((name, version, *key)).encode()
        row = next((row for row in (_NAMES if key else _MODELS) if row not in claimed), None)
        if row is None or len(label) >= LABEL_BYTES:
            return None
        self._claimed[name, version, *key] = row
        self._used[0] = max(self._used[0], row + 1)
        # The first byte last: a row without it is not in use.
        self._label(row)[1 : len(label)] = label[1:]
        self._label(row)[0] = label[0]
        return self._cells(row)

    def release(self, name: str, version: str) -> None:
        """Frees the rows of a model that is counted no more, and of the keys that called it."""
        for labels in [key for key in self._claimed if key[:2] == (name, version)]:
            self._clear(self._claimed.pop(labels))

    def counts(self) -> tuple[CountRows, CountRows]:
        """Copies the counts in the memory, whichever process has written them.

        Returns:
            The cells of each model, by (name, version); and those of each key, by (name, version, key). Keys of a model
            whose row is gone are left out.
        """
        rows = {labels: np.array(self._cells(row)) for labels, row in self._rows().items()}
        models = {labels: cells for labels, cells in rows.items() if not labels[2:]}
        return models, {labels: cells for labels, cells in rows.items() if labels[2:] and labels[:2] in models}

    def model_rows(self) -> dict[tuple[str, str], int]:
        """The row number of each counted model, by (name, version), whichever process has written it."""
        return {(labels[0], labels[1]): row for labels, row in self._rows().items() if not labels[2:]}

    def clear(self) -> None:
        """Clears all rows for the next process."""
        for row in range(self._used[0]):
            self._clear(row)
        self._used[0] = 0

    def _rows(self) -> dict[tuple[str, ...], int]:
        """The row number of each label that is complete, by (name, version[, key])."""
        row_labels = ((row, bytes(self._label(row)).rstrip(b"\0")) for row in range(self._used[0]))
        return {tuple(label.decode().split("\n")): row for row, label in row_labels if label and label[0]}

    def _clear(self, row: int) -> None:
        """Clears a row: first the first byte of its label, and then all of it."""
        first = row * ROW_BYTES
        self._memory[first] = 0
        self._memory[first : first + ROW_BYTES] = bytes(ROW_BYTES)

    def _label(self, row: int) -> memoryview:
        return self._memory[row * ROW_BYTES : row * ROW_BYTES + LABEL_BYTES]

    def _cells(self, row: int) -> MutableSequence[float]:
        """The cells of a row, as a view of the memory."""
        first, end = row * ROW_BYTES + LABEL_BYTES, (row + 1) * ROW_BYTES
        return cast("MutableSequence[float]", self._memory[first:end].cast("d"))

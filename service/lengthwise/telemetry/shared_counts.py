"""The counts of one process in memory that others can read, and that is still there when it has been killed.

The memory has a row for each model, its labels and the cells of its `ModelMetrics`, and one for each key with a name
that called it. A cell is written where a list would be, at the end of each call and batch, so of a process that is
killed only those counts are missing that it had not made yet. (The multiprocess mode of prometheus-client looks up and
packs a value and its time for each count.)

The first byte of a label is written last and cleared first: a process that is killed meanwhile leaves no half of one.
Before the rows stands how many were ever in use, so that whoever reads them touches no others.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Final, cast

from lengthwise.telemetry.metrics import CELLS, STATUSES, ModelMetrics

LABEL_BYTES: Final = 336
"""A folder's name of 255 bytes, the digits of a version, and the name of a key."""
_MODELS: Final = 512
"""Models at once."""
_NAMES: Final = 1024
"""Names of keys, each for every model that was called with it."""
HEAD_BYTES: Final = 8
MODELS_BYTES: Final = HEAD_BYTES + _MODELS * (LABEL_BYTES + 8 * CELLS)
BYTES: Final = MODELS_BYTES + HEAD_BYTES + _NAMES * (LABEL_BYTES + 8 * len(STATUSES))


class SharedCounts:
    """The rows of one process in `[BYTES]` of shared memory, all zero at first."""

    def __init__(self, memory: memoryview) -> None:
        self._models = _Rows(memory[:MODELS_BYTES], CELLS)
        self._names = _Rows(memory[MODELS_BYTES:], len(STATUSES))

    def claim(self, name: str, version: str, *key: str) -> MutableSequence[float] | None:
        """The cells of a model, or of a key that called it; all zero. None if no row is left."""
        return (self._names if key else self._models).claim((name, version, *key))

    def release(self, name: str, version: str) -> None:
        """Frees the rows of a model that is counted no more."""
        for rows in (self._models, self._names):
            rows.release((name, version))

    def models(self) -> Iterator[ModelMetrics]:
        """What was counted, by whichever process."""
        names = self._names.places()
        for labels, place in self.places().items():
            model = ModelMetrics(*labels, cells=list(self._models.cells(place)))
            for (*called, key), row in names.items():
                if (*called,) == labels:
                    model.named[key] = list(self._names.cells(row))
            yield model

    def places(self) -> dict[tuple[str, str], int]:
        """The place of each model, a name and a version, that is counted, by whichever process."""
        return {(name, version): place for (name, version), place in self._models.places().items()}

    def clear(self) -> None:
        """Makes all of it zero, for the next process."""
        for rows in (self._models, self._names):
            rows.clear()


class _Rows:
    """Rows of labels and as many `cells` each, as many as the memory has room for."""

    def __init__(self, memory: memoryview, cells: int) -> None:
        self._used = memory[:HEAD_BYTES].cast("q")  # rows that were ever in use
        self._memory = memory[HEAD_BYTES:]
        self._bytes = LABEL_BYTES + 8 * cells
        self._places = range(len(self._memory) // self._bytes)
        self._claimed: dict[tuple[str, ...], int] = {}

    def claim(self, labels: tuple[str, ...]) -> MutableSequence[float] | None:
        """The cells of a row that is free; None if there is none, or the labels are too long."""
        claimed = set(self._claimed.values())
        free = next((place for place in self._places if place not in claimed), None)
        label = "\n".join(labels).encode()
        if free is None or len(label) >= LABEL_BYTES:
            return None
        self._claimed[labels] = free
        self._used[0] = max(self._used[0], free + 1)
        self._label(free)[1 : len(label)] = label[1:]
        self._label(free)[0] = label[0]
        return self.cells(free)

    def release(self, first: tuple[str, ...]) -> None:
        """Frees the rows whose labels begin with these."""
        for labels in [each for each in self._claimed if each[: len(first)] == first]:
            self._clear(self._claimed.pop(labels))

    def places(self) -> dict[tuple[str, ...], int]:
        """The row of each labels, by whichever process."""
        written = ((place, bytes(self._label(place)).rstrip(b"\0")) for place in self._places[: self._used[0]])
        return {tuple(label.decode().split("\n")): place for place, label in written if label and label[0]}

    def clear(self) -> None:
        """Makes all rows zero."""
        for place in self._places[: self._used[0]]:
            self._clear(place)
        self._used[0] = 0

    def cells(self, place: int) -> MutableSequence[float]:
        """The cells of a row."""
        first = place * self._bytes
        return cast("MutableSequence[float]", self._memory[first + LABEL_BYTES : first + self._bytes].cast("d"))

    def _clear(self, place: int) -> None:
        first = place * self._bytes
        self._memory[first] = 0
        self._memory[first : first + self._bytes] = bytes(self._bytes)

    def _label(self, place: int) -> memoryview:
        first = place * self._bytes
        return self._memory[first : first + LABEL_BYTES]

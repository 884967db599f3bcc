"""The counts of one process in memory that others can read, and that is still there when it has been killed.

The memory has a row for each model, its labels and the cells of its `ModelMetrics`, and one for each key with a name
that called it. A cell is written where a list would be, at the end of each call and batch, so of a process that is
killed only those counts are missing that it had not made yet. (The multiprocess mode of prometheus-client looks up and
packs a value and its time for each count.)
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Final, cast

from lengthwise.telemetry.metrics import CELLS, STATUSES, ModelMetrics

_LABEL_BYTES: Final = 336
"""A folder's name of 255 bytes, the digits of a version, and the name of a key."""
_MODELS: Final = 512
"""Models at once. Memory that was never written takes none."""
_NAMES: Final = 1024
"""Names of keys, each for every model that was called with it."""
_MODELS_BYTES: Final = _MODELS * (_LABEL_BYTES + 8 * CELLS)
BYTES: Final = _MODELS_BYTES + _NAMES * (_LABEL_BYTES + 8 * len(STATUSES))


class SharedCounts:
    """The rows of one process in `[BYTES]` of shared memory, all zero at first."""

    def __init__(self, memory: memoryview) -> None:
        self._models = _Rows(memory[:_MODELS_BYTES], CELLS)
        self._names = _Rows(memory[_MODELS_BYTES:], len(STATUSES))

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
        self._memory = memory
        self._bytes = _LABEL_BYTES + 8 * cells
        self._places = range(len(memory) // self._bytes)
        self._claimed: dict[tuple[str, ...], int] = {}

    def claim(self, labels: tuple[str, ...]) -> MutableSequence[float] | None:
        """The cells of a row that is free; None if there is none, or the labels are too long."""
        claimed = set(self._claimed.values())
        free = next((place for place in self._places if place not in claimed), None)
        label = "\n".join(labels).encode()
        if free is None or len(label) >= _LABEL_BYTES:
            return None
        self._claimed[labels] = free
        self._label(free)[: len(label)] = label
        return self.cells(free)

    def release(self, first: tuple[str, ...]) -> None:
        """Frees the rows whose labels begin with these."""
        for labels in [each for each in self._claimed if each[: len(first)] == first]:
            self._clear(self._claimed.pop(labels))

    def places(self) -> dict[tuple[str, ...], int]:
        """The row of each labels, by whichever process."""
        written = ((place, bytes(self._label(place)).rstrip(b"\0")) for place in self._places)
        return {tuple(label.decode().split("\n")): place for place, label in written if label}

    def clear(self) -> None:
        """Makes all rows zero."""
        for place in self._places:
            if self._label(place)[0]:
                self._clear(place)

    def cells(self, place: int) -> MutableSequence[float]:
        """The cells of a row."""
        first = place * self._bytes
        return cast("MutableSequence[float]", self._memory[first + _LABEL_BYTES : first + self._bytes].cast("d"))

    def _clear(self, place: int) -> None:
        first = place * self._bytes
        self._memory[first : first + self._bytes] = bytes(self._bytes)

    def _label(self, place: int) -> memoryview:
        first = place * self._bytes
        return self._memory[first : first + _LABEL_BYTES]

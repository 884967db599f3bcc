"""The counts of one process in memory that others can read, and that is still there when it has been killed.

The memory has a place for each model: its labels, and the cells of its `ModelMetrics`. A cell is written where a list
would be, at the end of each call and batch, so of a process that is killed only those counts are missing that it had
not made yet. (The multiprocess mode of prometheus-client looks up and packs a value and its time for each count.)
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Final, cast

from lengthwise.telemetry.metrics import CELLS, ModelMetrics

_LABEL_BYTES: Final = 304
"""A folder's name of 255 bytes, and the digits of a version."""
_PLACE_BYTES: Final = _LABEL_BYTES + 8 * CELLS
_PLACES: Final = 512
"""Models at once. Memory that was never written takes none."""
BYTES: Final = _PLACES * _PLACE_BYTES


class SharedCounts:
    """The places of one process in `[BYTES]` of shared memory, all zero at first."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._claimed: dict[tuple[str, str], int] = {}

    def claim(self, name: str, version: str) -> MutableSequence[float] | None:
        """The cells of a model, all zero; None if no place is left."""
        free = next((place for place in range(_PLACES) if place not in self._claimed.values()), None)
        label = f"{name}\n{version}".encode()
        if free is None or len(label) >= _LABEL_BYTES:
            return None
        self._claimed[name, version] = free
        self._label(free)[: len(label)] = label
        return self._cells(free)

    def release(self, name: str, version: str) -> None:
        """Frees the place of a model that is counted no more."""
        place = self._claimed.pop((name, version), None)
        if place is not None:
            self._clear(place)

    def models(self) -> Iterator[ModelMetrics]:
        """What was counted, by whichever process."""
        for (name, version), place in self.places().items():
            yield ModelMetrics(name, version, cells=list(self._cells(place)))

    def places(self) -> dict[tuple[str, str], int]:
        """The place of each model, a name and a version, that is counted, by whichever process."""
        found = {}
        for place in range(_PLACES):
            if label := bytes(self._label(place)).rstrip(b"\0").decode():
                name, _, version = label.partition("\n")
                found[name, version] = place
        return found

    def clear(self) -> None:
        """Makes all of it zero, for the next process."""
        for place in range(_PLACES):
            if self._label(place)[0]:
                self._clear(place)

    def _clear(self, place: int) -> None:
        first = place * _PLACE_BYTES
        self._memory[first : first + _PLACE_BYTES] = bytes(_PLACE_BYTES)

    def _label(self, place: int) -> memoryview:
        first = place * _PLACE_BYTES
        return self._memory[first : first + _LABEL_BYTES]

    def _cells(self, place: int) -> MutableSequence[float]:
        first = place * _PLACE_BYTES
        return cast("MutableSequence[float]", self._memory[first + _LABEL_BYTES : first + _PLACE_BYTES].cast("d"))

"""The steps of one sequence as they were sent, as JSON or Arrow: as an array, or what is wrong with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import rounded, why_rejected
from lengthwise.decoding.explanations import SentWhere, explain
from lengthwise.decoding.json_text import kind
from lengthwise.padding import Steps

_NUMBERS_AT_ONCE: Final = 16_384  # that one call of NumPy converts; other threads can run between two calls
_NUMBERS: Final = frozenset({float, int, type(None)})


class SentMask:
    """A mask as it was sent: its entries, the index of each that is no boolean, and those of a JSON body."""

    def __init__(self, entries: NDArray[np.bool_], wrong: Sequence[int], sent: list[Any] | None = None) -> None:
        self.entries = entries
        self.wrong = wrong
        self._sent = sent

    @classmethod
    def of_json(cls, mask: list[Any]) -> SentMask:
        """A mask of a JSON body."""
        if set(map(type, mask)) <= {bool}:
            return cls(np.array(mask, dtype=np.bool_), ())
        return cls(
            np.zeros(len(mask), dtype=np.bool_), [i for i, one in enumerate(mask) if type(one) is not bool], mask
        )

    def __len__(self) -> int:
        return len(self.entries)

    def kind_of(self, entry: int) -> str:
        """The JSON type of an entry, for a message."""
        return kind(None if self._sent is None else self._sent[entry])


class SentSteps(ABC):
    """The steps of one sequence as they were sent."""

    @abstractmethod
    def __len__(self) -> int:
        """How many were sent."""

    @abstractmethod
    def read(self, kept: Sequence[int], where: SentWhere) -> Steps | None:
        """The kept steps as an array: `[length, features]` float32 with NaN for a missing value, or `[length]` int64.

        `kept` are their indices, at least one. What is wrong with them is added to the problems. None if a step is not
        made of numbers; an array is used only if there is no problem.
        """


class JsonSteps(SentSteps):
    """The steps of a JSON body."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, kept: Sequence[int], where: SentWhere) -> Steps | None:
        """See `SentSteps.read`."""
        entries = self._entries if len(kept) == len(self) else [self._entries[place] for place in kept]
        array = _array(entries, where.manifest.input.features)
        if array is None or why_rejected(array, where.manifest) is not None:
            explain(entries, kept, where, len(entries))
        return array


def tell(told: Sequence[tuple[int, Any]], faults: int, where: SentWhere, *, count: int, has_list: bool) -> None:
    """Adds the problems of `count` kept steps: `faults` in all, of which only the first are told, as index and step."""
    before, features = where.problems.total, where.manifest.input.features
    places, entries = [place for place, _ in told], [entry for _, entry in told]
    if has_list and features is not None:  # a right one, since not all may be no arrays
        places, entries = [*places, 0], [*entries, [0.0] * features]
    if entries:
        explain(entries, places, where, count)
    if not has_list and (features or 1) > 1:
        faults = 1  # no step is an array, which is one problem
    where.problems.count(faults - (where.problems.total - before))


def _array(entries: list[Any], features: int | None) -> Steps | None:
    """The steps as an array, infinite beyond float32, NaN if missing; None if a step is not made of numbers."""
    at_once = max(1, _NUMBERS_AT_ONCE // (features or 1))
    if len(entries) > at_once:
        parts: list[Any] = []
        for first in range(0, len(entries), at_once):
            part = _array(entries[first : first + at_once], features)
            if part is None:
                return None
            parts.append(part)
        array: Steps = np.concatenate(parts)
        return array
    try:
        if features is None:
            return np.array(entries, dtype=np.int64) if set(map(type, entries)) == {int} else None
        if features == 1:
            entries = [entry if type(entry) is list else [entry] for entry in entries]
        if set(map(type, entries)) != {list} or set(map(len, entries)) != {features}:
            return None
        numbers = list(chain.from_iterable(entries))
        if not _NUMBERS.issuperset(map(type, numbers)):
            return None
        return rounded(np.array(numbers, dtype=np.float64)).reshape(-1, features)
    except OverflowError:  # an integer beyond every type of NumPy
        return None

"""The steps of a row of a column of Arrow lists, and what is wrong with them, without a Python object a number.

What is wrong is computed for a whole sequence at once. Only the few steps that an answer describes become Python
objects, for which `sent_steps` has the words. So a wrong column takes no longer than a right one of its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.arrow_columns import StepsColumn
from lengthwise.decoding.calls import rounded, why_rejected
from lengthwise.decoding.sent_steps import SentSteps, SentWhere, explain_steps
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

_Places: TypeAlias = "slice | NDArray[np.int64]"  # steps of a column


class ColumnSteps(SentSteps):
    """The steps of one row of a column; `steps` are those of all rows, if they have the form that the model takes."""

    def __init__(self, column: StepsColumn, row: int, steps: Steps | None) -> None:
        self._column = column
        self._start = int(column.offsets[row])
        self._end = int(column.offsets[row + 1])
        self._steps = steps

    def __len__(self) -> int:
        return self._end - self._start

    def read(self, kept: Sequence[int], where: SentWhere) -> Steps | None:
        """See `SentSteps.read`."""
        column, manifest = self._column, where.manifest
        features = manifest.input.features
        every = len(kept) == len(self)
        places = slice(self._start, self._end) if every else np.asarray(kept, dtype=np.int64) + self._start
        if self._steps is not None:
            right = self._steps[places]
            if why_rejected(right, manifest) is None:
                return right.copy() if every else right
        if not column.nested and features is not None and features > 1:  # no step is an array: one problem
            explain_steps([(kept[0], self._entry(kept[0]))], where, count=len(kept), has_list=False)
            return None
        if features is None:
            array, faults = self._tokens(places, len(kept), manifest)
        elif column.size not in (None, features):  # the type says so, of every step
            array, faults = None, np.broadcast_to(np.int64(1), len(kept))
        else:
            array, faults = self._values(places, manifest, where.feature_mask)
        wrong = np.flatnonzero(faults)
        if not len(wrong):
            return array
        told = ((kept[i], self._entry(kept[i])) for i in wrong.tolist())
        has_list = column.nested and (column.is_step is None or bool(column.is_step[places].any()))
        explain_steps(told, where, count=len(kept), has_list=has_list, faults=int(faults[wrong].sum()))
        return None

    def _values(
        self, places: _Places, manifest: Manifest, feature_mask: NDArray[np.bool_] | None
    ) -> tuple[Steps | None, NDArray[np.int64]]:
        """The steps, `[places, features]` float32, if all have that form; and how much is wrong with each."""
        column, features = self._column, manifest.input.features or 1
        begins = column.bounds[:-1][places]
        is_formed = column.bounds[1:][places] - begins == features
        if column.is_step is not None:
            is_formed &= column.is_step[places]
        whole = bool(is_formed.all())
        begins = begins if whole else begins[is_formed]
        if len(begins) and begins[-1] - begins[0] == features * (len(begins) - 1):  # one behind the other: a view
            numbers = column.numbers[begins[0] : begins[-1] + features].reshape(-1, features)
        else:
            numbers = column.numbers[begins[:, None] + np.arange(features)]
        steps = numbers if numbers.dtype == np.float32 else rounded(numbers)
        takes_missing = manifest.missing != "refuse"
        faults = np.ones(len(is_formed), dtype=np.int64)
        faults[is_formed] = _faults(steps, takes_missing, feature_mask)
        if whole:
            return steps.copy(), faults
        if not (features == 1 and takes_missing and column.is_step is not None):
            return None, faults
        # Of one feature a step that is null is a missing value, as it is in JSON.
        faults[~column.is_step[places]] = 0
        array = np.full((len(is_formed), 1), np.nan, dtype=np.float32)
        array[is_formed] = steps
        return array, faults

    def _tokens(self, places: _Places, count: int, manifest: Manifest) -> tuple[Steps | None, NDArray[np.int64]]:
        """The token ids, `[places]` int64, where all are; and for each whether it is wrong."""
        column = self._column
        if column.nested or column.element.kind not in "iu":
            return None, np.broadcast_to(np.int64(1), count)
        tokens = column.numbers[places]
        with np.errstate(invalid="ignore"):
            wrong = ~((tokens >= 0) & (tokens < (manifest.input.vocabulary or 1)))
        if column.is_null is not None:
            wrong |= column.is_null[places]
            tokens = np.where(wrong, 0, tokens)
        return tokens.astype(np.int64), wrong.astype(np.int64)

    def _entry(self, place: int) -> Any:
        column, step = self._column, self._start + place
        if column.is_step is not None and not column.is_step[step]:
            return None
        start, end = column.bounds[step : step + 2].tolist()
        found = [
            value if value is None or isinstance(value, int) else None if value != value else float(value)
            for value in column.leaf.slice(start, end - start).to_pylist()
        ]
        return found if column.nested else found[0]


def _faults(steps: Steps, takes_missing: bool, feature_mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """How many problems each of `[steps, features]` has: missing values where none may be, the first not finite."""
    if np.count_nonzero(np.isfinite(steps)) == steps.size:
        return np.zeros(len(steps), dtype=np.int64)
    infinite = np.isinf(steps)
    has_infinite: NDArray[np.bool_] = np.logical_or.reduce(infinite, axis=1)
    if takes_missing:
        return has_infinite.astype(np.int64)
    missing = np.isnan(steps)
    if feature_mask is not None:
        missing &= feature_mask
    if has_infinite.any():  # what follows the first of them is not said
        missing &= ~np.logical_or.accumulate(infinite, axis=1)
    faults: NDArray[np.int64] = np.sum(missing, axis=1, dtype=np.int64) + has_infinite
    return faults

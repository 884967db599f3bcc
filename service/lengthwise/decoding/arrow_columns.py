"""The columns of Arrow record batches: which are allowed, and their numbers as arrays, without an object for each.

What is wrong with steps is computed for a whole sequence at once. Only the few that an answer describes become Python
objects, for which `sent_steps` has the words. So a wrong column takes no longer than a right one of its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.arrow_stream import load
from lengthwise.decoding.calls import rounded, why_rejected
from lengthwise.decoding.sent_steps import SentSteps, SentWhere, explain_steps
from lengthwise.decoding.validation import ITEM_FIELDS
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

_Places: TypeAlias = "slice | NDArray[np.int64]"  # steps of a column

_LISTS: Final = "a list, a large_list or a fixed_size_list"


def check_columns(schema: Any) -> None:
    """Checks the names and the types of a schema's columns.

    Raises:
        InvalidRequest: A column is unknown, is there twice, has a type that is not accepted, or `steps` is missing.
    """
    problems: list[str] = []
    names: list[str] = schema.names
    for name in dict.fromkeys(names):
        if name not in ITEM_FIELDS:
            problems.append(f"unknown column {name[:40]!r}; known are {', '.join(sorted(ITEM_FIELDS))}")
        elif names.count(name) > 1:
            problems.append(f"the column {name!r} is there twice")
        elif (wrong := type_problem(name, schema.field(name).type)) is not None:
            problems.append(f"the column {name!r} {wrong}")
    if "steps" not in names:
        problems.append("the column 'steps' is missing")
    if problems:
        raise InvalidRequest([Problem("", problem) for problem in problems])


def type_problem(name: str, kind: Any) -> str | None:
    """Why a column may not have this type; None if it may."""
    types = load().types
    shown = str(kind)[:80]
    if name == "id":
        is_text = types.is_string(kind) or types.is_large_string(kind)
        return None if is_text else f"must have strings, its type is {shown}"
    if not (types.is_list(kind) or types.is_large_list(kind) or (name == "feature_mask" and _is_fixed(kind))):
        return f"must be a list column, its type is {shown}"
    inner = kind.value_type
    if name != "steps":
        return None if types.is_boolean(inner) else f"must have lists of booleans, its type is {shown}"
    if types.is_list(inner) or types.is_large_list(inner) or _is_fixed(inner):
        if _is_fixed(inner) and inner.list_size < 1:  # any number of these takes no bytes at all
            return "has steps without a feature"
        inner = inner.value_type
    if types.is_floating(inner) or types.is_integer(inner):
        return None
    return f"must have numbers in its lists, or {_LISTS} of numbers, its type is {shown}"


def _is_fixed(kind: Any) -> bool:
    return bool(load().types.is_fixed_size_list(kind))


def offsets_of(column: Any) -> NDArray[np.int64]:
    """`[rows + 1]` offsets of a list column into its values."""
    if not len(column):
        return np.zeros(1, dtype=np.int64)
    if _is_fixed(column.type):
        size = column.type.list_size
        return np.arange(column.offset, column.offset + len(column) + 1, dtype=np.int64) * np.int64(size)
    offsets: NDArray[np.int64] = column.offsets.to_numpy().astype(np.int64, copy=False)
    return offsets


class StepsColumn:
    """A validated column of sequences, of a type that is allowed; if possible its arrays are views of `body`."""

    def __init__(self, column: Any, body: bytes | None = None) -> None:
        self._body = body
        self._inner = column.values
        self.offsets = offsets_of(column)  # `[rows + 1]` of its steps
        self.nested = bool(load().types.is_nested(column.type.value_type))  # whether a step is a list
        self.leaf = self._inner.values if self.nested else self._inner

    @cached_property
    def size(self) -> int | None:
        """How many numbers every step has, if the type says so and none is null."""
        inner = self._inner
        return int(inner.type.list_size) if self.nested and _is_fixed(inner.type) and not inner.null_count else None

    @cached_property
    def element(self) -> np.dtype[Any]:
        """The dtype of its numbers; pyarrow's own `to_pandas_dtype` needs pandas before pyarrow 26."""
        name = str(self.leaf.type)  # halffloat, float, double, int8 to uint64
        return np.dtype(f"{name[0] if name.startswith(('int', 'uint')) else 'f'}{self.leaf.type.bit_width // 8}")

    @cached_property
    def numbers(self) -> NDArray[Any]:
        """All numbers, `[numbers]`, with NaN for null; a view of a buffer (or of `body`) where none is null."""
        leaf, body = self.leaf, self._body
        if leaf.null_count:  # integers become float64, as the numbers of JSON are read
            return np.array(leaf.to_numpy(zero_copy_only=False))
        buffer = leaf.buffers()[1]
        if not len(leaf) or buffer is None:
            return np.empty(0, dtype=self.element)
        at = leaf.offset * self.element.itemsize
        if body is not None:
            start = buffer.address - load().py_buffer(body).address
            if start >= 0 and start + buffer.size <= len(body):
                return np.frombuffer(body, self.element, len(leaf), start + at)
        return np.frombuffer(buffer, self.element, len(leaf), at)

    @cached_property
    def is_null(self) -> NDArray[np.bool_] | None:
        """Which numbers are null; None where none is."""
        return self.leaf.is_null().to_numpy(zero_copy_only=False) if self.leaf.null_count else None

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """Where the numbers of each step begin and end."""
        return offsets_of(self._inner) if self.nested else np.arange(len(self._inner) + 1, dtype=np.int64)

    @cached_property
    def is_step(self) -> NDArray[np.bool_] | None:
        """Which steps are not null; None where all are."""
        if not self.nested or not self._inner.null_count:
            return None
        is_step: NDArray[np.bool_] = self._inner.is_valid().to_numpy(zero_copy_only=False)
        return is_step

    @cached_property
    def rectangle(self) -> NDArray[Any] | None:
        """All steps, `[steps, features]`, or `[steps]` where none is a list; None where they are no rectangle."""
        inner, size = self._inner, self.size
        if not self.nested:
            return self.numbers
        if size is not None:
            return self.numbers[inner.offset * size : (inner.offset + len(inner)) * size].reshape(-1, size)
        bounds = self.bounds
        features = int(bounds[1] - bounds[0]) if len(inner) else 1
        if inner.null_count or features < 1 or np.any(np.diff(bounds) != features):
            return None
        return self.numbers[bounds[0] : bounds[-1]].reshape(-1, features)

    def steps(self, features: int | None) -> Steps | None:
        """All steps as a model takes them, of token ids without `features`; None if they have another form."""
        numbers = self.rectangle
        if numbers is None:
            return None
        if features is None:  # beyond 63 bits it becomes negative, which is not a token id either
            return numbers.astype(np.int64, copy=False) if numbers.ndim == 1 and numbers.dtype.kind in "iu" else None
        if numbers.ndim == 1 and features == 1:
            numbers = numbers[:, None]
        if numbers.ndim != 2 or numbers.shape[1] != features:
            return None
        return numbers if numbers.dtype == np.float32 else rounded(numbers)


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

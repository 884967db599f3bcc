"""The columns of Arrow record batches as NumPy arrays, without a Python object for any number."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.arrow_stream import load
from lengthwise.decoding.validation import ITEM_FIELDS
from lengthwise.errors import InvalidRequest, Problem

_LISTS: Final = "a list, a large_list or a fixed_size_list"


class StepColumn(NamedTuple):
    """The steps of a column of sequences."""

    numbers: NDArray[Any]  # `[steps, features]`, or `[steps]` without an inner list; NaN for null
    offsets: NDArray[np.int64]  # `[rows + 1]`


def check_columns(schema: Any) -> None:
    """Checks the names and the types of a schema's columns; raises InvalidRequest."""
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
    if not (types.is_list(kind) or types.is_large_list(kind) or (name == "feature_mask" and is_fixed(kind))):
        return f"must be a list column, its type is {shown}"
    inner = kind.value_type
    if name != "steps":
        return None if types.is_boolean(inner) else f"must have lists of booleans, its type is {shown}"
    if types.is_list(inner) or types.is_large_list(inner) or is_fixed(inner):
        if is_fixed(inner) and inner.list_size < 1:  # any number of these takes no bytes at all
            return "has steps without a feature"
        inner = inner.value_type
    if types.is_floating(inner) or types.is_integer(inner):
        return None
    return f"must have numbers in its lists, or {_LISTS} of numbers, its type is {shown}"


def is_fixed(kind: Any) -> bool:
    """Whether a type is that of lists of one size."""
    return bool(load().types.is_fixed_size_list(kind))


def is_nested(column: Any) -> bool:
    """Whether a step of a `steps` column is a list."""
    return bool(load().types.is_nested(column.type.value_type))


def offsets_of(column: Any) -> NDArray[np.int64]:
    """`[rows + 1]` offsets of a list column, with at least one row, into its values."""
    if is_fixed(column.type):
        size = column.type.list_size
        return np.arange(column.offset, column.offset + len(column) + 1, dtype=np.int64) * np.int64(size)
    offsets: NDArray[np.int64] = column.offsets.to_numpy().astype(np.int64, copy=False)
    return offsets


def step_column(column: Any, body: bytes | None = None) -> StepColumn | None:
    """The steps of a validated column, if possible as a view of `body`; None where they are no rectangle."""
    offsets = offsets_of(column)
    inner = column.values
    if not is_nested(column):
        return StepColumn(numbers_of(inner, body), offsets)
    if inner.null_count:
        return None
    if is_fixed(inner.type):
        features = inner.type.list_size
        part = slice(inner.offset * features, (inner.offset + len(inner)) * features)
        return StepColumn(numbers_of(inner.values, body)[part].reshape(-1, features), offsets)
    bounds = offsets_of(inner) if len(inner) else np.zeros(1, dtype=np.int64)
    features = int(bounds[1] - bounds[0]) if len(inner) else 1
    if features < 1 or np.any(np.diff(bounds) != features):
        return None
    numbers = numbers_of(inner.values, body)[bounds[0] : bounds[-1]]
    return StepColumn(numbers.reshape(-1, features), offsets)


def element_of(type_: Any) -> np.dtype[Any]:
    """The dtype of a `pyarrow` type of floats or integers; its own `to_pandas_dtype` needs pandas before pyarrow 26."""
    name = str(type_)  # halffloat, float, double, int8 to uint64
    kind = name[0] if name.startswith(("int", "uint")) else "f"
    return np.dtype(f"{kind}{type_.bit_width // 8}")


def numbers_of(leaf: Any, body: bytes | None = None) -> NDArray[Any]:
    """An array of numbers, with NaN for null; a view of its buffer (or of `body`) where it has no null."""
    if leaf.null_count:  # integers become float64, as the numbers of JSON are read
        return np.array(leaf.to_numpy(zero_copy_only=False))
    element = element_of(leaf.type)
    buffer = leaf.buffers()[1]
    if not len(leaf) or buffer is None:
        return np.empty(0, dtype=element)
    if body is not None:
        start = buffer.address - load().py_buffer(body).address
        if start >= 0 and start + buffer.size <= len(body):
            return np.frombuffer(body, element, len(leaf), start + leaf.offset * element.itemsize)
    return np.frombuffer(buffer, element, len(leaf), leaf.offset * element.itemsize)

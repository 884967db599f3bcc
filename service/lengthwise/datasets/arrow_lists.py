"""Reads list columns of Arrow as NumPy arrays, without a Python object for each number."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def has_sequences(arrow_type: Any) -> bool:
    """Whether an Arrow type is that of sequences: lists of numbers, or lists of lists of numbers."""
    from pyarrow import types

    if not (types.is_list(arrow_type) or types.is_large_list(arrow_type)):
        return False
    inner = arrow_type.value_type
    if types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        inner = inner.value_type
    return bool(types.is_floating(inner) or types.is_integer(inner))


def sequences_of(column: Any) -> list[NDArray[Any]] | None:
    """The rows of a column for which `has_sequences` holds, without null rows: views `[steps, features]`, or `[steps]`.

    NaN stands for a null number. None if it cannot be read so, and each row has to be converted by itself:
    - steps have different numbers of features, or a step is null;
    - a number is null in a column of whole numbers `[steps]`: NaN would turn token ids to floats.
    """
    inner = column.values
    if inner.null_count:
        return None
    if hasattr(inner, "value_lengths"):  # a step is a list
        sizes: NDArray[Any] = inner.value_lengths().to_numpy(zero_copy_only=False)
        features = int(sizes[0]) if len(sizes) else getattr(inner.type, "list_size", 1)
        if features < 1 or np.any(sizes != features):
            return None
        steps = inner.flatten().to_numpy(zero_copy_only=False).reshape(-1, features)
    else:
        steps = inner.to_numpy(zero_copy_only=False)
    return [steps[start:end] for start, end in pairwise(column.offsets.to_pylist())]

"""Reads list columns of Arrow as NumPy arrays, without a Python object for each number."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def has_sequences(arrow_type: Any) -> bool:
    """Whether a column of an Arrow type has a sequence in each row: a list of numbers, or of lists of numbers."""
    from pyarrow import types

    if not (types.is_list(arrow_type) or types.is_large_list(arrow_type)):
        return False
    inner = arrow_type.value_type
    if types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        inner = inner.value_type
    return bool(types.is_floating(inner) or types.is_integer(inner))


def sequences_of(column: Any) -> list[NDArray[Any]] | None:
    """The sequences of a column, as views of its memory: `[steps, features]` or `[steps]`, with NaN for a null number.

    The column must be one for which `has_sequences` is true, and have no null row. Returns None if one array cannot
    hold the steps of all rows, so that the caller has to convert each row by itself:
    - steps have different numbers of features, or a step is null;
    - a number is null in a column of `[steps]`: token ids must not become floats.
    """
    all_steps = column.values  # of all rows, one row behind the other
    if all_steps.null_count:
        return None
    if hasattr(all_steps, "value_lengths"):  # a step is a list of features
        counts: NDArray[Any] = all_steps.value_lengths().to_numpy(zero_copy_only=False)
        features = int(counts[0]) if len(counts) else getattr(all_steps.type, "list_size", 1)
        if features < 1 or np.any(counts != features):
            return None
        steps = all_steps.flatten().to_numpy(zero_copy_only=False).reshape(-1, features)
    else:
        steps = all_steps.to_numpy(zero_copy_only=False)
    return [steps[start:end] for start, end in pairwise(column.offsets.to_pylist())]

"""The steps of one sequence as a Python caller gives them, as an array."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.numbers import as_array
from lengthwise.decoding.tables import is_of, of_series

_FLOAT32: Final = np.dtype(np.float32)
_INT64: Final = np.iinfo(np.int64)


def steps_array(given: Any) -> NDArray[Any]:
    """The steps of one sequence as float32, or as int64 where they are a list of whole numbers.

    Numbers are rounded as the service rounds those of a JSON body, so the answer has the same bits. Raises ValueError.
    """
    array = _array(given)
    if array.ndim not in (1, 2):
        hint = "" if array.ndim else "; put a single sequence in a list too"
        raise ValueError(f"the shape must be [length, features] or [length], got {[*array.shape]}{hint}")
    if array.dtype.kind not in "fiu":
        if array.size:
            raise ValueError(f"values must be numbers, got an array of {array.dtype}")
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.ndim == 1:
        is_beyond = array.dtype == np.uint64 and (array > _INT64.max).any()
        return array if is_beyond else array.astype(np.int64, copy=False)
    if array.dtype != _FLOAT32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float64, copy=False).astype(np.float32)
    if np.isinf(array).any():
        step = int(np.argwhere(np.isinf(array))[0][0])
        raise ValueError(f"step {step} holds a number that is not finite as float32 (infinity, or too large)")
    return np.ascontiguousarray(array)


def _array(given: Any) -> NDArray[Any]:
    if type(given) is np.ndarray and given.dtype == _FLOAT32:
        return given
    if given is None or (isinstance(given, float) and np.isnan(given)):  # what pandas has in the place of None
        raise ValueError("its steps are missing")
    if is_of(given, "pandas") and given.ndim == 1:
        given = of_series(given)
    return as_array(given.to_list() if is_of(given, "polars") else given)

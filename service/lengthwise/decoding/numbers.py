"""Any array-like of a Python caller as an array of numbers, and as the steps of one sequence."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.tables import is_of, of_series

_FLOAT32: Final = np.dtype(np.float32)
_INT64: Final = np.iinfo(np.int64)
_MOST_SHOWN: Final = 40  # characters of a value in a message


def as_array(given: Any) -> NDArray[Any]:
    """Converts any array-like to an array of numbers, or raises ValueError."""
    if isinstance(given, np.ma.MaskedArray) and np.any(given.mask):  # what is masked is missing
        given = np.ma.filled(given.astype(np.promote_types(given.dtype, np.float32)), np.nan)
    if isinstance(given, np.ndarray) and given.dtype.kind == "O" and given.ndim == 1:
        given = given.tolist()  # steps that are arrays: so a column of lists comes out of pandas
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        ragged = "inhomogeneous" in str(error)
        raise ValueError("its steps have different numbers of features" if ragged else str(error)) from error
    if array.dtype.kind != "O":
        return array
    # None among numbers, or a whole number past 64 bits: one by one, since NumPy would take texts for numbers too.
    numbers = np.empty(array.shape, dtype=np.float64)
    for place, value in np.ndenumerate(array):
        if value is None:
            numbers[place] = np.nan
        elif isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
            try:
                numbers[place] = value
            except OverflowError:
                numbers[place] = np.inf
        else:
            raise ValueError(f"values must be numbers, got {str(value)[:_MOST_SHOWN]!r} (a {type(value).__name__})")
    return numbers


def rounded(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as float32, infinite where too large: through double, as those of JSON, else integers get other bits."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float64, copy=False).astype(np.float32)


def steps_array(given: Any) -> NDArray[Any]:
    """The steps of one sequence as float32, rounded as those of a JSON body, or int64 for a list of whole numbers."""
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
        array = rounded(array)
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

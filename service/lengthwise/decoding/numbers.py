"""Any array-like of a Python caller as an array of numbers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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

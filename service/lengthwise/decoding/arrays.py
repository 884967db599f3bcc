"""Converts a Python caller's arrays to items, by the rules for a body. One error names everything that is wrong.

A model of values takes `[length, features]` of any real type, with NaN for a missing value; with one feature,
`[length]` is accepted too. A token model takes `[length]` whole numbers. Nested lists are accepted, with None for a
missing value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import Item, make_item, why_rejected
from lengthwise.errors import InvalidSequences, Problem
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

_INT64: Final = np.iinfo(np.int64)
_FLOAT32: Final = np.dtype(np.float32)
_MOST_SHOWN: Final = 40
"""Characters of a caller's value that a message shows."""


def items(sequences: Iterable[Any], manifest: Manifest) -> list[Item]:
    """Converts and validates the sequences, in their order.

    Args:
        sequences: Array-likes, of different lengths.
        manifest: The manifest of the model.

    Raises:
        InvalidSequences: The model does not accept some of them; names each by its index.
    """
    if isinstance(sequences, str | bytes | Mapping) or not isinstance(sequences, Iterable):
        raise InvalidSequences(
            [Problem("/sequences", f"a list of arrays is wanted, this is a {type(sequences).__name__}")]
        )
    found: list[Item] = []
    problems: list[Problem] = []
    for place, given in enumerate(sequences):
        one = item(given, manifest)
        if isinstance(one, str):
            problems.append(Problem(f"/sequences/{place}", one))
        elif not problems:
            found.append(one)
    if problems:
        raise InvalidSequences(problems)
    return found


def item(given: Any, manifest: Manifest) -> Item | str:
    """Converts and validates one sequence.

    Args:
        given: An array-like.
        manifest: The manifest of the model.

    Returns:
        The item, or why the model rejects it, as a sentence.
    """
    try:
        steps = as_steps(given, manifest.input.kind, manifest.input.features)
    except ValueError as error:
        return str(error)
    return accepted(steps, manifest)


def items_or_reasons(cells: Iterable[Any], manifest: Manifest) -> list[Item | str]:
    """Converts and validates the cells of a column: the item of each, or why the model rejects it.

    Args:
        cells: Array-likes; None, or the NaN that pandas has in its place, is a row without a sequence.
        manifest: The manifest of the model.
    """
    return [
        "its steps are missing" if cell is None or isinstance(cell, float) else item(cell, manifest) for cell in cells
    ]


def accepted(steps: Steps, manifest: Manifest) -> Item | str:
    """The item of a sequence that has its final form, or why the model rejects it, as a sentence.

    Args:
        steps: `[length, features]` float32 with NaN for a missing value, or `[length]` int64.
        manifest: The manifest of the model.
    """
    why = why_rejected(steps, manifest)
    return make_item(steps, manifest, sent_steps=len(steps)) if why is None else why


def as_steps(given: Any, kind: Literal["values", "tokens"], features: int | None) -> Steps:
    """Converts an array-like: to `[length, features]` float32 with NaN for a missing value, or to `[length]` int64.

    Args:
        given: The array-like.
        kind: What a step is.
        features: Number of values of a step; None if it is not known, then `[length]` has one.

    Raises:
        ValueError: The array does not have this form; the message says why.
    """
    if type(given) is np.ndarray and given.dtype == _FLOAT32 and given.ndim == 2 and kind == "values":
        return given  # as nearly always
    array = as_array(given)
    if kind == "tokens":
        return _tokens(array)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"numbers are wanted, the type of this array is {array.dtype}")
    if array.ndim == 1 and features in (1, None):
        array = array[:, None]
    if array.ndim == 1 and not array.size:
        raise ValueError("a sequence has at least one step")
    if array.ndim != 2:
        wanted = "features" if features is None else features
        hint = "; put a single sequence in a list too" if array.shape == (features,) or not array.ndim else ""
        raise ValueError(f"[length, {wanted}] is wanted, the shape of this array is {[*array.shape]}{hint}")
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):  # the error for a number too large for float32 names its step
        # Through double, as the numbers of a body: an integer that is rounded once may get other bits.
        return array.astype(np.float64, copy=False).astype(np.float32)


def _tokens(array: NDArray[Any]) -> Steps:
    if array.ndim != 1:
        raise ValueError(f"[length] token ids are wanted, the shape of this array is {[*array.shape]}")
    if not array.size:
        raise ValueError("a sequence has at least one step")
    if array.dtype.kind not in "iu":
        raise ValueError(f"token ids are whole numbers, the type of this array is {array.dtype}")
    if array.dtype == np.uint64 and array.max() > _INT64.max:
        raise ValueError(f"step {int(array.argmax())} is no token id: it is {array.max()}")
    return array.astype(np.int64, copy=False)


def as_array(given: Any) -> NDArray[Any]:
    """Converts any array-like to an array of numbers.

    Raises:
        ValueError: It cannot be converted.
    """
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
            raise ValueError(f"numbers are wanted, {str(value)[:_MOST_SHOWN]!r} is a {type(value).__name__}")
    return numbers

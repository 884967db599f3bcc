"""Reads the static values of one sequence: a list, or an object by name, to the numbers of the graph's input `static`.

A number stays as it is. Of a category the graph gets the index. It is given as one of the texts of the manifest: "1", 1
and 1.0 are the category "1". Where none of its texts is a number, it may also be given as its index. None, or NaN, is a
missing number, where the manifest says that the model takes one (`static.missing`). A category is never missing: NaN is
no index, and one that the graph looks up fails all rows of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import Problems, escaped, unknown_fields
from lengthwise.decoding.json_text import kind
from lengthwise.decoding.sent_steps import fits_float32
from lengthwise.runtime.feature_names import listed, similar
from lengthwise.runtime.manifest import Manifest, StaticInput
from lengthwise.wrong_values import counted


def description(static: StaticInput) -> str:
    """What a model takes, for messages: `3 static values (age, sex, type)`."""
    names = "" if static.names is None else f" ({listed(static.names)})"
    return f"{counted(static.count, 'static value')}{names}"


def read(value: Any, at: str, manifest: Manifest, problems: Problems) -> NDArray[np.float32] | None:
    """Reads the static values of one sequence; returns `[count]`, NaN for a missing one; None if the model takes none.

    What is wrong is added to `problems`, at the JSON pointer of the values, `at`, or deeper; the numbers are of no use
    then. In Python they may also be a tuple or an array, of NumPy's numbers.
    """
    static = manifest.input.static
    if static is None:
        return None
    keys = static.value_names
    if isinstance(value, Mapping) and static.names is not None:
        unknown_fields(value, frozenset(keys), at, problems)
        value = [value.get(name) for name in keys]
    elif isinstance(value, list | tuple | np.ndarray):
        keys = tuple(map(str, range(len(value))))
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != static.count:
        got = f"got {kind(value)}" if not isinstance(value, list | tuple | np.ndarray) else f"this has {len(value)}"
        form = "a list" if static.names is None else "a list, or an object by name"
        problems.add(at, f"must be {description(static)}, {form}; {got}")
        return None
    numbers = [
        _number(entry, static.categories.get(name), manifest)
        for name, entry in zip(static.value_names, value, strict=True)
    ]
    for key, number in zip(keys, numbers, strict=True):
        if isinstance(number, str):
            problems.add(f"{at}/{escaped(key)}", number)
    return np.array([math.nan if isinstance(number, str) else number for number in numbers], dtype=np.float32)


def check_rows(rows: NDArray[np.float32], at: str, manifest: Manifest, static: StaticInput, problems: Problems) -> None:
    """Checks the static values of many sequences, `[rows, count]`, as the graph gets them: of a category its index.

    Each wrong value is added to `problems`, at the JSON pointer of the tensor, `at`.
    """
    categories = [static.categories.get(name) for name in static.value_names]
    sizes = np.array([0 if texts is None else len(texts) for texts in categories])
    is_index = (rows >= 0) & (rows < sizes) & (rows == np.floor(rows))
    is_number = np.isfinite(rows) | (np.isnan(rows) & static.missing)
    wrong = np.argwhere(~np.where(sizes > 0, is_index, is_number))
    with_text = max(0, problems.most_listed - problems.total)
    for row, column in wrong[:with_text].tolist():
        number, texts = float(rows[row, column]), categories[column]
        why = _number(number, None, manifest) if texts is None else _no_category(number, texts, manifest)
        problems.add(at, f"row {row}, value {column}: {why}")
    problems.count(max(0, len(wrong) - with_text))


def _no_category(number: float, categories: Sequence[str], manifest: Manifest) -> str:
    """Why a number of a tensor, which has no texts, is no category."""
    if math.isnan(number):
        return _why_not_missing(categories, manifest)
    return f"must be one of {listed(categories)}, as its index from 0 to {len(categories) - 1}"


def _number(entry: Any, categories: Sequence[str] | None, manifest: Manifest) -> float | str:
    """The number of one value: itself, or the index of a category; NaN if it is missing. A text says what is wrong."""
    entry = entry.tolist() if isinstance(entry, np.generic | np.ndarray) else entry
    if isinstance(entry, Decimal):  # Arrow's and a data base's; a whole one may have more digits than a float
        is_whole = entry.is_finite() and abs(entry) < 2**63 and entry == entry.to_integral_value()
        entry = math.nan if entry.is_nan() else int(entry) if is_whole else float(entry)
    if entry is None or (isinstance(entry, float) and math.isnan(entry)):
        return math.nan if _takes_missing(manifest) and categories is None else _why_not_missing(categories, manifest)
    if categories is None:
        if fits_float32(entry):
            return float(entry)
        is_number = type(entry) in (int, float)
        return "is beyond the range of float32" if is_number else f"must be a number, got {kind(entry)}"
    numbers = _numbers(tuple(categories))
    index = _index(entry, categories, numbers)
    if index is not None:
        return float(index)
    hint = similar(entry, categories) if isinstance(entry, str) else ""
    or_index = "" if numbers else f", or its index from 0 to {len(categories) - 1}"
    return f"must be one of {listed(categories)}{or_index}{hint}"


def _index(entry: Any, categories: Sequence[str], numbers: Mapping[int, float]) -> int | None:
    """The index of the category that a text or a number means; None if there is none, or it could be several.

    `numbers` are the categories that are numbers, by their indices.
    """
    if not (isinstance(entry, str) or fits_float32(entry)):
        return None
    if str(entry) in categories:
        return categories.index(str(entry))
    if not numbers:
        return int(entry) if entry in range(len(categories)) else None
    indices = [index for index, number in numbers.items() if number == entry]
    return indices[0] if len(indices) == 1 else None


@lru_cache
def _numbers(categories: tuple[str, ...]) -> dict[int, float]:
    """The categories that are numbers, such as "1" and "2.5", by their indices."""
    numbers: dict[int, float] = {}
    for index, text in enumerate(categories):
        with suppress(ValueError):
            numbers[index] = float(text)
    return {index: number for index, number in numbers.items() if math.isfinite(number)}


def _takes_missing(manifest: Manifest) -> bool:
    """Whether a number beside the sequence may be missing."""
    return manifest.input.static is not None and manifest.input.static.missing


def _why_not_missing(categories: Sequence[str] | None, manifest: Manifest) -> str:
    """Why a missing value is refused: one that is no category if `categories` is None."""
    if categories is not None:
        why = f"a category is never missing, it must be one of {listed(categories)}"
    else:
        why = f"the model {manifest.key} refuses missing values among the static ones; to allow them, train it with "
        why += "`missing` in its spec"
    return f"is null or not there: {why}"

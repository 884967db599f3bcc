"""Reads the static values of an item: a list, or an object by name, to the numbers of the graph's input `static`.

A number stays as it is. Of a category the graph gets the index: it is given as one of the texts of the manifest, or as
its index. None, or NaN, is a missing value, where the model takes one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import Problems, escaped, missing_message, unknown_fields
from lengthwise.decoding.json_text import kind
from lengthwise.decoding.sent_steps import fits_float32
from lengthwise.runtime.feature_names import listed, similar
from lengthwise.runtime.manifest import Manifest, StaticInput
from lengthwise.wrong_values import counted

_MOST_SHOWN: Final = 40  # characters of a wrong category


def description(static: StaticInput) -> str:
    """What a model takes, for messages: `3 static values (age, sex, type)`."""
    names = "" if static.names is None else f" ({listed(static.names)})"
    return f"{counted(static.count, 'static value')}{names}"


def read(value: Any, at: str, manifest: Manifest, problems: Problems) -> NDArray[np.float32] | None:
    """Reads the static values of one sequence; returns `[count]`, NaN for a missing one.

    None if something is wrong, which is added to `problems`, at the JSON pointer of the values, `at`, or deeper. The
    model takes static values.
    """
    static, problems_before = manifest.input.static, problems.total
    assert static is not None
    keys: Sequence[str] = [str(index) for index in range(static.count)]
    if isinstance(value, Mapping) and static.names is not None:
        unknown_fields(value, frozenset(static.names), at, problems)
        keys, entries = [*map(escaped, static.names)], [value.get(name) for name in static.names]
    elif isinstance(value, Mapping):
        problems.add(at, f"the static values of {manifest.key} have no names: give an array")
        return None
    elif not isinstance(value, list):
        problems.add(at, f"must be an array of {description(static)}, or an object by their names, got {kind(value)}")
        return None
    else:
        entries = value
    if len(entries) != static.count:
        problems.add(at, f"the model takes {description(static)}, this has {len(entries)}")
        return None
    numbers = np.empty(static.count, dtype=np.float64)
    for index, (key, name, entry) in enumerate(zip(keys, static.value_names, entries, strict=True)):
        number = _number(entry, static.categories.get(name))
        is_missing = number is not None and math.isnan(number)
        if number is None or (is_missing and manifest.missing == "refuse"):
            problems.add(f"{at}/{key}", partial(_wrong_message, entry, static.categories.get(name), manifest))
        else:
            numbers[index] = number
    return None if problems.total > problems_before else numbers.astype(np.float32)


def _number(entry: Any, categories: Sequence[str] | None) -> float | None:
    """The number of one value: itself, or the index of a category; NaN if it is missing, None if it is wrong."""
    if entry is None or entry != entry:  # NaN, in Python and in tensors
        return math.nan
    if categories is None:
        return float(entry) if fits_float32(entry) else None
    if isinstance(entry, str):
        return float(categories.index(entry)) if entry in categories else None
    return float(entry) if fits_float32(entry) and entry in range(len(categories)) else None


def _wrong_message(entry: Any, categories: Sequence[str] | None, manifest: Manifest) -> str:
    """The message for a value that is wrong, or missing where the model refuses that."""
    if entry is None or entry != entry:
        return f"is null or not there: {missing_message(manifest)}"
    if categories is None:
        is_number = type(entry) in (int, float)
        return "is beyond the range of float32" if is_number else f"must be a number, got {kind(entry)}"
    if isinstance(entry, str):
        hint = similar(entry, categories)
        return f"{entry[:_MOST_SHOWN]!r} is none of its categories{hint}; there are {listed(categories)}"
    return f"must be one of {listed(categories)}, or its index from 0 to {len(categories) - 1}"

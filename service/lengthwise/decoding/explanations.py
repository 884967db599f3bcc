"""Names everything that is wrong with the steps of a sequence in a JSON body, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import TRANSPOSED, Problems, missing_message, token_message
from lengthwise.decoding.json_text import kind
from lengthwise.runtime.manifest import Manifest
from lengthwise.wrong_values import counted

FLOAT32_BEYOND: Final = (1 << 128) - (1 << 103)  # the least number that rounds to infinity


class SentWhere(NamedTuple):
    """Where the steps of a sequence stand in a body, and what they are read by."""

    at: str  # JSON pointer
    manifest: Manifest
    problems: Problems  # what is wrong is added here
    feature_mask: NDArray[np.bool_] | None = None  # true for each feature that is kept


def explain(entries: list[Any], kept: Sequence[int], where: SentWhere, count: int) -> None:
    """Adds a problem for everything that is wrong with the `count` kept steps, or those of them in `entries`."""
    features = where.manifest.input.features
    if features is None:
        _explain_tokens(entries, kept, where)
    else:
        _explain_values(entries, kept, where, features, count)


def _explain_values(entries: list[Any], kept: Sequence[int], where: SentWhere, features: int, count: int) -> None:
    at, manifest, problems, feature_mask = where
    if features > 1 and not any(isinstance(entry, list) for entry in entries):
        problems.add(
            f"{at}/{kept[0]}",
            f"a step must be an array of {features} numbers, and none here is an array: the first is "
            f"{kind(entries[0])}; a level of brackets may be missing",
        )
        return
    takes_missing = [manifest.missing != "refuse"] * features
    if feature_mask is not None:
        takes_missing = [taken or not keep for taken, keep in zip(takes_missing, feature_mask.tolist(), strict=True)]
    for place, entry in zip(kept, entries, strict=True):
        is_bare = features == 1 and not isinstance(entry, list)
        step = [entry] if is_bare else entry
        if not isinstance(step, list) or len(step) != features:
            if problems.listing:
                problems.add(f"{at}/{place}", _no_step(step, features, count))
            else:
                problems.count()
            continue
        for i, value in enumerate(step):
            if takes_missing[i] if value is None else fits_float32(value):
                continue
            if problems.listing:
                problems.add(f"{at}/{place}" if is_bare else f"{at}/{place}/{i}", _no_number(value, manifest))
            else:
                problems.count()
            if value is not None:
                break


def _explain_tokens(entries: list[Any], kept: Sequence[int], where: SentWhere) -> None:
    at, manifest, problems, _ = where
    vocabulary = manifest.input.vocabulary or 1
    for place, token in zip(kept, entries, strict=True):
        if type(token) is int and 0 <= token < vocabulary:
            continue
        if not problems.listing:
            problems.count()
        elif type(token) is int:
            problems.add(f"{at}/{place}", token_message(manifest))
        else:
            problems.add(f"{at}/{place}", f"must be a token id, a whole number, got {kind(token)}")


def _no_step(step: Any, features: int, steps: int) -> str:
    if not isinstance(step, list):
        return f"a step must be an array of {features} numbers, got {kind(step)}"
    said = f"the model takes {counted(features, 'feature')} a step, this one has {len(step)}"
    return said + (TRANSPOSED if steps == features else "")


def _no_number(value: Any, manifest: Manifest) -> str:
    if value is None:
        return missing_message(manifest)
    if type(value) is float or type(value) is int:
        return "is beyond the range of float32"
    return f"must be a number or null, got {kind(value)}"


def fits_float32(value: Any) -> bool:
    """Whether a value is a number, and finite when rounded to float64 and then to float32."""
    if type(value) is not float and type(value) is not int:
        return False
    return abs(value) < FLOAT32_BEYOND and abs(float(value)) < FLOAT32_BEYOND

"""Reads the steps of one sequence of a JSON body into an array, or names what is wrong with each of them.

`indices` are where the kept steps were among the sent ones (see `calls`). `where` has what else the functions need of a
sequence: its JSON pointer, its model, and the `problems` to which faults are added (`SentWhere`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import (
    ADVICE_ON_TAILS,
    TRANSPOSED,
    Problems,
    escaped,
    features_message,
    missing_message,
    no_steps,
    rounded,
    token_message,
    unknown_fields,
    why_refused,
)
from lengthwise.decoding.json_text import MAX_PARTS, kind
from lengthwise.errors import TooLarge
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

FLOAT32_BEYOND: Final = (1 << 128) - (1 << 103)  # the smallest number that rounds to infinity
_NUMBERS_AT_ONCE: Final = 16_384  # converted in one call of NumPy; other threads can run between two calls
_NUMBERS: Final = frozenset({float, int, type(None)})  # types of values that are converted


class SentWhere(NamedTuple):
    """Where the steps of a sequence are in a body, and what they are checked against."""

    at: str  # JSON pointer of the steps
    manifest: Manifest
    problems: Problems  # faults are added to it
    feature_mask: NDArray[np.bool_] | None = None  # `[features]`, true for each that is kept; None: all
    keys: Sequence[str] | None = None  # the names of the features in JSON pointers, if the steps are objects


@dataclass(frozen=True, slots=True)
class CheckedSteps:
    """The faults that C has found in the steps of one sequence, in place of the steps (`fast_json.explain`)."""

    count: int  # steps of the sequence
    faults: int  # how many of them are wrong
    has_list: bool  # whether a step is an array
    first_faults: Iterable[tuple[int, Any]]  # (index, value) of the first wrong steps

    def __len__(self) -> int:
        return self.count

    def explain(self, where: SentWhere) -> None:
        """Adds the faults to the problems of `where`: the first ones with messages, the others are counted."""
        if self.faults:
            first = islice(self.first_faults, max(0, where.problems.most_listed - where.problems.total))
            _explain_steps(first, where, count=self.count, has_list=self.has_list, faults=self.faults)


def read_steps(steps: list[Any], indices: Sequence[int], where: SentWhere) -> Steps | None:
    """Reads the kept steps into an array, and adds a problem for everything that is wrong with them.

    The array is `[length, features]` float32 with NaN for a missing value, or `[length]` int64. None if steps are not
    made of numbers. An array may be returned although there are problems; the caller then refuses the sequence.
    """
    entries = steps if len(indices) == len(steps) else [steps[index] for index in indices]
    names, features = where.manifest.input.names, where.manifest.input.features
    if not entries:
        return no_steps(where.manifest.input)
    if names is not None and isinstance(entries[0], dict):
        problems_before = where.problems.total
        entries = _by_names(entries, indices, names, where)
        if where.problems.total > problems_before:
            return None
        where = where._replace(keys=[escaped(name) for name in names])
    array = _array(entries, features)
    if array is None or why_refused(array, where.manifest) is not None:
        has_list = any(isinstance(entry, list) for entry in entries)
        _explain_steps(zip(indices, entries, strict=True), where, count=len(entries), has_list=has_list)
    return array


def _by_names(steps: list[Any], indices: Sequence[int], names: tuple[str, ...], where: SentWhere) -> list[list[Any]]:
    """The values of steps that are objects, in the order of the model's names; None for each name that a step lacks.

    Adds a problem for each step that is not an object, which is left out of the result, and for each unknown key.

    Raises:
        TooLarge: More values are missing than a body may have parts: an empty object would become as many values as
            the model has features.
    """
    known_names, problems = frozenset(names), where.problems
    for index, step in zip(indices, steps, strict=True):
        if isinstance(step, dict):
            unknown_fields(step, known_names, f"{where.at}/{index}", problems)
        else:
            problems.add(f"{where.at}/{index}", f"must be an object, as step {indices[0]} is, got {kind(step)}")
    objects = [step for step in steps if isinstance(step, dict)]
    problems.left_out += len(names) * len(objects) - sum(map(len, objects))
    if problems.left_out > MAX_PARTS:
        raise TooLarge(f"the steps of a body may leave out {MAX_PARTS} values")
    return [[step.get(name) for name in names] for step in objects]


def _array(entries: list[Any], features: int | None) -> Steps | None:
    """The steps as an array, infinite beyond float32, NaN if missing; None if a step is not made of numbers."""
    # Many steps are converted in parts, so that other threads can run between two of them.
    steps_at_once = max(1, _NUMBERS_AT_ONCE // (features or 1))
    if len(entries) > steps_at_once:
        parts: list[Any] = []
        for first in range(0, len(entries), steps_at_once):
            part = _array(entries[first : first + steps_at_once], features)
            if part is None:
                return None
            parts.append(part)
        return cast("Steps", np.concatenate(parts))
    try:
        if features is None:
            return np.array(entries, dtype=np.int64) if set(map(type, entries)) == {int} else None
        if features == 1:
            entries = [entry if type(entry) is list else [entry] for entry in entries]
        if set(map(type, entries)) != {list} or set(map(len, entries)) != {features}:
            return None
        numbers = list(chain.from_iterable(entries))
        if not _NUMBERS.issuperset(map(type, numbers)):
            return None
        return rounded(np.array(numbers, dtype=np.float64)).reshape(-1, features)
    except OverflowError:  # an integer beyond every type of NumPy
        return None


def _explain_steps(
    steps: Iterable[tuple[int, Any]], where: SentWhere, *, count: int, has_list: bool, faults: int | None = None
) -> None:
    """Adds a problem for everything that is wrong with the kept steps of a sequence.

    Args:
        steps: (index, value) of each kept step; or of the first wrong ones, if C has read the steps.
        where: Where the steps are, with the problems.
        count: The number of kept steps.
        has_list: Whether one of all steps is an array.
        faults: How many faults C has counted: what no given step shows is added to the number of problems, without a
            text. None: C has not read the steps.
    """
    problems, features = where.problems, where.manifest.input.features
    problems_before = problems.total
    if features is None:
        _explain_tokens(steps, where)
    elif features == 1 or has_list:
        _explain_values(steps, where, features, count)
    else:  # one problem for all steps, whatever C has counted: they should be arrays, and none is
        index, step = next(iter(steps), (0, None))
        hint = "" if isinstance(step, dict) else "; a level of brackets may be missing"
        detail = f"and none here is an array: the first is {_kind(step, where.manifest)}{hint}"
        problems.add(f"{where.at}/{index}", f"a step must be an array of {features} numbers, {detail}")
        return
    if faults is not None:
        problems.count(faults - (problems.total - problems_before))


def _explain_values(steps: Iterable[tuple[int, Any]], where: SentWhere, features: int, count: int) -> None:
    """Adds the problems of steps that are arrays of values, or bare numbers, of a sequence of `count` steps.

    A step of another size, or that is no array, is one problem. Else each missing value that the model refuses is one,
    and the first value that is no number: it often means that the whole step is wrong, so the rest of the step is not
    checked.
    """
    at, manifest, problems, feature_mask, keys = where
    keeps = [True] * features if feature_mask is None else feature_mask.tolist()
    null_is_fine = [manifest.missing != "refuse" or not keep for keep in keeps]
    for index, entry in steps:
        is_bare = features == 1 and not isinstance(entry, list)
        step = [entry] if is_bare else entry
        if not isinstance(step, list) or len(step) != features:
            problems.add(f"{at}/{index}", partial(_step_message, step, manifest, count))
            continue
        for i, value in enumerate(step):
            is_fine = null_is_fine[i] if value is None else fits_float32(value)
            if is_fine:
                continue
            pointer = f"{at}/{index}" if is_bare else f"{at}/{index}/{keys[i] if keys else i}"
            problems.add(pointer, partial(_value_message, step, i, where))
            if value is not None:
                break


def _explain_tokens(steps: Iterable[tuple[int, Any]], where: SentWhere) -> None:
    """Adds a problem for each step that is outside the vocabulary or not a whole number."""
    at, manifest, problems, *_ = where
    vocabulary = manifest.input.vocabulary or 1
    for index, token in steps:
        if type(token) is not int or not 0 <= token < vocabulary:
            problems.add(f"{at}/{index}", partial(_wrong_token_message, token, manifest))


def _wrong_token_message(token: Any, manifest: Manifest) -> str:
    """The message for a step that is outside the vocabulary or not a whole number."""
    if type(token) is int:
        return token_message(manifest)
    return f"must be a token id, a whole number, got {_kind(token, manifest)}"


def _step_message(step: Any, manifest: Manifest, steps: int) -> str:
    """The message for a step that is not an array, or has another number of values than the model takes.

    `steps` is the number of steps: if it is the model's number of features, the steps seem to be transposed. If the
    values are arrays, what was sent for a step seems to be a sequence.
    """
    features = manifest.input.features or 1
    if not isinstance(step, list):
        hint = f"; {ADVICE_ON_TAILS}" if step is None else ""
        return f"a step must be an array of {features} numbers, got {_kind(step, manifest)}{hint}"
    return features_message(len(step), manifest) + (
        "; a level of brackets may be too many"
        if any(isinstance(value, list) for value in step)
        else TRANSPOSED * (steps == features)
    )


def _value_message(step: Sequence[Any], feature: int, where: SentWhere) -> str:
    """The message for the wrong value of a feature in a step.

    It has the name of the feature, if there is one, unless the JSON pointer ends with that name (`where.keys`).
    """
    manifest, names, value = where.manifest, where.manifest.input.names, step[feature]
    if type(value) is float or type(value) is int:
        message = "is beyond the range of float32"
    elif value is not None:
        or_null = "" if manifest.missing == "refuse" else " or null"
        message = f"must be a number{or_null}, got {_kind(value, manifest)}"
    elif any(entry is not None for entry in step):
        message = missing_message(manifest)
    else:  # the whole step may be padding: whether values follow is not known here
        message = (
            missing_message(manifest, in_tail=True)
            + "; within it, export a model that takes NaN with --missing handled, or train it again with `missing` in "
            "its spec"
        )
    if names is None:
        return message
    if where.keys is None:
        return f"{message} ({names[feature]})"
    return f"is null or not there: {message}" if value is None else message


def _kind(value: Any, manifest: Manifest) -> str:
    """The JSON type of a value that should be a step, a number or a token, for a message.

    For an object the text also says why it cannot be a step here: the first step is no object, or the features of the
    model have no names, which would be the keys of the object.
    """
    if not isinstance(value, dict):
        return kind(value)
    if manifest.input.names is not None:
        return f"{kind(value)}, and the first step is none"
    return (
        f"{kind(value)}: the features of {manifest.key} have no names (export --feature-names), so a step is an array"
    )


def fits_float32(value: Any) -> bool:
    """Whether a value is a number, and still finite when it is rounded to float64 and then to float32."""
    is_number = type(value) is float or type(value) is int
    return is_number and abs(value) < FLOAT32_BEYOND and abs(float(value)) < FLOAT32_BEYOND

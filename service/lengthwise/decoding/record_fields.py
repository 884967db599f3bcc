"""One record of a data file, from the fields of its line or row: `id`, `steps` and `label`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import json_text
from lengthwise.decoding.json_lines import StepKind
from lengthwise.decoding.numbers import rounded
from lengthwise.errors import RecordError
from lengthwise.padding import Steps
from lengthwise.wrong_values import counted, nearest

Label = str | tuple[str, ...] | None

FIELDS = frozenset({"id", "steps", "label"})  # of a record

_CALLED_LABEL = frozenset({"class", "target", "category", "y"})

_INT64 = np.iinfo(np.int64)
_NUMBERS: Final = frozenset((int, float, type(None)))


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence of a file."""

    id: str  # or the number of its record in the file, from 0
    steps: Steps  # `[length, features]` float32, NaN if missing, or `[length]` ids
    label: Label  # several if multi-label or per-step
    place: str  # `file:line`, for messages


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used; its id as in `Record`."""

    id: str
    error: RecordError


def judged(fields: Any, index: int, place: str, kind: StepKind) -> Record | BadRecord:
    """A record from the fields of a line or of a row; a `BadRecord` if it is wrong."""
    try:
        return _record(fields, index, place, kind)
    except RecordError as error:
        name = fields.get("id") if isinstance(fields, dict) else None
        return BadRecord(str(name if isinstance(name, (str, int)) else index), error)


def _record(fields: Any, index: int, place: str, kind: StepKind) -> Record:
    if not isinstance(fields, dict):
        raise RecordError(f'{place}: a record is an object with "steps", this is {json_text.kind(fields)}')
    unknown = sorted(set(fields) - FIELDS)
    if unknown:
        named = ", ".join(f"{name[:40]!r}{_meant(name, fields)}" for name in unknown)
        raise RecordError(f"{place}: unknown field {named}; there are id, steps and label")
    if "steps" not in fields:
        raise RecordError(f'{place}: a record is an object with "steps", and this one has none')
    name = fields.get("id")
    if name is not None and not isinstance(name, (str, int)):
        raise RecordError(f"{place}: id must be a string")
    steps = fields["steps"]
    if not isinstance(steps, np.ndarray):
        steps = _tokens(steps, place) if kind == "tokens" else _values(steps, place)
    return Record(str(index if name is None else name), steps, label_of(fields.get("label"), place), place)


def _meant(name: str, fields: dict[str, Any]) -> str:
    """A hint which field an unknown one may be: by a similar name, or by the form of its values."""
    alike = nearest(name, sorted(FIELDS - fields.keys()))
    if alike:
        return f" ({alike.removeprefix('; ')})"
    if isinstance(fields[name], list) and "steps" not in fields:
        return " (did you mean steps?)"
    named = isinstance(fields[name], str) or name.lower() in _CALLED_LABEL
    return " (did you mean label?)" if named and "label" not in fields else ""


def label_of(label: Any, place: str) -> Label:
    """One label or several, as strings; a number becomes its digits."""
    if label is None:
        return None
    several = label if isinstance(label, list) else [label]
    if any(isinstance(one, (bool, float)) or not isinstance(one, (str, int)) for one in several):
        raise RecordError(f"{place}: a label is a string or a whole number, or a list of them")
    texts = tuple(str(one) for one in several)
    return texts if isinstance(label, list) else texts[0]


def _tokens(steps: Any, place: str) -> NDArray[np.int64]:
    if not isinstance(steps, list) or not steps:
        raise RecordError(f"{place}: steps must be a list of at least one token id")
    for step, token in enumerate(steps):
        if type(token) is not int or not 0 <= token <= _INT64.max:
            raise RecordError(f"{place}: step {step} is not a token id (an integer >= 0)")
    return np.array(steps, dtype=np.int64)


def _values(steps: Any, place: str) -> NDArray[np.float32]:
    """`[length, features]` float32, NaN for null; bare numbers are steps of one feature."""
    if not isinstance(steps, list) or not steps:
        raise RecordError(f"{place}: steps must be a list of at least one step")
    rows = [step if isinstance(step, list) else [step] for step in steps]
    wanted = len(rows[0])
    if set(map(len, rows)) != {wanted} or not wanted or not _NUMBERS.issuperset(map(type, chain.from_iterable(rows))):
        for step, row in enumerate(rows):
            if not row:
                raise RecordError(f"{place}: step {step} has 0 features, and needs at least one")
            if len(row) != wanted:
                raise RecordError(f"{place}: step {step} has {counted(len(row), 'feature')}, step 0 has {wanted}")
            if not _NUMBERS.issuperset(map(type, row)):
                wrong = next(value for value in row if type(value) not in _NUMBERS)
                raise RecordError(f"{place}: step {step} holds {_shown(wrong)}: a value must be a number or null")
    return as_float32(rows, place)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return json_text.kind(value)


def as_float32(rows: Sequence[Sequence[float | None]] | NDArray[Any], place: str) -> NDArray[np.float32]:
    """`[length, features]` float32. None and NaN are missing values; an infinite number is an error."""
    values = rounded(np.array(rows, dtype=np.float64))
    values = values if values.ndim == 2 else values[:, None]
    if np.isinf(values).any():
        step = int(np.isinf(values).any(axis=1).argmax())
        raise RecordError(f"{place}: step {step} holds a number that is not finite as float32")
    return values

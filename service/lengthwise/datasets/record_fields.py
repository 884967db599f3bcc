"""Makes one record of a data file from the fields of its line or row: `id`, `steps` and `label`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets.tables import INT64, Padding, as_array, input_steps, with_null_steps
from lengthwise.decoding.calls import rounded
from lengthwise.decoding.json_text import kind as kind_of
from lengthwise.errors import RecordError
from lengthwise.padding import Steps
from lengthwise.runtime.feature_names import values_by_name
from lengthwise.runtime.manifest import Task
from lengthwise.wrong_values import counted, nearest

Label = str | tuple[str | None, ...] | None  # a tuple if multi-label or per-step, with None at a step without a label
StepKind = Literal["values", "tokens"]  # an array of values, or a token id

FIELDS = frozenset({"id", "steps", "label"})  # of a record; and where a model takes more, these:
_MORE_FIELDS: Final = frozenset({"static", "inputs"})

_NO_LABEL: Final = "-100"  # what torch and Hugging Face write as the label of a step that has none
_MOST_LISTED: Final = 10  # labels in a message

_NUMBERS: Final = frozenset((int, float, type(None)))


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence of a data file; not yet checked against a model."""

    id: str  # without one in the file, the number of the record, from 0
    steps: Steps  # `[length, features]` float32, NaN if missing, or `[length]` ids
    label: Label
    source_line: str  # `FILE:LINE`, for messages
    names: tuple[str, ...] | None = None  # of the features, in their order, if they came with names
    static: Any = None  # the values beside it, a list or a mapping by name, as in a body; None without them
    inputs: Mapping[str, Any] | None = None  # of several sequences the steps of each, by name; `steps` is the first

    @property
    def has_label(self) -> bool:
        """Whether the sequence has a label, or some step has one; an empty list is the label of a multi-label model."""
        return self.label is not None and {*self.label} != {None}


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used; `id` as in `Record`, `error` has the file, the line and the reason."""

    id: str
    error: RecordError


def read_record(
    fields: Any,
    index: int,
    source_line: str,
    kind: StepKind,
    names: tuple[str, ...] | None = None,
    padding: Padding | None = None,
) -> Record | BadRecord:
    """Makes a record of the fields of a line or row; a `BadRecord` if something in them is wrong.

    Args:
        fields: The value of a line of JSON, or a row of a Parquet file by column.
        index: The number of the record in the file, which is its id if it has none.
        source_line: `FILE:LINE`, which begins each error.
        kind: Whether a step is values or a token id.
        names: The model's features, whose order the values get where steps are objects; None: the order in the steps;
            `()`: the model has no names, and such steps are an error.
        padding: What is cut off the steps later; where it is nan, a step may be null.
    """
    try:
        return _record(fields, index, source_line, kind, names, padding)
    except (RecordError, ValueError) as error:
        wrong = error if isinstance(error, RecordError) else RecordError(f"{source_line}: {error}")
        record_id = fields.get("id") if isinstance(fields, dict) else None
        return BadRecord(str(record_id if isinstance(record_id, (str, int)) else index), wrong)


def _record(
    fields: Any, index: int, source_line: str, kind: StepKind, names: tuple[str, ...] | None, padding: Padding | None
) -> Record:
    """Makes a record of the fields of a line or row, with the arguments of `read_record`.

    Raises:
        RecordError: A field is wrong, missing or unknown.
        ValueError: The steps are objects, and one of them has a wrong name; or a step is null that may not be.
    """  # noqa: DOC502 - what it calls raises the last one
    # Fields
    if not isinstance(fields, dict):
        raise RecordError(f'{source_line}: a record is an object with "steps", this is {kind_of(fields)}')
    if unknown := sorted(fields.keys() - FIELDS - _MORE_FIELDS):
        hint = nearest(unknown[0], sorted(FIELDS - fields.keys()))
        raise RecordError(f"{source_line}: unknown field {unknown[0][:40]!r}{hint}; there are id, steps and label")
    inputs = fields.get("inputs")
    if isinstance(inputs, dict) and inputs and "steps" not in fields:
        arrays = {name: input_steps(name, steps) for name, steps in inputs.items()}
        fields, inputs = {**fields, "steps": next(iter(arrays.values()))}, arrays
    elif inputs is not None:
        raise RecordError(f"{source_line}: inputs must be an object with the steps of each sequence, without 'steps'")
    if "steps" not in fields:
        raise RecordError(f'{source_line}: a record is an object with "steps", and this one has none')
    record_id = fields.get("id")
    if record_id is not None and not isinstance(record_id, (str, int)):
        raise RecordError(f"{source_line}: id must be a string")
    # The steps: objects by the names of features, an array that was read before, or lists
    steps, feature_names = fields["steps"], None
    steps = steps if isinstance(steps, np.ndarray) else with_null_steps(steps, padding)
    if isinstance(steps, list) and steps and isinstance(steps[0], dict):
        steps, feature_names = values_by_name(steps, () if kind == "tokens" else names)
    if not isinstance(steps, np.ndarray):
        steps = _tokens(steps, source_line) if kind == "tokens" else _values(steps, source_line)
    label = label_of(fields.get("label"), source_line)
    name = str(index if record_id is None else record_id)
    return Record(name, steps, label, source_line, feature_names, fields.get("static"), inputs)


def label_of(label: Any, source_line: str) -> Label:
    """Converts a label to a string, or a list of labels to a tuple of strings; None stays None, also in a list.

    Raises:
        RecordError: The label is neither a string nor a whole number, nor a list of them; or it is an empty string.
    """
    labels = label if isinstance(label, list) else [label]
    if any(isinstance(value, bool) or not isinstance(value, str | int | None) or value == "" for value in labels):
        raise RecordError(f"{source_line}: a label is a string or a whole number, or a list of them; null is no label")
    texts = tuple(None if value is None else str(value) for value in labels)
    return texts if isinstance(label, list) else texts[0]


def without_ignored(record: Record, warn: Callable[[str], object]) -> Record:
    """Replaces -100 by None in a label that has an entry for each step; `warn` gets a line on it."""
    if isinstance(record.label, tuple) and _NO_LABEL in record.label and len(record.label) == len(record.steps):
        warn(
            f"{_NO_LABEL} among the labels of steps is taken as no label: such a step counts neither in the loss nor "
            "in the accuracy. If it is a class, give it another name"
        )
        record = replace(record, label=tuple(None if text == _NO_LABEL else text for text in record.label))
    return record


def _tokens(steps: Any, source_line: str) -> NDArray[np.int64]:
    """Converts the steps of a sequence to token ids, `[length]`.

    Raises:
        RecordError: The steps are no list of token ids; the message names the first wrong one.
    """
    if not isinstance(steps, list) or not steps:
        raise RecordError(f"{source_line}: steps must be a list of at least one token id")
    for step, token in enumerate(steps):
        if type(token) is not int or not 0 <= token <= INT64.max:
            raise RecordError(f"{source_line}: step {step} is not a token id (an integer >= 0)")
    return np.array(steps, dtype=np.int64)


def _values(steps: Any, source_line: str) -> NDArray[np.float32]:
    """Converts the steps of a sequence to values, `[length, features]` float32.

    A step is a list of numbers; a bare number is a step of one feature. null is a missing value, NaN.

    Raises:
        RecordError: The steps are something else, or differ in length; the message names the first wrong one.
    """
    if not isinstance(steps, list) or not steps:
        raise RecordError(f"{source_line}: steps must be a list of at least one step")
    width = len(steps[0]) if isinstance(steps[0], list) else 1
    rows = [step if isinstance(step, list) else [step] for step in steps]
    is_right = {*map(len, rows)} == {width} != {0} and _NUMBERS.issuperset(map(type, chain.from_iterable(rows)))
    # The first wrong step, for the message
    for step, row in enumerate(() if is_right else rows):
        wrong = next((value for value in row if type(value) not in _NUMBERS), None)
        if not row:
            raise RecordError(f"{source_line}: step {step} has 0 features, and needs at least one")
        if len(row) != width:
            raise RecordError(f"{source_line}: step {step} has {counted(len(row), 'feature')}, step 0 has {width}")
        if wrong is not None:
            value_text = f"the text {wrong[:40]!r}" if isinstance(wrong, str) else kind_of(wrong)
            raise RecordError(f"{source_line}: step {step} holds {value_text}: a value must be a number or null")
    return as_float32(rows, source_line)


def as_float32(rows: Sequence[Sequence[float | None]] | NDArray[Any], source_line: str) -> NDArray[np.float32]:
    """Converts rows to `[length, features]` float32. None and NaN are missing values.

    Raises:
        RecordError: A number is not finite as float32.
    """
    try:
        numbers: NDArray[Any] = np.array(rows, dtype=np.float64)
    except OverflowError:
        numbers = as_array(rows)
    values = rounded(numbers if numbers.ndim == 2 else numbers[:, None])
    if np.isinf(values).any():
        step = int(np.isinf(values).any(axis=1).argmax())
        raise RecordError(f"{source_line}: step {step} holds a number that is not finite as float32")
    return values


def label_mismatch(record: Record, task: Task) -> str | None:
    """Checks the form of a record's label; returns what is wrong with it for the task, None if nothing is.

    A record without a label is right.
    """
    label = record.label
    if label is None:
        return None
    if isinstance(label, tuple) != (task != "single-label"):  # a list in the place of one label, or the reverse
        form = {"single-label": "one label", "multi-label": "a list of labels", "per-step": "one label a step"}[task]
        return f"a {task} model wants {form}"
    wrong = {
        f"{len(label)} labels for {len(record.steps)} steps": task == "per-step" and len(label) != len(record.steps),
        "null is among its labels, and only a step may lack one": task == "multi-label" and None in label,
    }
    return next((text for text, is_wrong in wrong.items() if is_wrong), None)


def unknown_labels(label: Label, labels: Sequence[str], owner: str = "the model's labels") -> str | None:
    """Checks that all labels of a record are in `labels`; returns a message about the first other one, or None.

    `owner` says in the message whose labels these are.
    """
    record_labels = label if isinstance(label, tuple) else (label,)
    unknown = next((label for label in record_labels if label is not None and label not in labels), None)
    if unknown is None:
        return None
    beginning = f"these {len(labels)} are" if len(labels) <= _MOST_LISTED else f"of these {len(labels)} the first are"
    return f"label {unknown[:40]!r} is none of {owner}; {beginning} {', '.join(map(repr, labels[:_MOST_LISTED]))}"

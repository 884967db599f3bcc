"""Records and a spec from a Python caller's sequences and labels, in the place of a file and a TOML file.

```
spec, sequences, labels -> the kind of a step -> arrays -> what the spec leaves open -> records
```
One error names every sequence and label that cannot be used, by its place in the list.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from lengthwise.datasets import given as forms
from lengthwise.datasets.arrays import as_steps, items, kept_steps
from lengthwise.datasets.dataset import Label, Record
from lengthwise.datasets.given import GivenSequence, Layout
from lengthwise.decoding.calls import TRANSPOSED
from lengthwise.errors import ConfigurationError, InvalidSequences, Problem
from lengthwise.padding import Steps
from lengthwise.wrong_values import nearest
from lengthwise_export.architecture.model_spec import PRESETS
from lengthwise_export.architecture.spec import InputSpec, Spec
from lengthwise_export.errors import SpecError
from lengthwise_export.training.batches import check, lenient

GivenSpec: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Spec
"""A spec as a Python caller passes it: a preset's name, the path of a TOML file, or its tables."""

ROCKET: Final = "rocket"
NAMES: Final = ("auto", ROCKET, *PRESETS)
"""The specs that have a name."""

_DEFAULT_LONGEST: Final = InputSpec.model_fields["max_length"].default


@dataclass(frozen=True, slots=True)
class LabelledSequences:
    """Sequences of one call, converted.

    Attributes:
        spec: The spec, with everything that was open and that the sequences and labels say.
        records: The sequences with their labels.
        reasons: One sentence for each key that was read off the sequences.
        warnings: What the user should know.
    """

    spec: Spec
    records: list[Record]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def labelled(
    given: GivenSpec, sequences: Any, labels: Iterable[Any] | None, layout: Layout = "steps-first"
) -> LabelledSequences:
    """The records of a training, and their spec.

    Args:
        given: The spec.
        sequences: In any form that `lengthwise.datasets.given` reads.
        labels: One for each sequence: a text or a whole number; a list of them for a multi-label or per-step model.
            None: those that the sequences have.
        layout: The order of the axes of a sequence.

    Raises:
        ConfigurationError: The spec or the labels are wrong, or there are not as many labels as sequences.
        InvalidSequences: Some sequences cannot be used; it is a ValueError.
    """
    tables = _tables(given)
    kind, features = _step(tables)
    task = tables.get("output", {}).get("task")
    found = _read(sequences, labels, layout, tokens=kind == "tokens", features=features, task=task)
    if not found.arrays:
        raise ConfigurationError("there is no sequence to train on")
    reasons = [f"columns: {found.taken}"] if found.taken else []
    warnings = []
    if kind is None and found.are_whole:
        warnings.append(
            "the sequences are lists of whole numbers, which are read as one value a step: if they are token ids, say "
            "so with spec={'input': {'vocabulary': N}}"
        )
    spec = Spec.from_table(_completed(tables, found.arrays, found.labels, reasons))
    return LabelledSequences(spec, _records(found, lenient(spec)), tuple(reasons), tuple(warnings))


def more(spec: Spec, sequences: Any, labels: Iterable[Any] | None, layout: Layout = "steps-first") -> list[Record]:
    """The records of a validation or test split, for a spec that is complete; errors as `labelled` raises them."""
    tokens, features = spec.input.kind == "tokens", spec.input.features
    found = _read(sequences, labels, layout, tokens=tokens, features=features, task=spec.output.task)
    return _records(found, spec)


class _Read(NamedTuple):
    """Sequences of one call with their labels, converted.

    Attributes:
        arrays: Each with as many features a step.
        labels: One for each.
        ids: The caller's name for each, or its index.
        taken: Which columns of a table were taken as what.
        are_whole: Whether all are lists of whole numbers.
    """

    arrays: list[Steps]
    labels: list[Label]
    ids: list[str]
    taken: str
    are_whole: bool


def _read(
    sequences: Any,
    labels: Iterable[Any] | None,
    layout: Layout,
    *,
    tokens: bool,
    features: int | None,
    task: str | None,
) -> _Read:
    """The sequences and labels of a call.

    Raises:
        ConfigurationError: There are no labels, or not one for each sequence.
        InvalidSequences: Some sequences cannot be converted.
    """
    found, taken = forms.read(sequences, layout, ask=False)
    arrays = _converted(found, tokens=tokens, features=features)
    given = forms.GivenSequences(one for one in found if isinstance(one, GivenSequence))
    if labels is None:
        labels = given.labels
        if None in labels:
            raise ConfigurationError(
                f"sequence {labels.index(None)} has no label: give labels=, or a table with a column of labels"
                + (f" (columns: {taken})" if taken else "")
            )
        if task == "per-step":
            labels = [
                one if isinstance(one, list) else [one] * len(steps) for one, steps in zip(labels, arrays, strict=True)
            ]
    elif isinstance(labels, str | bytes | Mapping) or not isinstance(labels, Iterable):
        raise InvalidSequences([Problem("/labels", f"must be a list, got a {type(labels).__name__}")])
    names = [as_label(label, place) for place, label in enumerate(labels)]
    if len(names) != len(arrays):
        raise ConfigurationError(f"{len(arrays)} sequences and {len(names)} labels: each sequence needs one")
    ids = [str(place) if one.id is None else one.id for place, one in enumerate(given)]
    are_whole = all(one.steps.ndim == 1 and one.steps.dtype.kind in "iu" for one in given)
    return _Read(arrays, names, ids, taken, are_whole)


def _converted(found: Sequence[GivenSequence | str], *, tokens: bool, features: int | None) -> list[Steps]:
    """Each sequence as an array, all with as many features a step.

    Raises:
        InvalidSequences: Some cannot be converted.
    """
    arrays: list[Steps] = []
    problems = []
    for place, one in enumerate(found):
        try:
            if isinstance(one, str):
                raise ValueError(one)
            steps = as_steps(one.steps, "tokens" if tokens else "values", features)
            why = _why_wrong(steps, features, arrays[0] if arrays else None)
            if why is not None:
                raise ValueError(why)
            arrays.append(kept_steps(one, steps))
        except ValueError as error:
            problems.append(Problem(f"/sequences/{place}", str(error)))
    if problems:
        raise InvalidSequences(problems)
    return arrays


def answerable(sequences: Any, spec: Spec, layout: Layout = "steps-first") -> list[Steps]:
    """The sequences of a call that a trained model answers, cut where its policy for long ones says so.

    Args:
        sequences: In any form that `lengthwise.datasets.given` reads.
        layout: The order of the axes of a sequence.
        spec: The spec of the model, with nothing open.

    Raises:
        InvalidSequences: The model does not accept some of them.
    """
    found, _ = forms.read(sequences, layout, ask=False)
    arrays = _converted(found, tokens=spec.input.kind == "tokens", features=spec.input.features)
    if spec.input.kind == "values" and spec.input.missing == "refuse":
        problems = [
            Problem(f"/sequences/{place}", f"step {step} lacks a value (NaN), and input.missing = 'refuse'")
            for place, steps in enumerate(arrays)
            for step in np.flatnonzero(np.isnan(steps).any(axis=1))[:1].tolist()
        ]
        if problems:
            raise InvalidSequences(problems)
    return [item.steps for item in items(arrays, spec.manifest(name="classifier", version=1), ask=False)]


def require_fit(made: Sequence[Record], spec: Spec) -> None:
    """Makes sure that records that were made for an open spec fit the spec that was chosen.

    Raises:
        InvalidSequences: Some do not fit.
    """
    problems = [
        Problem(f"/sequences/{place}", why) for place, record in enumerate(made) if (why := _misfit(record, spec))
    ]
    if problems:
        raise InvalidSequences(problems)


def _records(found: _Read, spec: Spec) -> list[Record]:
    """Records that all fit the spec.

    Raises:
        InvalidSequences: Some do not fit.
    """
    rows = zip(found.ids, found.arrays, found.labels, strict=True)
    made = [Record(name, steps, label, f"sequence {place}") for place, (name, steps, label) in enumerate(rows)]
    require_fit(made, spec)
    return made


def as_label(label: Any, place: int) -> Label:
    """A label as records hold it: a text, or several.

    Raises:
        ConfigurationError: It is neither a text nor a whole number, nor a list of them.
    """
    if getattr(label, "ndim", None) == 0:  # a number of NumPy
        label = label.item()
    if isinstance(label, np.ndarray | list | tuple | set | frozenset):
        several = sorted(label, key=str) if isinstance(label, set | frozenset) else list(label)
        return tuple(_text(one, place) for one in several)
    return _text(label, place)


def with_labels(given: GivenSpec, labels: Sequence[str]) -> dict[str, Any]:
    """The tables of a spec for one label a sequence, with these labels in this order.

    Raises:
        ConfigurationError: The spec has other labels, or another task.
    """
    tables = _tables(given)
    done = {name: dict(table) for name, table in tables.items()}
    output = done.setdefault("output", {})
    if output.get("task", "single-label") != "single-label":
        raise ConfigurationError(f"spec: the task is {output['task']!r}: a classifier gives each sequence one label")
    own = output.setdefault("labels", list(labels))
    if isinstance(own, list | tuple):  # anything else is refused where the spec is read
        named = [str(one) for one in own]
        if {*named} != {*labels}:
            raise ConfigurationError(f"spec: its labels are {', '.join(named)}; those of y are {', '.join(labels)}")
        output["labels"] = list(labels)
    return done


def _text(label: Any, place: int) -> str:
    if isinstance(label, str | int | np.integer) and not isinstance(label, bool):
        return str(label)
    raise ConfigurationError(
        f"label {place} is {str(label)[:40]!r}, a {type(label).__name__}: a label is a text or a whole number, or a "
        "list of them for a model with several"
    )


def _misfit(record: Record, spec: Spec) -> str:
    """Why a record does not fit a spec; empty if it does."""
    try:
        check(record, spec)
    except ConfigurationError as error:
        return str(error).removeprefix(f"{record.place}: ")
    return ""


def _tables(given: GivenSpec) -> Mapping[str, Any]:
    """The tables of a spec, maybe with open keys."""
    if isinstance(given, Spec):
        return given.model_dump(mode="json", exclude_unset=True)
    if isinstance(given, Mapping):
        wrong = [name for name, table in given.items() if not isinstance(table, Mapping)]
        if wrong:
            raise SpecError(
                f"spec: {wrong[0]!r} must be a table: {{'input': {{...}}, 'model': {{...}}, 'output': {{...}}}} with "
                "the keys of docs/spec.md"
            )
        return given
    if not isinstance(given, str | os.PathLike):
        raise ConfigurationError(
            f"spec must be the name of a preset ({', '.join(NAMES)}), the path of a TOML file, or its tables as a "
            f"dictionary, got {given!r}"
        )
    text = os.fspath(given)
    if text in NAMES:
        return {"model": {"kind": ROCKET} if text == ROCKET else {"preset": text}}
    if isinstance(given, str) and not text.endswith(".toml"):
        raise ConfigurationError(
            f"spec={text!r}: there is no such preset{nearest(text, NAMES)}; there are {', '.join(NAMES)}. A path ends "
            "in .toml"
        )
    return _tables(Spec.read(Path(text)))


def _step(tables: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The kind of a step and its number of features; None where the spec does not say it."""
    given = tables.get("input", {})
    if given.get("vocabulary") is not None:
        return "tokens", None
    features = given.get("features")
    return (None, None) if features is None else ("values", features if type(features) is int else None)


def _completed(
    tables: Mapping[str, Any], arrays: Sequence[Steps], labels: Sequence[Label], reasons: list[str]
) -> dict[str, Any]:
    """The tables with what they leave open: features, labels, and the longest sequence."""
    done = {name: dict(table) for name, table in tables.items()}
    step, output = done.setdefault("input", {}), done.setdefault("output", {})
    if step.get("vocabulary") is None and "features" not in step:
        step["features"] = int(arrays[0].shape[1])
    longest = max(map(len, arrays))
    if "max_length" not in step and "long" not in step and longest > _DEFAULT_LONGEST:
        step["max_length"] = longest
        reasons.append(f"max_length = {longest}: the longest sequence")
    if "labels" not in output:
        if any(isinstance(label, tuple) for label in labels) and "task" not in output:
            raise ConfigurationError(
                "some sequences have several labels: say spec={'output': {'task': 'multi-label'}}, or 'per-step' for "
                "one label a step"
            )
        output["labels"] = sorted_labels(labels)
    return done


def sorted_labels(labels: Iterable[Label]) -> list[str]:
    """All labels, each once: numbers by size, texts by the alphabet."""
    each = {one for label in labels for one in (label if isinstance(label, tuple) else (label,)) if one is not None}
    numbers = all(one.removeprefix("-").isdecimal() for one in each)
    return sorted(each, key=lambda one: (int(one), one)) if numbers else sorted(each)


def _why_wrong(steps: Steps, features: int | None, first: Steps | None) -> str | None:
    if not len(steps):
        return "a sequence has at least one step"
    if steps.ndim == 1:
        return None
    if not steps.shape[1]:
        return "a step has at least one feature, the shape of this array is " + str([*steps.shape])
    if features is not None and steps.shape[1] != features:
        said = f"{steps.shape[1]} features a step, the model takes {features}"
        return said + (TRANSPOSED if len(steps) == features else "")
    if first is not None and steps.shape[1] != first.shape[1]:
        said = f"{steps.shape[1]} features a step, the sequences before have {first.shape[1]}"
        return said + (TRANSPOSED if len(steps) == len(first) else "")
    return None

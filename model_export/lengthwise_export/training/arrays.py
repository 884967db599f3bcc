"""Records and a spec, from a Python caller's sequences and labels or from data files.

```
spec, sequences, labels -> the kind of a step -> arrays -> records -> what the spec leaves open
spec, files --------------------------------------------> records -> what the spec leaves open
```
One error names every sequence and label that cannot be used, by its index in the list; of files the first ones.
Nothing here imports torch, so that wrong data is told at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import numpy as np

from lengthwise.datasets import dataset, input_sequences
from lengthwise.datasets.arrays import as_steps, masked_steps
from lengthwise.datasets.column_roles import ColumnNames, Roles
from lengthwise.datasets.dataset import BadRecord, Label, Reading, Record, StepKind
from lengthwise.datasets.input_sequences import InputSequence, InputSequences, Layout, Padding
from lengthwise.datasets.tails import without_padding
from lengthwise.decoding.calls import TRANSPOSED
from lengthwise.errors import ConfigurationError, InvalidSequences, Problem
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Task
from lengthwise.wrong_values import nearest
from lengthwise_export.architecture.model_spec import Preset
from lengthwise_export.architecture.spec import InputSpec, Spec, tables_of
from lengthwise_export.errors import SpecError
from lengthwise_export.training.record_checks import fitting, lenient, why_unfit

# A spec as a Python caller passes it: a preset's name, the path of a TOML file, or its tables
SpecSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Spec

NAMES: Final = get_args(Preset)  # the specs that have a name
MAY_BE_IDS: Final = (
    "the sequences are lists of whole numbers, which are read as one value a step: if they are token ids, say so with "
    "{}"
)
_DEFAULT_LONGEST: Final = InputSpec.model_fields["max_length"].default


@dataclass(frozen=True, slots=True)
class LabelledSequences:
    """Sequences of one call, converted."""

    spec: Spec  # with everything that was open and that the sequences and labels say
    records: Sequence[Record]
    columns: Mapping[str, str] = field(default_factory=dict)  # the columns of a table, by their roles
    reasons: tuple[str, ...] = ()  # one sentence for each key that was read off the sequences
    warnings: tuple[str, ...] = ()  # what the user should know
    is_inferred: bool = False  # whether the spec left open what a step is, or the labels


def from_sequences(
    spec_or_tables: SpecSource,
    sequences: Any,
    labels: Iterable[Any] | None,
    layout: Layout = "steps-first",
    padding: Padding | None = None,
) -> LabelledSequences:
    """The records of a training, and their spec; without `labels`, with the labels that the sequences have themselves.

    Raises:
        ConfigurationError: There is no sequence. A wrong spec or label is a ConfigurationError, too.
    """
    keys = _with_padding(tables(spec_or_tables), padding)
    step = keys.get("input", {})
    records, roles, may_be_ids = _read(sequences, labels, layout, step, keys.get("output", {}).get("task"))
    if not records:
        raise ConfigurationError("there is no sequence to train on")
    reasons = [] if roles is None else [f"columns: {roles}"]
    warnings = (
        [MAY_BE_IDS.format("spec={'input': {'vocabulary': N}}")] if may_be_ids and step.get("features") is None else []
    )
    spec = Spec.from_table(complete_tables(keys, records, reasons))
    require_fit("", records, lenient(spec))
    return LabelledSequences(spec, records, {} if roles is None else roles.named, tuple(reasons), tuple(warnings))


def spec_and_files(words: Sequence[str]) -> tuple[str, list[str]]:
    """Divides the arguments of `train` into the spec (a preset or a `.toml` file, `auto` by default) and data files.

    Raises:
        ConfigurationError: There are two specs, there is no data, or a word is neither.
    """
    specs = [word for word in words if word in NAMES or word.endswith(".toml")]
    data = [word for word in words if word not in specs]
    for word in data:
        if not (os.path.exists(word) or word.startswith("aeon:")):
            raise ConfigurationError(f"{word}: there is no such file or preset{nearest(word, NAMES)}")
    if len(specs) > 1 or not data:
        raise ConfigurationError(f"{' '.join(words)}: give one SPEC at most, and the files of the DATA")
    return (specs or ["auto"])[0], data


def from_files(spec_or_path: str | Spec, files: Sequence[str], reading: Reading) -> LabelledSequences:
    """The records of files to train on, and their spec.

    One error names the first bad records, or the first that do not fit the spec.

    Raises:
        ConfigurationError: The files hold no record.
    """
    keys = _with_padding(tables(spec_or_path), reading.padding)
    source = "spec" if isinstance(spec_or_path, Spec) or spec_or_path in NAMES else spec_or_path
    is_open, step = _with_placeholders(keys) != keys, keys.get("input", {})
    roles = list[Roles]()  # filled when a table is read
    reading = replace(
        reading,
        per_step=keys.get("output", {}).get("task") == "per-step",
        columns=replace(reading.columns, inputs=tuple(step.get("feature_names") or ()) or None),
        taken=roles.append,
        padding=step.get("padding"),
    )
    kind: StepKind = "values" if step.get("vocabulary") is None else "tokens"
    entries = _entries(files, kind, reading)
    records = [*(dataset.valid_records(entries) if is_open else fitting(entries, Spec.from_table(keys, source=source)))]
    if not records:
        raise ConfigurationError(f"{', '.join(files)}: there is no record in it")
    reasons: list[str] = []
    spec = Spec.from_table(complete_tables(keys, records, reasons), source=source)
    are_whole = spec.input.features == 1 and all(
        (record.steps >= 0).all() and not (record.steps % 1).any() for record in records
    )
    warnings = [MAY_BE_IDS.format("vocabulary = N in [input]")] if are_whole and "features" not in step else []
    if is_open:
        records = [*fitting(records, spec)]
    columns = roles[0].named if roles else {}
    return LabelledSequences(spec, records, columns, tuple(reasons), tuple(warnings), is_open)


def _with_padding(keys: Mapping[str, Any], padding: Padding | None) -> Mapping[str, Any]:
    """The tables of a spec with `input.padding`, if it is not None."""
    return keys if padding is None else {**keys, "input": {**keys.get("input", {}), "padding": padding}}


def _entries(files: Sequence[str], kind: StepKind, reading: Reading) -> Iterator[Record | BadRecord]:
    """Yields the records of files; the names of the first record's features, if none are known, hold for the others."""
    for name in files:
        for record in dataset.entries(dataset.locate(name), kind, reading=reading):
            if isinstance(record, Record) and record.names is not None and reading.columns.inputs is None:
                reading = replace(reading, columns=replace(reading.columns, inputs=record.names))
            yield record


def require_fit(name: str, records: Sequence[Record], spec: Spec) -> None:
    """Makes sure that records can be trained on by a spec.

    Args:
        name: The argument that the records are of, for messages; empty for the sequences themselves.
        records: The records.
        spec: What they must fit.

    Raises:
        InvalidSequences: Some records do not fit; the error names all of them.
    """
    reasons = [why_unfit(record, spec) for record in records]
    about = f"in {name}: " if name else ""
    problems = [Problem(f"/sequences/{index}", f"{about}{why}") for index, why in enumerate(reasons) if why]
    if problems:
        raise InvalidSequences(problems)


def _read(
    sequences: Any,
    labels: Iterable[Any] | None,
    layout: Layout,
    step: Mapping[str, Any],
    task: str | None,
) -> tuple[list[Record], Roles | None, bool]:
    """The records of a call, the roles of the columns of a table, and whether its values may be token ids.

    Args:
        sequences: In any form.
        labels: One for each sequence; None for those that the sequences have.
        layout: The order of the axes of an array.
        step: The table `[input]` of the spec.
        task: That of the spec, if it says one.

    Raises:
        InvalidSequences: Some sequences cannot be used; it names all of them.
        ConfigurationError: There are not as many labels as sequences.
        ValueError: Never leaves this function: it becomes an InvalidSequences.
    """
    names, is_values = tuple(step.get("feature_names") or ()) or None, step.get("vocabulary") is None
    stated_features = step.get("features") if is_values else None
    features = stated_features if type(stated_features) is int else None  # another type is refused with the spec
    entries, roles = input_sequences.read(
        sequences, layout, ColumnNames(inputs=names), per_step=task == "per-step", ask=False
    )
    arrays: list[Steps] = []
    problems = []
    for index, entry in enumerate(entries):
        try:
            if isinstance(entry, str):
                raise ValueError(entry)
            steps = as_steps(entry.steps, "values" if is_values else "tokens", features)
            _require_features(steps, features, arrays[0] if arrays else steps)
            arrays.append(masked_steps(entry, steps))
        except ValueError as error:
            problems.append(Problem(f"/sequences/{index}", str(error)))
    if problems:
        raise InvalidSequences(problems)
    sequences_read = InputSequences(entry for entry in entries if isinstance(entry, InputSequence))
    raw_labels = _labels(labels, sequences_read, arrays, "" if roles is None else str(roles), task)
    labels_read = [as_label(label, index) for index, label in enumerate(raw_labels)]
    if len(labels_read) != len(arrays):
        raise ConfigurationError(f"{len(arrays)} sequences and {len(labels_read)} labels: each sequence needs one")
    records = [
        Record(str(index) if entry.id is None else entry.id, steps, label, f"sequence {index}", names or entry.names)
        for index, (entry, steps, label) in enumerate(zip(sequences_read, arrays, labels_read, strict=True))
    ]
    records = input_sequences.require_valid(without_padding(record, step.get("padding")) for record in records)
    are_whole = all(entry.steps.ndim == 1 and entry.steps.dtype.kind in "iu" for entry in sequences_read)
    return records, roles, is_values and are_whole


def _require_features(steps: Steps, features: int | None, first: Steps) -> None:
    """Makes sure that a step has as many features as the model takes, or, if that is open, as the first sequence has.

    Raises:
        ValueError: The step has another number of features, or the sequence has no step.
    """
    if not len(steps):
        raise ValueError("a sequence has at least one step")
    if steps.ndim == 1:
        return
    if not steps.shape[1]:
        raise ValueError(f"a step has at least one feature, the shape of this array is {[*steps.shape]}")
    expected, who, transposed_length = first.shape[1], "the sequences before have", len(first)
    if features is not None:
        expected, who, transposed_length = features, "the model takes", features
    if steps.shape[1] != expected:
        hint = TRANSPOSED if len(steps) == transposed_length else ""
        raise ValueError(f"{steps.shape[1]} features a step, {who} {expected}{hint}")


def _labels(
    labels: Iterable[Any] | None, sequences: InputSequences, arrays: Sequence[Steps], roles: str, task: str | None
) -> Iterable[Any]:
    """The labels of a call; or, if it has none, those of the sequences, which a per-step model gets at each step.

    `roles` says for messages which column of a table has which role; empty for other sequences.

    Raises:
        ConfigurationError: No labels are given, and a sequence has none of its own.
        InvalidSequences: They are not a list.
    """
    if labels is None:
        own = sequences.labels
        if None in own:
            raise ConfigurationError(
                f"sequence {own.index(None)} has no label: give labels=, or a table with a column of labels"
                + (f" (columns: {roles})" if roles else "")
            )
        if task != "per-step":
            return own
        return [
            label if isinstance(label, list) else [label] * len(steps) for label, steps in zip(own, arrays, strict=True)
        ]
    if isinstance(labels, str | bytes | Mapping) or not isinstance(labels, Iterable):
        raise InvalidSequences([Problem("/labels", f"must be a list, got a {type(labels).__name__}")])
    return labels


def as_label(label: Any, index: int) -> Label:
    """A label as records hold it: a text, or several; ConfigurationError for neither a text nor a whole number."""
    if getattr(label, "ndim", None) == 0:  # a number of NumPy
        label = label.item()
    if isinstance(label, set | frozenset):
        label = sorted(label, key=str)
    if isinstance(label, np.ndarray | list | tuple):
        return tuple(_text(text, index) for text in label)
    return _text(label, index)


def _text(label: Any, index: int) -> str:
    """One label as a text; `index` is that of its sequence.

    Raises:
        ConfigurationError: It is neither a text nor a whole number.
    """
    if isinstance(label, str | int | np.integer) and not isinstance(label, bool):
        return str(label)
    raise ConfigurationError(
        f"label {index} is {str(label)[:40]!r}, a {type(label).__name__}: a label is a text or a whole number, or a "
        "list of them for a model with several"
    )


def sorted_labels(labels: Iterable[Label]) -> list[str]:
    """All labels, each once: numbers by size, texts by the alphabet."""
    texts = {text for label in labels for text in (label if isinstance(label, tuple) else (label,)) if text is not None}
    numbers = all(text.removeprefix("-").isdecimal() for text in texts)
    return sorted(texts, key=lambda text: (int(text), text)) if numbers else sorted(texts)


def tables(spec: SpecSource, source: str = "spec") -> Mapping[str, Mapping[str, Any]]:
    """The tables of a spec, maybe with open keys.

    Raises:
        SpecError: A table is not one; the message begins with `source`.
        ConfigurationError: It is no preset, path or dictionary.
    """
    if isinstance(spec, Spec):
        return spec.model_dump(mode="json", exclude_unset=True)
    if isinstance(spec, Mapping):
        if wrong := [name for name, table in spec.items() if not isinstance(table, Mapping)]:
            raise SpecError(
                f"{source}: {wrong[0]!r} must be a table: {{'input': {{...}}, 'model': {{...}}, 'output': {{...}}}} "
                "with the keys of docs/spec.md"
            )
        Spec.from_table(_with_placeholders(spec), source=source)  # an error is raised before the data is read
        return spec
    if not isinstance(spec, str | os.PathLike):
        raise ConfigurationError(
            f"spec must be the name of a preset ({', '.join(NAMES)}), the path of a TOML file, or its tables as a "
            f"dictionary, got {spec!r}"
        )
    text = os.fspath(spec)
    if text in NAMES:
        return {"model": {"preset": text}}
    if isinstance(spec, str) and not text.endswith(".toml"):
        raise ConfigurationError(
            f"spec={text!r}: there is no such preset{nearest(text, NAMES)}; there are {', '.join(NAMES)}. A path ends "
            "in .toml"
        )
    return tables(tables_of(Path(text)), text)


def _with_placeholders(keys: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The tables of a spec, with placeholders for the features and the labels if these are left to the data."""
    step = dict(keys.get("input", {}))
    if step.get("vocabulary") is None:
        names = step.get("feature_names")
        step.setdefault("features", (isinstance(names, list | tuple) and len(names)) or 1)
    return {**keys, "input": step, "output": {"labels": ["1", "2"], **keys.get("output", {})}}


def with_labels(spec: SpecSource, labels: Sequence[str]) -> dict[str, Any]:
    """The tables of a spec for one label a sequence, with these labels in this order.

    Raises:
        ConfigurationError: The spec has other labels, or another task.
    """
    done = {name: dict(table) for name, table in tables(spec).items()}
    output = done.setdefault("output", {})
    if output.get("task", "single-label") != "single-label":
        raise ConfigurationError(f"spec: the task is {output['task']!r}: a classifier gives each sequence one label")
    own = output.setdefault("labels", list(labels))
    if isinstance(own, list | tuple):  # anything else is refused where the spec is read
        stated = [str(label) for label in own]
        if {*stated} != {*labels}:
            raise ConfigurationError(f"spec: its labels are {', '.join(stated)}; those of y are {', '.join(labels)}")
        output["labels"] = list(labels)
    return done


def complete_tables(keys: Mapping[str, Any], records: Sequence[Record], reasons: list[str]) -> dict[str, Any]:
    """The tables, with what they leave open read off the records: features, task, labels, and the longest sequence.

    Appends a sentence to `reasons` for the task and the longest sequence, if they were open.

    Raises:
        ConfigurationError: The records do not say it: all have the same label or none, or only some have names of
            features.
    """
    done = {name: dict(table) for name, table in keys.items()}
    step, output = done.setdefault("input", {}), done.setdefault("output", {})
    if step.get("vocabulary") is None and "features" not in step:
        step["features"] = int(records[0].steps.shape[1])
    names = records[0].names
    if names is None and any(record.names is not None for record in records):
        raise ConfigurationError(
            f"{records[0].source_line}: its features have no names, and those of other sequences have: "
            "give all in one form"
        )
    if step.get("vocabulary") is None and step.get("feature_names") is None and names is not None:
        step["feature_names"] = list(names)
    longest = max(len(record.steps) for record in records)
    if "max_length" not in step and "long" not in step and longest > _DEFAULT_LONGEST:
        step["max_length"] = longest
        reasons.append(f"max_length = {longest}: the longest sequence")
    if "labels" not in output:
        if "task" not in output and (task := _task_of(records)) != "single-label":
            output["task"] = task
            reasons.append(f'task = "{task}": by the labels')
        output["labels"] = sorted_labels(record.label for record in records)
        if len(output["labels"]) < 1 + (output.get("task") != "multi-label"):
            seen = f"every label is {output['labels'][0]!r}" if output["labels"] else "no record has a label"
            raise ConfigurationError(
                f"{records[0].source_line}: {seen}, so there is nothing to tell apart: a record of JSON has it as "
                "'label'; of a table, say which column it is (--column label=NAME)"
            )
    return done


def _task_of(records: Sequence[Record]) -> Task:
    """The task by the form of the labels.

    Raises:
        ConfigurationError: Each list of labels has one entry, which may be a mistake.
    """
    several = [record for record in records if isinstance(record.label, tuple)]
    if not several:
        return "single-label"
    if len(several) < len(records) or any(len(record.label or ()) != len(record.steps) for record in several):
        if all(len(record.label or ()) == 1 for record in several):
            raise ConfigurationError(
                f"{several[0].source_line}: its label is a list of one: write the label itself, or say task = "
                '"multi-label" in [output] of the spec'
            )
        return "multi-label"
    return "per-step"

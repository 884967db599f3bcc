"""Records and a spec, from a Python caller's sequences and labels or from data files.

```
spec, sequences, labels -> the kind of a step -> arrays -> records -> what the spec leaves open
spec, files --------------------------------------------> records -> what the spec leaves open
```
One error names every sequence and label that cannot be used, by its index in the list; of files the first ones.
Nothing here imports torch, which takes seconds, so that wrong data is reported at once.

In the code, `spec_tables` are the tables of a spec: `{"input": {...}, "model": {...}, "output": {...}}`. A key is
*open* if the user does not give it: the number of features, the labels, the task and the longest length are then read
off the data (`complete_tables`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import numpy as np

from lengthwise.exporter_api.contract import Steps, Task, listed
from lengthwise.exporter_api.data import (
    TRANSPOSED,
    BadRecord,
    ColumnNames,
    InputSequence,
    InputSequences,
    Label,
    Layout,
    Padding,
    Reading,
    Record,
    Roles,
    StepKind,
    as_steps,
    dataset,
    input_sequences,
    is_number,
    masked_steps,
    without_ignored,
    without_padding,
)
from lengthwise_export.architecture.model_spec import Preset
from lengthwise_export.architecture.spec import InputSpec, Spec, tables_of
from lengthwise_export.errors import ConfigurationError, SpecError, nearest
from lengthwise_export.training.labels import by_time, in_order
from lengthwise_export.training.record_checks import allow_open_missing, fitting_records, why_unfit

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
    labels: Any,
    layout: Layout = "steps-first",
    padding: Padding | None = None,
) -> LabelledSequences:
    """Converts a Python caller's sequences and labels to records, and completes the spec from them.

    Args:
        spec_or_tables: The spec, in which keys may be open.
        sequences: In any form that `lengthwise.Model.predict` takes.
        labels: One for each sequence, in a form of `training.labels`; None for those that the sequences have
            themselves, as in a column of a table.
        layout: The order of the axes of an array.
        padding: Which steps are cut off the end of each sequence; None for what the spec says.

    Raises:
        ConfigurationError: There is no sequence. A wrong spec or label is a ConfigurationError, too.
    """
    spec_tables = _with_padding(tables(spec_or_tables), padding)
    input_table = spec_tables.get("input", {})
    labelled, roles, may_be_ids = _records_of(
        sequences, labels, layout, input_table, spec_tables.get("output", {}).get("task")
    )
    if not labelled:
        raise ConfigurationError("there is no sequence to train on")
    reasons = [] if roles is None else [f"columns: {roles}"]
    warnings = (
        [MAY_BE_IDS.format("spec={'input': {'vocabulary': N}}")]
        if may_be_ids and input_table.get("features") is None
        else []
    )
    records = [without_ignored(record, warnings.append) for record in labelled]
    spec = Spec.from_table(complete_tables(spec_tables, records, reasons))
    require_fit("", records, allow_open_missing(spec))
    return LabelledSequences(
        spec, records, {} if roles is None else roles.named, tuple(reasons), tuple(dict.fromkeys(warnings))
    )


def spec_and_files(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Divides the command-line arguments of `train` into the spec and the data files.

    Returns:
        The spec, which is a preset's name or the path of a `.toml` file ("auto" if none is given), and the data files.

    Raises:
        ConfigurationError: There are two specs, or no data; or an argument is neither a preset nor a file.
    """
    specs = [word for word in arguments if word in NAMES or word.endswith(".toml")]
    data = [word for word in arguments if word not in specs]
    for word in data:
        if not (os.path.exists(word) or word.startswith("aeon:")):
            raise ConfigurationError(f"{word}: there is no such file or preset{nearest(word, NAMES)}")
    if len(specs) > 1 or not data:
        raise ConfigurationError(f"{' '.join(arguments)}: give one SPEC at most, and the files of the DATA")
    return (specs or ["auto"])[0], data


def from_files(spec_or_path: str | Spec, files: Sequence[str], reading: Reading) -> LabelledSequences:
    """Reads the records of data files, and completes the spec from them.

    The records are checked against the spec while they are read; if the number of features or the labels are open,
    after the spec is complete. One error names the first bad records, or the first that do not fit the spec.

    Raises:
        ConfigurationError: The files hold no record.
    """
    spec_tables = _with_padding(tables(spec_or_path), reading.padding)
    source = "spec" if isinstance(spec_or_path, Spec) or spec_or_path in NAMES else spec_or_path
    is_open = _with_placeholders(spec_tables) != spec_tables  # the number of features, or the labels
    input_table = spec_tables.get("input", {})
    roles = list[Roles]()  # of the columns: `reading.taken` appends them when a table is read
    reading = replace(
        reading,
        per_step=spec_tables.get("output", {}).get("task") == "per-step",
        columns=replace(
            reading.columns,
            inputs=tuple(input_table.get("feature_names") or ()) or None,
            static=reading.columns.static or tuple(input_table.get("static_names") or ()),
        ),
        taken=roles.append,
        padding=input_table.get("padding"),
    )
    # Read the records, and check them against the spec where nothing in it is open
    kind: StepKind = "values" if input_table.get("vocabulary") is None else "tokens"
    entries = _entries(files, kind, reading)
    records = [
        *(
            dataset.valid_records(entries)
            if is_open
            else fitting_records(entries, Spec.from_table(spec_tables, source=source))
        )
    ]
    if not records:
        raise ConfigurationError(f"{', '.join(files)}: there is no record in it")
    # Complete the spec
    reasons: list[str] = []
    column = roles[0].label if roles else None
    completed = complete_tables(spec_tables, records, reasons, source, label_column=column)
    spec = Spec.from_table(completed, source=source)
    are_whole = spec.input.features == 1 and all(
        (record.steps >= 0).all() and not (record.steps % 1).any() for record in records
    )
    warnings = [MAY_BE_IDS.format("vocabulary = N in [input]")] if are_whole and "features" not in input_table else []
    if is_open:
        records = [*fitting_records(records, spec)]
    return LabelledSequences(spec, records, roles[0].named if roles else {}, tuple(reasons), tuple(warnings), is_open)


def _with_padding(spec_tables: Mapping[str, Any], padding: Padding | None) -> Mapping[str, Any]:
    """The tables of a spec with `input.padding` set to this padding; None leaves them as they are."""
    return (
        spec_tables
        if padding is None
        else {**spec_tables, "input": {**spec_tables.get("input", {}), "padding": padding}}
    )


def _entries(files: Sequence[str], kind: StepKind, reading: Reading) -> Iterator[Record | BadRecord]:
    """Yields the records of files, and a BadRecord for each that cannot be read.

    If neither the spec nor an option names the features, the names of the first record that has some apply to all
    records after it.
    """
    for name in files:
        for record in dataset.entries(dataset.locate(name), kind, reading=reading):
            if isinstance(record, Record) and record.names is not None and reading.columns.inputs is None:
                reading = replace(reading, columns=replace(reading.columns, inputs=record.names))
            yield record


def require_fit(name: str, records: Sequence[Record], spec: Spec) -> None:
    """Makes sure that a model of a spec can be trained on each record.

    Args:
        name: The argument of `train` that the records come from, such as "test", for messages; empty for `sequences`.
        records: The records.
        spec: The spec that they must fit.

    Raises:
        InvalidSequences: Some records do not fit; the error names all of them.
    """  # noqa: DOC502 - what it calls raises it
    about = f"in {name}: " if name else ""
    input_sequences.require_valid((why_unfit(record, spec) or record for record in records), lambda _index: about)


def _records_of(
    sequences: Any, labels: Any, layout: Layout, input_table: Mapping[str, Any], task: str | None
) -> tuple[list[Record], Roles | None, bool]:
    """Converts a Python caller's sequences and labels to records, all of which the spec's kind of a step fits.

    Args:
        sequences: The sequences, in any form that `input_sequences.read` takes.
        labels: One for each sequence; None for those that the sequences have themselves.
        layout: The order of the axes of an array.
        input_table: The table `[input]` of the spec.
        task: The task of the spec; None if it is open.

    Returns:
        The records; the roles of the columns if the sequences are a table, else None; and whether all values are whole
        numbers without an axis of features, so that they may be token ids that the spec does not declare.

    Raises:
        InvalidSequences: Some sequences cannot be used; it names all of them.
        ConfigurationError: There are not as many labels as sequences.
    """  # noqa: DOC501, DOC502 - a ValueError becomes the reason in an InvalidSequences of `require_valid`
    # What the spec says about a step, and the sequences as NumPy sees them
    names, padding = tuple(input_table.get("feature_names") or ()) or None, input_table.get("padding")
    is_values = input_table.get("vocabulary") is None
    stated_features = input_table.get("features") if is_values else None
    features = stated_features if type(stated_features) is int else None  # another type is refused with the spec
    static = tuple(input_table.get("static_names") or ())
    columns, per_step = ColumnNames(inputs=names, static=static), task == "per-step"
    entries, roles = input_sequences.read(
        sequences, layout, columns, padding=padding, is_cut=False, per_step=per_step, ask=False
    )
    # Convert each sequence to an array, or to the reason why it cannot be used
    converted: list[Steps | str] = []
    for entry in entries:
        try:
            if isinstance(entry, str):
                raise ValueError(entry)
            steps = as_steps(entry.steps, "values" if is_values else "tokens", features)
            _require_features(steps, features, next((one for one in converted if not isinstance(one, str)), steps))
            converted.append(masked_steps(entry, steps))  # applies masks of steps and features that the entry may have
        except ValueError as error:
            converted.append(str(error))
    arrays: list[Steps] = input_sequences.require_valid(converted)
    # Join the arrays with their labels to records, and cut padding off their ends
    sequences_read = InputSequences((entry for entry in entries if isinstance(entry, InputSequence)), roles)
    raw_labels = (
        _own_labels(sequences_read, arrays, task)
        if labels is None
        else by_time(in_order(labels, sequences_read, sequences), sequences_read)
    )
    labels_read = [as_label(label, index) for index, label in enumerate(raw_labels)]
    if len(labels_read) != len(arrays):
        raise ConfigurationError(f"{len(arrays)} sequences and {len(labels_read)} labels: each sequence needs one")
    records = [
        _record(index, entry, steps, label, names)
        for index, (entry, steps, label) in enumerate(zip(sequences_read, arrays, labels_read, strict=True))
    ]
    records = input_sequences.require_valid(without_padding(record, padding) for record in records)
    are_whole = all(entry.steps.ndim == 1 and entry.steps.dtype.kind in "iu" for entry in sequences_read)
    return records, roles, is_values and are_whole


def _record(index: int, entry: InputSequence, steps: Steps, label: Label, names: tuple[str, ...] | None) -> Record:
    """The record of the sequence at an index; `names` are those of its features, None for its own."""
    name = str(index) if entry.id is None else entry.id
    return Record(name, steps, label, f"sequence {index}", names or entry.names, entry.static)


def _require_features(steps: Steps, features: int | None, first: Steps) -> None:
    """Makes sure that a sequence has steps, and the right number of features in each.

    Args:
        steps: The sequence, `[length, features]`, or `[length]` for tokens or for one feature, which is not checked.
        features: The number that the spec says; None if it is open: then that of the first sequence counts.
        first: The first sequence of the call, which may be this one.

    Raises:
        ValueError: The steps have another number of features, or there is no step.
    """
    if not len(steps):
        raise ValueError("a sequence has at least one step")
    if steps.ndim == 1:
        return
    if not steps.shape[1]:
        raise ValueError(f"a step has at least one feature, the shape of this array is {[*steps.shape]}")
    # Of arrays [features, length], the first axis has the number of features: the message asks whether these are such
    expected, who, first_axis_if_transposed = first.shape[1], "the sequences before have", len(first)
    if features is not None:
        expected, who, first_axis_if_transposed = features, "the model takes", features
    if steps.shape[1] != expected:
        hint = TRANSPOSED if len(steps) == first_axis_if_transposed else ""
        raise ValueError(f"{steps.shape[1]} features a step, {who} {expected}{hint}")


def _own_labels(sequences: InputSequences, arrays: Sequence[Steps], task: str | None) -> list[Any]:
    """The labels that the sequences have themselves; for a per-step model, one label becomes that of each step.

    Args:
        sequences: The sequences, with their labels.
        arrays: The steps of each sequence.
        task: The task of the spec; None if it is open.

    Raises:
        ConfigurationError: A sequence has no label.
    """
    labels = sequences.labels
    if None in labels:
        raise ConfigurationError(
            f"sequence {labels.index(None)} has no label: give labels=, or a table with a column of labels"
            + (f" (columns: {sequences.taken})" if sequences.taken else "")
        )
    return [
        [label] * len(steps) if task == "per-step" and not isinstance(label, list) else label
        for label, steps in zip(labels, arrays, strict=True)
    ]


def as_label(label: Any, index: int) -> Label:
    """Converts a caller's label to the form of records: a text, or a tuple of texts for several labels.

    Args:
        label: A text or a whole number, or a list, set or array of them; in it, None or NaN is a step without a label.
        index: The index of its sequence, for messages.

    Raises:
        ConfigurationError: The label, or an entry of it, is neither a text nor a whole number.
    """  # noqa: DOC502 - `_text` raises it
    label = label.item() if getattr(label, "ndim", None) == 0 else label  # a number of NumPy
    label = sorted(label, key=str) if isinstance(label, set | frozenset) else label
    if isinstance(label, np.ndarray | list | tuple):
        return tuple(
            None if text is None or (isinstance(text, float) and text != text) else _text(text, index) for text in label
        )
    return _text(label, index)


def _text(label: Any, index: int) -> str:
    """Converts a single label to a text; `index` is that of its sequence, for messages.

    Raises:
        ConfigurationError: The label is neither a text nor a whole number.
    """
    if isinstance(label, str | int | np.integer) and not isinstance(label, bool) and label != "":
        return str(label)
    raise ConfigurationError(
        f"label {index} is {str(label)[:40]!r}, a {type(label).__name__}: a label is a text or a whole number, or a "
        "list of them for a model with several"
    )


def sorted_labels(labels: Iterable[Label]) -> list[str]:
    """The different labels, sorted: by value if all are whole numbers, else by the alphabet."""
    texts = {text for label in labels for text in (label if isinstance(label, tuple) else (label,)) if text is not None}
    numbers = all(text.removeprefix("-").isdecimal() for text in texts)
    return sorted(texts, key=lambda text: (int(text), text)) if numbers else sorted(texts)


def tables(spec: SpecSource, source: str = "spec") -> Mapping[str, Mapping[str, Any]]:
    """Converts a spec in any form to its tables; keys that the user did not set are absent.

    The tables are checked as far as that is possible without the data, so that a wrong spec is reported first.

    Args:
        spec: A preset's name, the path of a TOML file, the tables, or a `Spec`.
        source: The beginning of error messages, such as a path.

    Raises:
        SpecError: The tables are not those of a spec.
        ConfigurationError: `spec` is no preset, path or dictionary.
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


def _with_placeholders(spec_tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A copy of the tables of a spec in which placeholders stand for the number of features and the labels, if open.

    With them, a spec can be checked before the data is read. The copy is equal to the tables if neither is open.
    """
    input_table = dict(spec_tables.get("input", {}))
    if input_table.get("vocabulary") is None:
        names = input_table.get("feature_names")
        # A wrong type or an empty list gets 1 here, and is refused when the spec is checked
        input_table.setdefault("features", len(names) if isinstance(names, list | tuple) and names else 1)
    return {**spec_tables, "input": input_table, "output": {"labels": ["1", "2"], **spec_tables.get("output", {})}}


def with_labels(spec: SpecSource, labels: Sequence[str]) -> dict[str, Any]:
    """The tables of a single-label spec, with `output.labels` set to these labels in this order.

    Raises:
        ConfigurationError: The spec states a different set of labels, or another task.
    """
    completed = {name: dict(table) for name, table in tables(spec).items()}
    output = completed.setdefault("output", {})
    if output.get("task", "single-label") != "single-label":
        raise ConfigurationError(f"spec: the task is {output['task']!r}: a classifier gives each sequence one label")
    stated_labels = output.setdefault("labels", list(labels))
    if isinstance(stated_labels, list | tuple):  # anything else is refused where the spec is read
        texts = [str(label) for label in stated_labels]
        if {*texts} != {*labels}:
            raise ConfigurationError(f"spec: its labels are {', '.join(texts)}; those of y are {', '.join(labels)}")
        output["labels"] = list(labels)
    return completed


def complete_tables(
    spec_tables: Mapping[str, Any],
    records: Sequence[Record],
    reasons: list[str],
    source: str = "spec",
    *,
    label_column: str | None = None,
) -> dict[str, Any]:
    """Completes the tables of a spec: reads what is open off the records.

    Open may be the number of features and their names, the longest length (`max_length`), the task and the labels. For
    the longest length, and for a task that is not single-label, a sentence is appended to `reasons`. An error says
    `source` for the spec. `label_column` is the column of the labels, for messages; None if there is none.

    Raises:
        ConfigurationError: The records do not decide it: there are too few different labels, or only some records have
            feature names; or the spec states another number of features than they have.
    """
    completed = {name: dict(table) for name, table in spec_tables.items()}
    input_table, output = completed.setdefault("input", {}), completed.setdefault("output", {})
    _complete_features(input_table, records, source)
    _complete_static(input_table, records, reasons)
    longest = max(len(record.steps) for record in records)
    if "max_length" not in input_table and "long" not in input_table and longest > _DEFAULT_LONGEST:
        input_table["max_length"] = longest
        reasons.append(f"max_length = {longest}: the longest sequence")
    if "labels" not in output:
        if "task" not in output and (task := _task_of(records)) != "single-label":
            output["task"] = task
            reasons.append(f'task = "{task}": by the labels')
        output["labels"] = sorted_labels(record.label for record in records)
        if len(output["labels"]) < (1 if output.get("task") == "multi-label" else 2):
            raise ConfigurationError(f"{records[0].source_line}: {_why_one_class(output['labels'], label_column)}")
    return completed


def _complete_features(input_table: dict[str, Any], records: Sequence[Record], source: str) -> None:
    """Completes the table `[input]`: reads the number of features and their names off the records, if they are open.

    Raises:
        ConfigurationError: Only some records have names, or the table states another number of features.
    """
    if input_table.get("vocabulary") is None and "features" not in input_table:
        input_table["features"] = int(records[0].steps.shape[1])
    names = records[0].names
    if names is None and any(record.names is not None for record in records):
        raise ConfigurationError(
            f"{records[0].source_line}: its features have no names, and those of other sequences have: "
            "give all in one form"
        )
    if input_table.get("vocabulary") is None and input_table.get("feature_names") is None and names is not None:
        if type(input_table["features"]) is int and input_table["features"] != len(names):
            raise ConfigurationError(
                f"{source} says features = {input_table['features']}, the data has {len(names)}: {listed(names)}"
            )
        input_table["feature_names"] = list(names)


def _complete_static(input_table: dict[str, Any], records: Sequence[Record], reasons: list[str]) -> None:
    """Completes the table `[input]`: reads the static values off the first record that has some, if they are open.

    By name, those that are no numbers are categories, of all values that the records have. A sentence is appended to
    `reasons`.
    """
    static = next((record.static for record in records if record.static is not None), None)
    if static is None or "static" in input_table or "static_names" in input_table:
        return
    if not isinstance(static, Mapping):
        input_table["static"] = len(static)
        return
    input_table["static_names"] = list(static)
    categories = {}
    for name in static:
        values = {
            value for record in records if isinstance(record.static, Mapping) for value in [record.static.get(name)]
        }
        texts = sorted(value for value in values if isinstance(value, str) and not is_number(value))
        if texts:
            categories[name] = texts
    if categories:
        input_table.setdefault("static_categories", categories)
    reasons.append(f"static values: {listed(list(static))}")


def _why_one_class(labels: Sequence[str], label_column: str | None) -> str:
    """The message for records with one label or none: what is wrong, and what to do."""
    problem, advice = "no record has a label", f"the column {label_column!r} of the labels is empty"
    if labels:
        problem, advice = f"every label is {labels[0]!r}", "add sequences of another class"
    elif not label_column:
        advice = "a record of JSON has it as 'label'; of a table, say which column it is (--column label=NAME)"
    return f"{problem}, so there is nothing to tell apart: {advice}"


def _task_of(records: Sequence[Record]) -> Task:
    """The task, by the form of the labels.

    - No record has a list of labels: single-label.
    - Each record has a list that is as long as the sequence: per-step.
    - Otherwise: multi-label.

    Raises:
        ConfigurationError: It would be multi-label, but each list has one entry, which may be a mistake.
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

"""Labelled sequences from a file: JSON Lines, the UEA/UCR archive's `.ts`, and Parquet where pyarrow is installed.

| file | one record |
|---|---|
| `.jsonl`, `.jsonl.gz` | a line `{"id": ..., "steps": [[0.1, null], ...], "label": ...}`; `id`, `label` may be absent |
| `.ts` | a line `1,2,3:4,5,6:label`: features apart by colons, each with its steps; `?` and `NaN` are missing |
| `.parquet` | a row with the columns `steps` (list of lists, or list of ids) and, maybe, `id` and `label` |
| `.csv`, `.csv.gz`, `.tsv`, `.parquet` without `steps` | the rows with one id, a step each (`long_table`) |

A label is one string, for a multi-label model several, for a per-step model one for each step. An error names the file
and the line; `read` reports the first 20 bad records of a file at once, `entries` continues after each.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.datasets import table_sequences
from lengthwise.datasets.column_roles import NO_HEADER, ColumnNames, Roles, assign_roles
from lengthwise.datasets.input_sequences import Padding
from lengthwise.datasets.long_table import LongSequence
from lengthwise.datasets.record_fields import BadRecord, Label, Record, StepKind, as_float32, label_of, read_record
from lengthwise.datasets.tables import TableColumns, columns_of
from lengthwise.datasets.tails import without_padding
from lengthwise.datasets.text_files import (
    BLOCK_CELLS,
    CSV_SUFFIXES,
    Advance,
    TextColumns,
    json_lines,
    read_csv,
    time_series,
)
from lengthwise.errors import Causes, ConfigurationError, RecordError, how_to_install
from lengthwise.wrong_values import counted

__all__ = ["BadRecord", "ColumnNames", "Label", "Reading", "Record", "StepKind"]  # and the functions below
_NAMES: Final = b"lengthwise.names"  # of the features as JSON, in the metadata of a Parquet file of records
MOST_REPORTED: Final = 20  # bad records that one error names
_SINGLE: Final = "give a single sequence a column id with one value"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read."""

    columns: ColumnNames = field(default_factory=ColumnNames)  # that the user names
    channels_first: bool = False  # whether steps are `[features, length]`
    per_step: bool | None = None  # whether each step has a label, also where all are equal; None if it is not known
    ids_are_needed: bool = True  # by a file with a row for each step
    say: Callable[[str], object] = lambda _line: None  # called with what the columns were taken as, as a line
    warn: Callable[[str], object] = lambda _line: None  # called with what the user should change
    how_to_name: str = ""  # ends an error about columns
    padding: Padding | None = None  # which tails are cut off
    taken: Callable[[Roles], object] = lambda _roles: None  # called with what the columns were taken as


_PLAIN: Final = Reading()
_UCR: Final = re.compile(r"_(TRAIN|TEST)\.tsv$")  # of the archive: no header, a row for each sequence
_UCR_LABEL: Final = f"{NO_HEADER}1"
_AS_ARRAYS: Final = (
    "in Python, lengthwise_export.train(spec, arrays, labels) and Model.predict(arrays) take arrays: "
    "data = numpy.load(FILE); list(data['X'])"
)
_AS_CSV: Final = "table.to_csv('data.csv', index=False) writes a table with a row for each step"
_CURES: Final = {
    **dict.fromkeys((".npz", ".npy"), _AS_ARRAYS),
    **dict.fromkeys((".xlsx", ".xls"), f"table = pandas.read_excel(FILE); {_AS_CSV}"),
    **dict.fromkeys((".pkl", ".pickle"), f"table = pandas.read_pickle(FILE), if you trust the file; {_AS_CSV}"),
    **dict.fromkeys(
        (".h5", ".hdf5"), f"table = pandas.read_hdf(FILE); {_AS_CSV}; of arrays, list(h5py.File(FILE)['X'])"
    ),
    **dict.fromkeys((".feather", ".arrow"), f"table = pandas.read_feather(FILE); {_AS_CSV}"),
    ".json": "jq -c '.[]' LIST.json > DATA.jsonl writes a list as JSON Lines",
    ".txt": "rename it if it is one of these",
}


def locate(name: str) -> Path:
    """The path of a data file, given as a path or as `aeon:NAME_TRAIN`, a file in aeon's wheel.

    Raises:
        ConfigurationError: There is no such file or data set, or aeon is not installed.
    """
    if not name.startswith("aeon:"):
        path = Path(name)
        if not (path.is_file() or path.is_dir()):
            raise ConfigurationError(f"{name}: {'it is not a file' if path.exists() else 'there is no such file'}")
        return path
    package = importlib.util.find_spec("aeon")
    if package is None or package.origin is None:
        raise ConfigurationError(f"{name}: aeon is not installed: {how_to_install('demo')}")
    split = name.removeprefix("aeon:")
    data = Path(package.origin).parent / "datasets" / "data"
    path = data / split.rpartition("_")[0] / f"{split}.ts"
    if not path.is_file():
        names = sorted(file.stem for file in data.glob("*/*_TRAIN.ts"))
        raise ConfigurationError(f"{name}: aeon's wheel has no such set; it has {', '.join(names)}")
    return path


def read(
    path: Path,
    kind: StepKind = "values",
    check: Callable[[Record], object] = lambda _record: None,
    reading: Reading = _PLAIN,
) -> Iterator[Record]:
    """The records of a file in its order; errors as those of `valid_records`."""
    return valid_records(entries(path, kind, reading=reading), check)


def valid_records(
    entries: Iterator[Record | BadRecord], check: Callable[[Record], object] = lambda _record: None
) -> Iterator[Record]:
    """The records of a file, up to the first bad one; `check` raises for records that are bad for another reason.

    Raises:
        RecordError: A record is bad; the message has the first `MOST_REPORTED` bad ones of all.
    """
    checked = _checked(entries, check)
    for record in checked:
        if isinstance(record, BadRecord):
            raise RecordError(with_later_errors(record.error, checked))
        yield record


def read_all(
    data: str,
    kind: StepKind,
    check: Callable[[Record], object] = lambda _record: None,
    reading: Reading = _PLAIN,
) -> list[Record]:
    """The records of a file, at least one; `data` is as for `locate`, the others are as for `read`.

    Raises:
        ConfigurationError: The file holds no record.
    """
    records = list(read(locate(data), kind, check, reading))
    if not records:
        raise ConfigurationError(f"{data}: there is no record in it")
    return records


def with_later_errors(first: RecordError, behind: Iterable[object]) -> str:
    """The text of one error for a bad record and the `BadRecord`s that follow it: the first `MOST_REPORTED`."""
    causes = Causes()
    causes.add(str(first))
    with suppress(ConfigurationError):  # if the file cannot be read to its end, the errors so far are still reported
        for record in behind:
            if isinstance(record, BadRecord):
                causes.add(str(record.error))
    return "\n".join(causes.lines(MOST_REPORTED))


def _checked(entries: Iterator[Record | BadRecord], check: Callable[[Record], object]) -> Iterator[Record | BadRecord]:
    """Yields the records; one that fails the check, or has other features than the first, as a `BadRecord`.

    Raises:
        RecordError: Never leaves this function: the record is yielded as a `BadRecord`.
    """
    features: int | None = None
    for record in entries:
        if isinstance(record, Record):
            try:
                if record.steps.ndim == 2:
                    count = int(record.steps.shape[1])
                    if features not in (None, count):
                        why = f"{counted(count, 'feature')} a step, the records before have {features}"
                        raise RecordError(f"{record.source_line}: {why}")
                    features = count
                check(record)
            except ConfigurationError as error:
                yield BadRecord(record.id, RecordError(str(error)))
                continue
        yield record


def entries(
    path: Path,
    kind: StepKind = "values",
    advance: Advance = lambda _share: None,
    reading: Reading = _PLAIN,
) -> Iterator[Record | BadRecord]:
    """The records of a file, with a `BadRecord` for each bad one.

    Records may differ in their number of features: the first may be the wrong one.

    Raises:
        ConfigurationError: The name has another suffix, or a .ts file is to hold token ids.
    """
    name = path.name.lower()
    if path.is_dir():
        records = _folder(path, kind, advance, reading)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        records = json_lines(path, kind, advance, reading.columns.inputs)
    elif name.endswith(CSV_SUFFIXES):
        blocks = read_csv(path, advance, lambda columns: _id_column(columns, reading), reading.warn)
        records = _table(path, kind, blocks, reading)
    elif name.endswith(".ts"):
        if kind == "tokens":
            raise ConfigurationError(f"{path}: a .ts file holds values, and the model wants token ids")
        records = time_series(path, advance)
    elif name.endswith(".parquet"):
        records = _parquet(path, kind, advance, reading)
    else:
        endings = ", ".join((".jsonl", ".jsonl.gz", ".ts", ".parquet", *CSV_SUFFIXES))
        cure = next((f": {text}" for suffix, text in _CURES.items() if name.endswith(suffix)), "")
        raise ConfigurationError(f"{path}: the name must end in one of {endings}{cure}")
    return (_arranged(record, reading) for record in records)


def _arranged(record: Record | BadRecord, reading: Reading) -> Record | BadRecord:
    """A record with its steps first, and without padding."""
    if isinstance(record, BadRecord):
        return record
    if reading.channels_first and record.steps.ndim == 2:
        steps: NDArray[np.float32] = np.ascontiguousarray(record.steps.T, dtype=np.float32)
        record = replace(record, steps=steps)
    shortened = without_padding(record, reading.padding)
    return (
        BadRecord(record.id, RecordError(f"{record.source_line}: {shortened}"))
        if isinstance(shortened, str)
        else shortened
    )


def _table(path: Path, kind: StepKind, blocks: Iterable[TextColumns], reading: Reading) -> Iterator[Record | BadRecord]:
    """The records of a file with a row for each step, or for each sequence.

    Raises:
        ConfigurationError: It is not clear what the columns are; the message begins with `path`.
    """
    for cells in blocks:
        if _UCR.search(path.name) and _UCR_LABEL in cells.columns and reading.columns.row is None:
            reading = replace(reading, columns=replace(reading.columns, row="sequence", label=_UCR_LABEL))
        advice = _SINGLE if reading.ids_are_needed else None
        how: dict[str, Any] = {"advice_for_single": advice, "per_step": reading.per_step}
        try:
            sequences, roles = table_sequences.sequences(cells.columns, reading.columns, cells.wrong, **how)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}{reading.how_to_name}") from error
        reading.taken(roles)
        count = (
            f"; {counted(len(sequences), 'sequence')}" if len(cells.lines) * len(cells.columns) < BLOCK_CELLS else ""
        )
        reading.say(f"{path}: {roles}{count}")
        for one in sequences:
            row = one.problem[0] if one.problem else int(one.rows[0])
            yield _record(one, f"{path}:{cells.lines[row] if cells.lines else f'row {row + 1}'}", kind)
        columns = replace(reading.columns, id=roles.id)  # of the rows behind them, which may be few
        reading = replace(reading, columns=columns, say=_PLAIN.say, taken=_PLAIN.taken)


def _record(one: LongSequence, source_line: str, kind: StepKind) -> Record | BadRecord:
    """The record of one sequence of a table; a `BadRecord` if the sequence cannot be used."""  # noqa: DOC501 - it returns them
    try:
        if one.problem:
            raise RecordError(f"{source_line}: {one.problem[1]}")
        steps: NDArray[Any] = one.steps
        if kind == "tokens":
            if steps.ndim != 1 or not ((steps >= 0) & (steps < 2.0**63) & (steps == np.floor(steps))).all():
                raise RecordError(f"{source_line}: a step is not a token id: one whole number from 0 in a row")
            steps = steps.astype(np.int64)
        else:
            steps = as_float32(steps, source_line)
        return Record(one.id, steps, label_of(one.label, source_line), source_line, one.names)
    except RecordError as error:
        return BadRecord(one.id, error)


def _id_column(columns: TableColumns, reading: Reading) -> str | None:
    """The column of ids by which a file may be read in blocks; None where all rows must be read first.

    They must unless it is known whether each step has a label.
    """
    with suppress(ConfigurationError):  # it is reported where the rows are read
        return None if reading.per_step is None else assign_roles(columns, reading.columns).id
    return None


def _folder(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    """The records of CSV files, a sequence each: its id is the file's name, its label a column's or its folder's.

    Raises:
        ConfigurationError: The folder has no such file.
    """
    files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(CSV_SUFFIXES))
    if not files:
        raise ConfigurationError(f"{path}: a folder must have a file for each sequence ({', '.join(CSV_SUFFIXES)})")
    say = reading.say
    about = f"{path}: {counted(len(files), 'file')}, each as "
    reading = replace(reading, ids_are_needed=False, say=lambda line: say(about + line))
    for count, file in enumerate(files):
        advance(count / len(files))
        for record in _table(file, kind, read_csv(file), reading):
            other: dict[str, Any] = {"id": str(file.relative_to(path)).partition(".")[0]} if record.id == "0" else {}
            if isinstance(record, Record) and record.label is None and file.parent != path:
                other["label"] = file.parent.name
            yield replace(record, **other)
        reading = replace(reading, say=_PLAIN.say, taken=_PLAIN.taken)


def _have(steps: Any, features: int) -> bool:
    """Whether steps are lists of so many values."""
    return isinstance(steps, list) and all(isinstance(step, list) and len(step) == features for step in steps)


def _parquet(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(f"{path}: reading Parquet needs pyarrow: {how_to_install('parquet')}") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        own = orjson.loads((file.schema_arrow.metadata or {}).get(_NAMES, b"null"))
    except (OSError, pyarrow.ArrowException, orjson.JSONDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as Parquet: {error}") from error
    names = file.schema_arrow.names
    if names.count("steps") != 1 or not hasattr(file.schema_arrow.field("steps").type, "value_type"):
        yield from _table(path, kind, [TextColumns(columns_of(file.read()) or TableColumns(), [], {})], reading)
        return
    columns = [name for name in ("id", "steps", "label") if name in names]
    index = 0
    for batch in file.iter_batches(batch_size=256, columns=columns):
        for fields in batch.to_pylist():
            advance(index / file.metadata.num_rows)
            if isinstance(own, list) and reading.columns.inputs != () and _have(fields["steps"], len(own)):
                fields["steps"] = [dict(zip(own, step, strict=True)) for step in fields["steps"]]
            yield read_record(fields, index, f"{path}:row {index + 1}", kind, reading.columns.inputs)
            index += 1

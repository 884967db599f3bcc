"""Reads labelled sequences from a file: JSON Lines, the UEA/UCR archive's `.ts`, CSV, and Parquet with pyarrow.

| file | one record |
|---|---|
| `.jsonl`, `.jsonl.gz` | a line `{"id": ..., "steps": [[0.1, null], ...], "label": ...}`; `id`, `label` may be absent |
| `.ts` | a line `1,2,3:4,5,6:label`: features apart by colons, each with its steps; `?` and `NaN` are missing |
| `.parquet` | a row with the columns `steps` (list of lists, or list of ids) and, maybe, `id` and `label` |
| `.csv`, `.csv.gz`, `.tsv`, `.parquet` without `steps` | the rows with one id, a step each (`long_table`) |

A label is one string, for a multi-label model several, for a per-step model one for each step. An error names the file
and the line. `entries` yields a bad record as a `BadRecord` and continues; `read` raises one error at the first bad
record, which reports up to 20 bad ones of the file.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.datasets import table_sequences
from lengthwise.datasets.column_roles import NO_HEADER, ColumnNames, Roles, assign_roles
from lengthwise.datasets.input_sequences import Padding
from lengthwise.datasets.long_table import LongSequence, constant_features
from lengthwise.datasets.record_fields import (
    BadRecord,
    Label,
    Record,
    StepKind,
    as_float32,
    label_of,
    read_record,
    without_ignored,
)
from lengthwise.datasets.tables import TableColumns, columns_of
from lengthwise.datasets.tails import without_padding
from lengthwise.datasets.text_files import (
    BLOCK_CELLS,
    CSV_SUFFIXES,
    LIST_TO_LINES,
    Advance,
    TextColumns,
    json_lines,
    read_csv,
    time_series,
)
from lengthwise.errors import Causes, ConfigurationError, RecordError, how_to_install
from lengthwise.wrong_values import counted, first_of

__all__ = ["BadRecord", "ColumnNames", "Label", "Reading", "Record", "StepKind"]  # and the functions below
_NAMES: Final = b"lengthwise.names"  # key in a Parquet file's metadata: the names of the features, a list as JSON
MOST_REPORTED: Final = 20  # bad records that one error names
_SINGLE: Final = "give a single sequence a column id with one value"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read: what its columns are, what is cut off, and the functions that get reports."""

    columns: ColumnNames = field(default_factory=ColumnNames)  # the columns that the user names
    channels_first: bool = False  # whether steps are `[features, length]`
    per_step: bool | None = None  # whether each step has a label, also where all are equal; None if it is not known
    # What a table without ids, by the names of its columns, gets: the end of the error, which says what to do if it is
    # one sequence; None: it is one
    for_single: Callable[[TableColumns], str | None] = lambda _columns: _SINGLE
    say: Callable[[str], object] = lambda _line: None  # called once, with a line for the user on the columns' roles
    warn: Callable[[str], object] = lambda _line: None  # called with a line on what the user should change
    how_to_name: str = ""  # ends an error about columns
    padding: Padding | None = None  # what is cut off the end of each sequence
    taken: Callable[[Roles], object] = lambda _roles: None  # called once, with the roles of the columns


_PLAIN: Final = Reading()
_UCR: Final = re.compile(r"_(TRAIN|TEST)\.tsv$")  # files of the UCR archive: no header, a row for each sequence
_UCR_LABEL: Final = f"{NO_HEADER}1"  # whose first column is the label
# Folders that are a split of the data, or hold a part of each sequence, and so no class: `train`, `X_test2`, `labels`
_NO_CLASS: Final = re.compile(
    r"([\W_\d]*(train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval(uation)?|hold_?out|split|fold|set|data|x|y|features?"
    r"|labels?|targets?|annotations?|inputs?|outputs?|raw|csvs?|files?|images?|imgs?|sequences?|series|samples?"
    r"|recordings?))+s?[\W_\d]*",
    re.IGNORECASE,
)
_AS_CSV: Final = "table.to_csv('data.csv', index=False) writes a table with a row for each step"
_ARRAYS: Final = "in Python, lengthwise_export.train(spec, arrays, labels) and Model.predict(arrays) take arrays"
_CURES: Final = {  # how to read a file of another format, by its suffix
    **dict.fromkeys(
        (".npz", ".npy"),
        f"{_ARRAYS}: data = numpy.load(FILE); list(data['X']). Where X is an array of objects, as of sequences of "
        "different lengths, numpy.load needs allow_pickle=True, which runs code of the file: only if you trust it, "
        "numpy.savez(NEW, *numpy.load(FILE, allow_pickle=True)['X']) writes plain arrays once, and of NEW "
        "[data[name] for name in data.files] are the sequences",
    ),
    **dict.fromkeys((".xlsx", ".xls"), f"table = pandas.read_excel(FILE); {_AS_CSV}"),
    **dict.fromkeys((".pkl", ".pickle"), f"table = pandas.read_pickle(FILE), if you trust the file; {_AS_CSV}"),
    **dict.fromkeys(
        (".h5", ".hdf5"), f"table = pandas.read_hdf(FILE); {_AS_CSV}; of arrays, list(h5py.File(FILE)['X'])"
    ),
    **dict.fromkeys((".nc", ".nc4"), f"table = xarray.open_dataset(FILE).to_dataframe().reset_index(); {_AS_CSV}"),
    ".avro": f"table = pandas.DataFrame(fastavro.reader(open(FILE, 'rb'))); {_AS_CSV}",
    ".ark": f"{_ARRAYS}, also by id: dict(kaldiio.load_ark(FILE)) has the steps [length, features] of each id",
    **dict.fromkeys(
        (".edf", ".bdf", ".gdf", ".fif"),
        "table = mne.io.read_raw(FILE).to_data_frame(); table.to_csv('data/NAME.csv', index=False) writes one "
        "sequence, and a folder of such files is read. MNE joins the parts of a recording with gaps (EDF+D)",
    ),
    **dict.fromkeys(
        (".tfrecord", ".tfrecords"),
        f"{_ARRAYS}: records = [*tfrecord.reader.sequence_loader(FILE, None, None, None)]; "
        "[numpy.stack(steps['X']) for _, steps in records]",
    ),
    **dict.fromkeys((".feather", ".arrow"), f"table = pandas.read_feather(FILE); {_AS_CSV}"),
    ".json": f"{LIST_TO_LINES} writes a list, or a body of /predict, as JSON Lines",
    ".txt": "rename it if it is one of these",
}


def locate(name: str) -> Path:
    """The path of a data file. `aeon:NAME_TRAIN` is a file in the wheel of aeon; any other name is a path.

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
    path = data / split.rpartition("_")[0] / f"{split}.ts"  # such as GunPoint/GunPoint_TRAIN.ts
    if not path.is_file():
        names = sorted(file.stem for file in data.glob("*/*_TRAIN.ts"))
        raise ConfigurationError(f"{name}: aeon's wheel has no such set; it has {', '.join(names)}")
    return path


def read(path: Path, kind: StepKind = "values", reading: Reading = _PLAIN) -> Iterator[Record]:
    """Yields the records of a file in their order, up to the first bad one.

    Raises:
        ConfigurationError: The file cannot be read.
        RecordError: A record is bad; the message has the first `MOST_REPORTED` bad ones of the file.
    """  # noqa: DOC502 - what it calls raises them
    return valid_records(entries(path, kind, reading=reading))


def valid_records(
    entries: Iterator[Record | BadRecord], check: Callable[[Record], object] = lambda _record: None
) -> Iterator[Record]:
    """Yields the records up to the first bad one.

    `check` is called with each record, and raises a ConfigurationError to make it a bad one.

    Raises:
        RecordError: A record is bad; the message has the first `MOST_REPORTED` bad ones of the file.
    """
    checked = _checked(entries, check)
    for record in checked:
        if isinstance(record, BadRecord):
            raise RecordError(with_later_errors(record.error, checked))
        yield record


def read_all(data: str, kind: StepKind, reading: Reading) -> list[Record]:
    """Reads the records of a data file, at least one; `data` is its path, or `aeon:NAME_TRAIN`.

    Raises:
        ConfigurationError: There is no such file, it cannot be read, or it holds no record.
        RecordError: A record is bad; the message has the first `MOST_REPORTED` bad ones of the file.
    """  # noqa: DOC502 - what it calls raises them
    records = list(read(locate(data), kind, reading))
    if not records:
        raise ConfigurationError(f"{data}: there is no record in it")
    return records


def with_later_errors(first: RecordError, later_records: Iterable[object]) -> str:
    """The text of one error for a bad record and all bad ones after it, of which the first `MOST_REPORTED` are listed.

    Reads `later_records` to their end, to find each `BadRecord` among them.
    """
    causes = Causes()
    causes.add(str(first))
    with suppress(ConfigurationError):  # if the file cannot be read to its end, the errors so far are still reported
        for record in later_records:
            if isinstance(record, BadRecord):
                causes.add(str(record.error))
    return "\n".join(causes.lines(MOST_REPORTED))


def _checked(entries: Iterator[Record | BadRecord], check: Callable[[Record], object]) -> Iterator[Record | BadRecord]:
    """Yields the records; one becomes a `BadRecord` if `check` raises, or if it has not as many features as the first.

    `check` is called with each record that has as many.
    """  # noqa: DOC501 - it yields its errors
    features: int | None = None
    for record in entries:
        if isinstance(record, Record):
            try:
                if record.steps.ndim == 2:  # values, not token ids
                    count = int(record.steps.shape[1])
                    if features not in (None, count):
                        reason = f"{counted(count, 'feature')} a step, the records before have {features}"
                        raise RecordError(f"{record.source_line}: {reason}")
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
    """Yields the records of a file, and a `BadRecord` for each bad one.

    Records may differ in their number of features: which one is right is not known here, as the first may be the bad
    one. `advance` is called repeatedly with the share of the file that was read, 0 to 1.

    Raises:
        ConfigurationError: The name has another suffix, or a .ts file is to hold token ids.
    """
    if path.is_dir():
        return (_prepared(record, reading) for record in _folder(path, kind, advance, reading))
    name = path.name.lower()
    data_format = next((each for each in FORMATS if name.endswith(each.endings)), None)
    if data_format is None:
        advice = next((f": {text}" for suffix, text in _CURES.items() if name.endswith(suffix)), "")
        raise ConfigurationError(f"{path}: the name must end in one of {', '.join(ENDINGS)}{advice}")
    if not data_format.has_columns and _are_named(reading.columns):
        reading.warn(f"{path}: --column is ignored: it names columns of a table, and this file has none")
    return (_prepared(record, reading) for record in data_format.read(path, kind, advance, reading))


def _are_named(columns: ColumnNames) -> bool:
    """Whether the caller names columns, and not only the training, whose `row` is taken as if it were named."""
    is_of_training = columns.row == columns.defaults.get("row")
    of_tables = replace(columns, inputs=None, defaults={}, static=(), row=None if is_of_training else columns.row)
    return of_tables != ColumnNames()


def _prepared(record: Record | BadRecord, reading: Reading) -> Record | BadRecord:
    """Turns the steps of a record to `[length, features]`, and takes padding, and -100 as a label, away.

    Returns a `BadRecord` if no step is left.
    """
    if isinstance(record, BadRecord):
        return record
    if reading.channels_first and record.steps.ndim == 2:
        steps: NDArray[np.float32] = np.ascontiguousarray(record.steps.T, dtype=np.float32)
        record = replace(record, steps=steps)
    shortened = without_padding(without_ignored(record, reading.warn), reading.padding)
    if isinstance(shortened, str):
        return BadRecord(record.id, RecordError(f"{record.source_line}: {shortened}"))
    return shortened


def _table(path: Path, kind: StepKind, blocks: Iterable[TextColumns], reading: Reading) -> Iterator[Record | BadRecord]:
    """Yields the records of a table, whose rows are steps, or whole sequences.

    `blocks` are its rows; a sequence is whole in one block. Calls `reading.say` and `reading.taken` with the roles of
    the columns in the first block.

    Raises:
        ConfigurationError: It is not clear what the columns are; the message begins with `path`.
    """
    for cells in blocks:
        # The sequences of the block, and the roles of the columns
        if _UCR.search(path.name) and _UCR_LABEL in cells.columns and reading.columns.row is None:
            reading = replace(reading, columns=replace(reading.columns, row="sequence", label=_UCR_LABEL))
        try:
            sequences, roles = table_sequences.sequences(
                cells.columns,
                reading.columns,
                cells.wrong,
                advice_for_single=reading.for_single(cells.columns),
                per_step=reading.per_step,
                padding=reading.padding,
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}{reading.how_to_name}") from error
        reading.taken(roles)
        # A first block that is not full is the only one: then the number of sequences is known.
        is_whole = len(cells.lines) * len(cells.columns) < BLOCK_CELLS
        count_text = f"; {counted(len(sequences), 'sequence')}" if is_whole else ""
        reading.say(f"{path}: {roles}{count_text}")
        if reading.columns.inputs is None and (constant := constant_features(sequences, roles)):
            names = ",".join(constant)
            reading.warn(f"{path}: {names}: one value in each sequence; --static {names} takes them as static values")
        # Their records
        for sequence in sequences:
            # The row that is named: that of the problem, or of the first number that is not finite as float32
            too_large = np.abs(sequence.steps.reshape(len(sequence.rows), -1)) >= np.float64(2.0**128 - 2.0**103)
            row = sequence.problem[0] if sequence.problem else int(sequence.rows[too_large.any(axis=1).argmax()])
            yield _record(sequence, f"{path}:{cells.lines[row] if cells.lines else f'row {row + 1}'}", kind)
        # For later blocks: the same columns of ids and features, which these may be too short to show; no more reports
        values = roles.values if roles.row == "step" else reading.columns.values
        columns = replace(reading.columns, id=roles.id, values=values)
        reading = replace(reading, columns=columns, say=_PLAIN.say, taken=_PLAIN.taken)


def _record(sequence: LongSequence, source_line: str, kind: StepKind) -> Record | BadRecord:
    """Makes a record of one sequence of a table; a `BadRecord` if the sequence cannot be used."""  # noqa: DOC501 - it returns its errors
    try:
        if sequence.problem:
            raise RecordError(f"{source_line}: {sequence.problem[1]}")
        steps: NDArray[Any] = sequence.steps
        if kind == "tokens":
            if steps.ndim != 1 or not ((steps >= 0) & (steps < 2.0**63) & (steps == np.floor(steps))).all():
                raise RecordError(f"{source_line}: a step is not a token id: one whole number from 0 in a row")
            steps = steps.astype(np.int64)
        else:
            steps = as_float32(steps, source_line)
        label = label_of(sequence.label, source_line)
        return Record(sequence.id, steps, label, source_line, sequence.roles.names, sequence.static)
    except RecordError as error:
        return BadRecord(sequence.id, error)


def _id_column(columns: TableColumns, reading: Reading) -> str | None:
    """The name of the column of ids, if the file can be read block by block; None if all its rows must be read at once.

    All rows are needed where the file has no column of ids; and where `per_step` is not known, because then the labels
    of all sequences decide whether each step has a label.
    """
    if reading.per_step is None:
        return None
    with suppress(ConfigurationError):  # raised again where the rows are read
        return assign_roles(columns, reading.columns).id
    return None


def _folder(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    """Yields the records of a folder with a CSV file for each sequence; a file with a column of ids may have several.

    The id of a file's only record is the file's name without suffixes. A record without a label gets the name of the
    folder that its file is in, unless that is `path` itself, or no class (`_NO_CLASS`).

    Raises:
        ConfigurationError: There is no CSV file in the folder.
    """
    files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(CSV_SUFFIXES))
    if not files:
        raise ConfigurationError(f"{path}: a folder must have a file for each sequence ({', '.join(CSV_SUFFIXES)})")
    say = reading.say
    prefix = f"{path}: {counted(len(files), 'file')}, each as "
    reading = replace(reading, for_single=lambda _: None, say=lambda line: say(prefix + line))
    longest: dict[tuple[str, bool], int] = {}  # the most rows of a sequence, by its folder and whether it has a label
    for count, file in enumerate(files):
        advance(count / len(files))
        # A file without a column of ids is one record, whose id is "0".
        for record in _table(file, kind, read_csv(file), reading):
            fields: dict[str, Any] = {"id": str(file.relative_to(path)).partition(".")[0]} if record.id == "0" else {}
            if isinstance(record, Record):
                is_class = file.parent != path and _NO_CLASS.fullmatch(file.parent.name) is None
                fields["label"] = file.parent.name if record.label is None and is_class else record.label
                key = str(file.parent.relative_to(path)), fields["label"] is not None
                longest[key] = max(longest.get(key, 0), len(record.steps))
            yield replace(record, **fields)
        reading = replace(reading, say=_PLAIN.say, taken=_PLAIN.taken)  # the roles are reported once
    for line in _doubts_of_folders(path, longest):
        reading.warn(line)


def _doubts_of_folders(path: Path, longest: Mapping[tuple[str, bool], int]) -> list[str]:
    """Warnings: the folders in `path` are no classes, or splits of the data, or hold labels, and no sequences.

    `longest` are the most rows of a sequence, by its folder and whether it has a label.
    """
    parts = {part for folder, _ in longest for part in Path(folder).parts if _NO_CLASS.fullmatch(part)}
    beside_classes = any(has_label and len(Path(folder).parts) == 1 for folder, has_label in longest)
    rename = f"; rename the folder (such as {min(parts)}_class) if it is a class" if parts and beside_classes else ""
    groups = {
        f"no class has such a name, so the sequences have no label. Give the folder of one split, with a folder for "
        f"each class in it, such as {path}/train/CLASS/FILE.csv; or a column of labels in each file{rename}": [
            folder for folder, has_label in longest if not has_label and folder != "."
        ],
        "they are read as one: of splits of the data, give the folder of one": sorted(parts) if len(parts) > 1 else [],
        "every file in it has one row, which is read as a step": [of for (of, _), rows in longest.items() if rows < 2],
    }
    return [f"{path}: {first_of([*map(repr, names)])}: {text}" for text, names in groups.items() if names]


def open_parquet(path: Path) -> tuple[Any, Any]:
    """Opens a Parquet file: returns pyarrow's `ParquetFile`, and the names of the features in its metadata, or None.

    Raises:
        ConfigurationError: It cannot be read as Parquet, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(f"{path}: reading Parquet needs pyarrow: {how_to_install('parquet')}") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        return file, orjson.loads((file.schema_arrow.metadata or {}).get(_NAMES, b"null"))
    except (OSError, pyarrow.ArrowException, orjson.JSONDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as Parquet: {error}") from error


def _parquet(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    """Yields the records of a Parquet file.

    Each row is a record if there is a column `steps` of lists; otherwise the rows are those of a table (`_table`).
    """
    file, feature_names = open_parquet(path)
    # A table without one column `steps` of lists, or one in which these are tensors of an extension type
    column_names = file.schema_arrow.names
    steps = "".join(f"{field.type} {field.metadata}" for field in file.schema_arrow if field.name == "steps")
    if column_names.count("steps") != 1 or not re.match(
        r"\w*list\w*<(?!.*(extension<|ARROW:extension))", steps, re.DOTALL
    ):
        yield from _table(path, kind, [TextColumns(columns_of(file.read()) or TableColumns(), [], {})], reading)
        return
    # Records; steps get the names of their features from the file's metadata
    static = reading.columns.static
    columns = [name for name in ("id", "steps", "label", "static", *static) if name in column_names]
    has_names = isinstance(feature_names, list) and reading.columns.inputs != ()
    batches = file.iter_batches(batch_size=256, columns=columns)
    for index, fields in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches)):
        advance(index / file.metadata.num_rows)
        if static:
            fields["static"] = {name: fields.pop(name, None) for name in static}
        if has_names and {len(step) if isinstance(step, list) else -1 for step in fields["steps"] or ()} == {
            len(feature_names)
        }:
            fields["steps"] = [dict(zip(feature_names, step, strict=True)) for step in fields["steps"]]
        yield read_record(fields, index, f"{path}:row {index + 1}", kind, reading.columns.inputs, reading.padding)


class DataFormat(NamedTuple):
    """A format of data files."""

    endings: tuple[str, ...]  # of the names of its files, in lower case
    has_columns: bool  # whether a file is a table, of which the user can name columns
    # Yields the records of a file as they are written: `entries` prepares them (`_prepared`)
    read: Callable[[Path, StepKind, Advance, Reading], Iterator[Record | BadRecord]]


def _json_lines(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    return json_lines(path, kind, advance, reading.columns.inputs, reading.padding)


def _time_series(path: Path, kind: StepKind, advance: Advance, _reading: Reading) -> Iterator[Record | BadRecord]:
    if kind == "tokens":
        raise ConfigurationError(f"{path}: a .ts file holds values, and the model wants token ids")
    return time_series(path, advance)


def _csv(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    blocks = read_csv(path, advance, lambda columns: _id_column(columns, reading), reading.warn)
    return _table(path, kind, blocks, reading)


FORMATS: Final = (
    DataFormat((".jsonl", ".jsonl.gz"), False, _json_lines),
    DataFormat((".ts",), False, _time_series),
    DataFormat((".parquet",), True, _parquet),
    DataFormat(CSV_SUFFIXES, True, _csv),
)
"""The formats that are read; the first whose ending a name has is taken."""
ENDINGS: Final = tuple(ending for data_format in FORMATS for ending in data_format.endings)

"""Labelled sequences from a file: JSON Lines, the UEA/UCR archive's `.ts`, and Parquet where pyarrow is installed.

| file | one record |
|---|---|
| `.jsonl`, `.jsonl.gz` | a line `{"id": ..., "steps": [[0.1, null], ...], "label": ...}`; `id`, `label` may be absent |
| `.ts` | a line `1,2,3:4,5,6:label`: features apart by colons, each with its steps; `?` and `NaN` are missing |
| `.parquet` | a row with the columns `steps` (list of lists, or list of ids) and, maybe, `id` and `label` |
| `.csv`, `.csv.gz`, `.tsv`, `.parquet` without `steps` | the rows with one id, a step each (`long_table`) |

A missing value is NaN in `Record.steps`. A label is one string, for a multi-label model a list of strings, and for a
per-step model a list with one string for each step. An error names the file and the line of a bad record; `read`
reports the first 20 of a file at once, `entries` continues after each. `aeon:JapaneseVowels_TRAIN` is a file in the
aeon package.
"""

from __future__ import annotations

import codecs
import gzip
import importlib.util
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.decoding import json_text, long_files, long_table
from lengthwise.decoding.json_lines import LONG_LINE_BYTES, LongLine, RepeatedKey, loads, plain_fields
from lengthwise.decoding.json_lines import StepKind as StepKind
from lengthwise.decoding.long_table import Cells, ColumnNames, Roles
from lengthwise.decoding.tables import columns_of
from lengthwise.errors import Causes, ConfigurationError, RecordError, how_to_install
from lengthwise.padding import Steps
from lengthwise.wrong_values import counted, nearest

Label = str | tuple[str, ...] | None

FIELDS = frozenset({"id", "steps", "label"})
"""The fields of a record."""

MOST_TOLD: Final = 20
"""Number of bad records that one error names."""

_CALLED_LABEL = frozenset({"class", "target", "category", "y"})

_INT64 = np.iinfo(np.int64)
_NUMBERS: Final = frozenset((int, float, type(None)))
_READ_BYTES: Final = 1 << 18
"""Bytes read at once, and between two reports of progress."""


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence of a file.

    Attributes:
        id: Its id, or the number of its record in the file, from 0.
        steps: `[length, features]` float32 with NaN where a value is missing, or `[length]` int64 token ids.
        label: One label; several (multi-label, per-step); None where the file has none.
        place: `file:line`, for messages.
    """

    id: str
    steps: Steps
    label: Label
    place: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
        id: Its id if it has a valid one, or the number of its record in the file, from 0.
        error: What is wrong, with the file and the line.
    """

    id: str
    error: RecordError


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read.

    Attributes:
        columns: The columns of a file with a row for each step, where the user names them.
        channels_first: Whether the steps of a record are `[features, length]`.
        per_step: Whether each step has a label, also where all labels of a sequence are equal.
        ids_are_needed: Whether a file with a row for each step needs a column of ids, or may be one sequence.
        say: Called with what the columns were taken as, as a line.
        how_to_name: Ends an error about columns, and says how the user can name them.
        taken: Called with what the columns were taken as.
    """

    columns: ColumnNames = field(default_factory=ColumnNames)
    channels_first: bool = False
    per_step: bool = False
    ids_are_needed: bool = True
    say: Callable[[str], object] = lambda _line: None
    how_to_name: str = ""
    taken: Callable[[Roles], object] = lambda _roles: None


_PLAIN: Final = Reading()

Advance = Callable[[float], object]
"""Called repeatedly, and at the end, with the share of the file that was read, 0 to 1."""


def locate(name: str) -> Path:
    """The path of a data file, given as a path or as `aeon:NAME_TRAIN`, a file in aeon's wheel.

    Raises:
        ConfigurationError: There is no such file, or aeon is not installed.
    """
    if not name.startswith("aeon:"):
        path = Path(name)
        if not path.is_file():
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
    """The records of a file, one by one, in its order; all of them have as many features a step.

    Args:
        path: The file; its suffix is its format.
        kind: What a step is; `.ts` holds values only.
        check: Raises `ConfigurationError` for a record that cannot be used, and names its place.
        reading: How it is read.

    Raises:
        ConfigurationError: The file cannot be read, or records in it cannot be used; at the end of the file, with the
            lines of the first `MOST_TOLD`.
    """
    return _all_good(entries(path, kind, reading=reading), check)


def read_all(
    data: str,
    kind: StepKind,
    check: Callable[[Record], object] = lambda _record: None,
    reading: Reading = _PLAIN,
) -> list[Record]:
    """The records of a file, at least one; `data` is as for `locate`, the others are as for `read`.

    Raises:
        ConfigurationError: As `locate` and `read` raise it; or the file has no record.
    """
    records = list(read(locate(data), kind, check, reading))
    if not records:
        raise ConfigurationError(f"{data}: there is no record in it")
    return records


def with_those_behind(first: ConfigurationError, behind: Iterable[object]) -> ConfigurationError:
    """One error for a bad record and all that follow it.

    Args:
        first: The error of the first bad record.
        behind: The records after it; the errors of each `BadRecord` are added, good records are ignored.
    """
    causes = Causes()
    causes.add(str(first))
    with suppress(ConfigurationError):  # if the file cannot be read to its end, the errors so far are still reported
        for record in behind:
            if isinstance(record, BadRecord):
                causes.add(str(record.error))
    return first if causes.total == 1 else RecordError("\n".join(causes.lines(MOST_TOLD)))


def entries(
    path: Path,
    kind: StepKind = "values",
    advance: Advance = lambda _share: None,
    reading: Reading = _PLAIN,
) -> Iterator[Record | BadRecord]:
    """Reads the records of a file, with a `BadRecord` in the place of each bad one.

    Two records may have different numbers of features here: the first record may be the one that is wrong, and the
    caller knows what the model needs.

    Args:
        path: The file; its suffix is its format.
        kind: Whether steps are values or token ids; `.ts` has values only.
        advance: Receives the progress.
        reading: How it is read.

    Raises:
        ConfigurationError: The file cannot be read, or does not have the format of its suffix.
    """
    found = _entries(path, kind, advance, reading)
    return map(_transposed, found) if reading.channels_first else found


def _transposed(record: Record | BadRecord) -> Record | BadRecord:
    """A record of `[features, length]` as one of `[length, features]`."""
    if isinstance(record, BadRecord) or record.steps.ndim == 1:
        return record
    steps: NDArray[np.float32] = np.ascontiguousarray(record.steps.T, dtype=np.float32)
    return replace(record, steps=steps)


def _entries(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        _check_is_json_lines(path)
        return _json_lines(path, kind, advance)
    if name.endswith(long_files.SUFFIXES):
        found = long_files.read_csv(path)
        return _long(path, kind, found.columns, reading, lines=found.lines, wrong=found.wrong)
    if name.endswith(".ts"):
        if kind == "tokens":
            raise ConfigurationError(f"{path}: a .ts file holds values, and the model wants token ids")
        return _time_series(path, advance)
    if name.endswith(".parquet"):
        return _parquet(path, kind, advance, reading)
    raise ConfigurationError(
        f"{path}: the name must end in .jsonl, .jsonl.gz, .ts, .parquet, {' or '.join(long_files.SUFFIXES)}"
    )


def _all_good(found: Iterator[Record | BadRecord], check: Callable[[Record], object]) -> Iterator[Record]:
    """Yields the records until the first bad one; then raises one error for all bad records of the file."""
    checked = _checked(found, check)
    for record in checked:
        if isinstance(record, BadRecord):
            raise with_those_behind(record.error, checked)
        yield record


def _checked(found: Iterator[Record | BadRecord], check: Callable[[Record], object]) -> Iterator[Record | BadRecord]:
    """Yields the records; one that fails the check, or has other features than the first, as a `BadRecord`."""
    features: int | None = None
    for record in found:
        if isinstance(record, Record):
            try:
                features = _same_features(record, features)
                check(record)
            except ConfigurationError as error:
                yield BadRecord(record.id, RecordError(str(error)))
                continue
        yield record


def _lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, each with its number from 1."""
    for number, line in _long_lines(path, advance, -1):
        if isinstance(line, bytes):
            yield number, line


def _long_lines(path: Path, advance: Advance, limit: int) -> Iterator[tuple[int, bytes | LongLine]]:
    """Like `_lines`; a line of more than `limit` bytes (-1: no limit) is a `LongLine`, which the caller must read."""
    try:
        with (
            path.open("rb", buffering=_READ_BYTES) as raw,
            gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as file,
        ):
            size = max(1, os.fstat(raw.fileno()).st_size)
            number, unsaid = 0, _READ_BYTES
            while line := file.readline(limit):
                number += 1
                unsaid += len(line)
                content = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
                is_long = len(line) == limit and not line.endswith(b"\n")
                if content and unsaid > _READ_BYTES:  # asking where a file is takes longer than reading a line
                    advance(raw.tell() / size)
                    unsaid = 0
                if is_long:
                    yield number, LongLine(line, file)
                    unsaid = _READ_BYTES
                elif content:
                    yield number, content
            advance(1.0)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _check_is_json_lines(path: Path) -> None:
    """Makes sure that a file is text with an object in a line.

    Raises:
        ConfigurationError: It is something else as a whole, such as a JSON list.
    """
    _, line = next(_long_lines(path, lambda _share: None, LONG_LINE_BYTES), (0, b""))
    start = line if isinstance(line, bytes) else b""
    if start[:1] == b"[":
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(start)
            if not any(isinstance(one, dict) for one in found):
                return
        raise ConfigurationError(
            f"{path}: this is a JSON list, and JSON Lines has one object a line: jq -c '.[]' LIST.json > DATA.jsonl"
        )
    if start[:1] != b"{" and (b"\0" in start or not _is_utf_8(start)):
        raise ConfigurationError(f"{path}: this is no text, so no JSON Lines file: it begins with {start[:8]!r}")


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_lines(path: Path, kind: StepKind, advance: Advance) -> Iterator[Record | BadRecord]:
    features: int | None = None
    for index, (number, line) in enumerate(_long_lines(path, advance, LONG_LINE_BYTES)):
        place = f"{path}:{number}"
        try:
            if isinstance(line, LongLine):
                fields = line.fields(kind, features, partial(_steps, kind, place))
            else:
                fields = plain_fields(line, kind, features) or loads(line)
        except orjson.JSONDecodeError as error:
            yield BadRecord(str(index), RecordError(f"{place}: {_not_json(error)}"))
        except RepeatedKey as error:
            yield BadRecord(str(index), RecordError(f"{place}: the key {error.key[:40]!r} stands twice in one object"))
        except RecordError as error:
            yield BadRecord(str(index), error)
        else:
            record = _judged(fields, index, place, kind)
            yield record
            if isinstance(record, Record) and record.steps.ndim == 2:
                features = int(record.steps.shape[1])


def _not_json(error: orjson.JSONDecodeError) -> str:
    """Why a line is not JSON. For NaN, which Python writes by default, it is the message of the service."""
    constant = json_text.find_constant(error.doc)
    if constant is not None and constant[1] <= error.pos <= constant[1] + len(constant[0]):
        return json_text.constant_message(constant[0], f"at column {constant[1] + 1}")
    return f"not JSON: {error}"


def _long(
    path: Path,
    kind: StepKind,
    columns: Mapping[str, Cells],
    reading: Reading,
    lines: Sequence[int] | None = None,
    wrong: Mapping[int, str] | None = None,
) -> Iterator[Record | BadRecord]:
    """The records of a file with a row for each step.

    Args:
        path: The file.
        kind: What a step is.
        columns: The cells of each column.
        reading: How it is read.
        lines: The line of each row in a file of text; a typed file has none.
        wrong: Rows that cannot be read, and why.
    """
    try:
        found, roles = long_table.sequences(
            columns, reading.columns, texts=lines is not None, ids_are_needed=reading.ids_are_needed
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}{reading.how_to_name}") from error
    reading.taken(roles)
    reading.say(f"{path}: {roles}; {counted(len(found), 'sequence')}")
    for one in found:
        rows = one.rows.tolist()
        problem = next(((row, wrong[row]) for row in rows if row in wrong), None) if wrong else None
        problem = problem or one.problem
        place = f"{path}:{_row(rows[0] if problem is None else problem[0], lines)}"
        try:
            if problem is not None:
                raise RecordError(f"{place}: {problem[1]}")
            label = one.label
            if reading.per_step and label is not None and not isinstance(label, list):
                label = [label] * len(rows)
            steps = _whole(one.steps, place) if kind == "tokens" else _as_float32(one.steps, place)
            yield Record(one.id, steps, _label(label, place), place)
        except RecordError as error:
            yield BadRecord(one.id, error)


def _row(row: int, lines: Sequence[int] | None) -> str:
    return f"row {row + 1}" if lines is None else str(lines[row])


def _whole(steps: NDArray[Any], place: str) -> NDArray[np.int64]:
    """Token ids, of the numbers of a column."""
    if steps.ndim != 1 or not ((steps >= 0) & (steps < 2.0**63) & (steps == np.floor(steps))).all():
        raise RecordError(f"{place}: something in this sequence is not a token id: one whole number from 0 in a row")
    return steps.astype(np.int64)


def _parquet(path: Path, kind: StepKind, advance: Advance, reading: Reading) -> Iterator[Record | BadRecord]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(f"{path}: reading Parquet needs pyarrow: {how_to_install('parquet')}") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigurationError(f"{path} cannot be read as Parquet: {error}") from error
    if "steps" not in file.schema_arrow.names:
        yield from _long(path, kind, columns_of(file.read()) or {}, reading)
        return
    columns = [name for name in ("id", "steps", "label") if name in file.schema_arrow.names]
    index = 0
    for batch in file.iter_batches(batch_size=256, columns=columns):
        for fields in batch.to_pylist():
            advance(index / file.metadata.num_rows)
            yield _judged(fields, index, f"{path}:row {index + 1}", kind)
            index += 1


def _judged(fields: Any, index: int, place: str, kind: StepKind) -> Record | BadRecord:
    """A record from the fields of a line or of a row; a `BadRecord` if it is wrong."""
    try:
        return _record(fields, index, place, kind)
    except RecordError as error:
        name = fields.get("id") if isinstance(fields, dict) else None
        return BadRecord(str(name if isinstance(name, (str, int)) else index), error)


def _record(fields: Any, index: int, place: str, kind: StepKind) -> Record:
    """A record from the fields of a line or of a row.

    Raises:
        RecordError: The record is wrong.
    """
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
    steps = fields["steps"] if isinstance(fields["steps"], np.ndarray) else _steps(kind, place, fields["steps"])
    return Record(str(index if name is None else name), steps, _label(fields.get("label"), place), place)


def _meant(name: str, fields: dict[str, Any]) -> str:
    """A hint which field an unknown field may be: by a similar name, or by the form of its values."""
    alike = nearest(name, sorted(FIELDS - fields.keys()))
    if alike:
        return f" ({alike.removeprefix('; ')})"
    if isinstance(fields[name], list) and "steps" not in fields:
        return " (did you mean steps?)"
    named = isinstance(fields[name], str) or name.lower() in _CALLED_LABEL
    return " (did you mean label?)" if named and "label" not in fields else ""


def _label(label: Any, place: str) -> Label:
    """One label or several, as strings; a number becomes its digits."""
    if label is None:
        return None
    several = label if isinstance(label, list) else [label]
    if any(isinstance(one, (bool, float)) or not isinstance(one, (str, int)) for one in several):
        raise RecordError(f"{place}: a label is a string or a whole number, or a list of them")
    texts = tuple(str(one) for one in several)
    return texts if isinstance(label, list) else texts[0]


def _steps(kind: StepKind, place: str, steps: Any, first: int = 0, features: int | None = None) -> Steps:
    """Converts a list of steps to an array. `first`: index of its first step; `features`: of a step, if known."""
    return _tokens(steps, place, first) if kind == "tokens" else _values(steps, place, first, features)


def _tokens(steps: Any, place: str, first: int) -> NDArray[np.int64]:
    """Converts a list of token ids to `[length]` int64."""
    if not isinstance(steps, list) or not steps:
        raise RecordError(f"{place}: steps must be a list of at least one token id")
    for step, token in enumerate(steps, first):
        if type(token) is not int or not 0 <= token <= _INT64.max:
            raise RecordError(f"{place}: step {step} is not a token id (an integer >= 0)")
    return np.array(steps, dtype=np.int64)


def _values(steps: Any, place: str, first: int, features: int | None) -> NDArray[np.float32]:
    """`[length, features]` float32, NaN for null; bare numbers are steps of one feature."""
    if not isinstance(steps, list) or not steps:
        raise RecordError(f"{place}: steps must be a list of at least one step")
    rows = [step if isinstance(step, list) else [step] for step in steps]
    wanted = len(rows[0]) if features is None else features
    if set(map(len, rows)) != {wanted} or not wanted or not _NUMBERS.issuperset(map(type, chain.from_iterable(rows))):
        for step, row in enumerate(rows, first):
            if not row:
                raise RecordError(f"{place}: step {step} has 0 features, and needs at least one")
            if len(row) != wanted:
                raise RecordError(f"{place}: step {step} has {counted(len(row), 'feature')}, step 0 has {wanted}")
            if not _NUMBERS.issuperset(map(type, row)):
                wrong = next(value for value in row if type(value) not in _NUMBERS)
                raise RecordError(f"{place}: step {step} holds {_shown(wrong)}: a value must be a number or null")
    return _as_float32(rows, place, first)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return json_text.kind(value)


def _as_float32(
    rows: Sequence[Sequence[float | None]] | NDArray[Any], place: str, first: int = 0
) -> NDArray[np.float32]:
    """`[length, features]` float32. None and NaN are missing values; an infinite number is an error."""
    with np.errstate(over="ignore"):
        values = np.array(rows, dtype=np.float64).astype(np.float32)
    values = values if values.ndim == 2 else values[:, None]
    if np.isinf(values).any():
        step = first + int(np.isinf(values).any(axis=1).argmax())
        raise RecordError(f"{place}: step {step} holds a number that is not finite as float32")
    return values


def _same_features(record: Record, features: int | None) -> int | None:
    """The number of features of a step; an error if the records before have another."""
    if record.steps.ndim == 1:
        return None
    count = int(record.steps.shape[1])
    if features is not None and count != features:
        raise RecordError(f"{record.place}: {counted(count, 'feature')} a step, the records before have {features}")
    return count


def _time_series(path: Path, advance: Advance) -> Iterator[Record | BadRecord]:
    """Records of the `.ts` format, https://www.sktime.net/en/stable/api_reference/file_specifications/ts.html."""
    labelled, in_data, index = False, False, 0
    for number, line in _lines(path, advance):
        place = f"{path}:{number}"
        if line.startswith(b"#"):
            continue
        if not in_data:
            text = _text(line, place)
            tag, *rest = text.split()
            tag = tag.lower()
            is_true = [word.lower() for word in rest[:1]] == ["true"]
            if not tag.startswith("@"):
                raise ConfigurationError(f"{place}: expected a header line that starts with @, before @data")
            if tag == "@timestamps" and is_true:
                raise ConfigurationError(f"{place}: time stamps are not read; write plain values")
            if tag == "@targetlabel" and is_true:
                raise ConfigurationError(f"{place}: targets of a regression are no labels")
            if tag == "@classlabel":
                labelled = is_true
            in_data = tag == "@data"
            continue
        try:
            yield _series(_text(line, place), index, labelled, place)
        except RecordError as error:
            yield BadRecord(str(index), error)
        index += 1
    if not in_data:
        raise ConfigurationError(f"{path}: there is no @data in it")


def _text(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{place}: not UTF-8") from error


def _series(text: str, index: int, labelled: bool, place: str) -> Record:
    """One data line: `a0,a1,...:b0,b1,...:label`."""
    channels = text.split(":")
    label = channels.pop().strip() if labelled else None
    if label == "" or not channels:
        raise RecordError(f"{place}: the label is missing")
    columns = [[_number(word, place) for word in channel.split(",")] for channel in channels]
    for feature, column in enumerate(columns):
        if len(column) != len(columns[0]):
            raise RecordError(f"{place}: feature {feature} has {len(column)} steps, feature 0 has {len(columns[0])}")
    return Record(str(index), _as_float32(list(zip(*columns, strict=True)), place), label, place)


def _number(word: str, place: str) -> float:
    word = word.strip()
    if word == "?":
        return np.nan
    try:
        return float(word)
    except ValueError as error:
        raise RecordError(f"{place}: {word!r} is not a number") from error

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.decoding import json_text, long_files, long_table
from lengthwise.decoding.file_lines import Advance as Advance
from lengthwise.decoding.file_lines import lines, time_series
from lengthwise.decoding.json_lines import RepeatedKey, loads, plain_fields
from lengthwise.decoding.json_lines import StepKind as StepKind
from lengthwise.decoding.long_table import Cells, ColumnNames, Roles
from lengthwise.decoding.record_fields import FIELDS as FIELDS
from lengthwise.decoding.record_fields import BadRecord as BadRecord
from lengthwise.decoding.record_fields import Label as Label
from lengthwise.decoding.record_fields import Record as Record
from lengthwise.decoding.record_fields import as_float32, judged, label_of
from lengthwise.decoding.tables import columns_of
from lengthwise.errors import Causes, ConfigurationError, RecordError, how_to_install
from lengthwise.wrong_values import counted

MOST_TOLD: Final = 20  # bad records that one error names


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read."""

    columns: ColumnNames = field(default_factory=ColumnNames)  # that the user names
    channels_first: bool = False  # whether steps are `[features, length]`
    per_step: bool = False  # each step has a label, also where all are equal
    ids_are_needed: bool = True  # by a file with a row for each step
    say: Callable[[str], object] = lambda _line: None  # called with what the columns were taken as, as a line
    how_to_name: str = ""  # ends an error about columns
    taken: Callable[[Roles], object] = lambda _roles: None  # called with what the columns were taken as


_PLAIN: Final = Reading()


def locate(name: str) -> Path:
    """The path of a data file, given as a path or as `aeon:NAME_TRAIN`, a file in aeon's wheel."""
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
    """The records of a file in its order; at its end, an error has the first `MOST_TOLD` bad ones, by `check` too."""
    return _all_good(entries(path, kind, reading=reading), check)


def read_all(
    data: str,
    kind: StepKind,
    check: Callable[[Record], object] = lambda _record: None,
    reading: Reading = _PLAIN,
) -> list[Record]:
    """The records of a file, at least one; `data` is as for `locate`, the others are as for `read`."""
    records = list(read(locate(data), kind, check, reading))
    if not records:
        raise ConfigurationError(f"{data}: there is no record in it")
    return records


def with_those_behind(first: ConfigurationError, behind: Iterable[object]) -> ConfigurationError:
    """One error for a bad record and all `BadRecord`s that follow it."""
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
    """The records of a file, with a `BadRecord` for each bad one; features may differ, as the first may be wrong."""
    found = _entries(path, kind, advance, reading)
    return map(_transposed, found) if reading.channels_first else found


def _transposed(record: Record | BadRecord) -> Record | BadRecord:
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
        return time_series(path, advance)
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


def _check_is_json_lines(path: Path) -> None:
    """Refuses a file that is something else as a whole, such as a JSON list."""
    _, start = next(lines(path, lambda _share: None), (0, b""))
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
    for index, (number, line) in enumerate(lines(path, advance)):
        place = f"{path}:{number}"
        try:
            fields = plain_fields(line, kind) or loads(line)
        except orjson.JSONDecodeError as error:
            yield BadRecord(str(index), RecordError(f"{place}: {_not_json(error)}"))
        except RepeatedKey as error:
            yield BadRecord(str(index), RecordError(f"{place}: the key {error.key[:40]!r} stands twice in one object"))
        else:
            yield judged(fields, index, place, kind)


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
    """The records of a file with a row for each step; `lines` of a text file, `wrong`: rows that cannot be read."""
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
            steps = _whole(one.steps, place) if kind == "tokens" else as_float32(one.steps, place)
            yield Record(one.id, steps, label_of(label, place), place)
        except RecordError as error:
            yield BadRecord(one.id, error)


def _row(row: int, lines: Sequence[int] | None) -> str:
    return f"row {row + 1}" if lines is None else str(lines[row])


def _whole(steps: NDArray[Any], place: str) -> NDArray[np.int64]:
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
            yield judged(fields, index, f"{path}:row {index + 1}", kind)
            index += 1


def _same_features(record: Record, features: int | None) -> int | None:
    if record.steps.ndim == 1:
        return None
    count = int(record.steps.shape[1])
    if features is not None and count != features:
        raise RecordError(f"{record.place}: {counted(count, 'feature')} a step, the records before have {features}")
    return count

"""Reads an uploaded file in a process of its own: `python -m lengthwise.console.file_reader PATH KIND MOST_VALUES`.

A file of a few kilobytes can describe gigabytes of values, so the process has limits of memory, and its caller ends it
after some time. It writes one JSON object to stdout: `sequences`, each with `id`, `label` and `steps`; `left_out`, how
many were left out; and `problems`, what is wrong with records.

CSV holds one step a line. A header line is optional. A column `id` (or `sequence`) starts a new sequence where its
value changes, a column `label` is the label, and every other column is a feature. An empty cell is a missing value.
"""

from __future__ import annotations

import csv
import resource
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.decoding.dataset import BadRecord, Record, StepKind, entries
from lengthwise.errors import ConfigurationError, RecordError

MOST_SEQUENCES: Final = 1000
MOST_PROBLEMS: Final = 20
MOST_CHARACTERS: Final = 200
"""Of an id, a label or a problem: in a Parquet file, a thousand long ones may be one."""
MEMORY_BYTES: Final = 2**32
_IDS: Final = ("id", "sequence")
_LABEL: Final = "label"
_MISSING: Final = frozenset(("", "nan", "null", "na", "?"))


def read(path: Path, kind: StepKind, most_values: int) -> dict[str, Any]:
    """The sequences of a file, as many as the limits allow.

    Args:
        path: The file; its suffix is its format.
        kind: What a step is.
        most_values: Most values of all sequences together.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    found = _csv(path, kind) if path.suffix == ".csv" else entries(path, kind)
    sequences: list[dict[str, Any]] = []
    problems: list[str] = []
    left_out = values = 0
    for record in found:
        if isinstance(record, BadRecord):
            if len(problems) < MOST_PROBLEMS:
                problems.append(str(record.error).replace(f"{path.parent}/", "")[:MOST_CHARACTERS])
            continue
        values += record.steps.size
        if values > most_values or len(sequences) == MOST_SEQUENCES:
            left_out += 1
        else:
            label = record.label if isinstance(record.label, str | None) else ", ".join(record.label)
            shown = None if label is None else label[:MOST_CHARACTERS]
            sequences.append({"id": record.id[:MOST_CHARACTERS], "label": shown, "steps": record.steps})
    return {"sequences": sequences, "left_out": left_out, "problems": problems}


def _csv(path: Path, kind: StepKind) -> Iterator[Record | BadRecord]:
    """The sequences of a CSV file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            dialect = _dialect(file.readline())
            file.seek(0)
            lines = [(number, line) for number, line in enumerate(csv.reader(file, dialect), 1) if any(line)]
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8") from error
    except csv.Error as error:
        raise ConfigurationError(f"{path} cannot be read as CSV: {error}") from error
    if not lines:
        raise ConfigurationError(f"{path}: there is no line in it")
    header = [] if all(_is_number(cell) for cell in lines[0][1]) else [cell.strip().lower() for cell in lines[0][1]]
    place_of_id = next((header.index(name) for name in _IDS if name in header), None)
    place_of_label = header.index(_LABEL) if _LABEL in header else None
    width = len(lines[0][1])
    features = [place for place in range(width) if place not in (place_of_id, place_of_label)]
    if not features:
        raise ConfigurationError(f"{path}: there is no column with values")

    def id_of(numbered: tuple[int, list[str]]) -> str:
        line = numbered[1]
        return line[place_of_id].strip() if place_of_id is not None and place_of_id < len(line) else "0"

    for index, (name, group) in enumerate(groupby(lines[1:] if header else lines, key=id_of)):
        numbered = list(group)
        place = f"{path}:{numbered[0][0]}"
        try:
            steps = [_step(line, width, features, f"{path}:{number}") for number, line in numbered]
            first = numbered[0][1]
            label = first[place_of_label].strip() if place_of_label is not None else None
            read = _tokens if kind == "tokens" else _values
            yield Record(name, read(np.array(steps), place), label or None, place)
        except RecordError as error:
            yield BadRecord(str(index), error)


def _step(line: list[str], width: int, features: list[int], place: str) -> list[float]:
    if len(line) < width or any(line[width:]):
        raise RecordError(f"{place}: {len(line)} columns, and the first line has {width}")
    return [_number(line[feature], place) for feature in features]


def _values(array: NDArray[np.float64], place: str) -> NDArray[np.float32]:
    """`[steps, features]` as float32."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if np.isinf(values).any():
        raise RecordError(f"{place}: a number of this sequence is not finite as float32")
    return values


def _tokens(array: NDArray[np.float64], place: str) -> NDArray[np.int64]:
    """Token ids, of `[steps, features]` numbers."""
    if array.shape[1] != 1 or not ((array >= 0) & (array < 2.0**63) & (array == np.floor(array))).all():
        raise RecordError(f"{place}: something in this sequence is no token id: one whole number from 0 a line")
    return array.reshape(-1).astype(np.int64)


def _number(cell: str, place: str) -> float:
    text = cell.strip()
    if text.lower() in _MISSING:
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise RecordError(f"{place}: {text[:40]!r} is no number") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in _MISSING
    return True


def _dialect(line: str) -> type[csv.Dialect]:
    """The separator of a file, by its first line: a comma, a semicolon or a tab."""

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=line.count)

    return Dialect


def main() -> None:
    """Reads the file that the command line names; exit code 1, with the reason on stdout, if it cannot be read."""
    path, kind, most_values = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        result = read(path, "tokens" if kind == "tokens" else "values", most_values)
    except (ConfigurationError, MemoryError) as error:
        reason = "the file takes too much memory" if isinstance(error, MemoryError) else str(error)
        sys.stdout.buffer.write(orjson.dumps({"reason": reason.replace(f"{path.parent}/", "")}))
        sys.exit(1)
    sys.stdout.buffer.write(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY))


if __name__ == "__main__":
    main()

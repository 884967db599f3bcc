"""Reads an uploaded file in a process of its own, which `console.uploads` starts.

    python -m lengthwise.console.file_reader

The task is a JSON object on stdin. A file of kilobytes can describe gigabytes, so the process has limits of memory and
of processor time. It writes one JSON object to stdout. In it, the roles of a table's columns are a line for people
(`taken`), and an object for the page (`columns`).
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from lengthwise.datasets.column_roles import ColumnNames, Roles, has_no_header, header_hint
from lengthwise.datasets.dataset import BadRecord, Reading, Record, StepKind, entries, open_parquet
from lengthwise.datasets.tails import doubts
from lengthwise.errors import Causes, ConfigurationError
from lengthwise.repository import modest

MOST_SEQUENCES: Final = 1000  # in the answer
MOST_PROBLEMS: Final = 20  # in the answer
MOST_CHARACTERS: Final = 200  # of an id or a problem: a small Parquet file can hold one long text a thousand times
_FOR_SINGLE: Final = "choose 'none: one sequence'"
_VALUE_BYTES: Final = 12  # bytes of the answer for each value, about
MOST_GROUP_VALUES: Final = 2**22  # in one row group of a Parquet file; its metadata says how many there are


def read(
    path: Path,
    kind: StepKind,
    most_values: int,
    columns: ColumnNames | None = None,
    *,
    single: bool = True,
    padding: Any = None,
) -> dict[str, Any]:
    """Reads the sequences of a file, as many as the limits allow.

    Args:
        path: The file; its suffix is the format.
        kind: Whether a step is values or a token id.
        most_values: The limit of values in all sequences together.
        columns: The columns that the user named; None: their names say what they are.
        single: Whether a table without ids is one sequence. If not, the page asks which column names the sequence, as
            the commands do; only lines without a header are one sequence then, as they are where they are pasted.
        padding: What is cut off the end of each sequence, `zeros` or `nan`; None: nothing.

    Returns:
        The object for the page, by name:
        - `sequences`: each with `id`, `label` (a string, or an array of them if a record has several) and `steps`;
        - `left_out`: how many further sequences there are;
        - `problems` and `doubts`: messages about bad records, and about what looks like padding or is no label;
        - `taken` and `columns`: the roles of a table's columns, as text and as an object; '' and None without a table.

    Raises:
        ConfigurationError: The file cannot be read, or it is not clear what the columns of a table are.
    """  # noqa: DOC502 - what it calls raises it
    if path.suffix == ".parquet":
        _check_groups(path)
    notes: list[str] = []
    tables: list[Roles] = []
    warnings: dict[str, None] = {}
    reading = Reading(
        columns or ColumnNames(),
        for_single=lambda names: None if single or has_no_header(names) or header_hint(names) else _FOR_SINGLE,
        say=notes.append,
        warn=lambda line: warnings.setdefault(line.removeprefix(f"{path}: ")),
        padding=padding,
        taken=tables.append,
    )
    answer = _within_limits(entries(path, kind, reading=reading), most_values, f"{path.parent}/")
    return answer | {
        "doubts": [*warnings, *doubts([sequence["steps"] for sequence in answer["sequences"]])],
        "taken": "".join(notes).removeprefix(f"{path}: "),
        "columns": {
            name: value
            for roles in tables[:1]
            for name, value in asdict(roles).items()
            if name not in ("float_ids", "static")
        }
        or None,
    }


def _within_limits(records: Iterator[Record | BadRecord], most_values: int, folder: str) -> dict[str, Any]:
    """Takes records until there are too many values or sequences; counts the sequences after that.

    Returns `sequences`, `left_out` and `problems`, in whose texts `folder` is left out.
    """
    sequences: list[dict[str, Any]] = []
    problems = Causes()
    left_out = values = 0
    for record in records:
        if isinstance(record, BadRecord):
            problems.add(str(record.error).replace(folder, "")[:MOST_CHARACTERS])
            continue
        # A long label takes as much of the answer as some values do.
        values += record.steps.size + len(orjson.dumps(record.label)) // _VALUE_BYTES
        if values > most_values or len(sequences) == MOST_SEQUENCES:
            left_out += 1
        else:
            beside = {} if record.static is None else {"static": record.static}
            entry = {"id": record.id[:MOST_CHARACTERS], "label": record.label, "steps": record.steps}
            sequences.append(entry | beside)
    return {"sequences": sequences, "left_out": left_out, "problems": problems.lines(MOST_PROBLEMS)}


def _check_groups(path: Path) -> None:
    """Makes sure that no row group of a Parquet file is too large; reads its metadata only.

    Raises:
        ConfigurationError: One has more than `MOST_GROUP_VALUES` values, or the file cannot be read.
    """
    groups = open_parquet(path)[0].metadata
    for index in range(groups.num_row_groups):
        group = groups.row_group(index)
        values = sum(group.column(column).num_values for column in range(group.num_columns))
        if values > MOST_GROUP_VALUES:
            raise ConfigurationError(
                f"{path}: row group {index} has {values} values; at most {MOST_GROUP_VALUES} are read: write it with "
                "smaller row groups"
            )


def main() -> None:
    """Reads the task from stdin, and the file; writes the object for the page to stdout.

    If the file cannot be read, writes `{"reason": ...}` instead, and ends with exit code 1.
    """
    task = orjson.loads(sys.stdin.buffer.read())
    path, seconds, memory = Path(task["path"]), task["seconds"], task["memory_bytes"]
    modest.be_modest(task["parent"])
    modest.bound_time(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        # JSON made lists of the tuples
        names: dict[str, Any] = {
            role: tuple(name) if isinstance(name, list) else name for role, name in task["columns"].items()
        }
        result = read(
            path,
            task["kind"],
            task["most_values"],
            ColumnNames(**names),
            single=task["single"],
            padding=task["padding"],
        )
    except (ConfigurationError, MemoryError) as error:
        # The cause of an error about columns is the same text without advice on options, which the page does not have.
        cause = error.__cause__ if isinstance(error.__cause__, ConfigurationError) else error
        reason = "the file takes too much memory" if isinstance(error, MemoryError) else str(cause)
        sys.stdout.buffer.write(orjson.dumps({"reason": reason.replace(f"{path.parent}/", "")}))
        sys.exit(1)
    sys.stdout.buffer.write(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY))


if __name__ == "__main__":
    main()

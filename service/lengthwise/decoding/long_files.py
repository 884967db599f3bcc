"""The columns of a file with one row for each step: CSV, with a comma, a semicolon or a tab between the cells."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import NamedTuple

from lengthwise.decoding.long_table import MISSING
from lengthwise.errors import ConfigurationError

SUFFIXES = (".csv", ".csv.gz", ".tsv")  #


class TextColumns(NamedTuple):
    """The cells of a CSV file; without a header its columns are `column 1` and so on."""

    columns: dict[str, list[str]]
    lines: list[int]  # of each row in the file, from 1
    wrong: dict[int, str]  # rows with another number of cells, and why


def read_csv(path: Path) -> TextColumns:
    """The cells of a CSV file. The first line is a header, unless all of its cells are numbers."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8, so no CSV file that can be read") from error
    except (OSError, EOFError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read as CSV: {error}") from error
    if not rows:
        raise ConfigurationError(f"{path}: there is no line in it")
    head = [cell.strip() for cell in rows[0][1]]
    if all(_is_number(cell) for cell in head):
        head = [f"column {place}" for place in range(1, len(head) + 1)]
    else:
        rows = rows[1:]
    twice = sorted({name for name in head if head.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{path}: the column {twice[0]!r} is there twice; rename one")
    width = len(head)
    wrong = {
        place: f"{len(row)} columns, and the first line has {width}"
        for place, (_, row) in enumerate(rows)
        if len(row) < width or any(row[width:])
    }
    cells = [row[:width] + [""] * (width - len(row)) for _, row in rows]
    columns = {name: [row[place] for row in cells] for place, name in enumerate(head)}
    return TextColumns(columns, [line for line, _ in rows], wrong)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in MISSING
    return True

"""Reads the records and cells of text files, compressed or not: JSON Lines, the UEA/UCR archive's `.ts`, and CSV.

An ordinary line of JSON is read in two parts: the array of its steps in C, straight to float32, and the rest, with null
in the place of the array, as a small object. Any other line is parsed by the rules of a JSON body.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from lengthwise.datasets.column_roles import NO_HEADER, header_hint
from lengthwise.datasets.record_fields import BadRecord, Record, StepKind, as_float32, read_record
from lengthwise.datasets.tables import Padding, TableColumns, Texts, is_number
from lengthwise.decoding import fast_json, json_text
from lengthwise.errors import ConfigurationError, InvalidRequest, RecordError, RequestError

CSV_SUFFIXES: Final = (".csv", ".csv.gz", ".tsv")
# For a list, or an object with one in `sequences`: each entry is an object, or the list of a sequence's steps
LIST_TO_LINES: Final = "jq -c '(.sequences? // .)[] | objects // {steps: .}' FILE.json > DATA.jsonl"
BLOCK_CELLS: Final = 1 << 18  # cells of a CSV file in one block, if the last sequence does not need more
_READ_BYTES: Final = 1 << 18  # of a file at once
_LINES_BETWEEN: Final = 64  # between reports of progress: to ask for a file's position takes longer than to read a line
_SNIFFED: Final = 1024  # bytes that show the kind of a file; rows that show its columns
_REFUSED_TAGS: Final = {
    "@timestamps": "time stamps are not read; write plain values",
    "@targetlabel": "targets of a regression are no labels",
}
_LATIN: Final = "if it is Windows' or Latin-1, iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW converts it"
_UTF_16: Final = "UTF-16: in Excel save it as CSV UTF-8, or iconv -f UTF-16 -t UTF-8 FILE > NEW"
_OTHER_FILES: Final = {
    b"PK\x03\x04": "an Excel file, or another zip: save it as CSV UTF-8, or pandas.read_excel(FILE).to_csv(NEW)",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save it as CSV UTF-8, or pandas.read_excel(FILE).to_csv(NEW)",
    b"\x1f\x8b": "gzip: let its name end in .gz",
    b"PAR1": "Parquet: let its name end in .parquet",
    codecs.BOM_UTF16_LE: _UTF_16,
    codecs.BOM_UTF16_BE: _UTF_16,
}  # the cure for files of other formats, by their first bytes

# Gets the columns of the first rows; returns the name of the column of ids, None if there is none or it is not known
IdOf = Callable[[TableColumns], str | None]
Advance = Callable[[float], object]  # called repeatedly with the share of the file that was read, 0 to 1


@contextmanager
def _opened(path: Path, advance: Advance) -> Iterator[tuple[Any, Callable[[], object]]]:
    """Opens a text file for the block, inflated if its name ends in .gz.

    Yields the binary file, and a function that calls `advance` with the share of the file that was read so far.

    Raises:
        ConfigurationError: It cannot be read, or holds something else than text in UTF-8; says what, and the cure.
    """
    try:
        with io.FileIO(path) as raw:
            file = io.BufferedReader(gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw, _READ_BYTES)
            size = max(1, os.fstat(raw.fileno()).st_size)
            start = file.peek(_SNIFFED)[:_SNIFFED]
            # Zero bytes are UTF-16 if many of the even or odd bytes are zero.
            other_format = next((cure for magic, cure in _OTHER_FILES.items() if start.startswith(magic)), "")
            if other_format or b"\0" in start:
                is_utf_16 = max(start[::2].count(0), start[1::2].count(0)) > len(start) // 4
                raise ConfigurationError(
                    f"{path}: not UTF-8, but {other_format or (_UTF_16 if is_utf_16 else 'no text')}"
                )
            yield file, lambda: advance(raw.tell() / size)
            advance(1.0)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, stripped, each with its number from 1."""
    with _opened(path, advance) as (file, report):
        number = 0
        while line := file.readline():  # a line may take megabytes: no other name holds it
            number += 1
            if not number % _LINES_BETWEEN:
                report()
            line = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
            # `bytes.strip` knows ASCII blanks only: decode where the first byte may belong to another one.
            may_be_blank = not 0x20 < (line or b" ")[0] < 0x7F
            if may_be_blank and not line.decode(errors="replace").strip():
                continue
            yield number, line


def json_lines(
    path: Path,
    kind: StepKind,
    advance: Advance,
    names: tuple[str, ...] | None = None,
    padding: Padding | None = None,
) -> Iterator[Record | BadRecord]:
    """Yields the records of a file of JSON Lines.

    `names`: the order of the features where steps are objects; None: their order in the first record of objects.
    `padding`: what is cut off the steps later; where it is nan, a step may be null.

    Raises:
        ConfigurationError: The file is a JSON list, or its first line is one.
    """
    for index, (number, line) in enumerate(lines(path, advance)):
        source_line = f"{path}:{number}"
        if not index and line.startswith(b"["):
            raise ConfigurationError(
                f"{path}: the first line begins a list, and JSON Lines has one object a line: {LIST_TO_LINES} if the "
                "file is one list; jq -c '{steps: .}' FILE.jsonl > DATA.jsonl if each line is a list of steps"
            )
        try:
            fields = _plain_fields(line, kind) or json_text.parse(line, "the line", most_parts=len(line))
        except InvalidRequest as error:
            reason = error.problems[0].detail.replace("at line 1, column", "at column")
            yield BadRecord(str(index), RecordError(f"{source_line}: {reason}"))
        else:
            record = read_record(fields, index, source_line, kind, names, padding)
            names = names or getattr(record, "names", None)
            yield record


def _plain_fields(line: bytes, kind: StepKind) -> dict[str, Any] | None:
    """Reads the fields of an ordinary line in the fast way, with `steps` as an array.

    Returns None for any other line, also a wrong one: `json_text.parse` has to read it.
    """
    if (span := fast_json.locate(line, b"steps")) is None:
        return None
    start, end, _ = span
    text = b"%snull%s" % (line[:start], line[end:])  # the object without its steps
    try:
        fields: dict[str, Any] = orjson.loads(text)
        name = fields.get("id")
        # Of two equal keys orjson keeps the last; `parse` refuses them. A line has a colon for each key, and those in
        # the id. If there are more, they are in other strings, or a key is there twice: `parse` finds out.
        colons_of_id = name.count(":") if type(name) is str and b"\\" not in text else 0
        if text.count(b":") - colons_of_id != len(fields):
            fields = json_text.parse(text)
    except (orjson.JSONDecodeError, RequestError):
        return None
    fields["steps"] = fast_json.steps(line, start, end, are_tokens=kind == "tokens")
    return None if fields["steps"] is None else fields


def time_series(path: Path, advance: Advance) -> Iterator[Record | BadRecord]:
    """Yields the records of a `.ts` file: https://www.sktime.net/en/stable/api_reference/file_specifications/ts.html.

    Its header has lines `@tag value`, of which `@classlabel` says whether each line of data ends in a label.

    Raises:
        ConfigurationError: The header is wrong, asks for something that is not read, or has no @data.
    """
    # The lines without comments, each as `FILE:LINE` and its bytes
    numbered = ((f"{path}:{number}", line) for number, line in lines(path, advance) if not line.startswith(b"#"))
    has_labels = False
    for source_line, line in numbered:  # the header
        tag, *rest = _text(line, source_line).lower().split()
        is_true = rest[:1] == ["true"]
        if not tag.startswith("@"):
            raise ConfigurationError(f"{source_line}: expected a header line that starts with @, before @data")
        if is_true and tag in _REFUSED_TAGS:
            raise ConfigurationError(f"{source_line}: {_REFUSED_TAGS[tag]}")
        if tag == "@classlabel":
            has_labels = is_true
        if tag == "@data":
            break
    else:
        raise ConfigurationError(f"{path}: there is no @data in it")
    for index, (source_line, line) in enumerate(numbered):  # the records
        try:
            yield _series_record(_text(line, source_line), index, has_labels, source_line)
        except RecordError as error:
            yield BadRecord(str(index), error)


def _text(line: bytes, source_line: str) -> str:
    """The line as text.

    Raises:
        RecordError: It is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{source_line}: not UTF-8") from error


def _series_record(text: str, index: int, has_label: bool, source_line: str) -> Record:
    """The record of one line of data: `a0,a1,...:b0,b1,...:label`, where a and b are features.

    Raises:
        RecordError: The label is missing, or the features have different numbers of steps.
    """
    channels = text.split(":")
    label = channels.pop().strip() if has_label else None
    if label == "" or not channels:
        raise RecordError(f"{source_line}: the label is missing")
    prefix = f"{source_line}: sequence {index}"
    columns = [[_number(word.strip(), prefix) for word in channel.split(",")] for channel in channels]
    for feature, column in enumerate(columns):
        if len(column) != len(columns[0]):
            raise RecordError(
                f"{source_line}: feature {feature} has {len(column)} steps, feature 0 has {len(columns[0])}"
            )
    return Record(str(index), as_float32(list(zip(*columns, strict=True)), source_line), label, source_line)


def _number(word: str, source_line: str) -> float:
    """A value of a `.ts` file; NaN for `?`.

    Raises:
        RecordError: It is not a number.
    """
    try:
        return float("nan" if word == "?" else word)
    except ValueError as error:
        raise RecordError(f"{source_line}: {word[:40]!r} is not a number") from error


class TextColumns(NamedTuple):
    """The cells of a CSV file, or of a block of its rows; without a header its columns are `column 1` and so on."""

    columns: TableColumns
    lines: list[int]  # the line of each row in the file, from 1
    wrong: dict[int, str]  # the reason for each row that has too few or too many cells, by its index in the block


CsvRow = tuple[int, list[str]]  # the number of the row's last line, from 1, and its cells


def read_csv(
    path: Path,
    advance: Advance = lambda _share: None,
    id_of: IdOf = lambda _: None,
    warn: Callable[[str], object] = lambda _line: None,
) -> Iterator[TextColumns]:
    """Yields the rows of a CSV file in blocks of about `BLOCK_CELLS` cells, so that a large file need not be in memory.

    A block ends where the id changes, so that all rows with one id are in one block. There is only one block if the
    file has no known column of ids, or if the rows of some id do not stand together. The first line is a header, unless
    all of its cells are numbers.

    Args:
        path: The file.
        advance: Called repeatedly with the share of the file that was read.
        id_of: Called with the columns of the first rows of a large file; returns the name of the column of ids, or
            None.
        warn: Called with a line for the user, if the rows of some id do not stand together.

    Raises:
        ConfigurationError: The file is empty.
    """
    rows = _csv_rows(path, advance)
    first_row = next(rows, None)
    if first_row is None:
        raise ConfigurationError(f"{path}: there is no line in it")
    header = _header(path, first_row[1])
    # The first block; if it is full, its first rows show the column of ids
    column_names = header or [f"{NO_HEADER}{number}" for number in range(1, len(first_row[1]) + 1)]
    rows_of_block = max(1, BLOCK_CELLS // len(column_names))
    block = [*([] if header else [first_row]), *islice(rows, rows_of_block)]
    id_name = id_of(_text_columns(column_names, block[:_SNIFFED]).columns) if len(block) >= rows_of_block else None
    # The cell of a row with its id, as a slice, since a row may have too few cells. The empty slice gives each row the
    # same id, so that there are no further blocks.
    id_cell = slice(0)
    if id_name is not None and _rows_stand_together(path, column_names.index(id_name)):
        id_cell = slice(column_names.index(id_name), column_names.index(id_name) + 1)
    elif id_name is not None:
        warn(
            f"{path}: the rows of one {id_name!r} do not stand together, so the whole table is held in memory, "
            f"many times the size of the file: sort it by {id_name!r}"
        )
    # This block and the next ones
    for row in rows:
        if len(block) >= rows_of_block and row[1][id_cell] != block[-1][1][id_cell]:
            yield _text_columns(column_names, block)
            block = []
        block.append(row)
    yield _text_columns(column_names, block)


def _csv_rows(path: Path, advance: Advance) -> Iterator[CsvRow]:
    """Yields the rows that are not blank; the delimiter is the most frequent one of the first line.

    Raises:
        ConfigurationError: The file is not CSV, or not UTF-8.
    """
    with _opened(path, advance) as (raw, report), io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        try:
            first_line = file.readline()
            reader = csv.reader(chain([first_line], file), delimiter=max(",;\t", key=first_line.count))
            for count, row in enumerate(reader):
                if not count % _LINES_BETWEEN:
                    report()
                if any(map(str.strip, row)):
                    yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            reason = f"not UTF-8: {_LATIN}" if isinstance(error, UnicodeDecodeError) else error
            raise ConfigurationError(f"{path} cannot be read as CSV: {reason}") from error


def _rows_stand_together(path: Path, column: int) -> bool:
    """Whether all rows with one id stand together in the file; `column` is the index of the column of ids."""
    ids = ("".join(row[column : column + 1]).strip() for _, row in _csv_rows(path, lambda _: None))
    ids_of_runs = [row_id for row_id, _ in groupby(ids)]
    return len(ids_of_runs) == len({*ids_of_runs})


def _header(path: Path, cells: list[str]) -> list[str] | None:
    """The names of the columns, which are the cells of the first line; None if all cells are numbers: it is no header.

    Raises:
        ConfigurationError: A name is there twice.
    """
    names = [cell.strip() or f"Unnamed: {column}" for column, cell in enumerate(cells)]
    if all(map(is_number, cells)):
        return None
    if (repeated := next((name for name, count in Counter(names).items() if count > 1), None)) is not None:
        raise ConfigurationError(f"{path}: the column {repeated!r} is there twice; rename one{header_hint(names)}")
    return names


def _text_columns(names: list[str], rows: list[CsvRow]) -> TextColumns:
    """Sorts the cells of some rows into columns.

    A row with too few or too many cells is in `wrong`, and gets copies of the cells of the row before it: which of its
    own cells is the id is not known, so it becomes a problem of the sequence of that row.
    """
    width = len(names)
    wrong = {
        index: f"{len(row)} columns, and the first line has {width}"
        for index, (_, row) in enumerate(rows)
        if len(row) < width or any(row[width:])
    }
    cells = [row[:width] + [""] * (width - len(row)) for _, row in rows]
    for index in wrong:
        cells[index] = cells[max(0, index - 1)]
    lines = [line for line, _ in rows]
    columns = ((name, Texts((row[column] for row in cells), lines)) for column, name in enumerate(names))
    return TextColumns(TableColumns(columns), lines, wrong)

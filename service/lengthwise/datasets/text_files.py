"""The records and cells of text files, compressed or not: JSON Lines, the UEA/UCR archive's `.ts`, and CSV.

The steps of an ordinary line of JSON are read in C straight to float32; the rest of it, with null in their place, is a
small object. Any other line is parsed by the rules of a JSON body.
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

from lengthwise.datasets.column_roles import NO_HEADER, no_names
from lengthwise.datasets.record_fields import BadRecord, Record, StepKind, as_float32, read_record
from lengthwise.datasets.tables import TableColumns, Texts, is_number
from lengthwise.decoding import fast_json, json_text
from lengthwise.errors import ConfigurationError, InvalidRequest, RecordError, RequestError

CSV_SUFFIXES: Final = (".csv", ".csv.gz", ".tsv")
BLOCK_CELLS: Final = 1 << 18  # of a CSV file that are in memory, and those behind them with the last id
_READ_BYTES: Final = 1 << 18  # at once
_LINES_BETWEEN: Final = 64  # after which progress is reported: asking where a file is takes longer than reading a line
_SNIFFED: Final = 1024  # bytes that show what a file is, or rows
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
}  # by their first bytes

IdOf = Callable[[TableColumns], str | None]
Advance = Callable[[float], object]  # called repeatedly with the share of the file that was read, 0 to 1


@contextmanager
def _opened(path: Path, advance: Advance) -> Iterator[tuple[Any, Callable[[], object]]]:
    """A file for reading, inflated if its name ends in .gz, and a function that reports the share read so far.

    Raises:
        ConfigurationError: It cannot be read, or holds something else than text in UTF-8; says what, and the cure.
    """
    try:
        with io.FileIO(path) as raw:
            inner = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            file = io.BufferedReader(inner, _READ_BYTES)
            size = max(1, os.fstat(raw.fileno()).st_size)
            start = file.peek(_SNIFFED)[:_SNIFFED]
            other = next((why for magic, why in _OTHER_FILES.items() if start.startswith(magic)), "")
            if other or b"\0" in start:
                is_wide = max(start[::2].count(0), start[1::2].count(0)) > len(start) // 4
                raise ConfigurationError(f"{path}: not UTF-8, but {other or (_UTF_16 if is_wide else 'no text')}")
            yield file, lambda: advance(raw.tell() / size)
            advance(1.0)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, also in the sense of `str`, each with its number from 1."""
    with _opened(path, advance) as (file, report):
        number = 0
        while line := file.readline():  # a line may take megabytes: no other name holds it
            number += 1
            if not number % _LINES_BETWEEN:
                report()
            line = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
            is_odd = not 0x20 < (line or b" ")[0] < 0x7F  # perhaps one of the other blanks
            if is_odd and not line.decode(errors="replace").strip():
                continue
            yield number, line


def json_lines(
    path: Path, kind: StepKind, advance: Advance, names: tuple[str, ...] | None = None
) -> Iterator[Record | BadRecord]:
    """The records of JSON Lines; where the names of the features are not known, they are those of the first objects.

    Raises:
        ConfigurationError: The file is a JSON list.
    """
    for index, (number, line) in enumerate(lines(path, advance)):
        source_line = f"{path}:{number}"
        if not index and line.startswith(b"["):
            raise ConfigurationError(
                f"{path}: this is a JSON list, and JSON Lines has one object a line: jq -c '.[]' LIST.json > DATA.jsonl"
            )
        try:
            fields = _plain_fields(line, kind) or json_text.parse(line, "the line", most_parts=len(line))
        except InvalidRequest as error:
            why = error.problems[0].detail.replace("at line 1, column", "at column")
            yield BadRecord(str(index), RecordError(f"{source_line}: {why}"))
        else:
            record = read_record(fields, index, source_line, kind, names)
            names = names or getattr(record, "names", None)
            yield record


def _plain_fields(line: bytes, kind: StepKind) -> dict[str, Any] | None:
    """The fields of an ordinary line, with its steps as an array; None for a line that needs the general reader."""
    span = fast_json.locate(line, b"steps")
    if span is None:
        return None
    start, end, _ = span
    text = b"%snull%s" % (line[:start], line[end:])
    try:
        fields: dict[str, Any] = orjson.loads(text)
        name = fields.get("id")
        colons = name.count(":") if type(name) is str and b"\\" not in text else 0
        if text.count(b":") - colons != len(fields):  # other strings have some, or a key stands twice
            fields = json_text.parse(text)
    except (orjson.JSONDecodeError, RequestError):  # the whole line says what is wrong with it
        return None
    fields["steps"] = fast_json.steps(line, start, end, are_tokens=kind == "tokens")
    return None if fields["steps"] is None else fields


def time_series(path: Path, advance: Advance) -> Iterator[Record | BadRecord]:
    """Records of the `.ts` format, https://www.sktime.net/en/stable/api_reference/file_specifications/ts.html.

    Raises:
        ConfigurationError: The header is wrong, asks for something that is not read, or has no @data.
    """
    labelled, in_data, index = False, False, 0
    for number, line in lines(path, advance):
        source_line = f"{path}:{number}"
        if line.startswith(b"#"):
            continue
        if in_data:
            try:
                yield _series(_text(line, source_line), index, labelled, source_line)
            except RecordError as error:
                yield BadRecord(str(index), error)
            index += 1
            continue
        tag, *rest = _text(line, source_line).lower().split()
        is_true = rest[:1] == ["true"]
        if not tag.startswith("@"):
            raise ConfigurationError(f"{source_line}: expected a header line that starts with @, before @data")
        if is_true and tag in _REFUSED_TAGS:
            raise ConfigurationError(f"{source_line}: {_REFUSED_TAGS[tag]}")
        if tag == "@classlabel":
            labelled = is_true
        in_data = tag == "@data"
    if not in_data:
        raise ConfigurationError(f"{path}: there is no @data in it")


def _text(line: bytes, source_line: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{source_line}: not UTF-8") from error


def _series(text: str, index: int, labelled: bool, source_line: str) -> Record:
    """One data line: `a0,a1,...:b0,b1,...:label`.

    Raises:
        RecordError: The label is missing, or the features have different numbers of steps.
    """
    channels = text.split(":")
    label = channels.pop().strip() if labelled else None
    if label == "" or not channels:
        raise RecordError(f"{source_line}: the label is missing")
    columns = [
        [_number(word.strip(), f"{source_line}: sequence {index}") for word in one.split(",")] for one in channels
    ]
    for feature, column in enumerate(columns):
        if len(column) != len(columns[0]):
            raise RecordError(
                f"{source_line}: feature {feature} has {len(column)} steps, feature 0 has {len(columns[0])}"
            )
    return Record(str(index), as_float32(list(zip(*columns, strict=True)), source_line), label, source_line)


def _number(word: str, source_line: str) -> float:
    try:
        return float("nan" if word == "?" else word)
    except ValueError as error:
        raise RecordError(f"{source_line}: {word[:40]!r} is not a number") from error


class TextColumns(NamedTuple):
    """The cells of a CSV file, or of some rows of it; without a header its columns are `column 1` and so on."""

    columns: TableColumns
    lines: list[int]  # of each row in the file, from 1
    wrong: dict[int, str]  # rows with another number of cells, and why


CsvRow = tuple[int, list[str]]  # the number of its last line, from 1, and its cells


def read_csv(
    path: Path,
    advance: Advance = lambda _share: None,
    id_of: IdOf = lambda _: None,
    warn: Callable[[str], object] = lambda _line: None,
) -> Iterator[TextColumns]:
    """The rows of a CSV file, in blocks that end where another id begins; all in one if `id_of` knows no id's column.

    The first line is a header, unless all of its cells are numbers. `id_of` gets the columns of the first rows; where
    the rows of an id do not stand together, the file is one block too, and `warn` is called.

    Raises:
        ConfigurationError: The file is empty.
    """
    rows = _csv_rows(path, advance)
    first = next(rows, None)
    if first is None:
        raise ConfigurationError(f"{path}: there is no line in it")
    names = _header(path, first[1])
    head = names or [f"{NO_HEADER}{number}" for number in range(1, len(first[1]) + 1)]
    most = max(1, BLOCK_CELLS // len(head))
    block = [*([] if names else [first]), *islice(rows, most)]
    name = id_of(_text_columns(head, block[:_SNIFFED]).columns) if len(block) >= most else None
    column = len(head) if name is None else head.index(name)
    is_sorted = name is not None and _stand_together(path, column)
    if name is not None and not is_sorted:
        warn(
            f"{path}: the rows of one {name!r} do not stand together, so the whole table is held in memory, "
            f"many times the size of the file: sort it by {name!r}"
        )
    for row in rows:
        if is_sorted and len(block) >= most and row[1][column : column + 1] != block[-1][1][column : column + 1]:
            yield _text_columns(head, block)
            block = []
        block.append(row)
    yield _text_columns(head, block)


def _csv_rows(path: Path, advance: Advance) -> Iterator[CsvRow]:
    """The rows that are not blank.

    Raises:
        ConfigurationError: The file is not CSV, or not UTF-8.
    """
    with _opened(path, advance) as (raw, report), io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            reader = csv.reader(chain([first], file), delimiter=max(",;\t", key=first.count))
            for count, row in enumerate(reader):
                if not count % _LINES_BETWEEN:
                    report()
                if any(map(str.strip, row)):
                    yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            why = f"not UTF-8: {_LATIN}" if isinstance(error, UnicodeDecodeError) else error
            raise ConfigurationError(f"{path} cannot be read as CSV: {why}") from error


def _stand_together(path: Path, column: int) -> bool:
    """Whether the rows with one id stand together; the ids are in one column."""
    starts = [
        one
        for one, _ in groupby("".join(row[column : column + 1]).strip() for _, row in _csv_rows(path, lambda _: None))
    ]
    return len(starts) == len({*starts})


def _header(path: Path, cells: list[str]) -> list[str] | None:
    """The names of the columns in the first line; None if it has numbers only, and so no names.

    Raises:
        ConfigurationError: A name is there twice.
    """
    head = [cell.strip() or f"Unnamed: {column}" for column, cell in enumerate(cells)]
    if all(map(is_number, cells)):
        return None
    if (twice := next((name for name, count in Counter(head).items() if count > 1), None)) is not None:
        raise ConfigurationError(f"{path}: the column {twice!r} is there twice; rename one{no_names(head)}")
    return head


def _text_columns(head: list[str], rows: list[CsvRow]) -> TextColumns:
    """The cells of some rows by column; a row with another number of cells gets those of the row before it."""
    width = len(head)
    wrong = {
        index: f"{len(row)} columns, and the first line has {width}"
        for index, (_, row) in enumerate(rows)
        if len(row) < width or any(row[width:])
    }
    cells = [row[:width] + [""] * (width - len(row)) for _, row in rows]
    for index in wrong:  # of its cells it is not known which is which: it counts to the sequence before it
        cells[index] = cells[max(0, index - 1)]
    lines = [line for line, _ in rows]
    columns = ((name, Texts((row[column] for row in cells), lines)) for column, name in enumerate(head))
    return TextColumns(TableColumns(columns), lines, wrong)

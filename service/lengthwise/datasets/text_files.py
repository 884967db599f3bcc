"""The records and cells of text files, compressed or not: JSON Lines, the UEA/UCR archive's `.ts`, and CSV.

The steps of an ordinary line of JSON are read in C straight to float32; the rest of it, with null in their place, is a
small object. Any other line is parsed by the rules of a JSON body.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from lengthwise.datasets.long_table import MISSING, NO_HEADER, Texts
from lengthwise.datasets.record_fields import BadRecord, Record, StepKind, as_float32, judged
from lengthwise.decoding import fast_json, json_text
from lengthwise.errors import ConfigurationError, InvalidRequest, RecordError, RequestError

CSV_SUFFIXES: Final = (".csv", ".csv.gz", ".tsv")
_READ_BYTES: Final = 1 << 18  # at once, and between two reports of progress

Advance = Callable[[float], object]  # called repeatedly with the share of the file that was read, 0 to 1


def lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, each with its number from 1."""
    try:
        with (
            path.open("rb", buffering=_READ_BYTES) as raw,
            gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as file,
        ):
            size = max(1, os.fstat(raw.fileno()).st_size)
            number, unsaid = 0, _READ_BYTES
            while line := file.readline():
                number += 1
                unsaid += len(line)
                line = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
                if line and unsaid > _READ_BYTES:  # asking where a file is takes longer than reading a line
                    advance(raw.tell() / size)
                    unsaid = 0
                if line:
                    yield number, line
            advance(1.0)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def json_lines(
    path: Path, kind: StepKind, advance: Advance, names: tuple[str, ...] | None = None
) -> Iterator[Record | BadRecord]:
    """The records of JSON Lines; where the names of the features are not known, they are those of the first objects."""
    for index, (number, line) in enumerate(lines(path, advance)):
        place = f"{path}:{number}"
        if not index and line.startswith(b"["):
            raise ConfigurationError(
                f"{path}: this is a JSON list, and JSON Lines has one object a line: jq -c '.[]' LIST.json > DATA.jsonl"
            )
        try:
            fields = _plain_fields(line, kind) or json_text.parse(line, "the line", most_parts=len(line))
        except InvalidRequest as error:
            said = error.problems[0].detail.replace("at line 1, column", "at column")
            yield BadRecord(str(index), RecordError(f"{place}: {said}"))
        else:
            record = judged(fields, index, place, kind, names)
            names = names or getattr(record, "names", None)
            yield record


def _plain_fields(line: bytes, kind: StepKind) -> dict[str, Any] | None:
    """The fields of an ordinary line, its steps as an array; None of any other."""
    place = fast_json.locate(line, b"steps")
    if place is None:
        return None
    start, end, _ = place
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
    """Records of the `.ts` format, https://www.sktime.net/en/stable/api_reference/file_specifications/ts.html."""
    labelled, in_data, index = False, False, 0
    for number, line in lines(path, advance):
        place = f"{path}:{number}"
        if line.startswith(b"#"):
            continue
        if in_data:
            try:
                yield _series(_text(line, place), index, labelled, place)
            except RecordError as error:
                yield BadRecord(str(index), error)
            index += 1
            continue
        tag, *rest = _text(line, place).lower().split()
        is_true = rest[:1] == ["true"]
        if not tag.startswith("@"):
            raise ConfigurationError(f"{place}: expected a header line that starts with @, before @data")
        if tag == "@timestamps" and is_true:
            raise ConfigurationError(f"{place}: time stamps are not read; write plain values")
        if tag == "@targetlabel" and is_true:
            raise ConfigurationError(f"{place}: targets of a regression are no labels")
        if tag == "@classlabel":
            labelled = is_true
        in_data = tag == "@data"
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
    columns = [[_number(word.strip(), f"{place}: sequence {index}") for word in one.split(",")] for one in channels]
    for feature, column in enumerate(columns):
        if len(column) != len(columns[0]):
            raise RecordError(f"{place}: feature {feature} has {len(column)} steps, feature 0 has {len(columns[0])}")
    return Record(str(index), as_float32(list(zip(*columns, strict=True)), place), label, place)


def _number(word: str, place: str) -> float:
    try:
        return float("nan" if word == "?" else word)
    except ValueError as error:
        raise RecordError(f"{place}: {word[:40]!r} is not a number") from error


class TextColumns(NamedTuple):
    """The cells of a CSV file; without a header its columns are `column 1` and so on."""

    columns: dict[str, Texts]
    lines: list[int]  # of each row in the file, from 1
    wrong: dict[int, str]  # rows with another number of cells, and why


def read_csv(path: Path) -> TextColumns:
    """The cells of a CSV file. The first line is a header, unless all of its cells are numbers."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
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
    width = len(head)
    if all(map(_is_number, head)):
        head = [f"{NO_HEADER}{place}" for place in range(1, width + 1)]
    else:
        rows = rows[1:]
    twice = sorted({name for name in head if head.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{path}: the column {twice[0]!r} is there twice; rename one")
    wrong = {
        place: f"{len(row)} columns, and the first line has {width}"
        for place, (_, row) in enumerate(rows)
        if len(row) < width or any(row[width:])
    }
    cells = [row[:width] + [""] * (width - len(row)) for _, row in rows]
    columns = {name: Texts(row[place] for row in cells) for place, name in enumerate(head)}
    return TextColumns(columns, [line for line, _ in rows], wrong)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in MISSING
    return True

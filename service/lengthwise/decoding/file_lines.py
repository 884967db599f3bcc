"""The lines of a text file, compressed or not, and the records of the `.ts` format of the UEA/UCR archive."""

from __future__ import annotations

import codecs
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from lengthwise.decoding.record_fields import BadRecord, Record, as_float32
from lengthwise.errors import ConfigurationError, RecordError

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


def time_series(path: Path, advance: Advance) -> Iterator[Record | BadRecord]:
    """Records of the `.ts` format, https://www.sktime.net/en/stable/api_reference/file_specifications/ts.html."""
    labelled, in_data, index = False, False, 0
    for number, line in lines(path, advance):
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
    return Record(str(index), as_float32(list(zip(*columns, strict=True)), place), label, place)


def _number(word: str, place: str) -> float:
    word = word.strip()
    if word == "?":
        return float("nan")
    try:
        return float(word)
    except ValueError as error:
        raise RecordError(f"{place}: {word!r} is not a number") from error

"""Records of the `.ts` format of the UEA/UCR archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lengthwise.decoding.file_lines import Advance, lines
from lengthwise.decoding.record_fields import BadRecord, Record, as_float32
from lengthwise.errors import ConfigurationError, RecordError


def records(path: Path, advance: Advance) -> Iterator[Record | BadRecord]:
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

"""The lines of a text file, compressed or not."""

from __future__ import annotations

import codecs
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from lengthwise.decoding.json_lines import LongLine
from lengthwise.errors import ConfigurationError

_READ_BYTES: Final = 1 << 18
"""Bytes read at once, and between two reports of progress."""

Advance = Callable[[float], object]
"""Called repeatedly, and at the end, with the share of the file that was read, 0 to 1."""


def lines(path: Path, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, each with its number from 1."""
    for number, line in long_lines(path, advance, -1):
        if isinstance(line, bytes):
            yield number, line


def long_lines(path: Path, advance: Advance, limit: int) -> Iterator[tuple[int, bytes | LongLine]]:
    """Like `lines`; a line of more than `limit` bytes (-1: no limit) is a `LongLine`, which the caller must read."""
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

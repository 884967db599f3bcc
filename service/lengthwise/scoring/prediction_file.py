"""The file of predictions that scoring writes: one line per record, in order; a later run can resume it.

An interrupted run leaves lines, the last of them perhaps cut off. A line counts when it ends with a newline; the rest
is written again. To keep one file to one model, input and set of options, the last complete line is computed again too,
and must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson

from lengthwise.errors import ConfigurationError


class PredictionFile:
    """The file, open for writing: a new one, or one to resume. `exact`: equal lines have equal bytes."""

    def __init__(self, path: Path, *, resume: bool = False, exact: bool = True) -> None:
        self._path = path
        self._exact = exact
        self._last = b""
        self._end = 0
        self.lines = 0  # complete ones, those of an earlier run included
        self.is_written = False  # by this run
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "x+b")
            is_empty = not path.stat().st_size
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
        if not (is_empty or resume):
            self._file.close()
            raise ConfigurationError(
                f"{path} exists; --resume continues an interrupted run, and to start again, delete the file first"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # an error of the disk was raised by `write` before
            self._file.close()

    def kept_predictions(self) -> Iterator[dict[str, Any]]:
        """The lines of an earlier run that are kept; its last line is left out, and computed again.

        Raises:
            ConfigurationError: A line is not a prediction.
        """
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if self._last:
                prediction = None
                with suppress(orjson.JSONDecodeError):
                    prediction = orjson.loads(self._last)
                if not isinstance(prediction, dict) or not isinstance(prediction.get("id"), str):
                    raise ConfigurationError(self.mismatch("is no prediction"))
                yield prediction
                self._end += len(self._last)
                self.lines += 1
            self._last = line

    def write(self, lines: Sequence[bytes]) -> None:
        """Appends lines, each with its newline; the first must be the last line of an earlier run.

        Raises:
            ConfigurationError: The file cannot be written. A first line that differs is a ConfigurationError, too.
        """
        if self._last and lines:
            if not self._is_same_record(self._last, lines[0]):
                raise ConfigurationError(self.mismatch("differs from what this run computes for the record"))
            self._last = b""
        try:
            if not self.is_written:
                self._file.seek(self._end)
                self._file.truncate()
                self.is_written = True
            self._file.write(b"".join(lines))
            self._file.flush()
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}") from error
        self.lines += len(lines)

    def finish(self) -> None:
        """Ends the file where the records end.

        Raises:
            ConfigurationError: An earlier run has left more lines than there are records.
        """
        if self._last:
            raise ConfigurationError(self.mismatch("belongs to a record that the input does not have"))
        self.write([])

    def mismatch(self, difference: str) -> str:
        """The error that the file belongs to another run; `difference` describes the line after the last kept one."""
        return (
            f"{self._path}:{self.lines + 1} {difference}: the file was made of another input, by another model, with "
            "other options or on another kind of processor. Name another file, or delete this one"
        )

    def _is_same_record(self, before: bytes, now: bytes) -> bool:
        """Whether two lines are of one record: equal bytes, or equal ids and fields where bits may differ."""
        if before == now:
            return True
        try:
            old, new = orjson.loads(before), orjson.loads(now)
        except orjson.JSONDecodeError:
            return False
        # An error contains the file's name, which may differ, and not every model gives the same bits again.
        free = "error" in new or not self._exact
        return free and isinstance(old, dict) and list(old) == list(new) and old["id"] == new["id"]

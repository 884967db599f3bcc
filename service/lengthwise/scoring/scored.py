"""The file that scoring writes: whole lines in the order of the records, and a place to go on from.

An interrupted run leaves lines, the last of them perhaps cut off. A line counts when its newline is there; the rest is
written again. So that two halves of a file are never of different models, inputs or options, the last whole line is
made again too, and has to come out as it stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from lengthwise.errors import ConfigurationError


class Scored:
    """The file, open for writing.

    Args:
        path: Where it is, or will be.
        resume: Go on with what is there. Without it, only an empty file is written over.
        overwrite: Forget what is there.
        exact: Whether a line that is made again comes out byte for byte.

    Raises:
        ConfigurationError: The file cannot be written, or holds something and nobody said what becomes of it.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False, exact: bool = True) -> None:
        self._path = path
        self._exact = exact
        self._last = b""
        self._end = 0
        self._done = 0
        self._is_written = False
        try:
            self._file = path.open("r+b" if path.exists() else "x+b")
            is_empty = not path.stat().st_size
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
        if not (is_empty or resume or overwrite):
            self._file.close()
            raise ConfigurationError(
                f"{path} exists; --resume goes on with what an interrupted run left there, --overwrite starts anew"
            )

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file; what was written so far stays."""
        with suppress(OSError):  # only what `write` could not write, and said so, is left to fail here
            self._file.close()

    @property
    def lines(self) -> int:
        """How many lines stand for good: those left by an earlier run, and those written by this one."""
        return self._done

    @property
    def is_written(self) -> bool:
        """Whether this run wrote to it, so that what stands there is sound."""
        return self._is_written

    def left(self) -> Iterator[dict[str, Any]]:
        """The predictions that an earlier run left, but for the last: that one is to be made again.

        Raises:
            ConfigurationError: A line is no prediction.
        """
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if self._last:
                yield self._read(self._last)
                self._end += len(self._last)
                self._done += 1
            self._last = line

    def write(self, lines: Sequence[bytes]) -> None:
        """Appends lines, each with its newline.

        Raises:
            ConfigurationError: The first is not the one that stood there last, or the disk does not take them.
        """
        if self._last and lines:
            if not self._agree(self._last, lines[0]):
                raise self.other("is not what this run makes of the record")
            self._last = b""
        try:
            if not self._is_written:
                self._file.seek(self._end)
                self._file.truncate()
                self._is_written = True
            self._file.write(b"".join(lines))
            self._file.flush()
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}") from error
        self._done += len(lines)

    def finish(self) -> None:
        """Ends the file where the records end.

        Raises:
            ConfigurationError: An earlier run left more lines than there are records.
        """
        if self._last:
            raise self.other("is of a record that is not there")
        self.write([])

    def other(self, what: str) -> ConfigurationError:
        """The error of going on with a file that another run wrote; `what` is said of the line behind the last kept."""
        return ConfigurationError(
            f"{self._path}:{self._done + 1} {what}: the file was made of another input, by another model, with other "
            "options or on another kind of processor. Name another file, or say --overwrite"
        )

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            prediction = orjson.loads(line)
        except orjson.JSONDecodeError:
            prediction = None
        if not isinstance(prediction, dict) or not isinstance(prediction.get("id"), str):
            raise self.other("is no prediction")
        return prediction

    def _agree(self, there: bytes, made: bytes) -> bool:
        """Whether a line is the one that was made before."""
        if there == made:
            return True
        try:
            before, now = orjson.loads(there), orjson.loads(made)
        except orjson.JSONDecodeError:
            return False
        # An error names the file as it was called then, and not every model answers to the last bit.
        free = "error" in now or not self._exact
        return free and isinstance(before, dict) and list(before) == list(now) and before["id"] == now["id"]

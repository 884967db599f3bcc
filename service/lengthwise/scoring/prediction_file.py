"""The file of predictions that scoring writes: one line per record, in order; a later run can resume it.

An interrupted run leaves lines, the last of them perhaps cut off. A line counts when it ends with a newline; the rest
is written again. To make sure that the file is of the same model, input and options, the last complete line is computed
again, too, and must be the same: `mismatch` is the error otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import orjson

from lengthwise.errors import ConfigurationError
from lengthwise.files import claim


class PredictionFile(AbstractContextManager["PredictionFile"]):
    """The file, open for writing: a new one, or with `resume` one of an earlier run.

    `exact`: Whether a record that is computed again must give a line with equal bytes.
    """

    def __init__(self, path: Path, *, resume: bool = False, exact: bool = True) -> None:
        """Opens and locks the file, and creates it and its folder where they are missing.

        No folder is created in the root of a disk: that is rather a slip in the path.

        Raises:
            ConfigurationError: There is no folder for it; it cannot be written; another run writes it; or it has
                content and `resume` is not set.
        """
        self._path = path
        self._exact = exact
        self._last = b""  # the last complete line of an earlier run, until it is compared
        self._end = 0  # the position after the kept lines, in bytes
        self.lines = 0  # the number of complete lines, those of an earlier run included
        self.is_written = False  # whether this run has written
        folder = path.absolute().parent
        if not folder.is_dir() and not any(parent.is_dir() for parent in folder.parents[:-1]):
            raise ConfigurationError(f"{path} cannot be written: there is no folder {folder}; make it first")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "x+b")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror or 'it is no plain file'}") from error
        problem = "" if claim(self._file.fileno()) else "is being written by another run; name another file, or wait"
        if not (problem or resume) and path.stat().st_size:
            problem = "exists; --resume continues an interrupted run, and to start again, delete the file first"
        if problem:
            self._file.close()
            raise ConfigurationError(f"{path} {problem}")

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # an error of the disk was raised by `write` before
            self._file.close()

    def earlier_predictions(self) -> Iterator[dict[str, Any]]:
        """Yields the predictions of an earlier run that are kept: all complete lines but the last.

        So a line is yielded when the next one is read. The last one stays in `_last`: `write` compares it with the line
        that this run computes for the same record.

        Raises:
            ConfigurationError: A line is not a prediction.
        """
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if self._last:  # it was not the last line
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
        """Appends lines, each with its newline, after the kept ones.

        The first line of a resumed run is that of the record of the earlier run's last line, and is compared with it.

        Raises:
            ConfigurationError: The file cannot be written, or the compared lines differ.
        """
        if self._last and lines:
            if not self._is_same_record(self._last, lines[0]):
                raise ConfigurationError(self.mismatch("differs from what this run computes for the record"))
            self._last = b""
        try:
            if not self.is_written:  # cut off what is not kept
                self._file.seek(self._end)
                self._file.truncate()
                self.is_written = True
            self._file.write(b"".join(lines))
            self._file.flush()
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}") from error
        self.lines += len(lines)

    def finish(self) -> None:
        """Ends the file after the line of the last record, and cuts off what an earlier run left after it.

        `write` cuts that off at its first call; the call without lines here does it for a run that wrote no line.

        Raises:
            ConfigurationError: An earlier run has left more lines than there are records.
        """
        if self._last:
            raise ConfigurationError(self.mismatch("belongs to a record that the input does not have"))
        self.write([])

    def mismatch(self, difference: str) -> str:
        """The text of the error that the file is of another run; `difference`: what is wrong with the next line."""
        return (
            f"{self._path}:{self.lines + 1} {difference}: the file was made of another input, by another model, with "
            "other options or on another kind of processor. Name another file, or delete this one"
        )

    def _is_same_record(self, earlier: bytes, computed: bytes) -> bool:
        """Whether an earlier line and the computed one are of the same record.

        Their bytes are equal; or, where bits may differ, their ids and the names of their fields.
        """
        if earlier == computed:
            return True
        try:
            earlier_fields, computed_fields = orjson.loads(earlier), orjson.loads(computed)
        except orjson.JSONDecodeError:
            return False
        # An error contains the file's name, which may differ, and not every model gives the same bits again.
        bits_may_differ = "error" in computed_fields or not self._exact
        return (
            bits_may_differ
            and isinstance(earlier_fields, dict)
            and list(earlier_fields) == list(computed_fields)
            and earlier_fields["id"] == computed_fields["id"]
        )

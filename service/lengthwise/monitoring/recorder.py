"""The recorder: writes a sample of the calls to Parquet files of one model each, and removes the oldest files.

Rows are gathered to row groups. A file that is old or large enough is *ending*: it gets no further rows, and is
complete once its last bytes are on the disk. While the disk is full, bytes wait in memory (`PatientOutput`).
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import ConfigurationError, how_to_install
from lengthwise.monitoring.consumers import AnsweredCall, Consumer
from lengthwise.monitoring.record_file import PATTERN, RecordFile, rows_of
from lengthwise.telemetry.families import Family

log = logging.getLogger("lengthwise.monitoring")

# A file ends
FILE_ROWS: Final = 20_000  # after so many rows,
FILE_SECONDS: Final = 300.0  # or so long after its first row,
_FILE_SHARE: Final = 1 / 8  # or when it has this share of the bytes that all files may have.
# A row group is written
_GROUP_ROWS: Final = 500  # when there are so many rows,
_GROUP_BYTES: Final = 8 * 2**20  # or their steps have so many bytes.
MOST_WAITING_BYTES: Final = 8 * 2**20  # that wait in memory while the disk is full; with more, all open files are lost
_PAUSE_SECONDS: Final = 10.0  # without recording, after an error


_Key = tuple[str, str, tuple[str, ...] | None]  # of the rows of one file: the model, the kind of a step, the names


class Recorder(Consumer):
    """Writes a share of the calls to files in a directory, which may have `most_bytes` together."""

    name = "record"

    def __init__(
        self, directory: Path, share: float, most_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            import pyarrow.parquet  # noqa: F401  # only to see that it is installed
        except ImportError as error:
            raise ConfigurationError(f"record needs pyarrow: {how_to_install('parquet')}") from error
        self.share = share
        self._directory = directory
        self._most_bytes = most_bytes
        self._group_bytes = min(_GROUP_BYTES, _FILE_SHARE * most_bytes)  # of steps in a row group
        self._clock = clock
        self._rows: dict[_Key, list[dict[str, Any]]] = {}  # that are not written yet
        self._files: dict[_Key, RecordFile] = {}  # that get further rows
        self._ending: list[RecordFile] = []  # that get no further rows, and wait for room on the disk
        self._paused_until = float("-inf")  # on the clock
        self._recorded = 0  # sequences in complete files
        self._lost = 0  # sequences
        self._file_bytes = 0  # of all complete files
        try:
            directory.mkdir(parents=True, exist_ok=True)
            RecordFile.remove_abandoned(directory)
            tempfile.TemporaryFile(dir=directory).close()  # whether it can be written
            self._remove_oldest()
        except OSError as error:
            raise ConfigurationError(f"record: the folder {directory} cannot be written: {error.strerror}") from error

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Adds calls to the rows, and writes what is due. After an error, calls are lost until the pause is over."""
        for call in calls:
            rows = rows_of(call)
            if self._clock() < self._paused_until:
                self._lost += len(rows)
            else:
                manifest = call.model.manifest
                self._rows.setdefault((manifest.name, manifest.input.kind, manifest.input.names), []).extend(rows)
        self._write()

    def close(self) -> None:
        """Writes all rows and completes the open files."""
        self._write(last=True)

    def families(self) -> Iterator[Family]:
        """Yields the counters of recorded and lost sequences, and the gauge of the files' bytes."""
        for name, help_, count in (
            ("recorded_sequences", "Sequences in record files that were completed.", self._recorded),
            ("record_lost_sequences", "Sequences that could not be written to records.", self._lost),
        ):
            yield Family("counter", "sum", name, help_, samples=[((), count)])
        yield Family(
            "gauge", "largest", "record_bytes", "Bytes of all complete record files.", samples=[((), self._file_bytes)]
        )

    def _write(self, *, last: bool = False) -> None:
        """Writes the row groups that are due, and completes the files that are ending.

        If that fails, the open files and the gathered rows are dropped, because they would fail again, and recording
        pauses.

        Args:
            last: Whether the service ends: then all rows are written, and all files are completed.
        """
        try:
            for key, rows in self._rows.items():
                if rows or key in self._files:
                    self._write_rows(key, rows, last)
            for file in list(self._ending):
                self._end(file)
            self._save(last)
        except Exception as error:
            # All rows in open files, and all gathered ones, are lost.
            open_files = [*self._files.values(), *self._ending]
            lost = sum(map(len, self._rows.values())) + sum(file.rows for file in open_files)
            self._lost += lost
            log.error(
                "%d recorded sequences are lost, because %s cannot be written: %s; recording pauses for %d seconds",
                lost,
                self._directory,
                error,
                _PAUSE_SECONDS,
            )
            for file in open_files:
                file.drop()
            self._files.clear()
            self._ending.clear()
            self._rows.clear()
            self._paused_until = self._clock() + _PAUSE_SECONDS

    def _write_rows(self, key: _Key, rows: list[dict[str, Any]], last: bool) -> None:
        """Writes the gathered rows of one file as a group, if they are enough; marks a file as ending if it is due.

        Args:
            key: The key of the file; a new file is opened if there is none.
            rows: The gathered rows; emptied if they are written.
            last: Whether the service ends: then both are done in any case.
        """
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = RecordFile(self._directory, key[0], rows[0], self._clock())
        is_due = last or self._clock() - file.opened >= FILE_SECONDS
        is_group = len(rows) >= _GROUP_ROWS or sum(row["steps"].nbytes for row in rows) >= self._group_bytes
        if rows and (is_due or is_group):
            file.write(rows)
            rows.clear()
        if is_due or file.rows >= FILE_ROWS or file.output.tell() >= _FILE_SHARE * self._most_bytes:
            self._ending.append(self._files.pop(key))

    def _end(self, file: RecordFile) -> None:
        """Completes a file that is ending, unless bytes of it still wait for room on the disk.

        A file that is larger than all files together may be is dropped.
        """
        if file.output.tell() > self._most_bytes:  # a single call may be so large
            self._ending.remove(file)
            file.drop()
            self._lost += file.rows
        elif file.complete():
            self._ending.remove(file)
            self._recorded += file.rows
            self._remove_oldest()

    def _save(self, last: bool) -> None:
        """Tries to write the bytes that wait for room on the disk.

        Args:
            last: Whether the service ends, so that no byte may wait any longer.

        Raises:
            OSError: More than `MOST_WAITING_BYTES` still wait; with `last`, some bytes still wait.
        """  # noqa: DOC502 - the output raises it
        open_files = [*self._files.values(), *self._ending]
        for file in open_files:
            with suppress(OSError):
                file.output.save()
        if last or sum(len(file.output.waiting) for file in open_files) > MOST_WAITING_BYTES:
            for file in open_files:
                file.output.save()

    def _remove_oldest(self) -> None:
        """Removes the oldest files until all together have at most `most_bytes`; notes their bytes for the gauge."""
        files = []
        for path in sorted(self._directory.glob(PATTERN)):  # the oldest first: their names begin with their time
            with suppress(OSError):  # removed meanwhile
                files.append((path, path.stat().st_size))
        total = sum(size for _, size in files)
        for path, size in files:
            if total <= self._most_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._file_bytes = total  # a scrape does not read a folder of many files on the event loop

"""Files of records, with the columns that docs/monitoring.md lists: how one is written, its rows, and reading them.

While it is written, a file is named `.record-....parquet.part` and locked; when it is complete, it gets its name.
"""

from __future__ import annotations

import io
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from os import write
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from lengthwise import files
from lengthwise.errors import ConfigurationError
from lengthwise.monitoring.consumers import AnsweredCall
from lengthwise.padding import Steps, steps_of
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATTERN: Final = "record-*.parquet"
NAMES: Final = b"lengthwise.names"  # key in a file's metadata: the names of the features, a list as JSON
_UNFINISHED: Final = ".record-*.parquet.part"
AT_ONCE: Final = 500  # records that are read together

_numbers: Final = itertools.count(1)  # of the files of this process


class RecordFile:
    """A file of one model that is being written.

    Args:
        directory: The folder of the file.
        model: The name of the model, for the file's name.
        example: One of the rows, from which the types of the columns follow: steps are values or tokens.
        now: The present time on the caller's clock, which becomes `opened`.
    """

    def __init__(self, directory: Path, model: str, example: dict[str, Any], now: float) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.rows = 0  # that were written
        self.opened = now
        types = {
            "id": pa.string(),
            "steps": pa.list_(pa.int64()) if example["steps"].ndim == 1 else pa.list_(pa.list_(pa.float32())),
            "length": pa.int32(),
            "model": pa.string(),
            "version": pa.string(),
            "answer": pa.list_(pa.string()),
            "probabilities": pa.list_(pa.float32()),
            "request": pa.string(),
            "arrived": pa.timestamp("us", tz="UTC"),
            "queue_seconds": pa.float32(),
            "inference_seconds": pa.float32(),
        }
        # The schema, and the file that is locked while it is written
        names = example["names"]
        self._schema = pa.schema(types.items(), metadata=None if names is None else {NAMES: orjson.dumps(names)})
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._path, self._part, self._lock = _claimed(directory, f"record-{stamp}-{os.getpid()}", model)
        try:
            self.output = PatientOutput(self._lock)
            self._writer = pq.ParquetWriter(self.output, self._schema, compression="zstd")
        except BaseException:
            self._remove_part()
            raise

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes rows as one row group. Bytes for which the disk has no room wait in memory (`output.waiting`)."""
        import pyarrow as pa

        values = {field: [row[field.name] for row in rows] for field in self._schema}
        columns = {
            field.name: _steps(column) if field.name == "steps" else pa.array(column, field.type)
            for field, column in values.items()
        }
        self._writer.write_table(pa.table(columns, schema=self._schema))
        pa.default_memory_pool().release_unused()  # else Arrow keeps as much memory as the largest group took
        self.rows += len(rows)

    def complete(self) -> bool:
        """Ends the file, and gives it its final name; returns whether that is done.

        False means that bytes still wait for room on the disk: the caller should call it again later.
        """
        self._writer.close()
        with suppress(OSError):
            self.output.save()
        if self.output.waiting:
            return False
        self._part.rename(self._path)
        os.close(self._lock)
        return True

    def drop(self) -> None:
        """Removes the file, and what was written to it."""
        with suppress(Exception):  # the reason why it is dropped: a full disk, a removed folder
            self._writer.close()
        self._remove_part()

    def _remove_part(self) -> None:
        """Removes the unfinished file and its lock."""
        with suppress(OSError):  # its folder may be gone, or read-only by now
            self._part.unlink(missing_ok=True)
        os.close(self._lock)

    @staticmethod
    def remove_abandoned(directory: Path) -> None:
        """Removes unfinished files of processes that have ended: those that nobody has locked.

        Process ids would not tell, because containers that share the folder may have equal ids.
        """
        for part in directory.glob(_UNFINISHED):
            with suppress(OSError):  # it is locked, or was completed meanwhile
                with part.open("rb+") as file:
                    files.lock(file.fileno(), wait=False)
                part.unlink()  # Windows removes no file that is open


class PatientOutput(io.RawIOBase):
    """A file that keeps in memory the bytes for which the disk has no room. The caller closes the descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.waiting = bytearray()  # bytes that are not on the disk
        self._descriptor = descriptor
        self._position = 0  # bytes that were taken so far

    def writable(self) -> bool:
        """Always: bytes can be written."""
        return True

    def tell(self) -> int:
        """How many bytes were taken so far."""
        return self._position

    def write(self, data: ReadableBuffer, /) -> int:
        """Takes all bytes, and writes what the disk has room for."""
        with memoryview(data) as view:
            self.waiting += view
            self._position += view.nbytes
            with suppress(OSError):
                self.save()
            return view.nbytes

    def save(self) -> None:
        """Writes the waiting bytes; raises OSError if there is no room for all, and the rest goes on waiting."""
        while self.waiting:
            del self.waiting[: write(self._descriptor, self.waiting)]


def _claimed(directory: Path, prefix: str, model: str) -> tuple[Path, Path, int]:
    """Creates an unfinished file of a model, with a name that no other file has, and locks it.

    Returns:
        The file's final path; its path while it is written; and its descriptor, which holds the lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    while True:
        path = directory / f"{prefix}-{next(_numbers):06d}-{model}.parquet"
        part = path.with_name(f".{path.name}.part")
        if path.exists():
            continue
        with suppress(FileExistsError):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            with suppress(OSError):  # a file system without locks: there, `remove_abandoned` removes nothing
                files.lock(descriptor, wait=False)
            return path, part, descriptor


def rows_of(call: AnsweredCall) -> list[dict[str, Any]]:
    """Makes the rows of a call, one for each sequence, by the names of the columns.

    `names`, the names of the features, is no column: it goes to the metadata of the file.
    """
    manifest = call.model.manifest
    return [
        {
            # JSON allows a lone surrogate (half a pair of UTF-16) in an id, Parquet does not.
            "id": f"{call.request_id}/{index}"
            if item.id is None
            else item.id.encode(errors="backslashreplace").decode(),
            "steps": steps if (steps := steps_of(item.steps)).base is None else steps.copy(),
            "length": len(item.steps),
            "model": manifest.name,
            "version": str(manifest.version),
            "names": manifest.input.names,
            "answer": [manifest.labels[index] for index in _answered_classes(answer, manifest)],
            "probabilities": answer.probabilities.ravel(),
            "request": call.request_id,
            "arrived": int(call.arrived * 1e6),
            "queue_seconds": call.queue_seconds,
            "inference_seconds": call.inference_seconds,
        }
        for index, (item, answer) in enumerate(zip(call.items, call.answers, strict=True))
    ]


def _answered_classes(answer: Answer, manifest: Manifest) -> list[int]:
    """Returns the indices of the classes that an answer says.

    - Single-label: one.
    - Per-step: one for each step.
    - Multi-label: those whose probability reaches the threshold.
    - Embedding: none.
    """
    if manifest.task in ("single-label", "embedding"):
        return [answer.best][: len(manifest.labels)]
    scores = answer.probabilities
    is_per_step = manifest.task == "per-step"
    indices: list[int] = (
        scores.argmax(axis=1) if is_per_step else np.flatnonzero(scores >= manifest.threshold)
    ).tolist()
    return indices


def _steps(sequences: Sequence[Steps]) -> Any:
    """Makes the Arrow column of steps, from the arrays, without a Python object for each number."""
    import pyarrow as pa

    def lists_of(counts: Any, values: Any) -> Any:
        """Cuts an Arrow array into lists, of which `counts` has the lengths."""
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), values)

    lengths = np.array([len(steps) for steps in sequences])
    values = pa.array(np.concatenate([steps.ravel() for steps in sequences]))
    if sequences[0].ndim > 1:
        values = lists_of(np.repeat([steps.shape[1] for steps in sequences], lengths), values)
    return lists_of(lengths, values)


def batches(directory: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Yields the rows of all complete files of a folder, the oldest file first, as `RecordBatch` with these columns.

    Raises:
        ConfigurationError: A file lacks a column, or cannot be read as Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(directory.glob(PATTERN)):
        try:
            file = pq.ParquetFile(path)
            if missing := set(columns) - set(file.schema_arrow.names):
                raise ConfigurationError(f"{path} was recorded without {' and '.join(sorted(missing))}")
            yield from file.iter_batches(batch_size=AT_ONCE, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"{path} cannot be read as Parquet: {error}") from error

"""One file of records, with the columns that docs/monitoring.md lists: how it is written, and its rows."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise import files
from lengthwise.monitoring.consumers import AnsweredCall
from lengthwise.monitoring.drift import answered_classes
from lengthwise.monitoring.patient_output import PatientOutput
from lengthwise.padding import Steps

PATTERN: Final = "record-*.parquet"
UNFINISHED: Final = ".record-*.parquet.part"

_numbers: Final = itertools.count(1)


class RecordFile:
    """A file of one model that is being written; the steps of `example` say if they are values or tokens."""

    def __init__(self, directory: Path, model: str, example: dict[str, Any], now: float) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.rows = 0
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
        self._schema = pa.schema(types.items())
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._path, self._part, self._lock = _claimed(directory, f"record-{stamp}-{os.getpid()}", model)
        try:
            self._output = PatientOutput(self._lock)
            self._writer = pq.ParquetWriter(self._output, self._schema, compression="zstd")
        except BaseException:
            self._remove_part()
            raise

    @property
    def bytes(self) -> int:
        """How many bytes it has; some may wait for room on the disk."""
        return self._output.tell()

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait for room on the disk."""
        return self._output.waiting

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes rows as one row group. Without room on the disk their bytes wait."""
        import pyarrow as pa

        self._writer.write_table(self._table(rows))
        pa.default_memory_pool().release_unused()  # by itself it keeps what the largest groups took
        self.rows += len(rows)

    def _table(self, rows: Sequence[dict[str, Any]]) -> Any:
        import pyarrow as pa

        columns = {}
        for field in self._schema:
            values = [row[field.name] for row in rows]
            columns[field.name] = _steps(values) if field.name == "steps" else pa.array(values, field.type)
        return pa.table(columns, schema=self._schema)

    def save(self) -> None:
        """Writes the bytes that wait; OSError if some go on waiting for room."""
        self._output.save()

    def complete(self) -> bool:
        """Ends the file and gives it its name; returns false, to be called again, while bytes wait for room."""
        self._writer.close()
        with suppress(OSError):
            self.save()
        if self.waiting_bytes:
            return False
        self._part.rename(self._path)
        os.close(self._lock)
        return True

    def drop(self) -> None:
        """Removes the file."""
        with suppress(Exception):  # the reason why it is dropped: a full disk, a removed folder
            self._writer.close()
        self._remove_part()

    def _remove_part(self) -> None:
        with suppress(OSError):  # its folder may be gone, or read-only by now
            self._part.unlink(missing_ok=True)
        os.close(self._lock)

    @staticmethod
    def remove_abandoned(directory: Path) -> None:
        """Removes files of ended processes: those without a lock, as ids mean little among containers."""
        for part in directory.glob(UNFINISHED):
            with suppress(OSError):  # it is locked, or was completed meanwhile
                with part.open("rb+") as file:
                    files.lock(file.fileno(), wait=False)
                part.unlink()  # Windows removes no file that is open


def _claimed(directory: Path, start: str, model: str) -> tuple[Path, Path, int]:
    """A new file, its part, and the descriptor whose lock marks it: other containers may have equal ids."""
    directory.mkdir(parents=True, exist_ok=True)
    while True:
        path = directory / f"{start}-{next(_numbers):06d}-{model}.parquet"
        part = path.with_name(f".{path.name}.part")
        if path.exists():
            continue
        with suppress(FileExistsError):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            with suppress(OSError):  # a file system without locks: then nobody can take the file for abandoned
                files.lock(descriptor, wait=False)
            return path, part, descriptor


def rows_of(call: AnsweredCall) -> list[dict[str, Any]]:
    """The rows of a call, one for each sequence."""
    manifest = call.model.manifest
    rows = []
    for index, (item, answer) in enumerate(zip(call.items, call.answers, strict=True)):
        rows.append(
            {
                "id": f"{call.request_id}/{index}" if item.id is None else _utf8(item.id),
                "steps": item.steps if item.steps.base is None else item.steps.copy(),
                "length": len(item.steps),
                "model": manifest.name,
                "version": str(manifest.version),
                "answer": [manifest.labels[index] for index in answered_classes(answer, manifest)],
                "probabilities": answer.probabilities.ravel(),
                "request": call.request_id,
                "arrived": int(call.arrived * 1e6),
                "queue_seconds": call.queue_seconds,
                "inference_seconds": call.inference_seconds,
            }
        )
    return rows


def _utf8(text: str) -> str:
    """The text, with its code for half a pair of UTF-16: JSON can hold that in an id, and Parquet cannot."""
    return text.encode(errors="backslashreplace").decode()


def _steps(sequences: Sequence[Steps]) -> Any:
    """The column of steps, without a Python object for any number."""
    import pyarrow as pa

    lengths = np.array([len(steps) for steps in sequences])
    if sequences[0].ndim == 1:
        inner: Any = pa.array(np.concatenate(sequences))
    else:
        features = np.repeat([steps.shape[1] for steps in sequences], lengths)
        inner = pa.ListArray.from_arrays(_offsets(features), pa.array(np.concatenate([s.ravel() for s in sequences])))
    return pa.ListArray.from_arrays(_offsets(lengths), inner)


def _offsets(counts: Any) -> Any:
    import pyarrow as pa

    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())

"""The memory that several workers and their parent share: numbers of each worker, and its exact counts.

It has only what must be read without the help of the worker that wrote it: for each new connection, from a worker that
hangs, or after a process was killed. Everything else is a message (`channel`).
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from typing import IO, Any, Final

import numpy as np

from lengthwise.errors import ConfigurationError
from lengthwise.telemetry import shared_counts
from lengthwise.telemetry.shared_counts import SharedCounts

SILENT_SECONDS: Final = 3.0  # without a beat of its event loop: then the others take a worker as not ready
ABSENT, STARTING, LOADED, READY, ENDING = range(5)  # states of a worker
_ROW: Final = np.dtype(
    [(name, "f8") for name in ("pid", "state", "beat", "connections", "inflight", "started", "restarts", "batches")]
)


def shared_file(workers: int) -> IO[bytes]:
    """A file for `SharedMemory`, open and without a name.

    On Linux it is in memory and in no mount, so a full or missing `/dev/shm` does not matter. All of it is allocated
    now, because memory that is missing at its first use would end the process with SIGBUS.

    Raises:
        ConfigurationError: There is no room for it.
    """
    size = (_ROW.itemsize + shared_counts.BYTES) * workers
    try:
        try:
            file: IO[bytes] = os.fdopen(os.memfd_create("lengthwise"), "w+b")
        except (AttributeError, OSError):  # another system, or it is forbidden
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise ConfigurationError(
            f"there is no room for the {size} bytes that {workers} workers share: {error.strerror}; --workers 1 needs "
            "none"
        ) from error
    return file


class SharedMemory:
    """A `shared_file` as a `table` with a row for each worker, and `counts`, the `SharedCounts` of each.

    | number of a row | is |
    |---|---|
    | `pid`, `started`, `restarts` | of the process that has this slot, written by the parent |
    | `state` | `ABSENT` to `ENDING` |
    | `beat` | when its event loop ran last, on the clock of `time.monotonic`, the same in all processes; 0 at first |
    | `connections` | how many are open |
    | `inflight` | bytes of the calls in hand: above 0 until the last call is answered |
    | `batches` | how many run; if none, minus the time of the last end or request: `batching.runners.Cores` |
    """

    def __init__(self, file: int, workers: int) -> None:
        table_size = _ROW.itemsize * workers
        size = table_size + shared_counts.BYTES * workers
        memory = memoryview(mmap.mmap(file, size))
        self.table: Any = np.frombuffer(memory, _ROW, workers)  # by name and index
        self.counts = [
            SharedCounts(memory[start : start + shared_counts.BYTES])
            for start in range(table_size, size, shared_counts.BYTES)
        ]

    def is_silent(self) -> Any:
        """For each worker, whether its event loop has not run for `SILENT_SECONDS`; a boolean array."""
        return time.monotonic() - self.table["beat"] > SILENT_SECONDS

    def put(self, index: int, **numbers: float) -> None:
        """Sets numbers in the row of one worker."""
        for name, number in numbers.items():
            self.table[name][index] = number

    def described(self) -> list[dict[str, Any]]:
        """The entries of the workers in `/healthz`."""
        return [
            {
                "pid": int(row["pid"]),
                "ready": bool(row["state"] == READY and not silent),
                "started": float(row["started"]),
                "restarts": int(row["restarts"]),
            }
            for row, silent in zip(self.table, self.is_silent(), strict=True)
        ]

"""The memory that several workers and their parent share: numbers of each worker, and its exact counts.

Here is only what has to be read without an answer of its owner: for each new connection, from a worker that hangs, or
after a process was killed. Everything else is a message (`channel`).
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

SILENT_SECONDS: Final = 3.0  # without a beat: a worker is not ready for others
ABSENT, STARTING, LOADED, READY, ENDING = range(5)
_ROW: Final = np.dtype(
    [(name, "f8") for name in ("pid", "state", "beat", "connections", "inflight", "started", "restarts", "batches")]
)


def shared_file(workers: int) -> IO[bytes]:
    """A file for `SharedMemory`, open and without a name.

    On Linux it is in memory and in no mount, so a full or missing `/dev/shm` does not matter. All of it is allocated
    now: memory that cannot be had at the first touch would end the process with SIGBUS.

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
    """A `shared_file` as a `table` with a row for each worker, and the counts of each.

    | number of a row | is |
    |---|---|
    | `pid`, `started`, `restarts` | of the process that has this slot, by the parent |
    | `state` | `ABSENT` to `ENDING` |
    | `beat` | when its event loop ran last, on the clock of `time.monotonic`, which is one for all; 0 at first |
    | `connections` | that are open |
    | `inflight` | bytes of calls in hand: above 0 until the last is answered |
    | `batches` | that run; where none does, minus the time of the last end or request: `batching.runners.Cores` |
    """

    def __init__(self, file: int, workers: int) -> None:
        first = _ROW.itemsize * workers
        size = first + shared_counts.BYTES * workers
        memory = memoryview(mmap.mmap(file, size))
        self.table: Any = np.frombuffer(memory, _ROW, workers)  # by name and index
        self.counts = [
            SharedCounts(memory[start : start + shared_counts.BYTES])
            for start in range(first, size, shared_counts.BYTES)
        ]

    def is_silent(self) -> Any:
        """Of each worker, whether its event loop does not run."""
        return time.monotonic() - self.table["beat"] > SILENT_SECONDS

    def put(self, index: int, **numbers: float) -> None:
        """Sets numbers of one worker."""
        for name, number in numbers.items():
            self.table[name][index] = number

    def described(self) -> list[dict[str, Any]]:
        """The workers as `/healthz` shows them."""
        return [
            {
                "pid": int(row["pid"]),
                "ready": bool(row["state"] == READY and not silent),
                "started": float(row["started"]),
                "restarts": int(row["restarts"]),
            }
            for row, silent in zip(self.table, self.is_silent(), strict=True)
        ]

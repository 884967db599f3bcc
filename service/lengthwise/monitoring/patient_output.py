"""Bytes on their way to a file, which wait in memory while the disk is full."""

from __future__ import annotations

import io
from contextlib import suppress
from os import write
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class PatientOutput(io.RawIOBase):
    """A file that never fails to take bytes: those without room wait. Closing the descriptor is for the caller."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._taken = 0

    @property
    def waiting(self) -> int:
        """How many bytes wait."""
        return len(self._waiting)

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """How many bytes were taken."""
        return self._taken

    def write(self, data: ReadableBuffer, /) -> int:
        """Takes bytes."""
        with memoryview(data) as view:
            self._waiting += view
            self._taken += view.nbytes
            with suppress(OSError):
                self.save()
            return view.nbytes

    def save(self) -> None:
        """Writes what waits; OSError if some has no room and goes on waiting."""
        while self._waiting:
            del self._waiting[: write(self._descriptor, self._waiting)]

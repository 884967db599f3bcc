"""Memory that a process has freed and still holds, because the C library (glibc) keeps it for later.

A model takes many allocations. When it is gone, gaps between those of others stay with the process, and after some
hundred new versions they are more than a model. So each large block is mapped by itself (`map_large_blocks`), and goes
back to the system as soon as it is freed. The gaps between small ones go back when a model is gone
(`return_free_memory`).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

LARGE_BYTES: Final = 256 * 1024
"""Blocks of this size on are large: the weights of a layer, a batch of many rows."""
_M_MMAP_THRESHOLD: Final = -3


def map_large_blocks() -> None:
    """Makes the C library map every block of at least `LARGE_BYTES` by itself; see mallopt(3).

    Without this call, glibc raises that size to the size of the largest block that was ever freed, up to 32 MiB.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def return_free_memory() -> None:
    """Gives free memory back to the system, if the C library can; takes some milliseconds. See malloc_trim(3).

    Other threads may run meanwhile; they wait only if they allocate memory.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)

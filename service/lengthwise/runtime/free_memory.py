"""Memory that a process has freed and still holds, because the C library keeps it for later.

A model takes many allocations. When it is gone, what is left between those of others stays with the process, and after
some hundred new versions that is more than a model.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def return_free_memory() -> None:
    """Gives free memory back to the system, where the C library can (glibc); it takes some milliseconds.

    See malloc_trim(3). Other threads may run meanwhile, and wait only where they allocate.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)

"""Models by address: fetched into a cache, checked, and used as a folder; or pushed to where others fetch them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from lengthwise.errors import StoreUnreachable

SLOW_SECONDS: Final = 60.0
LEAST_BYTES_A_SECOND: Final = 2**14


def may_pass(status: int) -> bool:
    """Whether a status says that a store cannot answer now, and nothing about what was asked."""
    return status in (408, 425, 429) or status >= 500


def steady(parts: Iterable[Any], where: str) -> Iterator[Any]:
    """The parts (bytes) of an answer as they come, of which each may come just before the timeout of its library.

    Raises:
        StoreUnreachable: They come with less than `LEAST_BYTES_A_SECOND` over `SLOW_SECONDS`.
    """
    start, size = time.monotonic(), 0
    for part in parts:
        size += len(part)
        seconds = time.monotonic() - start
        if seconds > SLOW_SECONDS:
            if size < seconds * LEAST_BYTES_A_SECOND:
                raise StoreUnreachable(f"{where}: too slow, {size} bytes of the store in {seconds:.0f} s")
            start, size = time.monotonic(), 0
        yield part

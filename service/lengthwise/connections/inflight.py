"""Limits the bytes of bodies and answers in memory at once: one bound for all calls of all protocols.

A `Hold` is one call's share of them, which changes with what the call has in memory:

```
body read ──> inflated ──> decoded: its sequences ──> queued: and room for the answer ──> answer ──> written
   as it comes   before each piece                     before it is queued                 bytes      nothing
```

Several workers have one bound: each adds up its own bytes in a cell that all of them read. A call first counts its
bytes and then looks at the sum, so two workers that do so at once may both refuse, but never both exceed the bound.
Within a process all is on the event loop, so without a lock.

Not counted, as bounded elsewhere: what kernel and parser read ahead, what decoding a large body takes
(`turns.LARGE_BODIES_AT_ONCE`), and the padded batches that run.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from lengthwise.errors import InflightFull, TooLarge


class Inflight:
    """Counts the bytes of all calls, and limits them.

    `cells` are the bytes of each process that serves, and `index` says which of them is this one's.
    """

    __slots__ = ("bytes", "cells", "index", "max_bytes")

    def __init__(self, max_bytes: int, cells: MutableSequence[float] | None = None, index: int = 0) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0  # of this process
        self.cells: MutableSequence[float] = [0] if cells is None else cells
        self.index = index

    @property
    def free(self) -> int:
        """How many more bytes may be held, by all processes together; negative above the bound."""
        return self.max_bytes - int(sum(self.cells))

    def add(self, more: int) -> None:
        """Counts bytes of this process; negative for those that it releases."""
        self.bytes += more
        self.cells[self.index] = self.bytes


class Hold:
    """The bytes that one call holds."""

    __slots__ = ("inflight", "size")

    def __init__(self, inflight: Inflight) -> None:
        self.inflight = inflight
        self.size = 0

    @property
    def crowded(self) -> bool:
        """Whether all calls hold more than half of the bound: then a slow connection is closed to make room."""
        return 2 * self.inflight.free < self.inflight.max_bytes

    def set(self, size: int) -> None:
        """Changes the bytes that the call holds to `size`.

        Raises:
            TooLarge: `size` alone is above the limit of all calls.
            InflightFull: With the bytes of the other calls it is above the limit; the call keeps its old size.
        """
        inflight, more = self.inflight, size - self.size
        inflight.add(more)
        if more > 0 and inflight.free < 0:
            inflight.add(-more)
            if size > inflight.max_bytes:
                raise TooLarge(
                    f"this call would take {size} bytes of memory, its answer included; all calls together may take "
                    f"{inflight.max_bytes}"
                )
            raise InflightFull(
                f"bodies and answers in memory take {inflight.max_bytes - inflight.free} bytes of {inflight.max_bytes}",
                retry_after_seconds=1,
            )
        self.size = size

    def grow(self, more: int) -> None:
        """Adds bytes to the call. Raises as `set` does."""
        self.set(self.size + more)

    def holds(self, size: int) -> None:
        """Changes the call's bytes to `size` without checking the bound: they are in memory already."""
        self.inflight.add(size - self.size)
        self.size = size

    def close(self) -> None:
        """Releases the call's bytes; may be called several times."""
        self.holds(0)

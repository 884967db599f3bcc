"""Limits the bytes of bodies and answers in memory at once: one bound for all calls of all protocols.

A `Hold` is one call's share of them, which changes with what the call has in memory:

```
body read ──> inflated ──> decoded: its sequences ──> queued: and room for the answer ──> answer ──> written
   as it comes   before each piece                     before it is queued                 bytes      nothing
```

On the event loop, so without a lock. Not counted, as bounded elsewhere: what kernel and parser read ahead, what
decoding a large body takes (`turns.LARGE_BODIES_AT_ONCE`), and the padded batches that run.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from lengthwise.errors import InflightFull, TooLarge


class Inflight:
    """Counts the bytes of all calls, and limits them; `cell` is where other processes see them too."""

    __slots__ = ("bytes", "cell", "max_bytes")

    def __init__(self, max_bytes: int, cell: MutableSequence[float] | None = None) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.cell: MutableSequence[float] = [0] if cell is None else cell

    @property
    def free(self) -> int:
        """How many more bytes may be held."""
        return self.max_bytes - self.bytes


class Hold:
    """The bytes that one call holds."""

    __slots__ = ("inflight", "size")

    def __init__(self, inflight: Inflight) -> None:
        self.inflight = inflight
        self.size = 0

    @property
    def crowded(self) -> bool:
        """Whether all calls hold more than half of the bound: then a slow connection is closed to make room."""
        return 2 * self.inflight.bytes > self.inflight.max_bytes

    def set(self, size: int) -> None:
        """Changes the bytes that the call holds to `size`.

        Raises:
            TooLarge: `size` alone is above the limit of all calls.
            InflightFull: With the bytes of the other calls it is above the limit; the call keeps its old size.
        """
        inflight = self.inflight
        total = inflight.bytes + size - self.size
        if total > inflight.max_bytes and size > self.size:
            if size > inflight.max_bytes:
                raise TooLarge(
                    f"this call would take {size} bytes of memory, its answer included; all calls together may take "
                    f"{inflight.max_bytes}"
                )
            raise InflightFull(
                f"bodies and answers in memory take {inflight.bytes} bytes of {inflight.max_bytes}",
                retry_after_seconds=1,
            )
        inflight.bytes = inflight.cell[0] = total
        self.size = size

    def grow(self, more: int) -> None:
        """Adds bytes to the call. Raises as `set` does."""
        self.set(self.size + more)

    def holds(self, size: int) -> None:
        """Changes the call's bytes to `size` without checking the bound: they are in memory already."""
        inflight = self.inflight
        inflight.bytes = inflight.cell[0] = inflight.bytes + size - self.size
        self.size = size

    def close(self) -> None:
        """Releases the call's bytes; may be called several times."""
        inflight = self.inflight
        inflight.bytes = inflight.cell[0] = inflight.bytes - self.size
        self.size = 0

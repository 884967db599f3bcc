"""Limits the bytes of bodies and answers in memory at once: one bound for all calls of all protocols.

A `Hold` has the bytes that one call has in memory; their number changes as the call goes on:

```
body read ──> inflated ──> decoded: its sequences ──> queued: and room for the answer ──> answer ──> written
   as it comes   before each piece                     before it is queued                 bytes      nothing
```

Several workers have one bound: each writes the sum of its own calls into a cell that all of them read. A call first
counts its bytes and then looks at the sum of the cells, so two workers that do so at once may both refuse, but never
both exceed the bound. Within a process everything runs on the event loop, so no lock is needed.

Not counted, because bounded elsewhere: what kernel and parser read ahead, what decoding a large body takes
(`turns.LARGE_BODIES_AT_ONCE`), and the padded batches that run.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field

from lengthwise.errors import InflightFull, TooLarge


@dataclass(slots=True, eq=False)
class Inflight:
    """Counts the bytes of all calls, and limits them to `max_bytes`."""

    max_bytes: int
    cells: MutableSequence[float] = field(default_factory=lambda: [0])  # the bytes of each process that serves
    index: int = 0  # of the cell of this process
    bytes: int = 0  # of the calls of this process

    @property
    def free(self) -> int:
        """The bytes that calls of all processes may still take; negative above the bound."""
        return self.max_bytes - int(sum(self.cells))

    def add(self, size: int) -> None:
        """Counts `size` more bytes for this process; a negative size releases bytes."""
        self.bytes += size
        self.cells[self.index] = self.bytes


@dataclass(slots=True, eq=False)
class Hold:
    """The bytes that one call has in memory."""

    inflight: Inflight
    size: int = 0  # bytes

    @property
    def crowded(self) -> bool:
        """Whether all calls together take more than half of the bound; slow connections are then closed."""
        return 2 * self.inflight.free < self.inflight.max_bytes

    def set(self, size: int) -> None:
        """Changes the bytes that the call holds to `size`.

        Raises:
            TooLarge: `size` alone is above the limit of all calls.
            InflightFull: With the bytes of the other calls it is above the limit; the call keeps its old size.
        """
        inflight, growth = self.inflight, size - self.size
        inflight.add(growth)
        if growth > 0 and inflight.free < 0:  # above the bound: give the bytes back
            inflight.add(-growth)
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

    def grow(self, size: int) -> None:
        """Adds `size` bytes to the call; raises `TooLarge` or `InflightFull` if they are above the bound."""
        self.set(self.size + size)

    def holds(self, size: int) -> None:
        """Changes the call's bytes to `size` without checking the bound, because they are in memory already."""
        self.inflight.add(size - self.size)
        self.size = size

    def close(self) -> None:
        """Releases the call's bytes; may be called several times."""
        self.holds(0)

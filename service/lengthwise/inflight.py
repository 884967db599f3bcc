"""How many bytes of bodies and answers are in hand at once, under one bound for all calls of all protocols.

A `Hold` is one call's part of them. It changes with what the call has in memory:

```
body read ──> inflated ──> decoded: its sequences ──> asked: and room for the answer ──> answer ──> written
   as it comes   piece by piece, before each          before it is queued                bytes      nothing
```

A call that would pass the bound is refused with 503 and may come again. Everything here runs on the event loop, so that
counting is an addition and needs no lock.

What is not counted, because it has bounds of its own: heads and what the kernel and the parser read ahead (tens of
kilobytes a connection), what reading one large body takes beside the body (few are read at once, see
`endpoint.LARGE_BODIES_AT_ONCE`), and the padded batches that run.
"""

from __future__ import annotations

from typing import Final

from lengthwise.errors import InflightFull, TooLarge

LEAST_BODIES: Final = 4
"""How many times the largest body the bound has to be: of `[0,0,0,...]`, 64-bit tokens take four times the text."""


class Inflight:
    """What all calls hold.

    Args:
        max_bytes: The bound.

    Attributes:
        bytes: What is held now.
        max_bytes: The bound.
    """

    __slots__ = ("bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0

    @property
    def free(self) -> int:
        """How many more may be held."""
        return self.max_bytes - self.bytes

    @property
    def crowded(self) -> bool:
        """Whether more than half of the bound is held: who is late by then makes room for the others."""
        return 2 * self.bytes > self.max_bytes


class Hold:
    """What one call holds.

    Args:
        inflight: What it is a part of.

    Attributes:
        size: Its bytes.
    """

    __slots__ = ("_inflight", "size")

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self.size = 0

    @property
    def crowded(self) -> bool:
        """See `Inflight.crowded`."""
        return self._inflight.crowded

    def set(self, size: int) -> None:
        """It holds so many bytes from now on.

        Raises:
            TooLarge: Alone they are more than the bound.
            InflightFull: With what the others hold they are; it goes on to hold what it held.
        """
        inflight = self._inflight
        held = inflight.bytes + size - self.size
        if held > inflight.max_bytes and size > self.size:
            if size > inflight.max_bytes:
                raise TooLarge(
                    f"this call would take {size} bytes of memory, its answer included; all calls together may take "
                    f"{inflight.max_bytes}"
                )
            raise InflightFull(
                f"bodies and answers in hand take {inflight.bytes} bytes of {inflight.max_bytes}",
                retry_after_seconds=1,
            )
        inflight.bytes = held
        self.size = size

    def grow(self, more: int) -> None:
        """It holds so many bytes more. Raises as `set` does."""
        self.set(self.size + more)

    def holds(self, size: int) -> None:
        """It holds so many bytes from now on, whatever the bound says: they are there already."""
        self._inflight.bytes += size - self.size
        self.size = size

    def close(self) -> None:
        """It holds nothing any more; as often as one likes."""
        self._inflight.bytes -= self.size
        self.size = 0

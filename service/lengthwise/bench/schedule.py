"""When requests are due: the only difference between a closed load and an open one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """When requests are due, in seconds since the start of the load."""

    def due(self, sent: int, now: float) -> float:
        """The moment when request number `sent` is due; infinity when there is no more."""
        ...

    def left(self, sent: int) -> int:
        """How many requests were due after the first `sent` of them."""
        ...


@dataclass(frozen=True, slots=True)
class Closed:
    """A request is due whenever a connection is free, until `seconds` or `count` of them."""

    seconds: float
    count: float = math.inf

    def due(self, sent: int, now: float) -> float:
        """`now` until a bound is reached, then infinity."""
        return now if sent < self.count and now < self.seconds else math.inf

    def left(self, sent: int) -> int:
        """Always 0: a request that was not sent in time was not due."""
        return 0


@dataclass(frozen=True, slots=True)
class Open:
    """Requests are due at moments fixed beforehand, in seconds since the start."""

    moments: Sequence[float]

    def due(self, sent: int, now: float) -> float:
        """The moment of request number `sent`; infinity after the last one."""
        return self.moments[sent] if sent < len(self.moments) else math.inf

    def left(self, sent: int) -> int:
        """Number of moments from number `sent` on."""
        return len(self.moments) - sent

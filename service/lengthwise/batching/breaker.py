"""Whether a model still works: its breaker opens when all of its batches fail, and closes when it works again.

```
          several batches in a row fail            the golden sequences fail too
   closed ─────────────────────────────> suspected ─────────────────────────────> open: requests are refused
      ^   a batch runs, or the golden        │                                      │
      └── sequences are right ───────────────┴── the golden sequences are right ────┘
```

One caller's requests that make the runtime fail are not enough: the golden sequences, which the model answered when it
was loaded, must fail too. While a breaker is open, no caller's request is used to find out whether the model works.
`repository.probing` runs the golden sequences.
"""

from __future__ import annotations

import enum
from typing import Final

SUSPECTED_AFTER: Final = 5  # batches in a row that must fail until the model's golden sequences are run
_LONGEST_REASON: Final = 200


class BreakerState(enum.Enum):
    """See the module."""

    CLOSED = "closed"
    SUSPECTED = "suspected"
    OPEN = "open"


class Breaker:
    """The breaker of one model; `probe_time` is when the golden sequences run next, on the batcher's clock."""

    __slots__ = ("failures", "open", "probe_time", "reason", "state")

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.open = False
        self.failures = 0
        self.reason = ""
        self.probe_time = 0.0

    def batch_ran(self) -> None:
        """Notes that a batch ran."""
        self.failures = 0
        if self.state is BreakerState.SUSPECTED:
            self.state = BreakerState.CLOSED

    def batch_failed(self, error: BaseException, now: float) -> bool:
        """Notes that a batch failed; returns whether the golden sequences should now be run."""
        self.failures += 1
        if self.state is not BreakerState.CLOSED or self.failures % SUSPECTED_AFTER:
            return False
        self.state, self.reason, self.probe_time = BreakerState.SUSPECTED, described(error), now
        return True

    def probed(self, error: BaseException | None, now: float, retry_seconds: float) -> bool:
        """Notes how the golden sequences ended (None: right); returns whether the breaker opened or closed."""
        was_open, self.open = self.open, error is not None
        if error is None:
            self.state = BreakerState.CLOSED
            if was_open:
                self.failures = 0
        else:
            self.state, self.reason, self.probe_time = BreakerState.OPEN, described(error), now + retry_seconds
        return self.open is not was_open


def described(error: BaseException) -> str:
    """An error as one short line."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:_LONGEST_REASON]

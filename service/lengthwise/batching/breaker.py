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

SUSPECTED_AFTER: Final = 5
"""How many batches of a model must fail in a row until its golden sequences are run."""
_LONGEST_REASON: Final = 200


class BreakerState(enum.Enum):
    """The state of a breaker; see the module."""

    CLOSED = "closed"
    SUSPECTED = "suspected"
    OPEN = "open"


class Breaker:
    """The breaker of one model.

    Attributes:
        state: Its state.
        open: Whether requests are refused.
        failures: How many batches failed in a row.
        reason: The last failure, as a short sentence.
        probe_time: When the golden sequences run next, on the batcher's clock, unless it is closed.
    """

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
        """Notes that a batch failed.

        Args:
            error: Why.
            now: The time, on the batcher's clock.

        Returns:
            Whether the golden sequences should now be run.
        """
        self.failures += 1
        if self.state is not BreakerState.CLOSED or self.failures % SUSPECTED_AFTER:
            return False
        self.state, self.reason, self.probe_time = BreakerState.SUSPECTED, described(error), now
        return True

    def probed(self, error: BaseException | None, now: float, retry_seconds: float) -> bool:
        """Notes the result of the golden sequences.

        Args:
            error: Why they failed; None if they were right.
            now: The time, on the batcher's clock.
            retry_seconds: After how many seconds they run again if they failed.

        Returns:
            Whether the breaker opened or closed.
        """
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

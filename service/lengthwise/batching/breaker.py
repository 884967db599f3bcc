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

import threading
from dataclasses import dataclass, field
from typing import Final

SUSPECTED_AFTER: Final = 5  # batches in a row that must fail until the model's golden sequences are run
_LONGEST_REASON: Final = 200
_NEVER: Final = float("inf")


@dataclass(slots=True)
class Breaker:
    """The breaker of one model. A *probe* is a run of its golden sequences.

    Batches end in the threads of the runners, probes on the event loop: what they note is noted under a lock.
    """

    open: bool = False  # whether requests are refused
    failures: int = 0  # batches in a row that failed
    reason: str = ""  # the last error, for people
    probe_time: float = _NEVER  # when the next probe runs, on the batcher's clock
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def closed(self) -> bool:
        """Whether no probe is planned: the breaker is neither open nor suspects the model."""
        return self.probe_time == _NEVER

    def batch_ran(self) -> None:
        """Notes that a batch ran: the model is no longer suspected. An open breaker stays open until a probe passes."""
        with self._lock:
            self.failures = 0
            if not self.open:
                self.probe_time = _NEVER

    def batch_failed(self, error: BaseException, now: float) -> bool:
        """Notes that a batch failed; returns whether a probe should run now, as many in a row have failed."""
        with self._lock:
            self.failures += 1
            if not self.closed or self.failures % SUSPECTED_AFTER:
                return False
            self.reason, self.probe_time = _described(error), now
        return True

    def probed(self, error: BaseException | None, now: float, retry_seconds: float) -> bool:
        """Notes how a probe ended, and opens or closes the breaker.

        Args:
            error: Why the probe failed; None if all answers were right.
            now: The present time, on the batcher's clock.
            retry_seconds: After an error, the time until the next probe.

        Returns:
            Whether `open` has changed.
        """
        with self._lock:
            was_open, self.open = self.open, error is not None
            if error is not None:
                self.reason, self.probe_time = _described(error), now + retry_seconds
            else:
                self.probe_time = _NEVER
                if was_open:
                    self.failures = 0
        return self.open is not was_open


def _described(error: BaseException) -> str:
    """An error as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"[:_LONGEST_REASON]

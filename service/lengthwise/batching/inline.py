"""Whether the event loop may run a model's batches itself ("inline"), as far as that depends on the model.

Such a run blocks the loop, so it must be reliably short: its time follows from the shape of its batch (`steady`),
runners have run `FIRST_RUNS` (costs are measured at load with zeros), and no cooldown lasts, after a run much slower
than predicted.
"""

from __future__ import annotations

from typing import Final

FIRST_RUNS: Final = 4  # how many batches of a new model are run by runners before the event loop may run one
SLOW_FACTOR: Final = 8  # an inline batch slower than this times the inline limit starts a cooldown of its model
COOLDOWN_FACTOR: Final = 100  # over the slow run: a model blocks the event loop for at most 1 % of the time
MAX_COOLDOWN_SECONDS: Final = 3600.0
_RESET_FACTOR: Final = 10  # cooldowns double, until so many times the last one passed without a slow run


class InlineRule:
    """The rule for one model: `possible`, unless `cooldown_end` (on the batcher's clock) is still to come."""

    __slots__ = ("cooldown_end", "cooldown_seconds", "first_runs", "possible", "steady")

    def __init__(self, *, steady: bool = True) -> None:
        self.steady = steady
        self.first_runs = FIRST_RUNS
        self.possible = False
        self.cooldown_seconds = 0.0
        self.cooldown_end = 0.0

    def ran(self) -> None:
        """A runner has run one of the first batches."""
        self.first_runs -= 1
        self.possible = self.steady and not self.first_runs

    def start_cooldown(self, run_seconds: float, now: float) -> None:
        """Keeps the model off the event loop because of a slow run, in a runner or on the loop."""
        since_end = now - self.cooldown_end
        shortest = 0.0 if since_end >= _RESET_FACTOR * self.cooldown_seconds else self.cooldown_seconds
        if since_end >= 0:  # a slow run within a cooldown, which is in a runner, does not double it
            shortest *= 2
        self.cooldown_seconds = min(max(COOLDOWN_FACTOR * run_seconds, shortest), MAX_COOLDOWN_SECONDS)
        self.cooldown_end = now + self.cooldown_seconds

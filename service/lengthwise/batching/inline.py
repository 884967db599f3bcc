"""Whether the event loop may run a model's batches itself ("inline"), as far as that depends on the model.

A batch that runs on the event loop blocks it, so only models whose runs are reliably short may run there:

| the event loop runs none of a model's batches | because |
|---|---|
| if its time does not follow from the shape of its batch (`steady`) | then its run cannot be predicted |
| until runners have run `FIRST_RUNS` of its batches | its costs were measured at load, with zeros as values |
| during a cooldown, after a run much slower than predicted | each batch corrects its costs by a few percent only |
"""

from __future__ import annotations

from typing import Final

FIRST_RUNS: Final = 4
"""How many batches of a new model are run by runners before the event loop may run one."""
SLOW_FACTOR: Final = 8
"""An inline batch that takes longer than this times the inline limit starts a cooldown: its model stays off the event
loop."""
COOLDOWN_FACTOR: Final = 100
"""Shortest cooldown, as a multiple of the slow run: a model blocks the event loop for at most 1 % of the time."""
MAX_COOLDOWN_SECONDS: Final = 3600.0
_RESET_FACTOR: Final = 10
"""After this many times the last cooldown without a slow run, the next slow run counts as the first again. Until then
the cooldown doubles with each slow run."""


class InlineRule:
    """The rule for one model.

    Args:
        steady: Whether the time of a run follows from the shape of its batch.

    Attributes:
        steady: As given.
        first_runs: How many batches runners still have to run first.
        possible: Whether the event loop may run its batches, unless a cooldown forbids it now.
        cooldown_seconds: Length of the last cooldown; 0 if there was none.
        cooldown_end: When it ends, on the batcher's clock.
    """

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
        """Keeps the model off the event loop because of a slow run, in a runner or on the loop.

        Args:
            run_seconds: How long that run took.
            now: The time, on the batcher's clock.
        """
        since_end = now - self.cooldown_end
        shortest = 0.0 if since_end >= _RESET_FACTOR * self.cooldown_seconds else self.cooldown_seconds
        if since_end >= 0:  # a slow run within a cooldown, which is in a runner, does not double it
            shortest *= 2
        self.cooldown_seconds = min(max(COOLDOWN_FACTOR * run_seconds, shortest), MAX_COOLDOWN_SECONDS)
        self.cooldown_end = now + self.cooldown_seconds

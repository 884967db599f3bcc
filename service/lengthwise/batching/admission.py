"""Whether a request may wait, and when one that may not should come back. The batcher locks.

The queue is limited in padded steps, and in predicted seconds: the cost of what waits over the rate of draining it.

| the request | is |
|---|---|
| even an empty queue could not hold it | refused for ever (413) |
| the queue is full | refused (429), with the seconds until the queue is open again |
| it would begin after its own deadline | refused (504), at once and not when the deadline passes |
| otherwise | queued |

Each of several workers has a share of the limit in steps. A request that is larger than a share is not refused for
ever: it may wait where half of the share is free, and the queue is full then.

A full queue stays closed until it has drained to `REOPENING` of its limit, else whether a retry succeeds would be
chance, and no time to come back true; only a priority passes. Of several models, each may use its equal share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lengthwise.batching.queues import ModelQueue, ModelQueues, QueuedSequence
from lengthwise.errors import DeadlineExceeded, QueueFull, TooLarge

REOPENING: Final = 0.5  # a queue that was full accepts requests again at this share of its limit
_FULL: Final = 0.6  # of the longest wait: some sequences run later than others that arrived with them
_NEARLY_FULL: Final = 0.9  # so full, a queue that refuses a request closes; below, that request is too large
_WINDOW_SECONDS: Final = 0.2  # the rate is measured over at least these; times in which nothing waits do not count
_RATE_WEIGHT: Final = 0.2  # of one measurement: it follows a change within about a second
_LEAST_RATE: Final = 0.01  # lower bound of the rate


class DrainRate:
    """Predicted seconds of work taken from the queue in a second: `value`, measured only while sequences wait."""

    def __init__(self, runners: int) -> None:
        self.value = float(runners)
        self._most = 4.0 * runners
        self._last_batch: tuple[float, float] | None = None  # the last batch: when it was taken, and its work
        self._seconds = 0.0
        self._work = 0.0

    def count_batch(self, work: float, now: float, *, more_waits: bool) -> None:
        """Notes that a batch of `work` predicted seconds was taken from the queue."""
        if self._last_batch is not None:
            then, work_before = self._last_batch
            self._seconds += now - then
            self._work += work_before
        self._last_batch = (now, work) if more_waits else None
        if self._seconds >= _WINDOW_SECONDS:
            value = self.value + _RATE_WEIGHT * (self._work / self._seconds - self.value)
            self.value = min(max(value, _LEAST_RATE), self._most)
            self._seconds = self._work = 0.0


class Admission:
    """Counts what waits in all queues, in padded steps and predicted seconds, and decides what else may wait."""

    def __init__(
        self, queues: ModelQueues, *, max_padded_steps: int, max_seconds: float, runners: int, workers: int = 1
    ) -> None:
        self._queues = queues
        self._most_steps = max_padded_steps
        self._most_steps_of_request = workers * max_padded_steps
        self.most_wait_seconds = _FULL * max_seconds  # the predicted wait at which the queue is full
        self.padded_steps = 0
        self.seconds = 0.0
        self.rate = DrainRate(runners)

    def closed(self) -> ModelQueue | None:
        """A queue, where every queue refuses requests without a priority, which need not be decoded then; or None."""
        queue = None
        for queue in self._queues:
            if not queue.closed_to_new:
                return None
        return queue if self._fill(self.padded_steps, self.seconds) > REOPENING else None

    def add(self, queue: ModelQueue, padded_steps: int, seconds: float) -> None:
        """Counts sequences that begin to wait: their padded steps and their predicted seconds."""
        self.padded_steps += padded_steps
        self.seconds += seconds
        queue.padded_steps += padded_steps
        queue.seconds += seconds

    def remove(self, queue: ModelQueue, sequences: Sequence[QueuedSequence]) -> float:
        """Counts sequences that no longer wait; returns their predicted seconds."""
        padded_steps = sum([sequence.padded_steps for sequence in sequences])
        seconds = sum([sequence.seconds for sequence in sequences])
        self.padded_steps -= padded_steps
        queue.padded_steps -= padded_steps
        # Sums of floats do not return to 0 by themselves.
        self.seconds = self.seconds - seconds if self.padded_steps else 0.0
        queue.seconds = queue.seconds - seconds if queue.padded_steps else 0.0
        return seconds

    def check_size(self, padded_steps: int) -> None:
        """Makes sure that an empty queue could hold a request: those of all workers together.

        Raises:
            TooLarge: Even an empty queue could not hold it.
        """
        if padded_steps > self._most_steps_of_request:
            raise TooLarge(f"{padded_steps} padded steps; the queue holds {self._most_steps_of_request} in all")

    def check(
        self, queue: ModelQueue, padded_steps: int, seconds: float, *, patience: float, deadline: float, priority: int
    ) -> None:
        """Makes sure that a request may wait; it needs `seconds` of work, and its deadline is in `patience` seconds.

        A queue that cannot hold it now raises what `full` returns, a QueueFull.

        Raises:
            DeadlineExceeded: It would wait longer than `patience`.
        """
        rate = self.rate.value
        if padded_steps > self._most_steps:
            padded_steps = int(REOPENING * self._most_steps)
        if (
            not queue.closed_to_new
            and self.padded_steps + padded_steps <= self._most_steps
            and self.seconds + seconds <= self.most_wait_seconds * rate
            and self.seconds <= patience * rate
        ):
            return
        if not queue.pending and self.padded_steps + padded_steps <= self._most_steps:
            queue.closed_to_new = False
            return  # nothing of this model waits: only a run shows how long one takes
        if self._refuses(queue, padded_steps, seconds, priority):
            raise self.full(queue, padded_steps)
        # Behind those of this model that are more urgent and end earlier.
        own = queue.seconds * queue.pending.share_before(priority, deadline) * self._queues.busy()
        wait = min(own, self.seconds) / rate
        if wait > patience:
            raise DeadlineExceeded(f"it would wait for about {wait:.3g} s, and its deadline is in {patience:.3g} s")

    def full(self, queue: ModelQueue, padded_steps: int = 0) -> QueueFull:
        """The refusal of a request, with the seconds until the queue is open for it."""
        most, share = self._most_steps, 1 / max(1, len(self._queues))
        steps, own_steps = max(self.padded_steps, 1), max(queue.padded_steps, 1)
        remaining = min(REOPENING / max(self._fill(steps, self.seconds), REOPENING), (most - padded_steps) / steps)
        own = min(
            REOPENING * share / max(self._fill(own_steps, queue.seconds), REOPENING * share),
            max(most * share - padded_steps, 0) / own_steps,
        )
        everything, of_queue = self.seconds, queue.seconds * self._queues.busy()
        seconds = min(everything * (1 - min(remaining, 1.0)), of_queue * (1 - min(own, 1.0))) / self.rate.value
        return QueueFull("the queue is full", retry_after_seconds=seconds)

    def _refuses(self, queue: ModelQueue, padded_steps: int, seconds: float, priority: int) -> bool:
        """Whether a queue is closed, or too full for a request; updates whether it is closed."""
        share, most_seconds = 1 / max(1, len(self._queues)), self.most_wait_seconds * self.rate.value
        fill = self._fill(self.padded_steps, self.seconds)
        least = min(fill, self._fill(queue.padded_steps, queue.seconds) / share)
        if least <= REOPENING:
            queue.closed_to_new = False
        most = self._most_steps
        too_full = self.padded_steps + padded_steps > most and queue.padded_steps + padded_steps > int(most * share)
        if least > REOPENING and self.seconds + seconds > most_seconds:
            too_full |= queue.seconds + seconds > most_seconds * share
        if too_full and least >= _NEARLY_FULL:
            queue.closed_to_new = True
        return too_full or (queue.closed_to_new and not priority)

    def _fill(self, padded_steps: int, seconds: float) -> float:
        return max(padded_steps / self._most_steps, seconds / (self.most_wait_seconds * self.rate.value))

"""Decides whether a request may wait, and when a refused one should come back. The batcher holds its lock.

What waits in all queues together ("the queue") is limited in padded steps, and in seconds of waiting: the predicted
work that waits, over the rate at which it is done.

| the request | is |
|---|---|
| even an empty queue could not hold it | refused for ever (413) |
| the queue is full | refused (429), with the seconds until the queue is open again |
| it would end after its own deadline | refused (504), at once and not when the deadline passes |
| otherwise | queued |

Each of several workers has a share of the limit in steps. A request that is larger than a share is not refused for
ever: it may wait where half of the share is free, and the queue is full then.

A full queue stays *closed* until it has drained to `REOPENING` of its limit; only requests with a priority enter it.
Otherwise it would be chance whether a retry succeeds, and no time to come back would be right. Of several models, each
may always use an equal share of the limit.

The *fill* of a queue is the part of the limit that is used: of steps or of seconds, whichever is more. 1 is full. The
*work* of sequences is the predicted seconds of their runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from lengthwise.batching.device_turns import DeviceTurns
from lengthwise.batching.queues import ModelQueue, ModelQueues, QueuedSequence
from lengthwise.errors import DeadlineExceeded, QueueFull, TooLarge

REOPENING: Final = 0.5  # a queue that was full accepts requests again at this share of its limit
_FULL: Final = 0.6  # full at this part of the longest wait: some sequences run later than those they arrived with
_NEARLY_FULL: Final = 0.9  # at this fill, a queue that refuses a request closes; below, that request is too large
_OVERTAKING: Final = 0.7  # of the time, for those that overtake the most urgent: it runs now and then, and others come
_WINDOW_SECONDS: Final = 0.2  # the rate is measured over at least these; times in which nothing waits do not count
_RATE_WEIGHT: Final = 0.2  # weight of one measurement: the rate follows a change within about a second
_LEAST_RATE: Final = 0.01  # lower bound of the rate


class DrainRate:
    """Measures the rate `value` at which waiting work is done: predicted seconds of work, per second.

    It is measured only while sequences wait: the work of a batch was done in the time until the next batch is taken.
    """

    def __init__(self, runners: int) -> None:
        self.value = float(runners)
        self._highest = 4.0 * runners
        # When the last batch was taken, and its work; None if no sequence waited after it
        self._last_batch: tuple[float, float] | None = None
        self._seconds = 0.0  # measured since `value` was updated
        self._work = 0.0  # that was done in these seconds

    def count_batch(self, work: float, now: float, *, more_waits: bool) -> None:
        """Counts a batch that was taken now, and updates `value` once enough time was measured.

        Args:
            work: The predicted seconds of its sequences.
            now: The present time, in seconds.
            more_waits: Whether sequences are left in any queue.
        """
        if self._last_batch is not None:
            last_time, last_work = self._last_batch
            self._seconds += now - last_time
            self._work += last_work
        self._last_batch = (now, work) if more_waits else None
        if self._seconds >= _WINDOW_SECONDS:
            value = self.value + _RATE_WEIGHT * (self._work / self._seconds - self.value)
            self.value = min(max(value, _LEAST_RATE), self._highest)
            self._seconds = self._work = 0.0


class Admission:
    """Counts what waits in all queues, in padded steps and predicted seconds, and decides what else may wait."""

    def __init__(
        self,
        queues: ModelQueues,
        turns: DeviceTurns,
        *,
        max_padded_steps: int,
        max_seconds: float,
        runners: int,
        workers: int = 1,
    ) -> None:
        self._queues = queues
        self._turns = turns
        self._runners = runners
        self._step_limit = max_padded_steps
        self._request_step_limit = workers * max_padded_steps
        self.most_wait_seconds = _FULL * max_seconds  # the predicted wait at which the queue is full
        self.padded_steps = 0  # of all that waits
        self.seconds = 0.0  # of work, predicted, of all that waits
        self.rate = DrainRate(runners)

    def closed(self) -> ModelQueue | None:
        """Returns any queue if all queues are closed to requests without a priority; else None.

        Such requests can be refused before they are decoded, with the error `full` of the returned queue. None if there
        is no queue, too, and if one has drained so far that it opens at its next request.
        """
        queue = None  # the last one is returned as the loop saw it: the batcher is not locked, a runner may remove it
        for queue in self._queues:
            if not queue.closed_to_new or self._fill_for(queue) <= REOPENING:
                return None
        return queue

    def add(self, queue: ModelQueue, padded_steps: int, seconds: float) -> None:
        """Counts sequences that begin to wait: their padded steps and their predicted seconds."""
        self.padded_steps += padded_steps
        self.seconds += seconds
        queue.padded_steps += padded_steps
        queue.seconds += seconds

    def remove(self, queue: ModelQueue, sequences: Sequence[QueuedSequence]) -> float:
        """Takes sequences that no longer wait out of the counts; returns their predicted seconds."""
        padded_steps = sum([sequence.padded_steps for sequence in sequences])
        seconds = sum([sequence.seconds for sequence in sequences])
        self.padded_steps -= padded_steps
        queue.padded_steps -= padded_steps
        # Sums of floats do not return to 0 by themselves.
        self.seconds = self.seconds - seconds if self.padded_steps else 0.0
        queue.seconds = queue.seconds - seconds if queue.padded_steps else 0.0
        return seconds

    def check_size(self, padded_steps: int) -> None:
        """Checks that the empty queues of all workers together could hold a request.

        Raises:
            TooLarge: They could not.
        """
        if padded_steps > self._request_step_limit:
            raise TooLarge(f"{padded_steps} padded steps; the queue holds {self._request_step_limit} in all")

    def check(
        self,
        queue: ModelQueue,
        padded_steps: int,
        seconds: float,
        *,
        widest: int,
        patience: float,
        deadline: float,
        priority: int,
    ) -> None:
        """Checks that a request may wait now; may open or close its model's queue.

        If the queue is full or closed, it raises the QueueFull that `full` returns.

        Args:
            queue: The queue of the request's model.
            padded_steps: Of the request.
            seconds: The work of the request.
            widest: The width of its longest sequence, in steps.
            patience: Seconds until its deadline.
            deadline: The deadline on the batcher's clock.
            priority: Of the request; requests above 0 may enter a closed queue.

        Raises:
            DeadlineExceeded: It would wait and run longer than `patience`.
        """
        rate, work = self.rate.value, self.seconds + seconds
        if padded_steps > self._step_limit:  # larger than this worker's share counts as half of it, see the module
            padded_steps = int(REOPENING * self._step_limit)
        fits = self.padded_steps + padded_steps <= self._step_limit
        # 1. The queue is open, not full with this request, and all that waits and runs is done before its deadline.
        if (
            fits
            and not queue.closed_to_new
            and work <= self.most_wait_seconds * rate
            and max([run.end for run in self._turns.running.values()], default=0.0) + work / rate <= deadline
            and work <= patience * rate
        ):
            return
        # 2. Nothing of this model waits, or the queue is full or closed.
        if fits and not queue.pending:
            queue.closed_to_new = False
        elif self._refuses(queue, padded_steps, seconds, priority):
            raise self.full(queue, padded_steps)
        # 3. It would be late. Where nothing of this model waits or runs, only its run shows how long one takes.
        own = max(seconds, queue.predict(1, widest) * rate) if queue.pending or queue.inflight else 0.0
        wait = self._wait(queue, own if own < float("inf") else seconds, deadline=deadline, priority=priority)
        if wait > patience:
            raise DeadlineExceeded(
                f"it would wait for about {wait:.3g} s for its answer, and its deadline is in {patience:.3g} s"
            )

    def _wait(self, queue: ModelQueue, own: float, *, deadline: float, priority: int) -> float:
        """Predicts in how many seconds a request is answered, as plans choose.

        It waits until runners are free, and for the more urgent sequences of its model; or, as a plan lets it overtake
        these where it has to, for those that are due earlier. Other models have equal turns meanwhile. Then it runs.

        Args:
            queue: The queue of the request's model.
            own: The work of the request.
            deadline: On the batcher's clock.
            priority: Of the request.
        """
        more_urgent, due_earlier = queue.pending.work_before(queue.seconds, priority, deadline)
        if (urgent := queue.pending.most_urgent()) is not None and deadline < urgent.deadline:
            due_earlier /= _OVERTAKING
        work = min(min(more_urgent, due_earlier) * self._queues.busy(), self.seconds) + own
        # Until some runner is free, and those that are free have done this work: in seconds of one runner
        rests = sorted(self._turns.rests(self._runners))
        seconds = work / self.rate.value * len(rests)
        return min([(seconds + rest) / free for free, rest in enumerate(accumulate(rests), start=1)])

    def full(self, queue: ModelQueue, padded_steps: int = 0) -> QueueFull:
        """Makes the error that refuses a request, with the predicted seconds until the queue is open for it.

        The queue is open once all queues together have drained to `REOPENING` of the limit and have room for the
        request; or once this model's queue has, within its equal share of the limit. The sooner of both counts.
        """
        step_limit, share = self._step_limit, 1 / max(1, len(self._queues))
        # 1. Which part of what waits now may still wait when the queue opens: of all queues, and of this one. Above 1
        # if even more may wait.
        steps, queue_steps = max(self.padded_steps, 1), max(queue.padded_steps, 1)
        may_wait = min(REOPENING / max(self._fill(steps, self.seconds), REOPENING), (step_limit - padded_steps) / steps)
        may_wait_in_queue = min(
            REOPENING * share / max(self._fill(queue_steps, queue.seconds), REOPENING * share),
            max(step_limit * share - padded_steps, 0) / queue_steps,
        )
        # 2. How long the other part takes. That of this queue takes longer while other models have turns.
        work, queue_work = self.seconds, queue.seconds * self._queues.busy()
        work_until_open = min(work * (1 - min(may_wait, 1.0)), queue_work * (1 - min(may_wait_in_queue, 1.0)))
        return QueueFull("the queue is full", retry_after_seconds=work_until_open / self.rate.value)

    def _refuses(self, queue: ModelQueue, padded_steps: int, seconds: float, priority: int) -> bool:
        """Opens or closes a queue, and returns whether it refuses a request.

        It refuses a request without a priority while it is closed; and any request for which there is no room, neither
        in all queues together, nor in this queue within its equal share of the limit. A queue opens when it has drained
        to `REOPENING`, and closes when it refuses a request while it is nearly full.
        """
        step_limit, share = self._step_limit, 1 / max(1, len(self._queues))
        second_limit = self.most_wait_seconds * self.rate.value
        fill = self._fill_for(queue)
        if fill <= REOPENING:
            queue.closed_to_new = False
        # 1. Whether the request has too many steps, or too much work; of the latter a drained queue takes any.
        own_steps, own_seconds = queue.padded_steps + padded_steps, queue.seconds + seconds
        too_many_steps = self.padded_steps + padded_steps > step_limit and own_steps > int(step_limit * share)
        too_much_work = self.seconds + seconds > second_limit and own_seconds > second_limit * share
        too_full = too_many_steps or (fill > REOPENING and too_much_work)
        # 2. Close the queue, and refuse.
        if too_full and fill >= _NEARLY_FULL:
            queue.closed_to_new = True
        return too_full or (queue.closed_to_new and not priority)

    def _fill_for(self, queue: ModelQueue) -> float:
        """How full it is for requests of a queue: all queues together, or this one of its equal share if that is less.

        Above 1 if there is no room.
        """
        of_share = self._fill(queue.padded_steps, queue.seconds) * max(1, len(self._queues))
        return min(self._fill(self.padded_steps, self.seconds), of_share)

    def _fill(self, padded_steps: int, seconds: float) -> float:
        """Which part of the limits these steps and seconds of work use: of the limit that is used more."""
        return max(padded_steps / self._step_limit, seconds / (self.most_wait_seconds * self.rate.value))

"""Runs one batch: pads it, computes it, gives the results to their requests, and counts it in the metrics.

A request is *complete* when the last of its sequences has run, or when a batch with one of them has failed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from lengthwise.batching.buckets import BatchShape
from lengthwise.batching.device_turns import DeviceTurns, Run
from lengthwise.batching.queues import ModelQueue, ModelQueues, PendingRequest, QueuedSequence, Timing
from lengthwise.errors import InferenceFailed, RequestError
from lengthwise.padding import PaddedBatch

log = logging.getLogger("lengthwise.execution")

_RECENT_WEIGHT: Final = 0.9  # of `ModelQueue.recent_seconds` when one more run is added

OnBatch = Callable[[ModelQueue, Sequence[QueuedSequence], float, float], None]  # its start and end, batcher's clock
Outcomes = list[tuple[PendingRequest, Any]]  # complete requests, each with its answer or error


class PlannedBatch(NamedTuple):
    """A batch that was removed from its queue and is about to run."""

    queue: ModelQueue
    sequences: list[QueuedSequence]
    work_start: float  # when its planning began, on the clock of the queue's cost table
    width: int  # the widest `WaitingSequence.width`, with which its cost is predicted
    valid_steps: int  # the sum of these widths
    seconds: float  # predicted, as if all sequences were as long as the longest


class FinishedBatch(NamedTuple):
    """A batch that ran or failed."""

    planned: PlannedBatch
    outcomes: Outcomes  # of the requests that are complete with it
    batch: PaddedBatch | None  # None if it failed
    start: float  # on the batcher's clock
    seconds: float  # of padding and inference, on that clock
    work_seconds: float  # from planning to results, on the cost table's clock
    padding_seconds: float  # a part of `seconds`
    writing_seconds: float  # to write the answers of the complete requests, on the batcher's clock


@dataclass
class Execution:
    """Runs batches, and stores their results.

    It calls `on_batch` with each batch that ran or failed, and `on_suspect` with a queue whose batches fail again and
    again.
    """

    queues: ModelQueues
    lock: threading.Lock  # of the batcher
    clock: Callable[[], float]  # of the batcher
    turns: DeviceTurns
    on_batch: OnBatch | None
    on_suspect: Callable[[ModelQueue], None] | None
    # Called with each batch and the seconds that its sequences waited, while the live view is open
    watch: Callable[[FinishedBatch, Sequence[float]], None] | None = None

    def run(self, planned: PlannedBatch) -> FinishedBatch:
        """Runs one batch, stores its results, and makes the outcomes of the requests that are complete with it.

        A run that fails raises nothing: its requests get an error as their outcome. The caller gives the outcomes to
        the requests, and then calls `count`, for which no answer has to wait.

        Raises:
            ValueError: It is caught here: the runtime gave another number of rows, and the batch counts as failed.
        """
        # 1. The run, which the watchdog sees (`DeviceTurns.running`)
        queue, sequences, work_start = planned[:3]
        start = padded = self.clock()
        batch: PaddedBatch | None = None
        results: Sequence[Any] | None = None
        failure: Exception | None = None
        try:
            batch = queue.padded([sequence.steps for sequence in sequences])
            padded = self.clock()
            results = queue.run(batch, any(sequence.request.attention for sequence in sequences))
            if len(results) != len(sequences):
                raise ValueError(f"{len(results)} results for {len(sequences)} rows")
        except Exception as error:  # onnxruntime's errors have no common base; only this batch fails
            log.exception("a batch of %d failed in %s", len(sequences), queue.name)
            failure = error.with_traceback(None)  # the traceback holds this frame, and with it the whole batch
            queue.metrics.count("batch_failures")
            results = batch = None
        end = self.clock()
        work_seconds = queue.cost.clock() - work_start  # what follows is work for each sequence, not for the batch
        complete, work_seconds = self._store(planned, results, start, padded, end, work_seconds)
        # 2. The breaker, and the callbacks
        if failure is not None:
            if queue.breaker.batch_failed(failure, end) and self.on_suspect is not None:
                self.on_suspect(queue)
        elif queue.breaker.failures:
            queue.breaker.batch_ran()
        if self.on_batch is not None:
            _notify(self.on_batch, queue, sequences, start, end)
        # 3. The answers
        writing_start = self.clock()
        outcomes = [(request, self._outcome(request, failed=results is None)) for request in complete]
        return FinishedBatch(
            planned, outcomes, batch, start, end - start, work_seconds, padded - start, self.clock() - writing_start
        )

    def run_at_rest(self, queue: ModelQueue, shape: BatchShape, warm: Callable[[], object]) -> None:
        """Runs a shape of a device that no batch needs yet, by the function `warm`.

        The watchdog sees the run, as it may hang like any other. If it fails, that is only logged. The lock is free.
        """
        thread, run = threading.get_ident(), Run(queue.name, *shape, queue.predict(*shape), queue.metrics)
        with self.lock:
            self.turns.running[thread] = run
        try:
            warm()
        except Exception as error:  # of any runtime; the batch that needs this shape fails, and says so
            log.debug("a shape did not run at rest in %s: %s", queue.name, error)
        with self.lock:
            del self.turns.running[thread]

    def count(self, finished: FinishedBatch) -> None:
        """Counts a batch in the metrics, and lets the cost table learn from it.

        Its shape is no longer cold. The live view gets every batch (`watch`); of a failed batch nothing else is counted
        here.
        """
        planned, batch = finished.planned, finished.batch
        waits = [finished.start - sequence.arrival for sequence in planned.sequences]
        if self.watch is not None:
            _notify(self.watch, finished, waits)
        if batch is None:
            return
        queue = planned.queue
        queue.cold.pop((batch.rows, batch.width), None)
        _notify(queue.cost.observe, batch.rows, planned.width, finished.work_seconds, planned.valid_steps)
        _notify(
            queue.metrics.batch,
            rows=batch.rows,
            width=batch.padded_steps // batch.rows,
            valid_steps=batch.valid_steps,
            waits=waits,
            seconds=finished.seconds,
            padding_cost=queue.cost.padding_cost,
            padding_seconds=finished.padding_seconds,
            writing_seconds=finished.writing_seconds,
        )

    def _store(
        self,
        planned: PlannedBatch,
        results: Sequence[Any] | None,
        start: float,
        padded: float,
        end: float,
        work_seconds: float,
    ) -> tuple[list[PendingRequest], float]:
        """Stores each row's result and times in its request, and charges the model for the run.

        Args:
            planned: The batch.
            results: One for each row; None for a failed batch.
            start: When the batch began, on the batcher's clock.
            padded: When its padding was done.
            end: When its run ended.
            work_seconds: From its planning to its results, on the cost table's clock.

        Returns:
            The requests that are complete; and `work_seconds`, but on a device at most those since the batch before
            ended, as the run began then, or later.
        """
        queue, sequences, seconds = planned.queue, planned.sequences, end - start
        complete: dict[PendingRequest, None] = {}
        with self.lock:
            work_seconds = min(work_seconds, self.turns.end(end, padded - start))
            queue.inflight -= 1
            # The model pays for its run with later turns. What something else on the machine held up for long costs it
            # the time of about ten runs. What was predicted may raise this, not lower it: a table may be wrong.
            queue.used_seconds += min(work_seconds, max(planned.seconds, queue.recent_seconds))
            queue.recent_seconds = _RECENT_WEIGHT * queue.recent_seconds + work_seconds
            if queue.inline.first_runs and results is not None:
                queue.inline.count_run()
            for row, sequence in enumerate(sequences):
                request = sequence.request
                request.queue_seconds = max(request.queue_seconds, start - sequence.arrival)
                request.inference_seconds = max(request.inference_seconds, seconds)
                if results is not None:
                    request.results[sequence.index] = results[row]
                    request.remaining -= 1
                if results is None or not request.remaining:
                    complete[request] = None
            self.queues.remove_if_empty(queue)
        return list(complete), work_seconds

    def _outcome(self, request: PendingRequest, *, failed: bool) -> Any:
        """Makes the outcome of a request that is complete: its answer, or an error.

        If the request was settled before, as its caller is gone, no answer is made: it is None, or an error if the
        batch failed. `Batcher.settle_all` ignores either.

        Args:
            request: The request.
            failed: Whether the batch failed that completed it.
        """
        if failed:
            return InferenceFailed("the model could not be run on this batch")
        if request.settled:
            return None
        try:
            return request.finish(request.results, Timing(request.queue_seconds, request.inference_seconds))
        except RequestError as raised:
            return raised.with_traceback(None)  # the traceback holds this frame, and with it the whole batch
        except Exception:  # an error in one answer must not lose the other answers of the batch
            log.exception("an answer could not be written")
            return InferenceFailed("the answer could not be written")


def _notify(listener: Callable[..., object], *arguments: Any, **named: Any) -> None:
    """Calls a function after a batch has run; an error there is logged only, so that no answer of the batch is lost."""
    try:
        listener(*arguments, **named)
    except Exception:
        log.exception("a batch that ran could not be counted")

"""One batch, run: padded, computed, counted, and its results given to the tickets that wait for them.

Whatever goes wrong here goes wrong for this batch alone: its tickets get an error, and the next batch is run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from lengthwise.batching.queues import ModelQueue, ModelQueues, PendingRequest, QueuedSequence, Timing
from lengthwise.errors import InferenceFailed, RequestError
from lengthwise.padding import PaddedBatch

log = logging.getLogger("lengthwise.execution")

R = TypeVar("R")

OnBatch = Callable[[ModelQueue[Any], Sequence[QueuedSequence[Any]], float, float], None]
"""Is told of a batch: its lane, its entries, when it began and when it ended."""
Outcomes = list[tuple[PendingRequest[Any], Any]]
"""Tickets that are complete, each with what its caller gets: a finished answer, or an error."""


class Taken(NamedTuple):
    """A batch that left its queue to be run.

    Attributes:
        lane: Whose it is.
        entries: Its sequences, at least one.
        began: When its effort began, on the clock of the lane's costs.
    """

    lane: ModelQueue[Any]
    entries: list[QueuedSequence[Any]]
    began: float

    @property
    def width(self) -> int:
        """What its cost was planned with."""
        return max(entry.width for entry in self.entries)


class Ran(NamedTuple):
    """A batch that ran, or failed.

    Attributes:
        taken: What was run.
        outcomes: The tickets that are complete with it, each with its outcome.
        batch: What its sequences were padded to; None of one that failed.
        start: When it began, on the clock of the batcher.
        seconds: How long it took on that clock.
        effort: The same on the clock of the lane's costs, from its planning to its results.
        padding: The part of its seconds that padding took.
        writing: How long the answers took to write that are complete with it.
    """

    taken: Taken
    outcomes: Outcomes
    batch: PaddedBatch | None
    start: float
    seconds: float
    effort: float
    padding: float
    writing: float


class Execution:
    """Runs batches.

    Args:
        lanes: All of them.
        lock: Held for whatever the lanes and tickets hold.
        clock: Seconds.
        on_batch: Told of each batch that ran or failed.
    """

    def __init__(
        self, lanes: ModelQueues, lock: threading.Lock, clock: Callable[[], float], on_batch: OnBatch | None = None
    ) -> None:
        self._lanes = lanes
        self._lock = lock
        self._clock = clock
        self._on_batch = on_batch

    def run(self, taken: Taken) -> Ran:
        """Runs one batch. Whoever has it run calls `count` when nobody waits for it any more."""
        lane, entries, began = taken
        start = padded = self._clock()
        batch: PaddedBatch | None = None
        results: Sequence[Any] | None = None
        try:
            batch = lane.padded([entry.steps for entry in entries])
            padded = self._clock()
            results = lane.run(batch, any(entry.ticket.attention for entry in entries))
            if len(results) != len(entries):
                raise ValueError(f"{len(results)} results for {len(entries)} rows")
            end = self._clock()
            charged = lane.charge(batch.rows, taken.width, end - start)
        except Exception:  # onnxruntime's errors have no common base; only this batch is affected
            log.exception("a batch of %d failed in %s", len(entries), lane.name)
            lane.metrics.batch_failed()
            results = batch = None
            end = self._clock()
            charged = end - start
        effort = lane.cost.clock() - began  # what follows is done for each sequence, however they were batched
        complete = self._scatter(taken, results, start, end - start, charged)
        if self._on_batch is not None:
            self._tell(self._on_batch, lane, entries, start, end)
        written = self._clock()
        outcomes = [(ticket, self._finished(ticket, failed=results is None)) for ticket in complete]
        return Ran(taken, outcomes, batch, start, end - start, effort, padded - start, self._clock() - written)

    def count(self, ran: Ran) -> None:
        """Learns from a batch that ran, and counts it."""
        taken, batch = ran.taken, ran.batch
        if batch is None:
            return
        lane = taken.lane
        try:
            lane.cost.observe(batch.rows, taken.width, ran.effort)
            lane.metrics.batch(
                rows=batch.rows,
                width=batch.width,
                valid_steps=batch.valid_steps,
                waits=[ran.start - entry.arrival for entry in taken.entries],
                seconds=ran.seconds,
                padding_seconds=ran.padding,
                writing_seconds=ran.writing,
            )
        except Exception:  # its answers are there: a figure must not cost anybody his
            log.exception("a batch of %d could not be counted in %s", batch.rows, lane.name)

    def _tell(
        self, on_batch: OnBatch, lane: ModelQueue[Any], entries: Sequence[QueuedSequence[Any]], start: float, end: float
    ) -> None:
        """Tells of a batch, whatever becomes of what is told."""
        try:
            on_batch(lane, entries, start, end)
        except Exception:  # its answers are there: who follows must not cost anybody his
            log.exception("a batch of %d could not be followed in %s", len(entries), lane.name)

    def _scatter(
        self, taken: Taken, results: Sequence[Any] | None, start: float, seconds: float, charged: float
    ) -> list[PendingRequest[Any]]:
        """Notes each entry's result; the tickets that have all of theirs now, or failed."""
        lane, entries, _ = taken
        complete: dict[PendingRequest[Any], None] = {}
        with self._lock:
            lane.inflight -= 1
            lane.used_seconds += charged
            if lane.first_runs and results is not None:
                lane.first_runs -= 1
            for row, entry in enumerate(entries):
                ticket = entry.ticket
                ticket.queue_seconds = max(ticket.queue_seconds, start - entry.arrival)
                ticket.inference_seconds = max(ticket.inference_seconds, seconds)
                if results is None:
                    complete[ticket] = None
                    continue
                ticket.results[entry.index] = results[row]
                ticket.remaining -= 1
                if not ticket.remaining:
                    complete[ticket] = None
            self._lanes.forget_if_done(lane)
        return list(complete)

    def _finished(self, ticket: PendingRequest[Any], *, failed: bool) -> Any:
        """What the ticket's caller gets: its finished answer, or an error."""
        if failed:
            return InferenceFailed("the model could not be run on this batch")
        if ticket.settled:
            return None
        try:
            return ticket.finish(ticket.results, Timing(ticket.queue_seconds, ticket.inference_seconds))
        except RequestError as raised:
            return raised.with_traceback(None)  # which holds this frame, and with it the whole batch
        except Exception:  # one caller's answer must not cost the others theirs
            log.exception("an answer could not be written")
            return InferenceFailed("the answer could not be written")

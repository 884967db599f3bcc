"""Answers sequences that are all known beforehand: planned together, run on several threads, answered in their order.

    a chunk of items -> windows -> pending sequences -> plan, plan ... -> batches -> threads: pad, run -> answers

While one chunk runs, the next is read and planned; only these two are in memory.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeVar, cast

from lengthwise.batching.buckets import padded
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from lengthwise.datasets.input_sequences import require_valid
from lengthwise.decoding.calls import Item
from lengthwise.errors import InferenceFailed
from lengthwise.padding import RowInput, planned_length, rounded_width
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime import answers
from lengthwise.runtime.answers import NOT_FINITE, Answer

log = logging.getLogger("lengthwise.offline")

C = TypeVar("C")  # a value of the caller, returned with a chunk's answers

AHEAD: Final = 1  # chunks that are planned while an earlier one runs

FAILED: Final = "the model could not be run on this sequence"

ScoringResult = Answer | str  # the answer to a sequence, or the error


class ScoredBatch(NamedTuple):
    """The figures of a batch that has run."""

    rows: int  # sequences, or windows of them
    cost_steps: int  # rows x width
    valid_steps: int
    computed_padding_steps: int  # as many valid steps cost what the padding cost
    cpu_seconds: float  # of padding and running it, in the runner's thread


@dataclass(eq=False, slots=True)
class _Row(WaitingSequence):
    """One window of an item, from its first step `start`: all of it, unless it is too long for the model."""

    steps: RowInput = field(kw_only=True)
    item: int = field(kw_only=True)  # its index in the chunk
    start: int = field(kw_only=True)


def answer_all(
    model: LoadedModel,
    chunks: Iterable[tuple[C, Sequence[Item]]],
    *,
    limits: BatchLimits,
    threads: int,
    attention: bool = False,
    on_batch: Callable[[ScoredBatch], object] = lambda _batch: None,
    on_plan: Callable[[float], object] = lambda _seconds: None,
) -> Iterator[tuple[C, list[ScoringResult]]]:
    """Runs a model on the items of each chunk, and yields their results in the items' order.

    A batch that fails is run again row by row, so that only the items at fault have an error.

    Args:
        model: The model.
        chunks: Pairs of a value of the caller, and items that the model accepts; read one chunk ahead.
        limits: The limits of a batch.
        threads: How many batches run at once, each in a thread; 0: one after the other, in the caller's thread.
        attention: Whether answers hold attention weights.
        on_batch: Called with the figures of each batch, in the caller's thread.
        on_plan: Called with the processor time of planning a chunk, in seconds.

    Yields:
        For each chunk, its value and the results of its items.
    """
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="runner") as runners:  # starts threads when needed
        # A batch begins to run at once, in a thread; without threads, it runs when its result is asked for.
        submit: _Submit = (lambda *call: runners.submit(*call).result) if threads else partial
        running_chunks: deque[tuple[C, Sequence[Item], list[_Running]]] = deque()
        try:
            for chunk, items in chunks:
                started = time.thread_time()
                running_chunks.append((chunk, items, _begin(submit, model, items, limits, attention)))
                on_plan(time.thread_time() - started)
                if len(running_chunks) > AHEAD:
                    yield _collect(*running_chunks.popleft(), model, on_batch)
            while running_chunks:
                yield _collect(*running_chunks.popleft(), model, on_batch)
        finally:
            runners.shutdown(wait=False, cancel_futures=True)


_BatchResult = tuple[list[ScoringResult], ScoredBatch]
_Running = tuple[list[_Row], Callable[[], _BatchResult]]  # the rows of a batch, and what waits for its result
_Submit = Callable[..., Callable[[], _BatchResult]]  # gets a function and its arguments


def _begin(
    submit: _Submit, model: LoadedModel, items: Sequence[Item], limits: BatchLimits, attention: bool
) -> list[_Running]:
    """Plans the batches of all items, longest first, and submits each; returns what runs."""
    # The rows: an item, or each of its windows
    manifest, rows = model.manifest, []
    for index, item in enumerate(items):
        for start, steps in answers.windows(item.steps, manifest.max_length):
            width = (
                rounded_width(planned_length(steps), manifest.width_multiple)
                if model.buckets is None
                else model.buckets.width_of(planned_length(steps))
            )
            rows.append(_Row(width, steps=steps, item=index, start=start))
    pending = PendingSequences()
    # Longest first: the short batches at the end let all threads end at about the same time
    for row in sorted(rows, key=lambda row: row.width, reverse=True):
        pending.add(row)
    running = []
    while pending:
        batch = cast("list[_Row]", plan(pending, model.cost, limits, now=0.0))
        running.append((batch, submit(_run, model, batch, attention)))
    return running


def _run(model: LoadedModel, rows: list[_Row], attention: bool) -> _BatchResult:
    """Runs one batch; returns the results of its rows, and its figures.

    If the batch fails, each of its rows is run unbatched, so that only the bad rows fail.
    """
    started = time.thread_time()
    manifest = model.manifest
    batch = padded([row.steps for row in rows], model.buckets, manifest.width_multiple, manifest.blank)

    def figures() -> ScoredBatch:
        """The figures of the batch, with the processor time until now."""
        valid, padded = batch.valid_steps, batch.padded_steps
        computed = round((padded - valid) * model.cost.padding_cost)
        return ScoredBatch(batch.rows, padded, valid, computed, time.thread_time() - started)

    try:
        results = answers.with_attention(model.answer(batch, attention))
        if batch.wants_states:
            results = answers.with_states(results)
    except Exception:  # onnxruntime's errors have no common base
        if len(rows) == 1:
            log.debug("a sequence of %d steps failed", len(rows[0].steps), exc_info=True)
            return [FAILED], figures()
        results_of_rows = [_run(model, [row], attention) for row in rows]
        return [results[0] for results, _ in results_of_rows], figures()  # the time covers all these runs
    return [NOT_FINITE if answer is None else answer for answer in results], figures()


def _collect(
    chunk: C,
    items: Sequence[Item],
    running: list[_Running],
    model: LoadedModel,
    on_batch: Callable[[ScoredBatch], object],
) -> tuple[C, list[ScoringResult]]:
    """Waits for the batches of a chunk, and calls `on_batch` with the figures of each.

    Returns the caller's value of the chunk, and the result of each of its items.
    """
    windows_of_items: list[list[tuple[int, ScoringResult]]] = [[] for _ in items]
    for rows, wait_for_result in running:
        results, figures = wait_for_result()
        for row, result in zip(rows, results, strict=True):
            windows_of_items[row.item].append((row.start, result))
        on_batch(figures)
    return chunk, [_merge_windows(windows, item, model) for windows, item in zip(windows_of_items, items, strict=True)]


def _merge_windows(windows: list[tuple[int, ScoringResult]], item: Item, model: LoadedModel) -> ScoringResult:
    """Merges the answers of an item's windows to one; returns the error of the first window that has one.

    `windows`: the first step and the result of each, in any order. An item that is not too long for the model has one
    window, whose result is returned.
    """
    if len(windows) == 1:
        return windows[0][1]
    windows.sort(key=lambda window: window[0])
    answered = []
    for _, result in windows:
        if isinstance(result, str):
            return result
        answered.append(result)
    return answers.merge(answered, [start for start, _ in windows], len(item.steps), model.manifest)


def require_answers(results: Sequence[ScoringResult], name: Callable[[int], str] = lambda _index: "") -> list[Answer]:
    """Makes sure that all results, one of each sequence, are answers, and returns them.

    `name` is called with the index of a sequence whose result is an error, and returns a text to put before it.

    Raises:
        InferenceFailed: The runtime failed on a sequence; the error names the first one.
        InvalidSequences: The model does not accept some sequences, or their answers are not finite; names all of them.
    """  # noqa: DOC502 - what it calls raises one of them
    for index, result in enumerate(results):
        if result == FAILED:
            raise InferenceFailed(f"sequence {index}: {name(index)}{FAILED}")
    return require_valid(results, name)

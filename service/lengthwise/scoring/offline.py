"""Sequences that are all known beforehand: planned in company, run on several threads, answered in their order.

```
a chunk of items -> windows -> pool -> plan, plan, plan ... -> batches -> threads: pad, run -> an answer for each item
```

The planner is the one that serves, with a whole chunk in its pool at once, so hardly any padding is computed. While one
chunk runs, the next is read and planned; no more than these two are held, however many there are.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar, cast

from lengthwise.batching.pending import PendingSequences, Waiting
from lengthwise.batching.plan import BatchLimits, plan
from lengthwise.decoding.calls import Item
from lengthwise.padding import PaddedBatch, Steps, pad, rounded_width
from lengthwise.repository.model import Model
from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer

log = logging.getLogger("lengthwise.offline")

C = TypeVar("C")
"""Whatever the caller wants back with a chunk's answers."""

AHEAD: Final = 1
"""How many chunks are planned behind the one whose answers are awaited."""

NOT_FINITE: Final = "the model's answer to this sequence is not finite"
FAILED: Final = "the model could not be run on this sequence"

Result = Answer | str
"""The answer to a sequence, or why there is none."""


class Batch(NamedTuple):
    """What a batch was, once it ran.

    Attributes:
        rows: Sequences, or windows of them.
        cost_steps: Rows x width.
        valid_steps: The sum of the lengths.
        cpu_seconds: Processor time of the thread that padded and ran it.
    """

    rows: int
    cost_steps: int
    valid_steps: int
    cpu_seconds: float


@dataclass(eq=False, slots=True)
class _Row(Waiting):
    """One window of an item, which is all of it where it is not too long.

    Attributes:
        steps: `[length, features]` or `[length]`.
        item: The item's place in its chunk.
        start: Where in the item the window starts.
    """

    steps: Steps = field(kw_only=True)
    item: int = field(kw_only=True)
    start: int = field(kw_only=True)


def answer_all(
    model: Model,
    chunks: Iterable[tuple[C, Sequence[Item]]],
    *,
    limits: BatchLimits,
    threads: int,
    attention: bool = False,
    ran: Callable[[Batch], object] = lambda _batch: None,
    planned: Callable[[float], object] = lambda _seconds: None,
) -> Iterator[tuple[C, list[Result]]]:
    """The answers to each chunk's items, chunk by chunk and in the items' order.

    A batch that fails is run again row by row, so that an item for which the model cannot be run fails alone.

    Args:
        model: Who answers.
        chunks: Items that the model takes, with whatever the caller wants back; read one chunk ahead.
        limits: What one batch may be.
        threads: How many batches run at once; 0 runs them one by one in the caller's thread.
        attention: Whether the attention is wanted.
        ran: Told of each batch, in the caller's thread.
        planned: Told how much processor time planning a chunk took.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="runner") if threads else _SameThread() as runners:
        begun: deque[tuple[C, Sequence[Item], list[_Running]]] = deque()
        try:
            for chunk, items in chunks:
                started = time.thread_time()
                begun.append((chunk, items, _begin(runners, model, items, limits, attention)))
                planned(time.thread_time() - started)
                if len(begun) > AHEAD:
                    yield _collected(*begun.popleft(), model, ran)
            while begun:
                yield _collected(*begun.popleft(), model, ran)
        finally:
            runners.shutdown(wait=False, cancel_futures=True)


class _SameThread(Executor):
    """Runs what it is given at once, in the thread that gives it: what it raises is raised there."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        future.set_result(fn(*arguments, **options))
        return future


_Ran = tuple[list[Result], Batch]
_Running = tuple[list[_Row], Future[_Ran]]


def _begin(
    runners: Executor, model: Model, items: Sequence[Item], limits: BatchLimits, attention: bool
) -> list[_Running]:
    """Plans all batches of a chunk and hands them to the threads."""
    manifest = model.manifest
    pool = PendingSequences()
    for place, item in enumerate(items):
        for start, steps in answers.windows(item.steps, manifest.max_length):
            if model.buckets is None:
                width = rounded_width(len(steps), manifest.width_multiple)
            else:
                width = model.buckets.width_of(len(steps))
            pool.add(_Row(width, steps=steps, item=place, start=start))
    running = []
    while pool:
        rows = cast("list[_Row]", plan(pool, model.cost, limits, now=0.0))
        running.append((rows, runners.submit(_run, model, rows, attention)))
    return running


def _run(model: Model, rows: list[_Row], attention: bool) -> _Ran:
    """Runs one batch, in a thread: a result for each row."""
    started = time.thread_time()
    batch = _padded(model, [row.steps for row in rows])

    def figures() -> Batch:
        return Batch(batch.rows, batch.cost, batch.valid_steps, time.thread_time() - started)

    try:
        found = answers.with_attention(model.answer(batch, attention))
    except Exception:  # onnxruntime's errors have no common base
        if len(rows) == 1:
            log.debug("a sequence of %d steps failed", len(rows[0].steps), exc_info=True)
            return [FAILED], figures()
        alone = [_run(model, [row], attention) for row in rows]
        return [results[0] for results, _ in alone], figures()
    return [NOT_FINITE if answer is None else answer for answer in found], figures()


def _padded(model: Model, sequences: Sequence[Steps]) -> PaddedBatch:
    """Sequences as the batch that runs: on a device, in one of its shapes."""
    if model.buckets is None:
        return pad(sequences, multiple=model.manifest.width_multiple)
    width = model.buckets.width_of(max(map(len, sequences)))
    return pad(sequences, width=width, rows=model.buckets.rows_of(len(sequences), width))


def _collected(
    chunk: C, items: Sequence[Item], running: list[_Running], model: Model, ran: Callable[[Batch], object]
) -> tuple[C, list[Result]]:
    """Waits for a chunk's batches, and puts their rows together to one result for each item."""
    parts: list[list[tuple[int, Result]]] = [[] for _ in items]
    for rows, future in running:
        results, figures = future.result()
        for row, result in zip(rows, results, strict=True):
            parts[row.item].append((row.start, result))
        ran(figures)
    return chunk, [_whole(windows, item, model) for windows, item in zip(parts, items, strict=True)]


def _whole(windows: list[tuple[int, Result]], item: Item, model: Model) -> Result:
    """One result for an item, of those of its windows, which stand in the order in which they ran."""
    if len(windows) == 1:
        return windows[0][1]
    windows.sort(key=lambda window: window[0])
    found = []
    for _, result in windows:
        if isinstance(result, str):
            return result
        found.append(result)
    return answers.merge(found, [start for start, _ in windows], len(item.steps), model.manifest)

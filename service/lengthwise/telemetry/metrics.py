"""The metrics of a process, as they are counted and as the page shows them (they are declared in `families`).

Counting is on the hot path, where a tenth of a microsecond can be measured. So a metric is an integer or a list of
bucket counts under one lock, and becomes a Prometheus family only when it is scraped. All numbers of a model are in one
row of cells: a list, or where several processes serve, a piece of memory that they share and that outlives each of them
(`telemetry.shared_counts`).
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, cast, get_type_hints

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

from lengthwise.telemetry.exposition import (
    Exemplars,
    HistogramLines,
    is_open_metrics,
    lines_of,
    lines_of_histogram,
    page,
)
from lengthwise.telemetry.families import (
    CELL,
    CELLS,
    CODES,
    COUNTERS,
    FIRST_CELL,
    HISTOGRAMS,
    NO_NAME,
    OF_A_MODEL,
    STATUSES,
    Family,
    Kind,
    LabelledNumber,
    LabelValues,
    ModelCounter,
    OverWorkers,
)
from lengthwise.telemetry.snapshots import CountRows, Snapshot, Total, snapshot_of

if TYPE_CHECKING:
    from lengthwise.telemetry.shared_counts import SharedCounts

KEPT_GONE = 4  # removed versions that stay on the page, so that their counts since the last scrape are not lost

_STATUS_CELL: Final = {status: CELL["requests", str(status)] for status in STATUSES}
_SEQUENCES: Final = CELL["sequences", ""]
_VALID: Final = CELL["steps", "valid"]
_PADDING: Final = CELL["steps", "padding"]
_COMPUTED: Final = CELL["computed_padding_steps", ""]
_OF_MODEL: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "model_info": ("Always 1.", ("provider", "digest")),
    "recurrent_kernels": (
        "Always 1; the kernels of the model's recurrent layers (an instruction set, or onnxruntime) or attention.",
        ("kernels",),
    ),
}
"""Gauges of a model: (help, labels), whose values are in its `info`; left out if `info` lacks the first label."""
OF_LIBRARIES: Final[dict[str, OverWorkers]] = {
    "process_virtual_memory_bytes": "sum",
    "process_resident_memory_bytes": "sum",
    "process_start_time_seconds": "largest",
    "process_open_fds": "sum",
    "process_max_fds": "sum",
    "python_info": "largest",
}
"""How the gauges of prometheus_client's own collectors add up over workers; their counters are summed."""


class Histogram:
    """A histogram in the row of cells of a model; the caller has the lock of its `ModelMetrics`.

    Args:
        bounds: The upper bounds of the buckets; one more bucket has no bound.
        cells: The model's row of cells.
        first: The index of the first bucket's count in the row. After the counts comes the sum of the values.
    """

    __slots__ = ("_first", "_sum_cell", "bounds", "cells", "exemplars")

    def __init__(self, bounds: Sequence[float], cells: MutableSequence[float], first: int) -> None:
        self.bounds = bounds
        # By bucket: the trace id, the value, and the time in seconds since 1970
        self.exemplars: dict[int, tuple[str, float, float]] = {}
        self.cells = cells
        self._first = first
        self._sum_cell = first + len(bounds) + 1

    def observe(self, value: float, trace_id: str | None = None) -> None:
        """Counts one value. With a trace id, the value becomes the exemplar of its bucket."""
        bucket = bisect_left(self.bounds, value)
        self.cells[self._first + bucket] += 1
        self.cells[self._sum_cell] += value
        if trace_id is not None:
            self.exemplars[bucket] = (trace_id, value, time.time())

    @property
    def counts(self) -> list[int]:
        """The number of values in each bucket."""
        return [int(count) for count in self.cells[self._first : self._sum_cell]]

    @property
    def total(self) -> float:
        """The sum of the values."""
        return self.cells[self._sum_cell]

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)


@dataclass(slots=True)
class CallSums:
    """Sums over the answered calls of a model, each call with all of its stages, in seconds."""

    calls: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0


@dataclass(slots=True)
class BatchSums:
    """Sums over the batches with the same number of rows, in seconds."""

    batches: int = 0
    padding_seconds: float = 0.0
    running_seconds: float = 0.0  # in the runtime, and scoring its outputs
    writing_seconds: float = 0.0  # encoding the answers that they completed


class ModelMetrics:
    """The metrics of one version of a model; with empty labels, those of calls for models that are not served.

    Args:
        name: The label `model`.
        version: The label `version`.
        cells: Its row of cells in shared memory; None: a list of its own.
        claim: Called with the name of a key at the first call with it; returns a row of cells in shared memory for that
            key, or None if there is none.
    """

    def __init__(
        self,
        name: str = "",
        version: str = "",
        cells: MutableSequence[float] | None = None,
        claim: Callable[[str], MutableSequence[float] | None] = lambda _: None,
    ) -> None:
        self.labels = (name, version)
        self.info: dict[str, str] | None = None  # the labels of `model_info`; None: no such metric
        self.lock = threading.Lock()
        self.cells: MutableSequence[float] = [0] * CELLS if cells is None else cells
        self.key_cells: dict[str, MutableSequence[float]] = {}  # by the name of a key: its calls by status
        self._claim = claim
        self.answered = CallSums()
        self.histograms = {form.name: Histogram(form.bounds, self.cells, FIRST_CELL[form.name]) for form in HISTOGRAMS}
        (
            self.request_seconds,
            self.queue_seconds,
            self.inference_seconds,
            self.decode_seconds,
            self.batch_rows,
            self.batch_width,
            self.sequence_length,
        ) = self.histograms.values()  # in the order of `HISTOGRAMS`
        self.by_rows: defaultdict[int, BatchSums] = defaultdict(BatchSums)  # by the number of rows of a batch
        self.last_batch_time = 0.0  # when the last batch was counted, seconds since 1970

    def detach(self) -> None:
        """Counts in cells of its own from now on: its rows of shared memory may become those of another model.

        A call may end, or an answer be checked, long after its model was forgotten.
        """
        with self.lock:
            self.cells = list(self.cells)
            for histogram in self.histograms.values():
                histogram.cells = self.cells
            self.key_cells = {key: list(cells) for key, cells in self.key_cells.items()}
            self._claim = lambda _: None

    def number(self, counter: str, value: str = "") -> int:
        """The number of a counter of `COUNTERS`, at one value of its label."""
        return int(self.cells[CELL[counter, value]])

    def request(
        self,
        code: int,
        seconds: float,
        reason: str | None = None,
        stages: tuple[float, float] | None = None,
        trace_id: str | None = None,
        decode_seconds: float = 0.0,
        key: str = NO_NAME,
    ) -> None:
        """Counts an inference call that has ended.

        Args:
            code: The HTTP status.
            seconds: From the call's arrival to its end.
            reason: Why the call was rejected, one of `REASONS`; None if it was not.
            stages: The call's seconds in the queue and in the runtime; None if it was not answered.
            trace_id: The id of the trace that becomes an exemplar; None if the call was not traced.
            decode_seconds: How long decoding the body took.
            key: The label of the caller's key.
        """
        cell = _STATUS_CELL.get(code, _STATUS_CELL[500])
        with self.lock:
            self.cells[cell] += 1
            if key != NO_NAME:
                if key not in self.key_cells:
                    self.key_cells[key] = self._claim(key) or [0] * len(STATUSES)
                self.key_cells[key][cell] += 1
            self.request_seconds.observe(seconds, trace_id)
            if stages is not None:  # an answered call
                answered = self.answered
                answered.calls += 1
                answered.seconds += seconds
                answered.decode_seconds += decode_seconds
                answered.queue_seconds += stages[0]
                answered.inference_seconds += stages[1]
            if reason is not None:
                self.cells[CELL["rejected", reason]] += 1

    def decoded(self, seconds: float, lengths: Iterable[int]) -> None:
        """Counts a decoded body: how long decoding took, and the lengths of its sequences."""
        with self.lock:
            self.decode_seconds.observe(seconds)
            for length in lengths:
                self.cells[_SEQUENCES] += 1
                self.sequence_length.observe(length)

    def batch(
        self,
        *,
        rows: int,
        width: int,
        valid_steps: int,
        waits: Iterable[float],
        seconds: float,
        padding_cost: float = 1.0,
        padding_seconds: float = 0.0,
        writing_seconds: float = 0.0,
    ) -> None:
        """Counts a batch that ran.

        Args:
            rows: The number of rows.
            width: Steps of the batch.
            valid_steps: Steps within the lengths.
            waits: Each sequence's seconds in the queue.
            seconds: From the start of the batch to the end of its run.
            padding_cost: Of a padding step, over a valid one: `CostTable.padding_cost`.
            padding_seconds: How long the padding took; a part of `seconds`.
            writing_seconds: How long encoding the answers took, after `seconds`.
        """
        with self.lock:
            row_sums = self.by_rows[rows]
            row_sums.batches += 1
            row_sums.padding_seconds += padding_seconds
            row_sums.running_seconds += seconds - padding_seconds
            row_sums.writing_seconds += writing_seconds
            self.last_batch_time = time.time()
            self.batch_rows.observe(rows)
            self.batch_width.observe(width)
            cells = self.cells
            cells[_VALID] += valid_steps
            padding = rows * width - valid_steps
            cells[_PADDING] += padding
            cells[_COMPUTED] += padding * padding_cost
            self.inference_seconds.observe(seconds)
            for wait in waits:
                self.queue_seconds.observe(wait)

    def count(self, counter: str, number: int = 1, value: str = "") -> None:
        """Adds `number` to a counter of `COUNTERS`; `value` is that of its label, if it has one."""
        with self.lock:
            self.cells[CELL[counter, value]] += number


@dataclass(frozen=True, slots=True)
class Gauges:
    """The gauges of one model: what waits and runs now. Each has (how it adds up over workers, its help)."""

    queue_cost_steps: Annotated[int, "sum", "Padded steps that wait."]
    queue_sequences: Annotated[int, "sum", "Sequences that wait."]
    inflight_batches: Annotated[int, "sum", "Batches that run now."]
    ready: Annotated[bool, "largest", "1 while the model is served and works."]
    breaker_open: Annotated[bool, "largest", "1 while the model does not work, and requests for it are rejected."] = (
        False
    )
    queue_seconds: Annotated[float, "largest", "Predicted seconds until what waits now has begun to run."] = 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The metrics of the process, over all models, with their limits, so that alerts need not know the options."""

    runners: Annotated[int, "sum", "Threads that run batches."]
    max_queue_cost_steps: Annotated[int, "sum", "Most padded steps that may wait, over all models."]
    refused_models: Annotated[
        int, "largest", "Versions in the repository that failed their verification and are not served."
    ]
    inflight_bytes: Annotated[
        int, "sum", "Bytes of bodies and answers in memory: read, inflated, waiting, being written."
    ]
    max_inflight_bytes: Annotated[int, "largest", "Most bytes of bodies and answers that may be in memory."]
    max_queue_seconds: Annotated[float, "largest", "Predicted seconds of waiting at which the queue is full."] = 0.0


def _declared(kind: type) -> Iterator[tuple[str, OverWorkers, str]]:
    """(name, how it adds up over workers, help) of each field of `Gauges` or `Bounds`."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        yield name, *hint.__metadata__


class Metrics:
    """The metrics of all models of this process.

    The counts of a model that is removed stay on the page for a while; then the model is *forgotten* (`remove`).

    Args:
        gauges: Called at each scrape; returns the gauges of each model by (name, version).
        bounds: Called at each scrape; returns the metrics of the process.
        *more: Each is called at each scrape; returns families that are counted elsewhere.
        shared: The memory of the counts that all workers share; None for memory of this process alone.
        forget: Called with the (name, version) of a forgotten model and its counts, so that the parent of the workers
            adds them to those of ended processes.
    """

    def __init__(
        self,
        gauges: Callable[[], dict[tuple[str, str], Gauges]],
        bounds: Callable[[], Bounds],
        *more: Callable[[], Iterable[Family]],
        shared: SharedCounts | None = None,
        forget: Callable[[tuple[str, str], Snapshot], object] = lambda *_: None,
    ) -> None:
        self._gauges = gauges
        self._bounds = bounds
        self._more = more
        self._shared = shared
        self.forgotten = 0  # how many models were forgotten so far
        self._forget = forget
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._removed: dict[tuple[str, str], None] = {}  # models that are not served any more, oldest first
        self._process = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)
        self._texts: dict[str, HistogramLines] = {form.name: {} for form in HISTOGRAMS}  # lines of the last scrape
        self.unknown = self.model()

    def model(self, name: str = "", version: str = "", info: dict[str, str] | None = None) -> ModelMetrics:
        """Returns the metrics of a model: new ones at the first call, and the same ones when it is loaded again."""
        self._removed.pop((name, version), None)
        metrics = self._models.get((name, version))
        if metrics is None:
            # Without the name of a key it claims the row of the model itself.
            claim = partial(self._shared.claim, name, version) if self._shared is not None else lambda *_: None
            metrics = self._models[name, version] = ModelMetrics(name, version, cells=claim(), claim=claim)
        metrics.info = info
        return metrics

    def remove(self, metrics: ModelMetrics) -> None:
        """Notes that a model is not served any more: the gauge `model_info` ends, but its counts stay for a while.

        The last `KEPT_GONE` removed models stay. An older one is forgotten.
        """
        metrics.info = None
        name, version = metrics.labels
        self._removed[name, version] = self._removed.pop((name, version), None)  # moves it to the end: the newest
        if len(self._removed) > KEPT_GONE:
            oldest = next(iter(self._removed))
            del self._removed[oldest]
            self.forgotten += 1
            gone = self._models.pop(oldest)
            gone.detach()
            self._forget(oldest, snapshot_of(*_rows_of([gone])))
            if self._shared is not None:
                self._shared.release(*oldest)

    def exposition(self, accept: str = "", total: Total | None = None) -> tuple[Iterator[bytes], str]:
        """Returns the body of `GET /metrics` in pieces, and its media type.

        Args:
            accept: The header of the request. If it asks for OpenMetrics, the page has that form, and exemplars.
            total: The sum over all processes, whose page it is; None for the page of this process.

        Returns:
            The pieces, which are made one by one as they are taken, in any thread; and the media type.
        """
        open_metrics = is_open_metrics(accept)
        lines = self._lines(total, open_metrics=open_metrics)
        return page(lines, open_metrics=open_metrics), CONTENT_TYPE_LATEST if open_metrics else CONTENT_TYPE_PLAIN_0_0_4

    def snapshot(self, families: Iterable[Family] | None = None) -> Snapshot:
        """The counts and `families` of this process as plain data. It may be called in any thread."""
        return snapshot_of(*_rows_of(list(self._models.values())), self.families() if families is None else families)

    def _lines(self, total: Total | None, *, open_metrics: bool) -> Iterator[str]:
        """Yields the lines of every family, of all processes if `total` is their sum, else of this process."""
        counts, keys = _rows_of(list(self._models.values())) if total is None else total.rows()
        for counter in COUNTERS:
            samples = _requests(counts, keys) if counter.name == "requests" else _counts(counter, counts)
            family = Family("counter", "sum", counter.name, counter.help, OF_A_MODEL + counter.labels, samples)
            yield from lines_of(family, open_metrics=open_metrics)
        # Only this process knows exemplars.
        for histogram in HISTOGRAMS:
            histograms = ((labels, model.histograms[histogram.name]) for labels, model in list(self._models.items()))
            exemplars: dict[LabelValues, Exemplars] = {
                labels: dict(model_histogram.exemplars) for labels, model_histogram in histograms
            }
            texts = self._texts[histogram.name]
            yield from lines_of_histogram(histogram, counts, exemplars, texts, open_metrics=open_metrics)
        for family in self.families() if total is None else total.families():
            yield from lines_of(family, open_metrics=open_metrics)

    def families(self) -> Iterator[Family]:
        """Yields all families except the counters and histograms of models, which are rows of cells."""
        models = [(model.labels, info) for model in list(self._models.values()) if (info := model.info) is not None]
        for name, (help_, labels) in _OF_MODEL.items():
            infos = [(model, [info[label] for label in labels]) for model, info in models if labels[0] in info]
            samples = [((*model, *values), 1) for model, values in infos]
            yield Family("gauge", "largest", name, help_, (*OF_A_MODEL, *labels), samples)
        gauges, bounds = self._gauges(), self._bounds()
        for name, over_workers, help_ in _declared(Gauges):
            numbers = [(model, getattr(model_gauges, name)) for model, model_gauges in gauges.items()]
            yield Family("gauge", over_workers, name, help_, OF_A_MODEL, numbers)
        for name, over_workers, help_ in _declared(Bounds):
            yield Family("gauge", over_workers, name, help_, (), [((), getattr(bounds, name))])
        for families in self._more:
            yield from families()
        yield from self._library_families()

    def _library_families(self) -> Iterator[Family]:
        """Yields the metrics of prometheus_client about the process and Python.

        Of a gauge that `OF_LIBRARIES` does not list, the page of all workers shows the largest number, not the sum.
        """
        for metric in self._process.collect():
            labels = tuple(metric.samples[0].labels) if metric.samples else ()
            samples = [(tuple(sample.labels.values()), sample.value) for sample in metric.samples]
            over_workers: OverWorkers = "sum" if metric.type == "counter" else OF_LIBRARIES.get(metric.name, "largest")
            kind = cast("Kind", metric.type)
            yield Family(kind, over_workers, metric.name, metric.documentation, labels, samples, prefix="")


def _counts(counter: ModelCounter, counts: CountRows) -> Iterator[LabelledNumber]:
    """Yields the samples of a counter: one for each model and each value of the counter's label."""
    for labels, cells in counts.items():
        for value in counter.values:
            yield labels + ((value,) if counter.labels else ()), cells[CELL[counter.name, value]]


def _requests(counts: CountRows, keys: CountRows) -> Iterator[LabelledNumber]:
    """Yields the samples of `requests`: calls by model, status and key.

    Calls without a named key have the key `NO_NAME`: they are all calls of the model, less those with a named key.
    Statuses of `CODES` are always shown, others once they occur.

    Args:
        counts: The row of each model, whose first cells count all calls by status.
        keys: The row of each model and named key, which counts its calls in the same cells.
    """
    unnamed = {(*labels, NO_NAME): cells[: len(STATUSES)] for labels, cells in counts.items()}
    for (name, version, _), cells in keys.items():
        unnamed[name, version, NO_NAME] = np.subtract(unnamed[name, version, NO_NAME], cells[: len(STATUSES)])
    yield from (
        ((name, version, str(status), key), count)
        for (name, version, key), cells in (unnamed | keys).items()
        for status, count in zip(STATUSES, cells, strict=False)
        if count or str(status) in CODES
    )


def _rows_of(models: Iterable[ModelMetrics]) -> tuple[CountRows, CountRows]:
    """Copies the counts of models: a row of cells for each model, and one for each of its named keys."""
    counts: CountRows = {}
    keys: CountRows = {}
    for model in models:
        with model.lock:
            counts[model.labels] = list(model.cells)
            keys |= {(*model.labels, key): list(cells) for key, cells in model.key_cells.items()}
    return counts, keys

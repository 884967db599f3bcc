"""The metrics that Prometheus scrapes. Each is declared here, once, with its help.

Counting is on the hot path, where a tenth of a microsecond can be measured. So a metric is an integer or a list of
bucket counts under one lock, and becomes a Prometheus family only when it is scraped. All numbers of a model are in one
row of cells: a list, or where several processes serve, a piece of memory that they share and that outlives each of
them (`telemetry.shared_counts`).
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Final, get_type_hints

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from lengthwise.telemetry.families import HISTOGRAMS, OF_MODELS, Family, Kind
from lengthwise.telemetry.snapshots import CountRows, Snapshot, Total, taken

if TYPE_CHECKING:
    from lengthwise.telemetry.shared_counts import SharedCounts

REASONS = ("queue_full", "inflight_full", "deadline", "draining", "not_ready")
CODES = (200, 413, 422, 429, 499, 500, 503, 504)  # 0 from the start: a counter that appears later has no rate
STATUSES: Final = (200, 400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 421, 422, 429, 431, 499, 500, 501, 503, 504)

KEPT_GONE = 4  # removed versions that stay on the page: their counts since the last scrape are not lost

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LABELS: Final = ("model", "version")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEPS = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 16384)


class Histogram:
    """Counts of observations by bucket; the caller holds the lock of its `ModelMetrics`.

    `bounds` are the upper ones of the buckets but the last. The counts are in `cells` from `first` on, and behind them
    the sum of the values.
    """

    __slots__ = ("_cells", "_first", "_total", "bounds", "exemplars")

    def __init__(self, bounds: Sequence[float], cells: MutableSequence[float], first: int) -> None:
        self.bounds = bounds
        self.exemplars: dict[int, Exemplar] = {}
        self._cells = cells
        self._first = first
        self._total = first + len(bounds) + 1

    def observe(self, value: float, trace_id: str | None = None) -> None:
        """Counts one observation; that of a trace becomes its bucket's exemplar."""
        bucket = bisect_left(self.bounds, value)
        self._cells[self._first + bucket] += 1
        self._cells[self._total] += value
        if trace_id is not None:
            self.exemplars[bucket] = Exemplar({"trace_id": trace_id}, value, time.time())

    @property
    def counts(self) -> list[int]:
        """Number of observations of each bucket."""
        return [int(count) for count in self._cells[self._first : self._total]]

    @property
    def total(self) -> float:
        """Sum of the observed values."""
        return self._cells[self._total]

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        """Cumulative counts, as Prometheus wants them, each with its bucket's exemplar."""
        names = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return [
            (name, float(count), self.exemplars[i]) if i in self.exemplars else (name, float(count))
            for i, (name, count) in enumerate(zip(names, accumulate(self.counts), strict=True))
        ]


@dataclass(slots=True)
class Sums:
    """Sums over the answered calls of a model, each call with all of its stages, in seconds."""

    calls: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0


@dataclass(slots=True)
class OfRows:
    """Sums over the batches with one number of rows, in seconds."""

    batches: int = 0
    padding_seconds: float = 0.0
    running_seconds: float = 0.0  # in the runtime, and scoring its outputs
    writing_seconds: float = 0.0  # encoding the answers that they completed


class _CountOf:
    """A number of `ModelMetrics` in its cells."""

    def __init__(self, cell: int) -> None:
        self.cell = cell

    def __get__(self, metrics: ModelMetrics, _: object = None) -> int:
        return int(metrics.cells[self.cell])


NO_NAME: Final = "-"  # the label `key` of calls whose key has no name, or that sent no valid one
_CODE: Final = {code: cell for cell, code in enumerate(STATUSES)}
_REASON: Final = {reason: cell for cell, reason in enumerate(REASONS, len(_CODE))}
_NUMBERS: Final = len(_CODE) + len(_REASON)
_SEQUENCES, _VALID, _PADDING, _COMPUTED, _FAILED, _OVERDUE, _CANCELLED, _CLIPPED, _HISTOGRAMS = range(
    _NUMBERS, _NUMBERS + 9
)
_BOUNDS: Final[tuple[Sequence[float], ...]] = (SECONDS, SECONDS, SECONDS, SECONDS, ROWS, STEPS, STEPS)
CELLS: Final = _HISTOGRAMS + sum(len(bounds) + 2 for bounds in _BOUNDS)  # of a model


class ModelMetrics:
    """The metrics of one model and version; of calls for no served model where both labels are empty."""

    sequences = _CountOf(_SEQUENCES)
    valid_steps = _CountOf(_VALID)
    padding_steps = _CountOf(_PADDING)
    computed_padding_steps = _CountOf(_COMPUTED)
    batch_failures = _CountOf(_FAILED)
    overdue_batches = _CountOf(_OVERDUE)
    cancelled_sequences = _CountOf(_CANCELLED)
    clipped_values = _CountOf(_CLIPPED)

    def __init__(
        self,
        name: str = "",
        version: str = "",
        info: dict[str, str] | None = None,
        cells: MutableSequence[float] | None = None,
        claim: Callable[[str], MutableSequence[float] | None] = lambda _: None,
    ) -> None:
        self.labels = (name, version)
        self.info = info  # labels of `model_info`; None for no such metric
        self.lock = threading.Lock()
        self.cells: MutableSequence[float] = [0] * CELLS if cells is None else cells
        self.named: dict[str, MutableSequence[float]] = {}  # calls of keys that have a name, by status
        self._claim = claim  # shared memory for the calls of a name, if there is any
        self.computes_padding = True  # as its graph runs now
        self.answered = Sums()
        first, histograms = _HISTOGRAMS, []
        for bounds in _BOUNDS:
            histograms.append(Histogram(bounds, self.cells, first))
            first += len(bounds) + 2
        self.request_seconds, self.decode_seconds, self.queue_seconds, self.inference_seconds = histograms[:4]
        self.batch_rows, self.batch_width, self.sequence_length = histograms[4:]
        self.by_rows: dict[int, OfRows] = {}
        self.last_batch_time = 0.0  # seconds since the epoch, of when the last one was counted

    @property
    def codes(self) -> dict[int, int]:
        """Inference calls by status: those of `CODES`, and those that were counted."""
        return _by_status(self.cells)

    @property
    def codes_by_key(self) -> dict[str, dict[int, int]]:
        """The same calls by the name of the caller's key, then by status; those without a name are the rest."""
        named = {key: _by_status(cells) for key, cells in self.named.items()}
        rest = {code: count - sum(each.get(code, 0) for each in named.values()) for code, count in self.codes.items()}
        return {NO_NAME: rest, **named}

    @property
    def rejected(self) -> dict[str, int]:
        """Rejected calls by reason."""
        return {reason: int(self.cells[cell]) for reason, cell in _REASON.items()}

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
        """Counts an inference call that has ended; `stages` are its seconds in the queue and the runtime."""
        cell = _CODE.get(code, _CODE[500])
        with self.lock:
            self.cells[cell] += 1
            if key != NO_NAME:
                if key not in self.named:
                    self.named[key] = self._claim(key) or [0] * len(STATUSES)
                self.named[key][cell] += 1
            self.request_seconds.observe(seconds, trace_id)
            if stages is not None:
                answered = self.answered
                answered.calls += 1
                answered.seconds += seconds
                answered.decode_seconds += decode_seconds
                answered.queue_seconds += stages[0]
                answered.inference_seconds += stages[1]
            if reason is not None:
                self.cells[_REASON[reason]] += 1

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
        padding_seconds: float = 0.0,
        writing_seconds: float = 0.0,
    ) -> None:
        """Counts a batch that ran; `padding_seconds` are a part of `seconds`, `writing_seconds` are not."""
        with self.lock:
            of_rows = self.by_rows.get(rows)
            if of_rows is None:
                of_rows = self.by_rows[rows] = OfRows()
            of_rows.batches += 1
            of_rows.padding_seconds += padding_seconds
            of_rows.running_seconds += seconds - padding_seconds
            of_rows.writing_seconds += writing_seconds
            self.last_batch_time = time.time()
            self.batch_rows.observe(rows)
            self.batch_width.observe(width)
            cells = self.cells
            cells[_VALID] += valid_steps
            padding = rows * width - valid_steps
            cells[_PADDING] += padding
            if self.computes_padding:
                cells[_COMPUTED] += padding
            self.inference_seconds.observe(seconds)
            for wait in waits:
                self.queue_seconds.observe(wait)

    def count(self, name: str, number: int = 1) -> None:
        """Adds to `batch_failures`, `overdue_batches`, `cancelled_sequences` or `clipped_values`."""
        with self.lock:
            self.cells[vars(ModelMetrics)[name].cell] += number


def _by_status(cells: MutableSequence[float]) -> dict[int, int]:
    return {code: int(cells[cell]) for code, cell in _CODE.items() if cells[cell] or code in CODES}


@dataclass(frozen=True, slots=True)
class Gauges:
    """The gauges of one model: what waits and runs now. Each has the help that its page shows."""

    queue_cost_steps: Annotated[int, "Padded steps that wait."]
    queue_sequences: Annotated[int, "Sequences that wait."]
    inflight_batches: Annotated[int, "Batches that run now."]
    ready: Annotated[bool, "1 while the model is served and works."]
    breaker_open: Annotated[bool, "1 while the model does not work, and requests for it are rejected."] = False
    queue_seconds: Annotated[float, "Predicted seconds until what waits now has begun to run."] = 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The metrics of the process, over all models, and their limits: alerts need no options then."""

    runners: Annotated[int, "Threads that run batches."]
    max_queue_cost_steps: Annotated[int, "Most padded steps that may wait, over all models."]
    refused_models: Annotated[int, "Versions in the repository that failed their verification and are not served."]
    inflight_bytes: Annotated[int, "Bytes of bodies and answers in memory: read, inflated, waiting, being written."]
    max_inflight_bytes: Annotated[int, "Most bytes of bodies and answers that may be in memory."]
    max_queue_seconds: Annotated[float, "Predicted seconds of waiting at which the queue is full."] = 0.0


def _helps(kind: type) -> dict[str, str]:
    """The fields of a dataclass, each with its help."""
    return {name: hint.__metadata__[0] for name, hint in get_type_hints(kind, include_extras=True).items()}


class Metrics(Collector):
    """The metrics of all models, the gauges and bounds, read at each scrape, and what others count (`more`)."""

    def __init__(
        self,
        gauges: Callable[[], dict[tuple[str, str], Gauges]],
        bounds: Callable[[], Bounds],
        *more: Callable[[], Iterable[Family]],
        shared: SharedCounts | None = None,
        models: Iterable[ModelMetrics] = (),
        forget: Callable[[tuple[str, str], Snapshot], object] = lambda *_: None,
    ) -> None:
        self._gauges = gauges
        self._bounds = bounds
        self._more = more
        self._shared = shared  # the memory of the counts; None for this process's own
        self.forgotten = 0  # models, so far
        self._forget = forget  # told what was counted of a model that is not counted any more
        self._models = {model.labels: model for model in models}
        self._gone: dict[tuple[str, str], None] = {}
        self._process = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)
        self.unknown = self.model()

    def model(self, name: str = "", version: str = "", info: dict[str, str] | None = None) -> ModelMetrics:
        """The metrics of a model; created at the first call, and kept when the model is loaded again."""
        self._gone.pop((name, version), None)
        metrics = self._models.get((name, version))
        if metrics is None:
            metrics = ModelMetrics(name, version)
            if (shared := self._shared) is not None:
                claim = partial(shared.claim, name, version)
                metrics = ModelMetrics(name, version, cells=claim(), claim=claim)
            self._models[name, version] = metrics
        metrics.info = info
        return metrics

    def remove(self, metrics: ModelMetrics) -> None:
        """Removes a model's `model_info`, as it is no longer served; its counts stay for `KEPT_GONE` more removals."""
        metrics.info = None
        name, version = metrics.labels
        self._gone[name, version] = self._gone.pop((name, version), None)
        if len(self._gone) > KEPT_GONE:
            longest_gone = next(iter(self._gone))
            del self._gone[longest_gone]
            self.forgotten += 1
            self._forget(longest_gone, counted([self._models.pop(longest_gone)]))
            if self._shared is not None:
                self._shared.release(*longest_gone)

    def exposition(self, accept: str = "", snapshots: Sequence[Snapshot] = ()) -> tuple[bytes, str]:
        """The body of `GET /metrics` and its media type: OpenMetrics, with exemplars, if `accept` asks for it.

        With snapshots of all processes, this one's among them, it is their sum. It may be made in any thread.
        """
        try:
            encode, media_type = choose_encoder(accept)
        except TypeError:  # it compares a version that is a word with a number
            encode, media_type = choose_encoder("")
        return encode(self if not snapshots else _Sum(self._models, Total(snapshots))), media_type

    def snapshot(self) -> Snapshot:
        """What this process has counted, and its gauges, as plain data; in any thread."""
        return taken(*_rows_of(list(self._models.values())), self._others())

    def text(self) -> bytes:
        """The exposition as Prometheus's own text format."""
        return self.exposition()[0]

    def collect(self) -> Iterator[Metric]:
        """Every family, for prometheus_client."""
        yield from _of_models(list(self._models.values()))
        yield from self._others()

    def _others(self) -> Iterator[Metric]:
        """Every family but those of `_of_models`."""
        yield from map(_metric, self._families())
        yield from self._process.collect()

    def _families(self) -> Iterator[Family]:
        yield from _families_of(list(self._models.values()), "gauge")
        gauges = self._gauges()
        for name, help_ in _helps(Gauges).items():
            yield Family("gauge", name, help_, _LABELS, [(key, getattr(one, name)) for key, one in gauges.items()])
        bounds = self._bounds()
        for name, help_ in _helps(Bounds).items():
            yield Family("gauge", name, help_, (), [((), getattr(bounds, name))])
        for families in self._more:
            yield from families()


class _Sum(Collector):
    """The metrics of all processes; exemplars are of the models of this one."""

    def __init__(self, own: dict[tuple[str, str], ModelMetrics], total: Total) -> None:
        self._total = total
        self._models = {}
        for (name, version), row in total.models.items():
            self._models[name, version] = model = ModelMetrics(name, version, cells=row.tolist())
            for _, attribute, _ in HISTOGRAMS if (name, version) in own else ():
                getattr(model, attribute).exemplars = getattr(own[name, version], attribute).exemplars
        for (name, version, key), row in total.keys.items():
            self._models[name, version].named[key] = row.tolist()

    def collect(self) -> Iterator[Metric]:
        """Every family, for prometheus_client."""
        yield from _of_models(list(self._models.values()))
        yield from self._total.families()


def _of_models(models: Sequence[ModelMetrics]) -> Iterator[Metric]:
    """The families of what models have counted."""
    yield from map(_metric, _families_of(models, "counter"))
    for name, attribute, help_ in HISTOGRAMS:
        histograms = HistogramMetricFamily(f"lengthwise_{name}", help_, labels=_LABELS)
        for model in models:
            with model.lock:
                histogram: Histogram = getattr(model, attribute)
                histograms.add_metric(model.labels, histogram.buckets(), histogram.total)
        yield histograms


def _families_of(models: Sequence[ModelMetrics], kind: Kind) -> Iterator[Family]:
    for each, name, help_, labels, read in OF_MODELS:
        if each == kind:
            samples: list[tuple[tuple[str, ...], float]] = []
            for model in models:
                with model.lock:
                    samples += [((*model.labels, *more), number) for more, number in read(model)]
            yield Family(kind, name, help_, (*_LABELS, *labels), samples)


def _metric(family: Family) -> Metric:
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(f"lengthwise_{family.name}", family.help, labels=family.labels)
    for labels, number in family.samples:
        metric.add_metric(labels, float(number))
    return metric


def counted(models: Iterable[ModelMetrics]) -> Snapshot:
    """What was counted of models."""
    return taken(*_rows_of(models), ())


def _rows_of(models: Iterable[ModelMetrics]) -> tuple[CountRows, CountRows]:
    """The counts of models, and those of keys with a name."""
    counts: CountRows = {}
    keys: CountRows = {}
    for model in models:
        with model.lock:
            counts[model.labels] = np.array(model.cells)
            keys |= {(*model.labels, key): np.array(cells) for key, cells in model.named.items()}
    return counts, keys

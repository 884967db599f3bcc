"""Every metric, declared once: its kind, how it adds up over workers, its name, its help and its labels.

| a metric | is declared as |
|---|---|
| a counter of a model | a `ModelCounter` in `COUNTERS`; `ModelMetrics.count` counts it |
| a histogram of a model | a `ModelHistogram` in `HISTOGRAMS` |
| a gauge of a model, or of the process | a field of `Gauges` or `Bounds` in `telemetry.metrics` |
| any other | a `Family`, made at each scrape where its numbers are |

They are plain data: packages with figures of their own need not know Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge"]
OverWorkers: TypeAlias = Literal["sum", "largest"]
"""What the page of all workers shows: the sum of their numbers; or the largest one, of numbers that are the same in all
workers, or that are 1 as soon as one worker says so."""

LabelValues: TypeAlias = tuple[str, ...]  # values of labels
LabelledNumber: TypeAlias = tuple[LabelValues, float]  # a sample
OF_A_MODEL: Final = ("model", "version")  # labels of every metric of a model
NO_NAME: Final = "-"  # the label `key` of calls whose key has no name, or that sent no valid one
REASONS: Final = ("queue_full", "inflight_full", "deadline", "draining", "not_ready")
STATUSES: Final = (200, 400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 421, 422, 429, 431, 499, 500, 501, 503, 504)
CODES: Final = ("200", "413", "422", "429", "499", "500", "503", "504")
"""The statuses that are shown at 0, too: Prometheus computes no rate for a counter's first appearance."""


@dataclass(slots=True)
class Family:
    """A metric with its samples. On the page its name has the prefix; a counter's also ends with `_total`."""

    kind: Kind
    over_workers: OverWorkers
    name: str
    help: str
    labels: tuple[str, ...] = ()  # names
    samples: Iterable[LabelledNumber] = ()
    prefix: str = "lengthwise_"


@dataclass(frozen=True, slots=True)
class ModelCounter:
    """A counter of a model; or several counters that differ in one label, each with one of its `values`.

    Each value has a cell of the model's row. Over workers it is the sum, because rows are added.
    """

    name: str
    help: str
    labels: LabelValues = ()  # besides those of the model; the values are of the first one
    values: tuple[str, ...] = ("",)


@dataclass(frozen=True, slots=True)
class ModelHistogram:
    """A histogram of a model. Over workers it is the sum."""

    name: str
    help: str
    bounds: Sequence[float]  # upper bounds of the buckets; one more bucket has no bound


COUNTERS: Final = (
    ModelCounter(
        "requests",
        "Inference calls under any protocol, by status and by the name of the caller's key.",
        ("code", "key"),  # a key with a name has a row of its own
        tuple(map(str, STATUSES)),
    ),
    ModelCounter("rejected", "Calls rejected although nothing was wrong with them, by reason.", ("reason",), REASONS),
    ModelCounter(
        "steps",
        "Steps of the batches, rows x width: valid ones, and padding, whether it was computed or skipped.",
        ("kind",),
        ("valid", "padding"),
    ),
    ModelCounter("sequences", "Sequences decoded."),
    ModelCounter(
        "computed_padding_steps",
        "The padding of lengthwise_steps_total, times its measured cost: 0 if skipped, 1 if computed as valid steps.",
    ),
    ModelCounter("batch_failures", "Batches that failed in the runtime."),
    ModelCounter("overdue_batches", "Batches that ran for many times longer than predicted."),
    ModelCounter("cancelled_sequences", "Sequences whose client left before their batch began."),
    ModelCounter("clipped_values", "Values that were clipped at the grid of a model."),
    ModelCounter("chunks", "Answered sequences that came with a state, or asked for one."),
    ModelCounter(
        "state_refused",
        "Sequences whose state was refused, by reason.",
        ("reason",),
        ("malformed", "version", "offset"),
    ),
    ModelCounter("verified_answers", "Answers that were computed again, alone."),
    ModelCounter("verify_mismatches", "Of these, answers that were not the same alone."),
)
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STEPS: Final = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 16384)
HISTOGRAMS: Final = (
    ModelHistogram("request_duration_seconds", "From the first byte of a call to its answer.", _SECONDS),
    ModelHistogram("queue_wait_seconds", "From accepting a sequence to the start of its batch.", _SECONDS),
    ModelHistogram("inference_duration_seconds", "One batch in the runtime.", _SECONDS),
    ModelHistogram("decode_duration_seconds", "Reading one body.", _SECONDS),
    ModelHistogram("batch_rows", "Sequences in a batch.", ROWS),
    ModelHistogram("batch_width_steps", "Padded steps of a batch's rows, rounding included.", _STEPS),
    ModelHistogram("sequence_length_steps", "Steps of a sequence.", _STEPS),
)
CELL: Final = {
    key: cell for cell, key in enumerate((counter.name, value) for counter in COUNTERS for value in counter.values)
}
"""The cell in a model's row, by (counter, value of its label); `requests` has the first cells, as in a key's row."""
_ENDS: Final = [*accumulate((len(histogram.bounds) + 2 for histogram in HISTOGRAMS), initial=len(CELL))]
FIRST_CELL: Final = {histogram.name: first for histogram, first in zip(HISTOGRAMS, _ENDS, strict=False)}
"""The first cell of each histogram: its cells are the counts of the buckets, and then the sum of the values."""
CELLS: Final = _ENDS[-1]
"""The number of cells in a model's row."""


@dataclass
class Openings:
    """The gauges of what is open now: connections, streams, live views; each is a function, called at each scrape."""

    # By door, which is one of `http`, `admin` and `grpc`: a function that counts the open connections, and their limit
    connections: dict[str, tuple[Callable[[], int], int]] = field(default_factory=dict)
    streams: Callable[[], Mapping[str, int]] = dict  # calls and streams over gRPC, by kind
    viewers: list[Callable[[], int]] = field(default_factory=list)  # live views; there may be several consoles

    def families(self) -> list[Family]:
        """Makes the families of the gauges, with their present numbers."""
        doors = [((door,), float(count())) for door, (count, _) in self.connections.items()]
        limits = [((door,), float(limit)) for door, (_, limit) in self.connections.items()]
        streams = [((kind,), float(count)) for kind, count in self.streams().items()]
        viewers = sum(count() for count in self.viewers)
        return [
            Family("gauge", "sum", "open_connections", "Connections that are open now.", ("door",), doors),
            Family("gauge", "sum", "max_connections", "Most connections that may be open.", ("door",), limits),
            Family(
                "gauge", "sum", "grpc_streams", "Calls and streams over gRPC that are open now.", ("kind",), streams
            ),
            Family("gauge", "sum", "live_viewers", "Live views of the console that are open now.", (), [((), viewers)]),
        ]

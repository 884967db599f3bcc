"""Metric families as plain data: packages with figures of their own need not know Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from lengthwise.telemetry.metrics import ModelMetrics

Kind: TypeAlias = Literal["counter", "gauge"]


@dataclass(slots=True)
class Family:
    """One metric with its samples: the values of its labels, and the number. Names get `lengthwise_` and `_total`."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    samples: Sequence[tuple[tuple[str, ...], float]] = ()


LabelledNumbers: TypeAlias = Sequence[tuple[tuple[str, ...], float]]  # values of a family's own labels


def _codes(model: ModelMetrics) -> LabelledNumbers:
    return [((str(code),), count) for code, count in sorted(model.codes.items())]


def _informed(name: str, *labels: str) -> Callable[[ModelMetrics], LabelledNumbers]:
    """Always 1, with labels of a model's `info`, where it has the first of them."""

    def samples(model: ModelMetrics) -> LabelledNumbers:
        info = model.info
        return [] if info is None or name not in info else [(tuple(info[label] for label in (name, *labels)), 1)]

    return samples


def _steps(model: ModelMetrics) -> LabelledNumbers:
    return [(("valid",), model.valid_steps), (("padding",), model.padding_steps)]


def _number(name: str) -> Callable[[ModelMetrics], LabelledNumbers]:
    return lambda model: [((), getattr(model, name))]


OF_MODELS: Final[tuple[tuple[Kind, str, str, tuple[str, ...], Callable[[ModelMetrics], LabelledNumbers]], ...]] = (
    ("counter", "requests", "Inference calls under any protocol, by status.", ("code",), _codes),
    (
        "counter",
        "rejected",
        "Calls rejected although nothing was wrong with them, by reason.",
        ("reason",),
        lambda model: [((reason,), count) for reason, count in model.rejected.items()],
    ),
    ("counter", "sequences", "Sequences decoded.", (), _number("sequences")),
    (
        "counter",
        "steps",
        "Steps of the batches, rows x width: valid ones, and padding, whether it was computed or skipped.",
        ("kind",),
        _steps,
    ),
    (
        "counter",
        "computed_padding_steps",
        "The padding of lengthwise_steps_total that was computed; Lengthwise's kernels on the CPU skip it.",
        (),
        _number("computed_padding_steps"),
    ),
    ("counter", "batch_failures", "Batches that failed in the runtime.", (), _number("batch_failures")),
    (
        "counter",
        "overdue_batches",
        "Batches that ran for many times longer than predicted.",
        (),
        _number("overdue_batches"),
    ),
    (
        "counter",
        "cancelled_sequences",
        "Sequences whose client left before their batch began.",
        (),
        _number("cancelled_sequences"),
    ),
    ("counter", "clipped_values", "Values that were clipped at the grid of a model.", (), _number("clipped_values")),
    ("gauge", "model_info", "Always 1.", ("provider", "digest"), _informed("provider", "digest")),
    (
        "gauge",
        "recurrent_kernels",
        "Always 1; the kernels of the model's recurrent layers: an instruction set, or onnxruntime.",
        ("kernels",),
        _informed("kernels"),
    ),
)
HISTOGRAMS: Final = (
    ("request_duration_seconds", "request_seconds", "From the first byte of a call to its answer."),
    ("queue_wait_seconds", "queue_seconds", "From accepting a sequence to the start of its batch."),
    ("inference_duration_seconds", "inference_seconds", "One batch in the runtime."),
    ("decode_duration_seconds", "decode_seconds", "Reading one body."),
    ("batch_rows", "batch_rows", "Sequences in a batch."),
    ("batch_width_steps", "batch_width", "Padded steps of a batch's rows, rounding included."),
    ("sequence_length_steps", "sequence_length", "Steps of a sequence."),
)
GAUGES: Final = (
    ("queue_cost_steps", "Padded steps that wait."),
    ("queue_sequences", "Sequences that wait."),
    ("inflight_batches", "Batches that run now."),
    ("ready", "1 while the model is served and works."),
    ("breaker_open", "1 while the model does not work, and requests for it are rejected."),
    ("queue_seconds", "Predicted seconds until what waits now has begun to run."),
)
BOUNDS: Final = (
    ("runners", "Threads that run batches."),
    ("max_queue_cost_steps", "Most padded steps that may wait, over all models."),
    ("max_queue_seconds", "Predicted seconds of waiting at which the queue is full."),
    ("refused_models", "Versions in the repository that failed their verification and are not served."),
    ("inflight_bytes", "Bytes of bodies and answers in memory: read, inflated, waiting, being written."),
    ("max_inflight_bytes", "Most bytes of bodies and answers that may be in memory."),
)

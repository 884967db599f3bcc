"""Metric families as plain data: packages with figures of their own need not know Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


_NUMBERS: Final = {
    "sequences": "Sequences decoded.",
    "computed_padding_steps": "The padding of lengthwise_steps_total that was computed; kernels on the CPU skip it.",
    "batch_failures": "Batches that failed in the runtime.",
    "overdue_batches": "Batches that ran for many times longer than predicted.",
    "cancelled_sequences": "Sequences whose client left before their batch began.",
    "clipped_values": "Values that were clipped at the grid of a model.",
}
_REQUESTS: Final = "Inference calls under any protocol, by status and by the name of the caller's key."
_STEPS: Final = "Steps of the batches, rows x width: valid ones, and padding, whether it was computed or skipped."
_KERNELS: Final = "Always 1; the kernels of the model's recurrent layers: an instruction set, or onnxruntime."
_REJECTED: Final = "Calls rejected although nothing was wrong with them, by reason."
OF_MODELS: Final[tuple[tuple[Kind, str, str, tuple[str, ...], Callable[[ModelMetrics], LabelledNumbers]], ...]] = (
    (
        *("counter", "requests", _REQUESTS, ("code", "key")),
        lambda model: [
            ((str(code), key), count) for key, codes in model.codes_by_key.items() for code, count in codes.items()
        ],
    ),
    (
        *("counter", "rejected", _REJECTED, ("reason",)),
        lambda model: [((reason,), count) for reason, count in model.rejected.items()],
    ),
    ("counter", "steps", _STEPS, ("kind",), _steps),
    *(("counter", name, help_, (), _number(name)) for name, help_ in _NUMBERS.items()),
    ("gauge", "model_info", "Always 1.", ("provider", "digest"), _informed("provider", "digest")),
    ("gauge", "recurrent_kernels", _KERNELS, ("kernels",), _informed("kernels")),
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


class Openings:
    """What is open now: connections, streams and live views. Each is counted where it is, and read at each scrape."""

    def __init__(self) -> None:
        # those open, and the most, by door: `http`, `admin`, `grpc`
        self.connections: dict[str, tuple[Callable[[], int], int]] = {}
        self.streams: Callable[[], Mapping[str, int]] = dict  # calls and streams over gRPC, by kind
        self.viewers: list[Callable[[], int]] = []  # live views; there may be several pages of the console

    def families(self) -> list[Family]:
        """The gauges as they are now."""
        doors = [((door,), float(count())) for door, (count, _) in self.connections.items()]
        most = [((door,), float(limit)) for door, (_, limit) in self.connections.items()]
        streams = [((kind,), float(count)) for kind, count in self.streams().items()]
        viewers = sum(count() for count in self.viewers)
        return [
            Family("gauge", "open_connections", "Connections that are open now.", ("door",), doors),
            Family("gauge", "max_connections", "Most connections that may be open.", ("door",), most),
            Family("gauge", "grpc_streams", "Calls and streams over gRPC that are open now.", ("kind",), streams),
            Family("gauge", "live_viewers", "Live views of the console that are open now.", (), [((), viewers)]),
        ]

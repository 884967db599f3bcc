"""The metrics under the names of NVIDIA Triton, for dashboards and autoscalers that know those: `--triton-metrics`.

The names have the meaning that Triton gives them (its user guide, "Metrics"): a duration is a sum over the answered
calls, each with all of its time in a stage, so that `rate(duration) / rate(success)` is a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client.core import Metric, UnknownMetricFamily

from lengthwise.telemetry.metrics import ModelMetrics

_MICROSECONDS: Final = 1e6

_FAMILIES: Final[tuple[tuple[str, str, Callable[[ModelMetrics], float]], ...]] = (
    ("nv_inference_request_success", "Calls that were answered.", lambda model: model.answered.calls),
    (
        "nv_inference_request_failure",
        "Calls that were refused or failed.",
        lambda model: model.request_seconds.count - model.answered.calls,
    ),
    ("nv_inference_count", "Sequences that were run.", lambda model: model.batch_rows.total),
    ("nv_inference_exec_count", "Batches that were run.", lambda model: model.batch_rows.count),
    (
        "nv_inference_request_duration_us",
        "Microseconds from the arrival of calls to their answers.",
        lambda model: model.answered.seconds * _MICROSECONDS,
    ),
    (
        "nv_inference_queue_duration_us",
        "Microseconds that calls waited for their batches.",
        lambda model: model.answered.queue_seconds * _MICROSECONDS,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Microseconds that calls spent in the runtime.",
        lambda model: model.answered.inference_seconds * _MICROSECONDS,
    ),
)


def families(models: Sequence[ModelMetrics]) -> Iterator[Metric]:
    """The metric families, with a sample for each model; calls for unknown models are left out, as in Triton."""
    for name, help_, value in _FAMILIES:
        # They are counters; but the library lets a counter's samples end in `_total`, and Triton's do not.
        family = UnknownMetricFamily(name, help_, labels=["model", "version"])
        for model in models:
            if any(model.labels):
                with model.lock:
                    family.add_metric(model.labels, float(value(model)))
        yield family

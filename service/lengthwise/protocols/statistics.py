"""A model's statistics as Triton's statistics extension has them: `GET /v2/models/MODEL/stats` and `ModelStatistics`.

They are the metrics of `/metrics` under that extension's names. `inference_stats` counts requests, each as one,
however many sequences it has; `batch_stats` counts batches, by their rows. An answered request is counted in all of its
stages at once: perf_analyzer reports an error where these counts differ.

| name | of a request | of a batch |
|---|---|---|
| `queue` | waiting for its batches | |
| `compute_input` | decoding its body | padding its sequences |
| `compute_infer` | its batches, with padding | running the graph, and scoring |
| `compute_output` | encoding its answer | encoding the answers that it completed |

Nothing is cached, so `cache_hit` and `cache_miss` stay 0.
"""

from __future__ import annotations

from typing import Any

from lengthwise.protocols import kserve
from lengthwise.repository.served import ServedModel
from lengthwise.serving import Serving
from lengthwise.telemetry.metrics import ModelMetrics


def of(serving: Serving, name: str | None, version: str | None) -> dict[str, Any]:
    """The statistics of one version, of all versions of a model, or of all served models.

    Args:
        serving: The service.
        name: The model's, or None for all.
        version: The digits of its version, or None for all.

    Raises:
        RequestError: There is no such model, or none is ready.
    """
    if name is None and version is None:
        models = list(serving.served)
    else:
        one = kserve.find(serving, name, version)
        models = [one] if version is not None else _versions(serving, one)
    return {"model_stats": [_described(served) for served in models]}


def _versions(serving: Serving, one: ServedModel) -> list[ServedModel]:
    return [served for served in serving.served if served.manifest.name == one.manifest.name]


def _described(served: ServedModel) -> dict[str, Any]:
    manifest, metrics = served.manifest, served.metrics
    with metrics.lock:
        return {
            "name": manifest.name,
            "version": str(manifest.version),
            "last_inference": int(metrics.last_batch_time * 1000),
            "inference_count": int(metrics.batch_rows.total),
            "execution_count": metrics.batch_rows.count,
            "inference_stats": _of_requests(metrics),
            "batch_stats": _of_batches(metrics),
        }


def _of_requests(metrics: ModelMetrics) -> dict[str, Any]:
    answered = metrics.answered
    writing_seconds = sum(of_rows.writing_seconds for of_rows in metrics.by_rows.values())
    return {
        "success": _duration(answered.calls, answered.seconds),
        "fail": _duration(
            metrics.request_seconds.count - answered.calls, metrics.request_seconds.total - answered.seconds
        ),
        "queue": _duration(answered.calls, answered.queue_seconds),
        "compute_input": _duration(answered.calls, answered.decode_seconds),
        "compute_infer": _duration(answered.calls, answered.inference_seconds),
        "compute_output": _duration(answered.calls, writing_seconds),
        "cache_hit": _duration(0, 0.0),
        "cache_miss": _duration(0, 0.0),
    }


def _of_batches(metrics: ModelMetrics) -> list[dict[str, Any]]:
    return [
        {
            "batch_size": rows,
            "compute_input": _duration(of_rows.batches, of_rows.padding_seconds),
            "compute_infer": _duration(of_rows.batches, of_rows.running_seconds),
            "compute_output": _duration(of_rows.batches, of_rows.writing_seconds),
        }
        for rows, of_rows in sorted(metrics.by_rows.items())
    ]


def _duration(count: int, seconds: float) -> dict[str, int]:
    """A count and its time; a difference of sums may be below 0 by rounding."""
    return {"count": count, "ns": max(0, round(seconds * 1e9))}

"""A model that is served: what a request finds in the registry under a name and a version."""

from __future__ import annotations

from functools import partial

from lengthwise.batching.plan import BatchLimits
from lengthwise.batching.queues import ModelQueue
from lengthwise.repository.model import LoadedModel
from lengthwise.telemetry.metrics import ModelMetrics


class ServedModel:
    """A model with its queue and its metrics."""

    __slots__ = ("manifest", "metrics", "model", "queue")

    def __init__(self, model: LoadedModel, metrics: ModelMetrics, limits: BatchLimits) -> None:
        self.model = model
        self.manifest = model.manifest
        self.metrics = metrics
        metrics.computes_padding = model.session.computes_padding
        counted = partial(metrics.count, "clipped_values")
        self.queue = ModelQueue(
            model.manifest.key,
            partial(model.answer, on_clipped=counted) if model.manifest.graph.clipped else model.answer,
            model.cost,
            metrics,
            limits.at_most(model.manifest.max_batch_rows),
            multiple=model.manifest.width_multiple,
            buckets=model.buckets,
            steady=model.steady,
        )

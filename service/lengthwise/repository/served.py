"""A model that is served: what a request finds in the registry under a name and a version."""

from __future__ import annotations

import copy

from lengthwise.batching.plan import BatchLimits
from lengthwise.batching.queues import ModelQueue
from lengthwise.canary import Canary
from lengthwise.repository.model import LoadedModel
from lengthwise.telemetry.metrics import ModelMetrics


class ServedModel:
    """A model with its queue and its metrics.

    Args:
        model: The model.
        metrics: Its metrics.
        limits: The limits of one batch.

    Attributes:
        canary: Which sequences another version answers in its place; only what a request without a version finds has
            one.
    """

    __slots__ = ("canary", "manifest", "metrics", "model", "queue")

    def __init__(self, model: LoadedModel, metrics: ModelMetrics, limits: BatchLimits) -> None:
        self.model = model
        self.manifest = model.manifest
        self.metrics = metrics
        self.canary: Canary | None = None
        self.queue = ModelQueue(
            model.manifest.key,
            model.answer,
            model.cost,
            metrics,
            limits.at_most(model.manifest.max_batch_rows),
            multiple=model.manifest.width_multiple,
            buckets=model.buckets,
            steady=model.steady,
        )

    def with_canary(self, canary: Canary) -> ServedModel:
        """The same model with a canary. It shares its queue and metrics."""
        made = copy.copy(self)
        made.canary = canary
        return made

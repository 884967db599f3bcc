"""Metrics of a model that has answered some requests."""

from lengthwise.telemetry.metrics import Bounds, Gauges, Metrics

INFO = {"provider": "CPUExecutionProvider", "digest": "sha256:00", "kernels": "avx512"}


def metrics() -> Metrics:
    return Metrics(lambda: {("m", "1"): Gauges(12, 3, 1, True)}, lambda: Bounds(2, 1000, 0, 300, 4000))


def page_of(metrics: Metrics) -> bytes:
    """The page of this process in Prometheus's own text format."""
    return b"".join(metrics.exposition()[0])


def used() -> Metrics:
    made = metrics()
    model = made.model("m", "1", INFO)
    model.request(200, 0.003)
    model.request(429, 0.001, "queue_full")
    model.decoded(0.0001, [3, 7])
    model.batch(rows=2, width=8, valid_steps=10, waits=[0.001, 0.002], seconds=0.004)
    model.count("batch_failures")
    return made

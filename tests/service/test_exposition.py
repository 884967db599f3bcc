"""A page of metrics, read back as numbers."""

import math

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from lengthwise.bench.exposition import Samples


def page() -> tuple[CollectorRegistry, Counter, Histogram]:
    registry = CollectorRegistry()
    steps = Counter("steps", "", ["kind", "model"], registry=registry)
    rows = Histogram("rows", "", ["model"], buckets=[1, 4], registry=registry)
    return registry, steps, rows


def read(registry: CollectorRegistry) -> Samples:
    return Samples.parse(generate_latest(registry).decode())


def test_series_are_summed_over_the_labels_that_are_not_asked_for():
    registry, steps, _ = page()
    steps.labels("valid", "a").inc(3)
    steps.labels("valid", "b").inc(4)
    steps.labels("padding", "a").inc(5)
    samples = read(registry)
    assert samples.total("steps_total") == 12
    assert samples.total("steps_total", kind="valid") == 7
    assert samples.by_label("steps_total", "kind") == {"valid": 7, "padding": 5}
    assert samples.total("no_such_total") == 0


def test_buckets_hold_what_lies_in_each_alone():
    registry, _, rows = page()
    assert read(registry).mean("rows") is None
    for model in ("a", "b"):
        for value in (1, 3, 3, 9):
            rows.labels(model).observe(value)
    assert read(registry).buckets("rows") == ([1, 4, math.inf], [2, 4, 2])
    assert read(registry).mean("rows") == 4


def test_growth_counts_a_new_series_from_zero():
    registry, steps, _ = page()
    steps.labels("valid", "a").inc(3)
    before = read(registry)
    steps.labels("valid", "a").inc(2)
    steps.labels("valid", "b").inc(7)
    assert read(registry).since(before).by_label("steps_total", "model") == {"a": 2, "b": 7}

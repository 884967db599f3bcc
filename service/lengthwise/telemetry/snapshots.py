"""The metrics of several processes as one: what each has at a moment, and their sum.

A snapshot is plain data, so that it can be sent: `{metric: [kind, help, {sample: number}]}`, where a sample is its name
and labels as JSON. Counters and histograms add up, and so do gauges, but for those that say how something is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Snapshot = dict[str, Any]
NameAndVersion = tuple[str, str]  # of a model

_ADDED: Final = frozenset({"counter", "histogram"})
_LARGEST: Final = frozenset(
    {
        "process_start_time_seconds",
        "python_info",
        *(
            f"lengthwise_{name}"
            for name in (
                *("ready", "breaker_open", "model_info", "recurrent_kernels", "model_alias", "default_version"),
                *("drift", "drift_limit", "record_bytes", "queue_seconds", "max_queue_seconds", "refused_models"),
                "worker_restarts",
            )
        ),
    }
)
"""Gauges, and one counter that all know, of which the largest counts: all processes say the same, or one suffices."""


def taken(metrics: Iterable[Metric]) -> Snapshot:
    """The snapshot of one process."""
    return {
        metric.name: [
            metric.type,
            metric.documentation,
            {_key(each.name, each.labels): each.value for each in metric.samples},
        ]
        for metric in metrics
    }


def added(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum of snapshots."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, (kind, told, samples) in snapshot.items():
            held: dict[str, float] = total.setdefault(name, [kind, told, {}])[2]
            for key, number in samples.items():
                held[key] = max(held.get(key, number), number) if name in _LARGEST else held.get(key, 0) + number
    return total


def lasting(snapshot: Snapshot) -> Snapshot:
    """What stays of a process that has ended: what it counted."""
    return {name: family for name, family in snapshot.items() if family[0] in _ADDED and name not in _LARGEST}


def drop(snapshot: Snapshot, models: Collection[NameAndVersion]) -> None:
    """Removes what a snapshot has of models."""
    for family in snapshot.values():
        family[2] = {key: number for key, number in family[2].items() if _model(key) not in models}


class EndedCounts:
    """What processes that have ended counted: of models that another process still counts, and of a few others."""

    def __init__(self) -> None:
        self.snapshot: Snapshot = {}
        self._models: list[NameAndVersion] = []  # those that ended last at the end

    def add(self, snapshot: Snapshot, models: Collection[NameAndVersion]) -> None:
        """Adds the last snapshot of a process that counted these models."""
        self.snapshot = added([self.snapshot, lasting(snapshot)])
        self._models = [each for each in self._models if each not in models] + [*models]

    def forget(self, counted: Collection[NameAndVersion], kept: int) -> None:
        """Drops the models that nobody counts any more, but for the last `kept` of them."""
        gone = [each for each in self._models if each not in counted][:-kept]
        if gone:
            self._models = [each for each in self._models if each not in gone]
            drop(self.snapshot, gone)


class Sum(Collector):
    """The sum of this process's metrics and snapshots of others, to be encoded; exemplars are this process's."""

    def __init__(self, own: Iterable[Metric], others: Iterable[Snapshot]) -> None:
        self._own = list(own)
        self._others = list(others)

    def collect(self) -> Iterator[Metric]:
        """Every family, for prometheus_client."""
        exemplars = {
            _key(each.name, each.labels): each.exemplar for one in self._own for each in one.samples if each.exemplar
        }
        for name, (kind, told, samples) in added([taken(self._own), *self._others]).items():
            metric = Metric(name, told, kind)
            for key, number in samples.items():
                sample, labels = json.loads(key)
                metric.add_sample(sample, labels, number, exemplar=exemplars.get(key))
            yield metric


def _key(name: str, labels: dict[str, str]) -> str:
    return json.dumps([name, labels])


def _model(key: str) -> NameAndVersion:
    labels = json.loads(key)[1]
    return labels.get("model", ""), labels.get("version", "")

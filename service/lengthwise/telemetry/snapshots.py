"""The metrics of several processes as one: what each has at a moment, and their sum.

A snapshot is plain data, so that it can be sent as JSON:

| field | is |
|---|---|
| `models` | the counts of each model, `[labels, rows]`: name and version, and the cells of its `ModelMetrics` |
| `keys` | the same of each key with a name: name, version and key, and its calls by status |
| `families` | all other metrics: `{metric: [kind, help, [[sample, labels, number], ...]]}` |

With hundreds of models there are tens of thousands of samples. So counts are sent and added as rows of numbers, and
become samples only on the page. Of the other metrics counters add up, and so do gauges, but for those that say how
something is.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from prometheus_client.core import Metric

Snapshot = dict[str, Any]
RowLabels = tuple[str, ...]  # of a row; those of a model are its name and version
CountRows = dict[RowLabels, Any]  # arrays of float64

_ROWS: Final = ("models", "keys")
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


def taken(models: CountRows, keys: CountRows, others: Iterable[Metric]) -> Snapshot:
    """The snapshot of one process, of its rows and its other metrics."""
    families = {
        metric.name: [metric.type, metric.documentation, [[one.name, one.labels, one.value] for one in metric.samples]]
        for metric in others
    }
    return {"models": _packed(models), "keys": _packed(keys), "families": families}


def without_zeros(snapshot: Snapshot) -> Snapshot:
    """A snapshot to be sent: nothing is added by a zero, and every process has the same samples."""
    families = {
        name: [kind, told, [sample for sample in samples if sample[2]]]
        for name, (kind, told, samples) in snapshot["families"].items()
    }
    return snapshot | {"families": families}


class Total:
    """The sum of snapshots."""

    def __init__(self, snapshots: Iterable[Snapshot] = ()) -> None:
        self.models: CountRows = {}
        self.keys: CountRows = {}
        self._families: dict[str, tuple[str, str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
        for snapshot in snapshots:
            self.add(snapshot)

    def add(self, snapshot: Snapshot) -> None:
        """Adds a snapshot; one without fields adds nothing."""
        for name, rows in zip(_ROWS, (self.models, self.keys), strict=True):
            for labels, row in unpacked(snapshot.get(name)).items():
                rows[labels] = rows.get(labels, 0) + row
        for name, (kind, told, samples) in snapshot.get("families", {}).items():
            numbers = self._families.setdefault(name, (kind, told, {}))[2]
            for sample, labels, number in samples:
                key = sample, tuple(labels.items())
                before = numbers.get(key, 0)
                numbers[key] = max(before, number) if name in _LARGEST else before + number

    def families(self) -> Iterator[Metric]:
        """All metrics but the rows, for prometheus_client."""
        for name, (kind, told, numbers) in self._families.items():
            metric = Metric(name, told, kind)
            for (sample, labels), number in numbers.items():
                metric.add_sample(sample, dict(labels), number)
            yield metric

    def snapshot(self) -> Snapshot:
        """The sum as a snapshot."""
        return taken(self.models, self.keys, self.families())


def renewed(before: Snapshot, now: Snapshot) -> Snapshot:
    """A snapshot with what an earlier one has, as far as it lacks that: whole families."""
    return {**now, "families": {**before.get("families", {}), **now["families"]}}


def with_rows(last: Snapshot, exact: Snapshot) -> Snapshot:
    """The last snapshot of a process with rows that are exact; a model without such a row has its last one."""
    rows = {name: _packed(unpacked(last.get(name)) | unpacked(exact[name])) for name in _ROWS}
    return {"families": {}, **last, **rows}


def lasting(snapshot: Snapshot) -> Snapshot:
    """What stays of a process that has ended: what it counted."""
    families = snapshot["families"].items()
    return snapshot | {
        "families": {name: each for name, each in families if each[0] == "counter" and name not in _LARGEST}
    }


def drop(snapshot: Snapshot, models: Collection[RowLabels]) -> None:
    """Removes what a snapshot has of models."""
    for name in _ROWS:
        rows = unpacked(snapshot.get(name)).items()
        snapshot[name] = _packed({labels: row for labels, row in rows if labels[:2] not in models})
    for family in snapshot.get("families", {}).values():
        family[2] = [each for each in family[2] if (each[1].get("model"), each[1].get("version")) not in models]


class EndedCounts:
    """What processes that have ended counted: of models that another process still counts, and of a few others."""

    def __init__(self) -> None:
        self.snapshot: Snapshot = {}
        self._models: list[RowLabels] = []  # those that ended last at the end

    def add(self, snapshot: Snapshot, models: Collection[RowLabels]) -> None:
        """Adds the last snapshot of a process that counted these models."""
        self.snapshot = Total([self.snapshot, lasting(snapshot)]).snapshot()
        self._models = [each for each in self._models if each not in models] + [*models]

    def forget(self, counted: Collection[RowLabels], kept: int) -> None:
        """Drops the models that no worker counts, except the `kept` most recent."""
        gone = [each for each in self._models if each not in counted][:-kept]
        if gone:
            self._models = [each for each in self._models if each not in gone]
            drop(self.snapshot, gone)


def _packed(rows: Mapping[RowLabels, Any]) -> list[Any]:
    numbers = b"".join([np.asarray(row, "<f8").tobytes() for row in rows.values()])
    return [list(rows), base64.b64encode(zlib.compress(numbers, 1)).decode()]


def unpacked(packed: list[Any] | None) -> CountRows:
    """The rows of a field of a snapshot; none where it has no such field."""
    if not packed or not packed[0]:
        return {}
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(packed[1])), "<f8").reshape(len(packed[0]), -1)
    return {tuple(labels): row for labels, row in zip(packed[0], numbers, strict=True)}

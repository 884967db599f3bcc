"""The metrics of several processes as one: snapshots of each process, and their sum.

A snapshot is plain data, so that it can be sent as JSON:

| field | is |
|---|---|
| `models` | the counts of each model: `[labels, cells]`, labels `[name, version]` and packed cells of `ModelMetrics` |
| `keys` | the calls of each key with a name, by status: `[labels, cells]`, labels `[name, version, key]` |
| `families` | all other metrics: `{name: [kind, over_workers, name, help, labels, prefix, samples]}`, as in `Family` |

With hundreds of models there are tens of thousands of samples. So counts are sent and added as rows of numbers, and
become samples only on the page. How the other metrics add up is in each of them: `Family.over_workers`.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from lengthwise.telemetry.families import OF_A_MODEL, Family, LabelValues

Snapshot = dict[str, Any]
CountRows = dict[LabelValues, Any]  # rows of cells, lists or float64 arrays, by (name, version) or (name, version, key)

_ROWS: Final = ("models", "keys")


def snapshot_of(models: CountRows, keys: CountRows, other_metrics: Iterable[Family] = ()) -> Snapshot:
    """Makes a snapshot from the rows of models and keys, and the families of all other metrics."""
    families = {
        family.prefix + family.name: [
            family.kind,
            family.over_workers,
            family.name,
            family.help,
            family.labels,
            family.prefix,
            list(family.samples),
        ]
        for family in other_metrics
    }
    return {"models": _packed(models), "keys": _packed(keys), "families": families}


def without_zeros(snapshot: Snapshot) -> Snapshot:
    """Copies a snapshot without the samples of families that are zero: they need not be sent, as they add nothing."""
    families = {
        name: [*head, [sample for sample in samples if sample[1]]]
        for name, (*head, samples) in snapshot["families"].items()
    }
    return snapshot | {"families": families}


class Total:
    """The sum of snapshots, to which more can be added."""

    def __init__(self, snapshots: Iterable[Snapshot] = ()) -> None:
        self.models: CountRows = {}
        self.keys: CountRows = {}
        # By full name: the head of a family (all but its samples), and the sum of its samples by their labels
        self._families: dict[str, tuple[list[Any], dict[LabelValues, float]]] = {}
        for snapshot in snapshots:
            self.add(snapshot)

    def add(self, snapshot: Snapshot) -> None:
        """Adds a snapshot. Rows are summed; of a family, the sum or the largest number is kept, as it says.

        A field that the snapshot lacks adds nothing.
        """
        for name, rows in zip(_ROWS, (self.models, self.keys), strict=True):
            for labels, row in unpacked(snapshot.get(name)).items():
                rows[labels] = rows.get(labels, 0) + row
        for name, (*head, samples) in snapshot.get("families", {}).items():
            _, numbers = self._families.setdefault(name, (head, {}))
            _, over_workers, *_ = head
            for labels, number in samples:
                key = tuple(labels)
                old_number = numbers.get(key, 0)
                numbers[key] = max(old_number, number) if over_workers == "largest" else old_number + number

    def rows(self) -> tuple[CountRows, CountRows]:
        """The summed rows of models, and of keys with a name, as lists."""
        models, keys = ({labels: row.tolist() for labels, row in rows.items()} for rows in (self.models, self.keys))
        return models, keys

    def families(self) -> Iterator[Family]:
        """The summed metrics that are not rows."""
        for (kind, over_workers, name, help_, labels, prefix), numbers in self._families.values():
            yield Family(kind, over_workers, name, help_, tuple(labels), numbers.items(), prefix)

    def snapshot(self) -> Snapshot:
        """The sum as a snapshot."""
        return snapshot_of(self.models, self.keys, self.families())


def renewed(earlier: Snapshot, now: Snapshot) -> Snapshot:
    """The snapshot `now`, with those families of an `earlier` one that it lacks."""
    return {**now, "families": {**earlier.get("families", {}), **now["families"]}}


def with_rows(last: Snapshot, exact: Snapshot) -> Snapshot:
    """The last snapshot of a process, with its exact rows where there are any, and else its last ones."""
    rows = {name: _packed(unpacked(last.get(name)) | unpacked(exact[name])) for name in _ROWS}
    return {"families": {}, **last, **rows}


def drop(snapshot: Snapshot, models: Collection[LabelValues]) -> None:
    """Removes models, each `(name, version)`, from a snapshot: their rows, those of their keys, and their samples.

    The snapshot is changed. A family has samples of models if its first two labels are `OF_A_MODEL`.
    """
    for name in _ROWS:
        rows = unpacked(snapshot.get(name)).items()
        snapshot[name] = _packed({labels: row for labels, row in rows if labels[:2] not in models})
    for family in snapshot.get("families", {}).values():
        *_, label_names, _, samples = family
        if tuple(label_names[:2]) == OF_A_MODEL:
            family[-1] = [sample for sample in samples if tuple(sample[0][:2]) not in models]


class EndedCounts:
    """The sum of the counts of processes that have ended.

    The counts of a model stay in the sum while a running process counts the model. Of the models that none counts, only
    the most recent ones stay (`forget`).
    """

    def __init__(self) -> None:
        self.snapshot: Snapshot = {}
        self._models: list[LabelValues] = []  # in the order in which their last process ended

    def add(self, snapshot: Snapshot, models: Collection[LabelValues]) -> None:
        """Adds the last snapshot of a process that counted these models: its rows, and its summed counters.

        Its gauges ended with the process.
        """
        families = snapshot["families"].items()
        counters = {name: family for name, family in families if family[:2] == ["counter", "sum"]}
        self.snapshot = Total([self.snapshot, snapshot | {"families": counters}]).snapshot()
        self._models = [model for model in self._models if model not in models] + [*models]

    def forget(self, counted: Collection[LabelValues], max_others: int) -> None:
        """Drops the models that are not `counted` by any worker, except the `max_others` most recent ones."""
        if oldest := [model for model in self._models if model not in counted][:-max_others]:
            self._models = [model for model in self._models if model not in oldest]
            drop(self.snapshot, oldest)


def _packed(rows: Mapping[LabelValues, Any]) -> list[Any]:
    """Rows as a field of a snapshot: their labels, and their numbers as float64, compressed, in base64."""
    numbers = b"".join([np.asarray(row, "<f8").tobytes() for row in rows.values()])
    return [list(rows), base64.b64encode(zlib.compress(numbers, 1)).decode()]


def unpacked(packed: list[Any] | None) -> CountRows:
    """Reads the rows of a field of a snapshot, by their labels; {} if the field is missing."""
    if not packed or not packed[0]:
        return {}
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(packed[1])), "<f8").reshape(len(packed[0]), -1)
    return {tuple(labels): row for labels, row in zip(packed[0], numbers, strict=True)}

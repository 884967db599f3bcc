"""The metrics of several processes as one: what each has at a moment, and their sum.

A snapshot is plain data, so that it can be sent as JSON:

| field | is |
|---|---|
| `models` | the counts of each model, `[labels, rows]`: name and version, and the cells of its `ModelMetrics` |
| `keys` | the same of each key with a name: name, version and key, and its calls by status |
| `families` | all other metrics: `{name: [kind, over_workers, name, help, labels, prefix, samples]}`, as in `Family` |

With hundreds of models there are tens of thousands of samples. So counts are sent and added as rows of numbers, and
become samples only on the page. How the other metrics add up, each says itself: `Family.over_workers`.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from lengthwise.telemetry.families import OF_A_MODEL, Family, LabelValues

Snapshot = dict[str, Any]
CountRows = dict[LabelValues, Any]  # lists or arrays of float64; the labels of a model's row are its name and version

_ROWS: Final = ("models", "keys")


def snapshot_of(models: CountRows, keys: CountRows, others: Iterable[Family] = ()) -> Snapshot:
    """A snapshot: the rows of cells of models and keys, and the families of all other metrics."""
    families = {
        one.prefix + one.name: [
            one.kind,
            one.over_workers,
            one.name,
            one.help,
            one.labels,
            one.prefix,
            list(one.samples),
        ]
        for one in others
    }
    return {"models": _packed(models), "keys": _packed(keys), "families": families}


def without_zeros(snapshot: Snapshot) -> Snapshot:
    """A snapshot for sending, without samples that are zero: they add nothing to a sum."""
    families = {
        name: [*head, [sample for sample in samples if sample[1]]]
        for name, (*head, samples) in snapshot["families"].items()
    }
    return snapshot | {"families": families}


class Total:
    """The sum of snapshots."""

    def __init__(self, snapshots: Iterable[Snapshot] = ()) -> None:
        self.models: CountRows = {}
        self.keys: CountRows = {}
        self._families: dict[str, tuple[list[Any], dict[LabelValues, float]]] = {}
        for snapshot in snapshots:
            self.add(snapshot)

    def add(self, snapshot: Snapshot) -> None:
        """Adds a snapshot; one without fields adds nothing."""
        for name, rows in zip(_ROWS, (self.models, self.keys), strict=True):
            for labels, row in unpacked(snapshot.get(name)).items():
                rows[labels] = rows.get(labels, 0) + row
        for name, (*head, samples) in snapshot.get("families", {}).items():
            numbers = self._families.setdefault(name, (head, {}))[1]
            for labels, number in samples:
                before = numbers.get(key := tuple(labels), 0)
                numbers[key] = max(before, number) if head[1] == "largest" else before + number

    def rows(self) -> tuple[CountRows, CountRows]:
        """The counts of models, and those of keys with a name, as lists."""
        models, keys = ({labels: row.tolist() for labels, row in rows.items()} for rows in (self.models, self.keys))
        return models, keys

    def families(self) -> Iterator[Family]:
        """All metrics but the rows."""
        for (kind, over_workers, name, help_, labels, prefix), numbers in self._families.values():
            yield Family(kind, over_workers, name, help_, tuple(labels), numbers.items(), prefix)

    def snapshot(self) -> Snapshot:
        """The sum as a snapshot."""
        return snapshot_of(self.models, self.keys, self.families())


def renewed(before: Snapshot, now: Snapshot) -> Snapshot:
    """A snapshot with what an earlier one has, as far as it lacks that: whole families."""
    return {**now, "families": {**before.get("families", {}), **now["families"]}}


def with_rows(last: Snapshot, exact: Snapshot) -> Snapshot:
    """The last snapshot of a process with rows that are exact; a model without such a row has its last one."""
    rows = {name: _packed(unpacked(last.get(name)) | unpacked(exact[name])) for name in _ROWS}
    return {"families": {}, **last, **rows}


def drop(snapshot: Snapshot, models: Collection[LabelValues]) -> None:
    """Removes these models from a snapshot."""
    for name in _ROWS:
        rows = unpacked(snapshot.get(name)).items()
        snapshot[name] = _packed({labels: row for labels, row in rows if labels[:2] not in models})
    for family in snapshot.get("families", {}).values():
        if (*family[4][:2],) == OF_A_MODEL:
            family[-1] = [each for each in family[-1] if (*each[0][:2],) not in models]


class EndedCounts:
    """The counts of processes that have ended.

    A model is kept while another process counts it; of models that none counts, the most recent ones are (`forget`).
    """

    def __init__(self) -> None:
        self.snapshot: Snapshot = {}
        self._models: list[LabelValues] = []  # in the order in which their last process ended

    def add(self, snapshot: Snapshot, models: Collection[LabelValues]) -> None:
        """Adds the last snapshot of a process that counted these models; of its other metrics only the counters."""
        families = snapshot["families"].items()
        counters = {name: family for name, family in families if family[:2] == ["counter", "sum"]}
        self.snapshot = Total([self.snapshot, snapshot | {"families": counters}]).snapshot()
        self._models = [each for each in self._models if each not in models] + [*models]

    def forget(self, counted: Collection[LabelValues], most: int) -> None:
        """Drops the models that no worker counts, except the `most` recent."""
        if oldest := [each for each in self._models if each not in counted][:-most]:
            self._models = [each for each in self._models if each not in oldest]
            drop(self.snapshot, oldest)


def _packed(rows: Mapping[LabelValues, Any]) -> list[Any]:
    numbers = b"".join([np.asarray(row, "<f8").tobytes() for row in rows.values()])
    return [list(rows), base64.b64encode(zlib.compress(numbers, 1)).decode()]


def unpacked(packed: list[Any] | None) -> CountRows:
    """The rows of a field of a snapshot; none where it has no such field."""
    if not packed or not packed[0]:
        return {}
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(packed[1])), "<f8").reshape(len(packed[0]), -1)
    return {tuple(labels): row for labels, row in zip(packed[0], numbers, strict=True)}

"""A page of `/metrics` as numbers: the Prometheus text format, read back."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

_Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one page by name, or the growth of all of them between two pages."""

    values: Mapping[str, tuple[tuple[_Labels, float], ...]]

    @classmethod
    def parse(cls, text: str) -> Samples:
        """Reads a page; ValueError if it is not in the Prometheus text format."""
        from prometheus_client.parser import text_string_to_metric_families

        values: dict[str, list[tuple[_Labels, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name].append((sample.labels, sample.value))
        return cls({name: tuple(series) for name, series in values.items()})

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of a name that have these labels; 0 where there is none."""
        return sum(value for found, value in self.values.get(name, ()) if labels.items() <= found.items())

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """The sum of the series of a name for each value of one label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self.values.get(name, ()):
            sums[found.get(label, "")] += value
        return dict(sums)

    def buckets(self, histogram: str) -> tuple[list[float], list[float]]:
        """A histogram's upper bounds, ascending, with infinity last, and the counts of its buckets, not cumulative."""
        cumulative = sorted((_bound(le), total) for le, total in self.by_label(f"{histogram}_bucket", "le").items())
        bounds = [bound for bound, _ in cumulative]
        totals = [total for _, total in cumulative]
        return bounds, [total - before for total, before in zip(totals, [0.0, *totals], strict=False)]

    def mean(self, histogram: str) -> float | None:
        """The mean of a histogram's observations; None where there is none."""
        count = self.total(f"{histogram}_count")
        return self.total(f"{histogram}_sum") / count if count else None

    def since(self, earlier: Samples) -> Samples:
        """The growth of each series since an earlier page; a series that was not there yet grew from 0."""
        before = {
            (name, frozenset(labels.items())): value
            for name, series in earlier.values.items()
            for labels, value in series
        }
        return Samples(
            {
                name: tuple(
                    (labels, value - before.get((name, frozenset(labels.items())), 0.0)) for labels, value in series
                )
                for name, series in self.values.items()
            }
        )


def _bound(le: str) -> float:
    return math.inf if le == "+Inf" else float(le)

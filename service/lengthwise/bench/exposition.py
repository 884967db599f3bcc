"""A page of `/metrics` as numbers: the Prometheus text format, read back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one page by name and labels, or the growth of all of them between two pages."""

    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str) -> Samples:
        """Reads a page; ValueError if it is not in the Prometheus text format."""
        from prometheus_client.parser import text_string_to_metric_families

        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return cls({(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})

    def named(self, name: str) -> list[tuple[dict[str, str], float]]:
        """The series of a name: labels and value of each."""
        return [(dict(labels), value) for (found, labels), value in self.values.items() if found == name]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of a name that have these labels; 0 where there is none."""
        return sum(value for found, value in self.named(name) if labels.items() <= found.items())

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """The sum of the series of a name for each value of one label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self.named(name):
            sums[found.get(label, "")] += value
        return dict(sums)

    def buckets(self, histogram: str) -> tuple[list[float], list[float]]:
        """A histogram's upper bounds, ascending, with infinity last, and the counts of its buckets, not cumulative."""
        cumulative = sorted((float(le), total) for le, total in self.by_label(f"{histogram}_bucket", "le").items())
        bounds = [bound for bound, _ in cumulative]
        totals = [total for _, total in cumulative]
        return bounds, [total - before for total, before in zip(totals, [0.0, *totals], strict=False)]

    def mean(self, histogram: str) -> float | None:
        """The mean of a histogram's observations; None where there is none."""
        count = self.total(f"{histogram}_count")
        return self.total(f"{histogram}_sum") / count if count else None

    def since(self, earlier: Samples) -> Samples:
        """The growth of each series since an earlier page; a series that was not there yet grew from 0."""
        return Samples({key: value - earlier.values.get(key, 0.0) for key, value in self.values.items()})

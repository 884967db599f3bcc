"""The page of `lengthwise drift`: recorded sequences beside the training data, with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise.errors import ConfigurationError
from lengthwise.monitoring.record_file import PATTERN, UNFINISHED
from lengthwise.padding import Steps
from lengthwise.reports.chart import Chart
from lengthwise.reports.page import Html, element, page, table
from lengthwise.runtime.data_profile import FEATURE, WINDOW_SEQUENCES, DataProfile, ProfileCounter, ProfileCounts
from lengthwise.runtime.manifest import Manifest

_STYLE: Final = """
td + td, th + th { text-align: right; }
b { color: var(--bad); }
figure { display: inline-block; margin: 1em 1em 0 0; }
svg text { font-size: 11px; }
"""
_WIDTH: Final = 280
_HEIGHT: Final = 120
_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Recorded sequences of one model, compared with its training data."""

    manifest: Manifest
    counts: ProfileCounts  # by the profile's bins
    drift: dict[str, float]  # the PSI by what is compared
    over_time: Sequence[dict[str, float]]  # the same of each `WINDOW_SEQUENCES`, in order of arrival

    @property
    def profile(self) -> DataProfile:
        """The profile of the training data."""
        assert self.manifest.training is not None
        return self.manifest.training

    @property
    def drifted(self) -> list[str]:
        """What exceeds its limit."""
        return [what for what, psi in self.drift.items() if psi > self.profile.limits.of(what)]

    def name_of(self, what: str) -> str:
        """What is compared, with a feature's own name if it has one."""
        names = self.manifest.input.feature_names
        if names is None or not what.startswith(FEATURE):
            return what
        return f"{what} ({names[int(what.removeprefix(FEATURE))]})"

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.manifest.key,
            "sequences": self.counts.sequences,
            "drifted": self.drifted,
            "drift": [
                {"what": what, "psi": psi, "limit": self.profile.limits.of(what)} for what, psi in self.drift.items()
            ],
            "over_time": list(self.over_time),
        }

    def as_html(self) -> str:
        """A page of one file, which loads nothing else."""
        ordered = sorted(self.drift, key=lambda what: -self.drift[what] / self.profile.limits.of(what))
        verdict = f"{len(self.drifted)} of {len(self.drift)} have drifted" if self.drifted else "nothing has drifted"
        return page(
            f"Drift of {self.manifest.key}",
            element(
                "p",
                f"{self.counts.sequences} recorded sequences beside {self.profile.sequences} of the training data: "
                f"{verdict}. What has drifted has a population stability index (PSI) above its limit.",
            ),
            table(map(self._row, ordered), ("what", "PSI", "limit")),
            element("p", "Grey: the share of the training data in each bin. Blue: the share of the records."),
            *map(self._figure, ordered[:40]),
            style=_STYLE,
        )

    def _row(self, what: str) -> tuple[object, ...]:
        psi, limit = self.drift[what], self.profile.limits.of(what)
        name = self.name_of(what)
        return element("b", name) if psi > limit else name, f"{psi:.3f}", f"{limit:.3f}"

    def _figure(self, what: str) -> Html:
        before, now, names = self._bins(what)
        width = 1 / len(before)
        chart = Chart(_WIDTH, _HEIGHT, ("", [(width / 2, names[0]), (1 - width / 2, names[-1])]))
        for place, shares in enumerate(zip(before, now, strict=True)):
            for left, share, color in zip((0.08, 0.5), shares, ("var(--soft)", "var(--accent)"), strict=True):
                chart.bar((place + left) * width, (place + left + 0.42) * width, min(1.0, 2 * share), fill=color)
        return chart.figure(what, f"{self.name_of(what)}: {self.drift[what]:.3f}")

    def _bins(self, what: str) -> tuple[list[float], list[float], list[str]]:
        profile, counts = self.profile, self.counts
        if what == "length":
            return list(profile.lengths.shares), _shares(counts.lengths), _names(profile.lengths.edges)
        if what == "missing":
            now = _shares([counts.present, counts.missing])
            return [1 - profile.missing, profile.missing], now, ["present", "missing"]
        if what == "class":
            return (
                list(profile.classes or [0.0] * self.manifest.classes),
                _shares(counts.classes),
                [*self.manifest.labels],
            )
        bins = profile.features[index := int(what.removeprefix(FEATURE))]
        return list(bins.shares), _shares(counts.features[index, : len(bins.shares)]), _names(bins.edges)


def report(directory: Path, manifest: Manifest) -> DriftReport:
    """Compares the records of a model with its training data."""
    profile = manifest.training
    if profile is None:
        raise ConfigurationError(
            f"{manifest.key} has no profile of its training data: export it again with --data, or from a checkpoint of "
            "'lengthwise train'"
        )
    counter = ProfileCounter(profile, manifest.classes)
    places = {label: place for place, label in enumerate(manifest.labels)}
    total: ProfileCounts | None = None
    part: ProfileCounts | None = None
    over_time = []
    for steps, answers in _records(directory, manifest, min(WINDOW_SEQUENCES, _AT_ONCE)):
        block = counter.count(steps, [places[label] for labels in answers for label in labels if label in places])
        total = block if total is None else total + block
        part = block if part is None else part + block
        if part.sequences >= WINDOW_SEQUENCES:
            over_time.append(counter.drift(part))
            part = None
    if total is None:
        unfinished = any(directory.glob(UNFINISHED))
        more = "; a file that is being written is not read: it is complete within minutes, or when the service stops"
        raise ConfigurationError(f"{directory}: there are no records of {manifest.key}{more if unfinished else ''}")
    return DriftReport(manifest, total, counter.drift(total), over_time)


def _records(directory: Path, manifest: Manifest, at_once: int) -> Iterator[tuple[list[Steps], list[list[str]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(directory.glob(PATTERN)):
        try:
            file = pq.ParquetFile(path)
            missing = {"steps", "answer"} - set(file.schema_arrow.names)
            if missing:
                raise ConfigurationError(f"{path} was recorded without {' and '.join(sorted(missing))}")
            for batch in file.iter_batches(batch_size=at_once, columns=["model", "version", "steps", "answer"]):
                rows = [row for row in batch.to_pylist() if f"{row['model']}/{row['version']}" == manifest.key]
                if rows:
                    yield [_array(row["steps"], manifest) for row in rows], [row["answer"] for row in rows]
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"{path} cannot be read as Parquet: {error}") from error
        except (ValueError, OverflowError) as error:
            raise ConfigurationError(f"{path} has steps of another form than {manifest.key} takes: {error}") from error


def _array(steps: list[Any], manifest: Manifest) -> Steps:
    if manifest.input.kind == "tokens":
        return np.array(steps, dtype=np.int64)
    return np.array(steps, dtype=np.float32).reshape(len(steps), manifest.input.features or 1)


def _shares(counts: Any) -> list[float]:
    counted = np.asarray(counts, dtype=np.float64)
    shares: list[float] = (counted / max(1.0, counted.sum())).tolist()
    return shares


def _names(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["all"]
    return [f"up to {edges[0]:g}", *(f"{edge:g}" for edge in edges[1:-1]), f"above {edges[-1]:g}"]

"""Compares two runs of `train`: what they score on the same split, and whether the difference may be chance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lengthwise.errors import ConfigurationError
from lengthwise.reports import notebook
from lengthwise.reports.notebook import as_text
from lengthwise_export.options import StrPath
from lengthwise_export.training.report import FIGURES, METRICS_FILE, SPLITS, splits_of

if TYPE_CHECKING:
    from lengthwise_export.training.training_api import TrainedModel


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the most meaningful split that both have."""

    names: Sequence[str]  # the folders of the runs
    split: str
    scores: Sequence[Mapping[str, Any]]  # of each run on the split
    reports: Sequence[Mapping[str, Any]]  # what `metrics.json` of each run holds

    @property
    def margin(self) -> float:
        """The difference in accuracy that two equally good models often have: two standard deviations."""
        variance = 0.0
        for scores in self.scores:
            count = max(int(scores["answers"]), 1)
            # Laplace's rule of succession: an accuracy of 0 or 1 has a variance, too
            probability = (float(scores["accuracy"]) * count + 1) / (count + 2)
            variance += probability * (1 - probability) / count
        return 2 * math.sqrt(variance)

    @property
    def verdict(self) -> str:
        """Which run is better, in one sentence."""
        first, second = (float(scores["accuracy"]) for scores in self.scores)
        if abs(second - first) <= self.margin:
            return (
                f"no clear difference: {abs(second - first):.4f} in accuracy, and {self.margin:.4f} may be chance with "
                f"{self.scores[0]['answers']} answers"
            )
        better = self.names[1 if second > first else 0]
        return f"{better} is better: {abs(second - first):.4f} in accuracy, more than the {self.margin:.4f} of chance"

    def as_json(self) -> dict[str, Any]:
        """The comparison for `--json`."""
        return {
            "runs": list(self.names),
            "split": self.split,
            "figures": {name: [scores.get(name) for scores in self.scores] for name in FIGURES},
            "seconds": [report.get("seconds") for report in self.reports],
            "margin": self.margin,
            "verdict": self.verdict,
        }

    def table(self) -> Table:
        """The comparison for the terminal."""
        table = Table("", *self.names, "difference", title=self._title, caption=self.verdict)
        for row in self._rows():
            table.add_row(*row)
        return table

    def __str__(self) -> str:
        """The comparison as text, as `lengthwise compare` prints it."""
        return as_text(self.table())

    def _repr_html_(self) -> str:
        """The comparison in a notebook."""
        return notebook.table(self._rows(), ("", *self.names, "difference"), title=self._title, note=self.verdict)

    @property
    def _title(self) -> str:
        answers = " and ".join(dict.fromkeys(str(scores["answers"]) for scores in self.scores))
        return f"{self.split} split, {answers} answers"

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yields a row of the table for each figure that both runs have: its name, both values, and the difference."""
        pairs = zip(self.scores, self.reports, strict=True)
        first, second = ({**scores, "seconds": report.get("seconds")} for scores, report in pairs)
        for name in (*FIGURES, "seconds"):
            first_value, second_value, digits = first.get(name), second.get(name), 1 if name == "seconds" else 4
            if first_value is not None and second_value is not None:
                change = f"{second_value - first_value:+.{digits}f}"
                yield name.replace("_", " "), f"{first_value:.{digits}f}", f"{second_value:.{digits}f}", change


def compare(first: StrPath | TrainedModel, second: StrPath | TrainedModel) -> Comparison:
    """Compares two runs of `train`: their figures on the same split, and whether the difference may be chance.

    Args:
        first: A run, or its folder.
        second: The other one.

    Returns:
        The comparison: its `verdict`, `split` and `scores`; `str()` gives a table, and a notebook shows it.

    Raises:
        ConfigurationError: A folder holds no finished run, or the runs cannot be compared.

    Example:
        >>> print(lengthwise_export.compare("runs/small", "runs/large").verdict)  # doctest: +SKIP
        no clear difference: 0.0040 in accuracy, and 0.0196 may be chance with 370 answers
    """
    names = [str(getattr(run, "directory", run)) for run in (first, second)]
    reports = [_report(Path(name)) for name in names]
    if any(reports[0].get(key) != reports[1].get(key) for key in ("labels", "task")):
        raise ConfigurationError(f"{' and '.join(names)} answer different questions: their labels or tasks differ")
    # A rocket model has no validation split: its leave-one-out answers count as such
    scores = [{"validation": splits.get("left_out", {}), **splits} for splits in map(splits_of, reports)]
    common = [name for name in SPLITS if all(splits.get(name) for splits in scores)]
    if not common:
        raise ConfigurationError(f"{' and '.join(names)} have no split in common: train both with the same --test")
    return Comparison(names, common[-1], [splits[common[-1]] for splits in scores], reports)


def _report(folder: Path) -> dict[str, Any]:
    """Reads the report `metrics.json` of a run; `folder` is that of the run, or the path of a report itself.

    Raises:
        ConfigurationError: There is no report, or it cannot be read.
    """
    path = folder / METRICS_FILE if folder.is_dir() else folder
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{folder} holds no {METRICS_FILE}: it is not a folder of `train --out`, or its training is not finished"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(report, dict) or not all(_is_scores(report[name]) for name in SPLITS if report.get(name)):
        raise ConfigurationError(f"{path} is not a report of `train`")
    return report


def _is_scores(scores: object) -> bool:
    """Whether an entry of a report is a dictionary with a finite accuracy and a finite number of answers."""
    return isinstance(scores, dict) and all(
        isinstance(value, int | float) and math.isfinite(value)
        for value in (scores.get("accuracy"), scores.get("answers"))
    )

"""Compares two runs of `train`: what they score on the same split, and whether the difference may be chance."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from lengthwise.errors import ConfigurationError
from lengthwise.reports import notebook
from lengthwise_export.interface.rich_text import as_text
from lengthwise_export.training.report import METRICS_FILE, SPLITS, splits_of

_FIGURES: Final = ("accuracy", "macro_f1", "loss", "ece")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the most meaningful split that both have.

    Attributes:
        names: The folders of the runs.
        split: The split.
        scores: The scores of each run on it.
        reports: The reports.
    """

    names: tuple[str, str]
    split: str
    scores: tuple[Mapping[str, Any], Mapping[str, Any]]
    reports: tuple[Mapping[str, Any], Mapping[str, Any]]

    @property
    def margin(self) -> float:
        """The difference in accuracy that two equally good models often have on so many answers: two deviations."""
        variance = 0.0
        for scores in self.scores:
            count = max(int(scores["answers"]), 1)
            # an accuracy of 0 or 1 is not without error: one more right and one more wrong answer are counted
            share = (float(scores["accuracy"]) * count + 1) / (count + 2)
            variance += share * (1 - share) / count
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
        better = self.names[second > first]
        return f"{better} is better: {abs(second - first):.4f} in accuracy, more than the {self.margin:.4f} of chance"

    def as_json(self) -> dict[str, Any]:
        """The comparison for `--json`."""
        return {
            "runs": list(self.names),
            "split": self.split,
            "figures": {name: [scores.get(name) for scores in self.scores] for name in _FIGURES},
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
        shown = notebook.table(self._rows(), ("", *self.names, "difference"), title=self._title)
        return f"{shown}<p>{html.escape(self.verdict)}</p>"

    @property
    def _title(self) -> str:
        answers = " and ".join(dict.fromkeys(str(scores["answers"]) for scores in self.scores))
        return f"{self.split} split, {answers} answers"

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        """A figure, its value in both runs, and the difference."""
        of_report = [{"seconds": report.get("seconds")} for report in self.reports]
        first, second = ({**scores, **more} for scores, more in zip(self.scores, of_report, strict=True))
        for name in (*_FIGURES, "seconds"):
            before, after, digits = first.get(name), second.get(name), 1 if name == "seconds" else 4
            if before is not None and after is not None:
                change = f"{after - before:+.{digits}f}"
                yield name.replace("_", " "), f"{before:.{digits}f}", f"{after:.{digits}f}", change


def compare(first: Path, second: Path) -> Comparison:
    """Reads two runs; ConfigurationError if a folder is no finished run, or if they cannot be compared."""
    reports = (_report(first), _report(second))
    if reports[0].get("labels") != reports[1].get("labels") or reports[0].get("task") != reports[1].get("task"):
        raise ConfigurationError(f"{first} and {second} answer different questions: their labels or their tasks differ")
    # What a rocket model answers to each sequence without having seen it is its validation
    one, other = ({"validation": held.get("left_out", {}), **held} for held in map(splits_of, reports))
    common = [name for name in SPLITS if one.get(name) and other.get(name)]
    if not common:
        raise ConfigurationError(f"{first} and {second} have no split in common: train both with the same --test")
    split = common[-1]
    return Comparison((str(first), str(second)), split, (one[split], other[split]), reports)


def _report(folder: Path) -> dict[str, Any]:
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
    numbers = (scores.get("accuracy"), scores.get("answers")) if isinstance(scores, dict) else (None,)
    return all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)

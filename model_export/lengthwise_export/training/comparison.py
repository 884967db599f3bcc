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

_FIGURES: Final = {"accuracy": True, "macro_f1": True, "loss": False, "ece": False}
"""The figures that are compared, and whether more is better."""


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
        shares = [float(scores["accuracy"]) for scores in self.scores]
        counts = [max(int(scores["answers"]), 1) for scores in self.scores]
        # an accuracy of 0 or 1 is not without error: one more right and one more wrong answer are counted
        spread = [
            (right := (share * count + 1) / (count + 2)) * (1 - right) / count
            for share, count in zip(shares, counts, strict=True)
        ]
        return 2 * math.sqrt(sum(spread))

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
        for name in _FIGURES:
            first, second = (scores.get(name) for scores in self.scores)
            if first is not None and second is not None:
                yield name.replace("_", " "), f"{first:.4f}", f"{second:.4f}", f"{second - first:+.4f}"
        seconds = [float(report["seconds"]) for report in self.reports if report.get("seconds") is not None]
        if len(seconds) == 2:
            before, after = seconds
            yield "seconds", f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"


def compare(first: Path, second: Path) -> Comparison:
    """Reads two runs.

    Raises:
        ConfigurationError: A folder is no finished run, or the runs cannot be compared.
    """
    reports = (_report(first), _report(second))
    if reports[0].get("labels") != reports[1].get("labels") or reports[0].get("task") != reports[1].get("task"):
        raise ConfigurationError(f"{first} and {second} answer different questions: their labels or their tasks differ")
    held = [splits_of(report) for report in reports]
    # What a rocket model answers to each sequence without having seen it is its validation
    for splits in held:
        if "left_out" in splits:
            splits.setdefault("validation", splits["left_out"])
    common = [name for name in SPLITS if name in held[0] and name in held[1]]
    if not common:
        raise ConfigurationError(f"{first} and {second} have no split in common: train both with the same --test")
    split = common[-1]
    return Comparison(
        names=(str(first), str(second)), split=split, scores=(held[0][split], held[1][split]), reports=reports
    )


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
    if not isinstance(scores, dict):
        return False
    numbers = (scores.get("accuracy"), scores.get("answers"))
    return all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)

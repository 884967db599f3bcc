"""The report of a training run: `metrics.json`, a table, and two pictures."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from lengthwise import files
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import figures
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.report_page import HELD_BACK
from lengthwise_export.training.train import TrainingResult

METRICS_FILE = "metrics.json"
CURVE_FILE = "learning_curve.png"
CONFUSION_FILE = "confusion_matrix.png"


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """The metrics of a training run.

    Attributes:
        spec: The spec of the model.
        options: The training options.
        result: The result of the run.
        test: Scores on the test file; None without one.
        held_back: Accuracy of such layers on records that folds held back; None without folds.
    """

    spec: Spec
    options: TrainingOptions
    result: TrainingResult
    test: EvaluationScores | None
    held_back: float | None = None

    @property
    def splits(self) -> dict[str, EvaluationScores]:
        """The scores by split, the most meaningful last."""
        splits = {"training": self.result.training, "validation": self.result.validation, "test": self.test}
        return {name: scores for name, scores in splits.items() if scores is not None}

    def as_json(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        progress = self.result.progress
        return {
            "labels": list(self.spec.output.labels),
            "task": self.spec.output.task,
            "options": dataclasses.asdict(self.options),
            "best_epoch": progress.best + 1,
            "temperature": self.result.temperature,
            "held_back": self.held_back,
            "epochs": [dataclasses.asdict(epoch) for epoch in progress.epochs],
            **{name: scores.as_json() for name, scores in self.splits.items()},
        }

    def write(self, directory: Path, origin: str = "") -> None:
        """Writes `metrics.json` and the pictures, with a line below that says from what they were made."""
        files.write(directory / METRICS_FILE, json.dumps(self.as_json(), indent=2) + "\n")
        figures.learning_curve(self.result.progress, directory / CURVE_FILE, origin=origin)
        name, scores = list(self.splits.items())[-1]
        output = self.spec.output
        path, title = directory / CONFUSION_FILE, f"{name} split"
        figures.confusion_matrix(scores, output.labels, output.task, path, title=title, origin=origin)

    def table(self, title: str) -> Table:
        """The scores as a table for the terminal, with the epoch that they belong to."""
        table = Table("split", "answers", "loss", "accuracy", "macro F1", title=title, caption=self._ending())
        for name, scores in self.splits.items():
            loss, accuracy, f1 = f"{scores.loss:.4f}", f"{scores.accuracy:.4f}", f"{scores.macro_f1:.4f}"
            table.add_row(name, str(scores.answers), loss, accuracy, f1)
        return table

    def _ending(self) -> str:
        progress = self.result.progress
        done, wanted = len(progress.epochs), self.options.epochs
        if self.result.validation is None:
            held_back = "" if self.held_back is None else f"; {HELD_BACK}: accuracy {self.held_back:.4f}"
            return f"all {done} epochs, the last one used{held_back}"
        ended = f"all {done} epochs" if done == wanted else f"stopped early at epoch {done} of {wanted}"
        return f"{ended}, best epoch {progress.best + 1}"

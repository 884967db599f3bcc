"""The report of the training of a rocket model: `metrics.json`, a table, and the confusion matrix as a picture."""

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
from lengthwise_export.training.metrics import CONFUSION_FILE, METRICS_FILE
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.rocket import APPLICABLE, RocketResult


@dataclass(frozen=True, slots=True)
class RocketReport:
    """The metrics of a training.

    Attributes:
        spec: The spec of the model.
        options: The training options.
        result: The result.
    """

    spec: Spec
    options: TrainingOptions
    result: RocketResult

    @property
    def splits(self) -> dict[str, EvaluationScores]:
        """The scores by split, the most meaningful last."""
        result = self.result
        splits = {"training": result.training, "left out": result.left_out, "test": result.test}
        return {name: scores for name, scores in splits.items() if scores is not None}

    def as_json(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        chosen = dataclasses.asdict(self.options)
        return {
            "kind": "rocket",
            "labels": list(self.spec.output.labels),
            "task": self.spec.output.task,
            "options": {name: chosen[name] for name in chosen if name in APPLICABLE},
            "penalty": self.result.penalty,
            "temperature": self.result.temperature,
            "seconds": self.result.seconds,
            **{name.replace(" ", "_"): scores.as_json() for name, scores in self.splits.items()},
        }

    def write(self, directory: Path, origin: str = "") -> None:
        """Writes `metrics.json`, and the confusion matrix with a line below that says from what it was made."""
        files.write(directory / METRICS_FILE, json.dumps(self.as_json(), indent=2) + "\n")
        name, scores = list(self.splits.items())[-1]
        output = self.spec.output
        path, title = directory / CONFUSION_FILE, f"{name} split"
        figures.confusion_matrix(scores, output.labels, output.task, path, title=title, origin=origin)

    def table(self, title: str) -> Table:
        """The scores as a table for the terminal."""
        result = self.result
        calibrated = "" if result.temperature is None else f", temperature {result.temperature:.3g}"
        caption = (
            f"{result.seconds:.1f} s, ridge penalty {result.penalty:.3g}{calibrated}; left out: "
            "leave-one-out predictions"
        )
        table = Table("split", "answers", "loss", "accuracy", "macro F1", title=title, caption=caption)
        for name, scores in self.splits.items():
            loss, accuracy, f1 = f"{scores.loss:.4f}", f"{scores.accuracy:.4f}", f"{scores.macro_f1:.4f}"
            table.add_row(name, str(scores.answers), loss, accuracy, f1)
        return table

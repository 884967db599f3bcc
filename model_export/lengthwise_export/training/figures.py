"""Draws the learning curve and the confusion matrix of a training run as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise import files
from lengthwise.runtime.manifest import Task
from lengthwise_export.training.objective import EvaluationScores
from lengthwise_export.training.train import TrainingProgress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#3465a4", "#e08214", "#888888"


def learning_curve(progress: TrainingProgress, path: Path) -> None:
    """Draws losses and validation accuracy over the epochs; the best epoch is marked."""
    numbers = [epoch.number + 1 for epoch in progress.epochs]
    figure = _figure(figsize=(8, 3.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    losses.plot(numbers, [epoch.training_loss for epoch in progress.epochs], color=_BLUE, label="training")
    if progress.epochs[-1].validation_loss is not None:
        losses.plot(numbers, [epoch.validation_loss for epoch in progress.epochs], color=_ORANGE, label="validation")
        accuracies.plot(numbers, [epoch.validation_accuracy for epoch in progress.epochs], color=_ORANGE)
    losses.set(xlabel="epoch", ylabel="loss", yscale="log")
    losses.legend(frameon=False)
    accuracies.set(xlabel="epoch", ylabel="validation accuracy")
    for axes in (losses, accuracies):
        axes.axvline(progress.best + 1, color=_GREY, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def confusion_matrix(scores: EvaluationScores, labels: Sequence[str], task: Task, path: Path, *, title: str) -> None:
    """Draws the counts by true and answered label; for a multi-label model, right and wrong answers of each label."""
    columns = ["hit", "false alarm", "miss", "rightly not"] if task == "multi-label" else list(labels)
    shares = [[count / max(sum(row), 1) for count in row] for row in scores.confusion]
    size = max(3.5, 1.5 + 0.45 * len(labels))
    figure = _figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 2 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="answered", ylabel="label" if task == "multi-label" else "true label", title=title)
    if len(labels) <= 30:  # more would not be legible
        for row, counts in enumerate(scores.confusion):
            for column, count in enumerate(counts):
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    _save(figure, path)


def _figure(**options: Any) -> Figure:
    from matplotlib.figure import Figure  # imported here because it takes a second of CPU time

    return Figure(**options)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Not pyplot: it keeps every figure in memory and may need a display
    FigureCanvasAgg(figure)
    with files.naming(path):
        figure.savefig(path, dpi=120)

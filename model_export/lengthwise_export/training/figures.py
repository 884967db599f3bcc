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


def learning_curve(progress: TrainingProgress, path: Path, *, origin: str = "") -> None:
    """Draws the losses over the epochs and, where there is validation, its accuracy; the best epoch is marked.

    Args:
        progress: The epochs.
        path: The PNG file.
        origin: From what the training was made, as a line below.
    """
    numbers = [epoch.number + 1 for epoch in progress.epochs]
    validated = progress.epochs[-1].validation_loss is not None
    figure = _figure(figsize=(8 if validated else 4.6, 3.4), layout="constrained")
    losses, *others = figure.subplots(1, 1 + validated, squeeze=False)[0]
    losses.plot(numbers, [epoch.training_loss for epoch in progress.epochs], color=_BLUE, label="training")
    losses.set(xlabel="epoch", ylabel="loss", yscale="log")
    for axes in others:
        losses.plot(numbers, [epoch.validation_loss for epoch in progress.epochs], color=_ORANGE, label="validation")
        axes.plot(numbers, [epoch.validation_accuracy for epoch in progress.epochs], color=_ORANGE)
        axes.set(xlabel="epoch", ylabel="validation accuracy")
    losses.legend(frameon=False)
    for axes in (losses, *others):
        axes.axvline(progress.best + 1, color=_GREY, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path, origin)


def confusion_matrix(
    scores: EvaluationScores, labels: Sequence[str], task: Task, path: Path, *, title: str, origin: str = ""
) -> None:
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
    _save(figure, path, origin)


def _figure(**options: Any) -> Figure:
    from matplotlib.figure import Figure  # imported here because it takes a second of CPU time

    return Figure(**options)


def _save(figure: Figure, path: Path, origin: str) -> None:
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Not pyplot: it keeps every figure in memory and may need a display
    FigureCanvasAgg(figure)
    wide = int(figure.get_figwidth() * 17)  # characters of this size
    figure.supxlabel("\n".join(textwrap.wrap(origin, wide)), fontsize=7, color=_GREY)
    with files.naming(path):
        figure.savefig(path, dpi=120, metadata={"Description": origin})

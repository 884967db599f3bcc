"""The loss and the metrics of training. Padded steps count in neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lengthwise.runtime.manifest import Task
from lengthwise_export.training.batches import NO_TARGET, Example


@dataclass(frozen=True, slots=True)
class EvaluationScores:
    """The metrics of a model on a set of examples.

    Attributes:
        loss: Mean loss of an example; for a per-step model, of a step.
        accuracy: Share of right answers. An answer is the label of a sequence; for a multi-label model, yes or no for
            one label; for a per-step model, the label of a valid step.
        macro_f1: Mean over the labels of 2 tp / (2 tp + fp + fn). Labels that neither occur nor are answered are left
            out.
        answers: The number of answers.
        confusion: `[classes][classes]`, counts by true and answered label; for a multi-label model `[classes][4]`, the
            true positives, false positives, false negatives and true negatives of each label.
    """

    loss: float
    accuracy: float
    macro_f1: float
    answers: int
    confusion: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        """The metrics as in `metrics.json`."""
        return asdict(self)


def loss(
    logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """The mean loss over answers.

    Args:
        logits: `[rows, classes]`, or `[rows, width, classes]` per step.
        targets: See `batches.TrainingBatch`.
        task: The task, which determines the loss.
        weights: `[classes]`; for a multi-label model the weights of positives.
        label_smoothing: Share of a target that is spread over all labels; for a multi-label model, over yes and no.
    """
    if task == "multi-label":
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    if task == "per-step":
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(
        logits, targets, weight=weights, ignore_index=NO_TARGET, label_smoothing=label_smoothing
    )


def class_weights(examples: Sequence[Example], classes: int, task: Task) -> Tensor:
    """`[classes]` weights that give rare labels the same influence as frequent ones; see `loss`.

    A weight is `answers / (classes * count)`; for a multi-label model `negatives / positives`. A label that does not
    occur has weight 1.
    """
    if task == "multi-label":
        positives = torch.stack([example.target for example in examples]).sum(dim=0)
        weights = (len(examples) - positives) / positives.clamp(min=1)
        return torch.where(positives > 0, weights.clamp(min=1e-3), 1.0)
    targets = torch.cat([example.target.reshape(-1) for example in examples])
    counts = torch.bincount(targets, minlength=classes)
    return torch.where(counts > 0, len(targets) / (classes * counts.clamp(min=1)), 1.0).to(torch.float32)


def scores(answers: Sequence[tuple[Tensor, Tensor]], classes: int, task: Task) -> EvaluationScores:
    """Computes the metrics from pairs of logits and targets, one pair for each example, without padding."""
    if task == "per-step":
        logits = torch.cat([logits for logits, _ in answers])
        targets = torch.cat([target for _, target in answers])
    else:
        logits = torch.stack([logits for logits, _ in answers])
        targets = torch.stack([target for _, target in answers])
    if task == "multi-label":
        confusion = _confusion_of_each(logits > 0, targets > 0)
        right = confusion[:, 0].sum() + confusion[:, 3].sum()
    else:
        confusion = _confusion(targets, logits.argmax(dim=1), classes)
        right = np.trace(confusion)
    return EvaluationScores(
        loss=float(functional.binary_cross_entropy_with_logits(logits, targets))
        if task == "multi-label"
        else float(functional.cross_entropy(logits, targets)),
        accuracy=float(right / confusion.sum()),
        macro_f1=_macro_f1(confusion, task),
        answers=int(confusion.sum()),
        confusion=confusion.tolist(),
    )


def _confusion(targets: Tensor, answered: Tensor, classes: int) -> NDArray[np.int64]:
    counts = torch.bincount(targets * classes + answered, minlength=classes * classes)
    return counts.reshape(classes, classes).numpy()


def _confusion_of_each(answered: Tensor, targets: Tensor) -> NDArray[np.int64]:
    """`[classes, 4]`: true positives, false positives, false negatives, true negatives."""
    kinds = [answered & targets, answered & ~targets, ~answered & targets, ~answered & ~targets]
    return torch.stack([kind.sum(dim=0) for kind in kinds], dim=1).numpy()


def _macro_f1(confusion: NDArray[np.int64], task: Task) -> float:
    if task == "multi-label":
        positive, false_positive, false_negative = confusion[:, 0], confusion[:, 1], confusion[:, 2]
    else:
        positive = confusion.diagonal()
        false_positive, false_negative = confusion.sum(axis=0) - positive, confusion.sum(axis=1) - positive
    seen = 2 * positive + false_positive + false_negative
    return float((2 * positive[seen > 0] / seen[seen > 0]).mean())

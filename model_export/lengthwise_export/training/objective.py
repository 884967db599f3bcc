"""What training minimises and what is reported of it; a padded step counts in neither."""

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
    """How well a set of examples is answered.

    Attributes:
        loss: Mean loss of an example; of a step for a per-step model.
        accuracy: Share of answers that are right. An answer is a sequence's label; for a multi-label model one label's
            yes or no; for a per-step model a valid step's label.
        macro_f1: Mean over the labels of 2 tp / (2 tp + fp + fn); a label neither seen nor answered is left out.
        answers: How many answers there are.
        confusion: `[classes][classes]`, counts by true and answered label; of a multi-label model `[classes][4]`, for
            each label true positives, false positives, false negatives and true negatives.
    """

    loss: float
    accuracy: float
    macro_f1: float
    answers: int
    confusion: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        """The figures, for `metrics.json`."""
        return asdict(self)


def loss(logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None = None) -> Tensor:
    """The mean loss over answers.

    Args:
        logits: `[rows, classes]`, or `[rows, width, classes]` per step.
        targets: As in `batches.Batch`.
        task: Says which loss.
        weights: `[classes]`; of a multi-label model the weight of a positive.
    """
    if task == "multi-label":
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    if task == "per-step":
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(logits, targets, weight=weights, ignore_index=NO_TARGET)


def class_weights(examples: Sequence[Example], classes: int, task: Task) -> Tensor:
    """`[classes]` weights that make rare labels count as much as frequent ones; see `loss`.

    `answers / (classes * count)`; for a multi-label model `negatives / positives`. A label that never occurs counts 1.
    """
    if task == "multi-label":
        positives = torch.stack([example.target for example in examples]).sum(dim=0)
        weights = (len(examples) - positives) / positives.clamp(min=1)
        return torch.where(positives > 0, weights.clamp(min=1e-3), 1.0)
    targets = torch.cat([example.target.reshape(-1) for example in examples])
    counts = torch.bincount(targets, minlength=classes)
    return torch.where(counts > 0, len(targets) / (classes * counts.clamp(min=1)), 1.0).to(torch.float32)


def scores(answers: Sequence[tuple[Tensor, Tensor]], classes: int, task: Task) -> EvaluationScores:
    """Scores pairs of logits and targets, one pair for each example, without padding."""
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

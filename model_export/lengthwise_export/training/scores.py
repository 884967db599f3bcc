"""How good answers are: the loss that is trained, accuracy, confusion, calibration, groups by length and missing share.

```
model, examples -> answers (without padding) -> EvaluationScores -> metrics.json
```
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, multilabel_confusion_matrix
from torch import Tensor
from torch.nn import functional

from lengthwise.runtime import fixed_kernels
from lengthwise.runtime.manifest import Task
from lengthwise_export.architecture.layers import ROWS_TOGETHER, answer_in_batches
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import BuiltInModel
from lengthwise_export.training.batches import NO_TARGET, Example

BINS: Final = 10  # of equal width, of the reliability diagram
LENGTH_PARTS: Final = 4
MISSING_EDGES: Final = (0.0, 0.05, 0.2, 0.5, 1.0)


class ScoredAnswer(NamedTuple):
    """A model's answer to one example."""

    logits: Tensor  # `[classes]`, or `[length, classes]` per step
    example: Example


@dataclass(frozen=True, slots=True)
class EvaluationScores:
    """The metrics of a model on a set of examples.

    An answer is the label of a sequence; for a multi-label model, yes or no for one label; for a per-step model, the
    label of a valid step. The loss is a mean over examples, or steps.
    """

    loss: float
    accuracy: float
    macro_f1: float  # mean of 2 tp / (2 tp + fp + fn) over the labels that occur or are answered
    answers: int
    # `[classes][classes]`, counts by true and predicted label; for a multi-label model `[classes][4]`, the true
    # positives, false positives, false negatives and true negatives of each label
    confusion: list[list[int]]
    of: Sequence[ScoredAnswer] = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """The metrics as in `metrics.json`: with `ece` and the lists of `quality`."""
        names = ("loss", "accuracy", "macro_f1", "answers", "confusion")
        return {name: getattr(self, name) for name in names} | quality(self.of)

    @property
    def losses(self) -> NDArray[np.float64]:
        """`[examples]`, the log loss of each answer to a sequence that has one label."""
        logits, targets = join_answers(self.of, "single-label")
        return np.asarray(functional.cross_entropy(logits.double(), targets, reduction="none").numpy())


def loss(
    logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """The mean loss of `logits [rows, classes]`, or `[rows, width, classes]` per step; weights as `class_weights`."""
    if task == "multi-label":
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    if logits.ndim == 3:
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(
        logits, targets, weight=weights, ignore_index=NO_TARGET, label_smoothing=label_smoothing
    )


def class_weights(examples: Sequence[Example], classes: int, task: Task) -> Tensor:
    """`[classes]`: `answers / (classes * count)`; of a multi-label model `negatives / positives`.

    A class without examples has 1.
    """
    if task == "multi-label":
        positives = torch.stack([example.target for example in examples]).sum(dim=0)
        weights = (len(examples) - positives) / positives.clamp(min=1)
        return torch.where(positives > 0, weights.clamp(min=1e-3), 1.0)
    targets = torch.cat([example.target.reshape(-1) for example in examples])
    counts = torch.bincount(targets, minlength=classes)
    return torch.where(counts > 0, len(targets) / (classes * counts.clamp(min=1)), 1.0).to(torch.float32)


def answer_each(model: BuiltInModel, members: Sequence[Example], *, rows: int = ROWS_TOGETHER) -> list[ScoredAnswer]:
    """The answer to each example, in their order. The model stays in evaluation mode."""
    model.eval()
    logits_of_each = answer_in_batches(
        lambda steps, lengths: model(steps, lengths).logits, [example.steps for example in members], rows
    )
    return [ScoredAnswer(logits, example) for logits, example in zip(logits_of_each, members, strict=True)]


def evaluate(model: BuiltInModel, members: Sequence[Example], spec: Spec) -> EvaluationScores:
    """The scores of a model on examples; see `answer_each`."""
    rows = ROWS_TOGETHER if spec.model.kind == "layers" or fixed_kernels.INSTRUCTION_SETS else 1
    return scores(answer_each(model, members, rows=rows), spec)


def join_answers(answered: Sequence[ScoredAnswer], task: Task) -> tuple[Tensor, Tensor]:
    """Logits and targets of all answers: `[answers, classes]`, and the targets as in `Example`."""
    join = torch.cat if task == "per-step" else torch.stack
    return join([answer.logits for answer in answered]), join([answer.example.target for answer in answered])


def scores(answered: Sequence[ScoredAnswer], spec: Spec) -> EvaluationScores:
    """The scores of answers."""
    logits, targets = join_answers(answered, spec.output.task)
    truth = targets.numpy()
    counted: list[bool] | None = None  # all classes
    if spec.output.task == "multi-label":
        predicted, truth = (logits > 0).numpy(), truth > 0
        if truth.shape[1] == 1:  # which scikit-learn takes for the answers of two classes
            counted = [True]
        counts = multilabel_confusion_matrix(truth, predicted, labels=counted)  # (classes, true, predicted)
        confusion = counts[:, [1, 0, 1, 0], [1, 1, 0, 0]]
    else:
        predicted = logits.argmax(dim=1).numpy()
        confusion = confusion_matrix(truth, predicted, labels=range(len(spec.output.labels)))
    return EvaluationScores(
        loss=float(loss(logits, targets, spec.output.task)),
        accuracy=float((predicted == truth).mean()),
        macro_f1=float(f1_score(truth, predicted, labels=counted, average="macro", zero_division=np.nan)),
        answers=truth.size,
        confusion=confusion.tolist(),
        of=answered,
    )


def quality(answered: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """The entries of a report about answers besides their scores: calibration, and accuracy in groups of examples.

    `ece` is the expected calibration error: the mean distance of confidence and accuracy, over bins of the confidence.
    """
    rated = [_confidences(answer) for answer in answered]
    confidence, right = (np.concatenate(values) for values in zip(*rated, strict=True))
    edges_of_bins = itertools.pairwise(index / BINS for index in range(BINS + 1))
    masks = {(low, high): (confidence > low) & (confidence <= high) for low, high in edges_of_bins}
    bins: list[dict[str, Any]] = [
        {
            "from": low,
            "to": high,
            "answers": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for (low, high), inside in masks.items()
        if inside.any()
    ]
    error = sum(entry["answers"] / len(confidence) * abs(entry["confidence"] - entry["accuracy"]) for entry in bins)
    right_of_each = [right_of_example for _, right_of_example in rated]
    # by quantile of the length; equal lengths are in one group
    lengths = np.array([len(answer.example.steps) for answer in answered])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_PARTS + 1), method="inverted_cdf")).tolist()
    lows = [edges[0], *(edge + 1 for edge in edges[1:-1])]
    bounds = zip(lows, edges[1:] or edges, strict=True)
    by_length = [((lengths >= low) & (lengths <= high), low, high) for low, high in bounds]
    result = {"ece": error, "reliability": bins, "by_length": _groups(right_of_each, by_length)}
    missing = np.array([answer.example.missing for answer in answered])
    if missing.any():
        shares = [((missing > low) & (missing <= high), low, high) for low, high in itertools.pairwise(MISSING_EDGES)]
        result["by_missing"] = _groups(right_of_each, [(missing == 0, 0.0, 0.0), *shares])
    return result


def _confidences(answer: ScoredAnswer) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """`[answers]`: the probability of each answer to an example, and whether it is correct."""
    logits, target = answer.logits.double(), answer.example.target.numpy()
    if target.dtype.kind == "f":  # multi-label
        yes = torch.sigmoid(logits).numpy()
        return np.maximum(yes, 1 - yes), (yes > 0.5) == (target > 0.5)
    probabilities = np.atleast_2d(logits.softmax(dim=-1).numpy())
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == target.reshape(-1)


def _groups(
    right: Sequence[NDArray[np.bool_]], parts: Sequence[tuple[NDArray[np.bool_], float, float]]
) -> list[dict[str, Any]]:
    """The accuracy in each part of the examples; parts without an example are left out.

    `right` says of the answers to each example whether they are right. A part is a mask `[examples]`, and the lowest
    and highest length (or share of missing values) in it.
    """
    groups = []
    for inside, low, high in parts:
        if inside.any():
            right_inside = np.concatenate([right[index] for index in np.flatnonzero(inside)])
            counts = {"sequences": int(inside.sum()), "answers": len(right_inside)}
            groups.append({"from": low, "to": high, **counts, "accuracy": float(right_inside.mean())})
    return groups

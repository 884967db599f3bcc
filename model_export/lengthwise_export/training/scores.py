"""How good answers are: the loss that is trained, accuracy, confusion, calibration, groups by length and missing share.

```
model, examples -> answers (without padding) -> EvaluationScores -> metrics.json
```
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lengthwise_export.architecture.layers import ROWS_TOGETHER, answer_in_batches
from lengthwise_export.architecture.rocket import fixed_kernels
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import BuiltInModel
from lengthwise_export.training.batches import NO_TARGET, Example, Task, static_of

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
    of: Sequence[ScoredAnswer] = field(repr=False, compare=False)  # the scored answers themselves, for `quality`

    def as_json(self) -> dict[str, Any]:
        """The metrics as in `metrics.json`: with `ece` and the lists of `quality`."""
        names = ("loss", "accuracy", "macro_f1", "answers", "confusion")
        return {name: getattr(self, name) for name in names} | quality(self.of)

    @property
    def losses(self) -> NDArray[np.float64]:
        """The log loss of each answer of a single-label model, `[examples]`."""
        logits, targets = join_answers(self.of, "single-label")
        return np.asarray(functional.cross_entropy(logits.double(), targets, reduction="none").numpy())


def loss(
    logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """The mean loss of a batch: cross-entropy, or binary cross-entropy for a multi-label model.

    Args:
        logits: `[rows, classes]`, or `[rows, width, classes]` per step.
        targets: In the form of `TrainingBatch.targets`; steps with `NO_TARGET` do not count.
        task: The task of the model.
        weights: `[classes]`, as `class_weights` returns them; None for equal weights.
        label_smoothing: The share of the target that is spread over all labels; not for multi-label models.
    """
    if task == "multi-label":
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    if logits.ndim == 3:
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(
        logits, targets, weight=weights, ignore_index=NO_TARGET, label_smoothing=label_smoothing
    )


def class_weights(examples: Sequence[Example], classes: int, task: Task) -> Tensor:
    """The weight of each class in the loss, `[classes]`, so that rare classes count as much as frequent ones.

    - Single-label and per-step: `answers / (classes * count)`, as scikit-learn's "balanced".
    - Multi-label: `negatives / positives`, the weight of a positive answer.

    A class without examples has weight 1.
    """
    if task == "multi-label":
        positives = torch.stack([example.target for example in examples]).sum(dim=0)
        return torch.where(positives > 0, ((len(examples) - positives) / positives.clamp(min=1)).clamp(min=1e-3), 1.0)
    targets = torch.cat([example.target[example.target != NO_TARGET] for example in examples])
    counts = torch.bincount(targets, minlength=classes)
    return torch.where(counts > 0, len(targets) / (classes * counts.clamp(min=1)), 1.0).to(torch.float32)


def answer_each(model: BuiltInModel, examples: Sequence[Example], *, rows: int = ROWS_TOGETHER) -> list[ScoredAnswer]:
    """Runs the model on each example, `rows` in a batch; returns the answers in the order of the examples.

    Leaves the model in evaluation mode.
    """
    model.eval()
    static = static_of(examples)
    logits_of_each = answer_in_batches(
        lambda *batch: model(*batch).logits,
        [example.steps for example in examples],
        rows,
        None if static is None else [*static],
    )
    return [ScoredAnswer(logits, example) for logits, example in zip(logits_of_each, examples, strict=True)]


def evaluate(model: BuiltInModel, examples: Sequence[Example], spec: Spec) -> EvaluationScores:
    """Scores a model on examples. Leaves it in evaluation mode."""
    # A rocket model answers one example at a time where the compiled kernels are missing
    rows = ROWS_TOGETHER if spec.model.kind == "layers" or fixed_kernels.INSTRUCTION_SETS else 1
    return scores(answer_each(model, examples, rows=rows), spec)


def join_answers(answered: Sequence[ScoredAnswer], task: Task) -> tuple[Tensor, Tensor]:
    """Joins answers to two tensors: logits `[answers, classes]`, and targets.

    Targets are `[answers]` int64 indices of labels, or `[answers, classes]` for a multi-label model. An answer is that
    of a sequence, or of a step with a label for a per-step model.
    """
    join = torch.cat if task == "per-step" else torch.stack
    logits, targets = join([answer.logits for answer in answered]), join([answer.example.target for answer in answered])
    has_label = targets != NO_TARGET if task == "per-step" else slice(None)
    return logits[has_label], targets[has_label]


def scores(answered: Sequence[ScoredAnswer], spec: Spec) -> EvaluationScores:
    """Computes loss, accuracy, macro F1 and confusion over all answers; multi-label at probability 0.5."""
    logits, targets = join_answers(answered, spec.output.task)
    truth = targets.numpy()
    if spec.output.task == "multi-label":
        predicted, truth = (logits > 0).numpy(), truth > 0
        hits, ones = (predicted & truth).sum(axis=0), predicted.sum(axis=0) + truth.sum(axis=0)
        missed = truth.sum(axis=0) - hits
        counts = (hits, ones - 2 * hits - missed, missed, len(truth) - ones + hits)
        confusion = np.stack(counts, axis=1)  # (classes, [TP, FP, FN, TN])
    else:
        predicted, classes = logits.argmax(dim=1).numpy(), len(spec.output.labels)
        confusion = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
        hits, ones = confusion.diagonal(), confusion.sum(axis=0) + confusion.sum(axis=1)
    occurs = ones > 0
    return EvaluationScores(
        loss=float(loss(logits, targets, spec.output.task)),
        accuracy=float((predicted == truth).mean()),
        macro_f1=float((2 * hits[occurs] / ones[occurs]).mean()) if occurs.any() else math.nan,
        answers=truth.size,
        confusion=confusion.tolist(),
        of=answered,
    )


def quality(answered: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """Measures calibration, and accuracy in groups of examples, as further entries of the report.

    - `ece`: the expected calibration error, the mean distance of confidence and accuracy over bins of the confidence.
    - `reliability`: these bins, each with its bounds, answers, mean confidence and accuracy; empty bins are left out.
    - `by_length`: groups by quartiles of the length.
    - `by_missing`: groups by the share of missing values, if any are missing.
    """
    # Reliability: bins by confidence
    confidences = [_confidences(answer) for answer in answered]
    confidence, correct = (np.concatenate(values) for values in zip(*confidences, strict=True))
    edges_of_bins = itertools.pairwise(index / BINS for index in range(BINS + 1))
    masks = {(low, high): (confidence > low) & (confidence <= high) for low, high in edges_of_bins}
    bins: list[dict[str, Any]] = [
        {
            "from": low,
            "to": high,
            "answers": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(correct[inside].mean()),
        }
        for (low, high), inside in masks.items()
        if inside.any()
    ]
    calibration_error = sum(
        entry["answers"] / len(confidence) * abs(entry["confidence"] - entry["accuracy"]) for entry in bins
    )
    correct_by_example = [correct_of_example for _, correct_of_example in confidences]
    # Groups by quantile of the length; equal lengths are in one group
    lengths = np.array([len(answer.example.steps) for answer in answered])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_PARTS + 1), method="inverted_cdf")).tolist()
    lows = [edges[0], *(edge + 1 for edge in edges[1:-1])]
    bounds = zip(lows, edges[1:] or edges, strict=True)  # one edge, if all lengths are equal: it is both bounds
    by_length = [((lengths >= low) & (lengths <= high), low, high) for low, high in bounds]
    result = {"ece": calibration_error, "reliability": bins, "by_length": _groups(correct_by_example, by_length)}
    # Groups by the share of missing values
    missing = np.array([answer.example.missing for answer in answered])
    if missing.any():
        shares = [((missing > low) & (missing <= high), low, high) for low, high in itertools.pairwise(MISSING_EDGES)]
        result["by_missing"] = _groups(correct_by_example, [(missing == 0, 0.0, 0.0), *shares])
    return result


def _confidences(answer: ScoredAnswer) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """For each answer to an example, the probability of what is answered, and whether it is correct; both `[answers]`.

    A multi-label model gives an answer for each class, yes or no; a per-step model one for each step with a label.
    """
    logits, target = answer.logits.double(), answer.example.target.numpy()
    if target.dtype.kind == "f":  # multi-label
        yes = torch.sigmoid(logits).numpy()
        return np.maximum(yes, 1 - yes), (yes > 0.5) == (target > 0.5)
    probabilities = np.atleast_2d(logits.softmax(dim=-1).numpy())[np.atleast_1d(target) != NO_TARGET]
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == target[target != NO_TARGET]


def _groups(
    correct: Sequence[NDArray[np.bool_]], parts: Sequence[tuple[NDArray[np.bool_], float, float]]
) -> list[dict[str, Any]]:
    """The accuracy in each part of the examples, as entries of the report; parts without an example are left out.

    Args:
        correct: For each example, `[answers]`: whether its answers are correct.
        parts: For each part, a mask `[examples]`, and the lowest and the highest length (or share of missing values).
    """
    groups = []
    for inside, low, high in parts:
        if inside.any():
            correct_inside = np.concatenate([correct[index] for index in np.flatnonzero(inside)])
            counts = {"sequences": int(inside.sum()), "answers": len(correct_inside)}
            groups.append({"from": low, "to": high, **counts, "accuracy": float(correct_inside.mean())})
    return groups

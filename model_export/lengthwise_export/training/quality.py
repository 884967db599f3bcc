"""How good a model's answers are on a split: calibration, and accuracy by length and by missing share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lengthwise.runtime.manifest import Task
from lengthwise_export.architecture.model import ClassifierOutput
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training.batches import Example, batches

BINS: Final = 10
"""Bins of equal width of the reliability diagram."""
LENGTH_PARTS: Final = 4
MISSING_EDGES: Final = (0.0, 0.05, 0.2, 0.5, 1.0)


class AnyClassifier(Protocol):
    """A trained model of any kind."""

    def __call__(self, steps: Tensor, lengths: Tensor, /) -> ClassifierOutput:
        """The answers to a padded batch."""
        ...

    def eval(self) -> object:
        """Switches to evaluation mode."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """The model's answers to one example, and what the example is like.

    Attributes:
        sure: `[answers]`, the probability of each answer.
        right: `[answers]`, whether it is right.
        length: Number of steps.
        missing: Share of missing values.
    """

    sure: NDArray[np.float64]
    right: NDArray[np.bool_]
    length: int
    missing: float


def quality(model: AnyClassifier, members: Sequence[Example], spec: Spec, *, rows: int = 64) -> dict[str, Any]:
    """The parts of a report that need the examples, for `metrics.json`.

    Args:
        model: The model.
        members: The examples of a split.
        spec: The spec.
        rows: Examples in a batch.

    Returns:
        `ece` (expected calibration error), `reliability` (a list of bins), `by_length` and, if a value is missing,
        `by_missing` (lists of groups with their accuracy).
    """
    model.eval()
    ordered = sorted(members, key=lambda example: len(example.steps))  # stable, as `batches` sorts
    found: list[ScoredAnswer] = []
    with torch.no_grad():
        for batch in batches(ordered, rows):
            logits = model(batch.steps, batch.lengths).logits
            for index, length in enumerate(batch.lengths.tolist()):
                example = ordered[len(found)]
                found.append(_answer(logits[index], example, length, spec.output.task))
    return measured(found)


def measured(found: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """The figures of answers; see `quality`."""
    sure, right = np.concatenate([one.sure for one in found]), np.concatenate([one.right for one in found])
    bins = []
    error = 0.0
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        inside = (sure > low) & (sure <= high)
        count = int(inside.sum())
        if count:
            confidence, accuracy = float(sure[inside].mean()), float(right[inside].mean())
            error += count / len(sure) * abs(confidence - accuracy)
            bins.append({"from": low, "to": high, "answers": count, "confidence": confidence, "accuracy": accuracy})
    result: dict[str, Any] = {"ece": error, "reliability": bins, "by_length": _by_length(found)}
    if any(one.missing for one in found):
        result["by_missing"] = _by_missing(found)
    return result


def _answer(logits: Tensor, example: Example, length: int, task: Task) -> ScoredAnswer:
    target = example.target.numpy()
    if task == "multi-label":
        yes = torch.sigmoid(logits.double()).numpy()
        sure, right = np.maximum(yes, 1 - yes), (yes > 0.5) == (target > 0.5)
    else:
        rows = logits[:length] if task == "per-step" else logits[None]
        probabilities = rows.double().softmax(dim=1).numpy()
        sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == target.reshape(-1)
    missing = float(example.steps.isnan().float().mean()) if example.steps.is_floating_point() else 0.0
    return ScoredAnswer(sure, np.asarray(right, dtype=np.bool_), length, missing)


def _by_length(found: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    """Accuracy by quantile of the length; equal lengths are in one group."""
    lengths = np.array([one.length for one in found])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_PARTS + 1), method="inverted_cdf"))
    groups = []
    low = int(edges[0])
    for high in map(int, edges[1:] if len(edges) > 1 else edges):
        groups.append(_group([one for one in found if low <= one.length <= high], low, high))
        low = high + 1
    return [group for group in groups if group["sequences"]]


def _by_missing(found: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    """Accuracy by share of missing values; sequences without any are a group of their own."""
    groups = [_group([one for one in found if not one.missing], 0.0, 0.0)]
    for low, high in itertools.pairwise(MISSING_EDGES):
        groups.append(_group([one for one in found if low < one.missing <= high], low, high))
    return [group for group in groups if group["sequences"]]


def _group(found: Sequence[ScoredAnswer], low: float, high: float) -> dict[str, Any]:
    right = np.concatenate([one.right for one in found]) if found else np.zeros(0)
    accuracy = float(right.mean()) if len(right) else None
    return {"from": low, "to": high, "sequences": len(found), "answers": len(right), "accuracy": accuracy}

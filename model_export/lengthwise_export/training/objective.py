"""The loss of training. Padded steps do not count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lengthwise.runtime.manifest import Task
from lengthwise_export.training.batches import NO_TARGET, Example


def loss(
    logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """The mean loss over answers.

    Args:
        logits: `[rows, classes]`, or `[rows, width, classes]` per step.
        targets: See `batches.TrainingBatch`.
        task: The task, which determines the loss.
        weights: `[classes]`; for a multi-label model the weights of positives.
        label_smoothing: Share of a target that is spread over all labels; not for a multi-label model.
    """
    if task == "multi-label":
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

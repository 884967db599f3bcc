"""Answers sequences with a trained module in torch, in batches of similar lengths. The service runs the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lengthwise.padding import Steps
from lengthwise_export.training.batches import Example, collate
from lengthwise_export.training.quality import AnyClassifier


def probabilities(model: AnyClassifier, sequences: Sequence[Steps], *, rows: int) -> NDArray[np.float64]:
    """`[sequences, classes]`: the probabilities of a model that gives each sequence one label.

    Args:
        model: The model, in evaluation mode.
        sequences: Each `[length, features]` float32 or `[length]` int64; at least one.
        rows: Sequences in a batch.
    """
    order = np.argsort([len(steps) for steps in sequences], kind="stable")
    found: list[tuple[int, NDArray[np.float64]]] = []
    nothing = torch.zeros((), dtype=torch.int64)
    with torch.no_grad():
        for start in range(0, len(order), rows):
            places = order[start : start + rows].tolist()
            batch = collate([Example(torch.from_numpy(sequences[place]), nothing) for place in places])
            answers = model(batch.steps, batch.lengths).logits.double().softmax(dim=1).numpy()
            found += zip(places, answers, strict=True)
    return np.stack([answer for _, answer in sorted(found, key=lambda pair: pair[0])])

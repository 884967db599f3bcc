"""The options of `lengthwise train`, in a module that does not import torch, so that help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, meaning: str, **bounds: float | bool) -> Any:
    """A dataclass field with the help and the bounds (arguments of click's ranges) of its command-line option."""
    return field(default=default, metadata={"help": meaning, "bounds": bounds})


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Training options; each field is an option of `lengthwise train`."""

    epochs: int = _option(40, "Maximum number; the learning rate follows half a cosine over them.", min=1)
    batch_rows: int = _option(16, "Sequences in a batch.", min=1)
    learning_rate: float = _option(2e-3, "Initial learning rate of AdamW.", min=0, min_open=True)
    weight_decay: float = _option(0.05, "Weight decay of AdamW.", min=0)
    clip: float = _option(1.0, "Maximum norm of all gradients together.", min=0, min_open=True)
    patience: int = _option(15, "Stop after this many epochs without a better validation loss.", min=1)
    validation: float = _option(
        0.15,
        "Share of the records for validation, to choose the epoch; 0: train on all, use the last.",
        min=0,
        max=1,
        max_open=True,
    )
    class_weights: bool = _option(False, "Give rare labels the same influence as frequent ones.")
    seed: int = _option(0, "Seed of initial weights, split, order and dropout.", min=0, max=2**31)
    calibration: bool = _option(
        True,
        "Leave the probabilities as they are. By default all logits are divided by a temperature that fits the "
        "probabilities to the answers on the validation split.",
    )

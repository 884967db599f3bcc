"""The options of `lengthwise train`, apart from what trains: its help needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, meaning: str, **bounds: float | bool) -> Any:
    """A field that is a flag of the command too: default, help and bounds (click's words) all stand here."""
    return field(default=default, metadata={"help": meaning, "bounds": bounds})


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How to train; each field is an option of `lengthwise train`."""

    epochs: int = _option(40, "At most so many; the learning rate falls along half a cosine over them.", min=1)
    batch_rows: int = _option(16, "Sequences a step of the optimizer.", min=1)
    learning_rate: float = _option(2e-3, "Of AdamW, at the start.", min=0, min_open=True)
    weight_decay: float = _option(0.05, "Of AdamW.", min=0)
    clip: float = _option(1.0, "Largest norm of all gradients together.", min=0, min_open=True)
    patience: int = _option(15, "Stop after so many epochs without a better validation loss.", min=1)
    validation: float = _option(
        0.15, "Share kept aside to choose the epoch; 0: train on all, take the last.", min=0, max=1, max_open=True
    )
    class_weights: bool = _option(False, "Let rare labels weigh as much as frequent ones.")
    seed: int = _option(0, "Decides initial weights, split, order and dropout.", min=0, max=2**31)

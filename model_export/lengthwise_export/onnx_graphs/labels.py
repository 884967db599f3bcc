"""Reads the labels in a graph's metadata, and counts the labels that change between two graphs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps, pad
from lengthwise.runtime import answers
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session

IN_GRAPH: Final = "lengthwise.labels"  # the key of the labels in a graph's metadata
NAME_IN_GRAPH: Final = "lengthwise.name"  # the key of the model's name there


def labels_in(proto: onnx.ModelProto) -> tuple[str, ...] | None:
    """The labels that `export` wrote into a graph; None if there are none."""
    for entry in proto.metadata_props:
        if entry.key == IN_GRAPH:
            try:
                labels = json.loads(entry.value)
            except ValueError:
                return None
            if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
                return tuple(labels)
    return None


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """The difference between the answers of two graphs."""

    sequences: int  # The number of sequences that both answered
    changed: int  # The number of sequences with another label or other labels; of a per-step model, at any step
    difference: float  # The largest absolute difference of a logit

    def __str__(self) -> str:
        """`2 of 370 labels changed`."""
        return f"{self.changed} of {self.sequences} labels changed"


def compare(
    before: Session, manifest_before: Manifest, after: Session, manifest_after: Manifest, sequences: Iterable[Steps]
) -> LabelChanges:
    """Runs each sequence that the model accepts unbatched through both graphs, and compares the answers."""
    count, changed, largest = 0, 0, 0.0
    least, most = manifest_before.min_length, manifest_before.max_length
    for steps in sequences:
        if not least <= len(steps) <= most:
            continue
        one, other = _logits(before, manifest_before, steps), _logits(after, manifest_after, steps)
        count += 1
        changed += not np.array_equal(_label(one, manifest_before), _label(other, manifest_after))
        largest = max(largest, float(np.abs(one - other).max()))
    if not count:
        accepted = f"{most} steps or fewer" if least == 1 else f"{least} to {most} steps"
        raise ConfigurationError(f"no sequence of the data has {accepted}")
    return LabelChanges(count, changed, largest)


def _logits(session: Session, manifest: Manifest, steps: Steps) -> NDArray[np.float32]:
    """`[classes]`, or of a per-step model `[length, classes]`."""
    row: NDArray[np.float32] = session.run(pad([steps], multiple=manifest.width_multiple)).logits[0]
    return row[: len(steps)] if manifest.task == "per-step" else row


def _label(logits: NDArray[np.float32], manifest: Manifest) -> NDArray[np.bool_] | NDArray[np.intp]:
    """The class, the class of each step, or for a multi-label model which classes are assigned."""
    if manifest.task == "multi-label":
        assigned: NDArray[np.bool_] = answers.probabilities(logits, manifest) >= manifest.threshold
        return assigned
    classes: NDArray[np.intp] = logits.argmax(axis=-1, keepdims=True)
    return classes

"""The labels that a graph names, and what another precision does to labels: two graphs, the same sequences."""

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

IN_GRAPH: Final = "lengthwise.labels"
"""Where they stand in a graph's metadata."""


def labels_in(proto: onnx.ModelProto) -> tuple[str, ...] | None:
    """The labels that an export wrote into a graph, or None for one that was made elsewhere."""
    for entry in proto.metadata_props:
        if entry.key == IN_GRAPH:
            try:
                found = json.loads(entry.value)
            except ValueError:
                return None
            if isinstance(found, list) and all(isinstance(label, str) for label in found):
                return tuple(found)
    return None


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """What changed between two graphs.

    Attributes:
        sequences: How many were asked.
        changed: To how many of them another label was given: another class, or other ones; of a per-step model at any
            step.
        difference: The largest absolute difference of a logit.
    """

    sequences: int
    changed: int
    difference: float

    def __str__(self) -> str:
        """`2 of 370 labels changed`."""
        return f"{self.changed} of {self.sequences} labels changed"


def compare(
    before: Session, manifest_before: Manifest, after: Session, manifest_after: Manifest, sequences: Iterable[Steps]
) -> LabelChanges:
    """Asks both graphs, each sequence by itself.

    Args:
        before: The graph that labels are held against.
        manifest_before: Its manifest.
        after: The other.
        manifest_after: Its manifest.
        sequences: What both are asked; those past their max length are left out.

    Raises:
        ConfigurationError: None is left.
    """
    count, changed, largest = 0, 0, 0.0
    for steps in sequences:
        if len(steps) > manifest_before.max_length:
            continue
        one, other = _logits(before, manifest_before, steps), _logits(after, manifest_after, steps)
        count += 1
        changed += not np.array_equal(_label(one, manifest_before), _label(other, manifest_after))
        largest = max(largest, float(np.abs(one - other).max()))
    if not count:
        raise ConfigurationError(f"no sequence of the data has {manifest_before.max_length} steps or fewer")
    return LabelChanges(count, changed, largest)


def _logits(session: Session, manifest: Manifest, steps: Steps) -> NDArray[np.float32]:
    """`[classes]`, or of a per-step model `[length, classes]`."""
    row: NDArray[np.float32] = session.run(pad([steps], multiple=manifest.width_multiple)).logits[0]
    return row[: len(steps)] if manifest.task == "per-step" else row


def _label(logits: NDArray[np.float32], manifest: Manifest) -> NDArray[np.bool_] | NDArray[np.intp]:
    """The class, a step's class, or which classes are assigned."""
    if manifest.task == "multi-label":
        assigned: NDArray[np.bool_] = answers.probabilities(logits, manifest) >= manifest.threshold
        return assigned
    classes: NDArray[np.intp] = logits.argmax(axis=-1, keepdims=True)
    return classes

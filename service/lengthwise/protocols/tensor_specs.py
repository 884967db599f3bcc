"""Which tensors a model has in the Open Inference Protocol: their names, datatypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from lengthwise.runtime.manifest import Manifest, Task

ELEMENTS: Final[Mapping[str, np.dtype[Any]]] = {  # the NumPy type of each datatype; `BYTES` has none
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
LENGTHS: Final = "lengths"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The datatype and the shape that a tensor must have; -1 is an axis of any size."""

    name: str
    datatypes: tuple[str, ...]  # those that it may have; metadata shows the first
    shape: tuple[int, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """All shapes that are accepted: `lengths` may be `[rows, 1]` or `[rows]`."""
        return (self.shape, self.shape[:1]) if self.name == LENGTHS else (self.shape,)


def inputs_of(manifest: Manifest) -> tuple[TensorSpec, TensorSpec]:
    """The input tensors of a model: its steps (`tokens` or `values`), and `lengths`."""
    lengths = TensorSpec(LENGTHS, ("INT32", "INT64"), (-1, 1))
    if manifest.input.kind == "tokens":
        return TensorSpec("tokens", ("INT64", "INT32"), (-1, -1)), lengths
    return TensorSpec("values", ("FP32", "FP64"), (-1, -1, manifest.input.features or 1)), lengths


def outputs_of(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """The output tensors of a model, named as in the answer of `POST /predict`."""
    return _outputs(manifest.task, manifest.classes, manifest.graph.attention is not None)


@lru_cache
def _outputs(task: Task, classes: int, attention: bool) -> tuple[TensorSpec, ...]:
    """The output tensors of a model, by its task, its number of classes, and whether it has attention."""
    text, number, rows, steps = ("BYTES",), ("FP32",), (-1,), (-1, -1)
    forms: dict[Task, tuple[TensorSpec, ...]] = {
        "single-label": (
            TensorSpec("label", text, rows),
            TensorSpec("score", number, rows),
            TensorSpec("probabilities", number, (*rows, classes)),
        ),
        "multi-label": (
            TensorSpec("assigned", ("BOOL",), (*rows, classes)),
            TensorSpec("probabilities", number, (*rows, classes)),
        ),
        "per-step": (
            TensorSpec("step_labels", text, steps),
            TensorSpec("step_scores", number, steps),
            TensorSpec("probabilities", number, (*steps, classes)),
        ),
    }
    return forms[task] + ((TensorSpec("attention", number, steps),) if attention else ())

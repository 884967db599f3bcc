"""Which tensors a model has in the Open Inference Protocol: their names, datatypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from lengthwise import padding
from lengthwise.padding import STATIC as STATIC
from lengthwise.runtime.manifest import Manifest, Task

ELEMENTS: Final[Mapping[str, np.dtype[Any]]] = {  # the NumPy type of each datatype; `BYTES` has none
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
LENGTHS: Final = "lengths"
STATE: Final = "state"
OFFSET: Final = "offset"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The datatype and the shape that a tensor must have; -1 is an axis of any size."""

    name: str
    datatypes: tuple[str, ...]  # those that it may have; metadata shows the first
    shape: tuple[int, ...]
    optional: bool = False  # whether a request may leave it out

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """All shapes that are accepted: what is `[rows, 1]`, such as `lengths`, may be `[rows]`."""
        return (self.shape, self.shape[:1]) if self.shape == (-1, 1) else (self.shape,)


OF_STATES: Final = {
    STATE: TensorSpec(STATE, ("BYTES",), (-1, 1), optional=True),
    OFFSET: TensorSpec(OFFSET, ("INT64",), (-1, 1), optional=True),
}
"""The tensors of a model that streams: inputs, in which an empty text and -1 stand for none, and outputs."""

DECIDED: Final = TensorSpec("decided", ("BOOL",), (-1,))
"""An output of a model that says where a sequence is decided (`Manifest.stop_at`)."""

ONLY_NAMED: Final = (*OF_STATES, DECIDED.name)
"""The outputs that a request names to have them: without names, all others are sent."""


class SequenceSpecs(NamedTuple):
    """The input tensors of one sequence, and the manifest of a model that takes it alone."""

    alone: Manifest
    steps: TensorSpec
    lengths: TensorSpec


def sequences_of(manifest: Manifest) -> list[SequenceSpecs]:
    """The input tensors of each sequence of a model.

    One sequence is `tokens` or `values`, with `lengths`; of several, each is NAME, with NAME_lengths.
    """
    names = {name: (name, padding.LENGTHS.format(name), alone) for name, alone in manifest.by_sequence.items()}
    kind = manifest.input.kind
    specs = []
    for name, lengths_name, alone in names.values() or [(kind, LENGTHS, manifest.alone)]:
        steps = TensorSpec(name, ("FP32", "FP64"), (-1, -1, alone.input.features or 1))
        if alone.input.kind == "tokens":
            steps = TensorSpec(name, ("INT64", "INT32"), (-1, -1))
        specs.append(SequenceSpecs(alone, steps, TensorSpec(lengths_name, ("INT32", "INT64"), (-1, 1), optional=True)))
    return specs


def inputs_of(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """The input tensors of a model: steps and lengths of each sequence, `static` if it takes that, and of states."""
    specs = [spec for of_sequence in sequences_of(manifest) for spec in of_sequence[1:]]
    if manifest.input.static is not None:
        specs.append(TensorSpec(STATIC, ("FP32", "FP64"), (-1, manifest.input.static.count)))
    return (*specs, *(() if manifest.streaming is None else OF_STATES.values()))


def outputs_of(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """The output tensors of a model, named as in the answer of `POST /predict`; `ONLY_NAMED` are the last."""
    states = () if manifest.streaming is None else OF_STATES.values()
    decided = () if manifest.stop_at is None else (DECIDED,)
    return (*_outputs(manifest.task, manifest.classes, manifest.graph.attention is not None), *states, *decided)


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
        "embedding": (TensorSpec("values", number, (*rows, classes)),),
    }
    return forms[task] + ((TensorSpec("attention", number, steps),) if attention else ())

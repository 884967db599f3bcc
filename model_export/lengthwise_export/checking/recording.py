"""The interface between a check and a model: run a batch, and record every operator that the answer depends on.

A model under check is a `Subject`, whether it is a torch module or an ONNX graph. The rest of the check uses only this
interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.causes import ArgumentNames
from lengthwise_export.checking.rule import Cause
from lengthwise_export.checking.trials import Change
from lengthwise_export.layouts import StepLayout
from lengthwise_export.tracing.source_lines import CodeLocation

if TYPE_CHECKING:  # a graph does without torch
    from lengthwise_export.tracing.module_state import ModuleState


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of one run."""

    operator: str
    kind: str  # A torch function or an ONNX operator type; the key to the table of causes
    location: CodeLocation | None  # The line of the user's code that called it; None for ONNX
    input_keys: frozenset[int] = frozenset()
    output_keys: frozenset[int] = frozenset()  # The keys of those outputs that the answer depends on
    # The values of these outputs with their keys; empty if they are not to be compared
    outputs: tuple[tuple[int, NDArray[Any]], ...] = ()
    # Tells the cause of a leak here, if the model knows more than the table of causes
    cause_of: Callable[[Change], Cause] | None = None
    layer: str = ""
    input_shape: tuple[int, ...] = ()  # That of its input, if it is called with axes
    reduced_axes: tuple[int, ...] = ()  # These axes, counted from the front
    is_loop: bool = False  # Whether it is all calls of a loop over the steps, joined
    occurrence: int = 0  # How many calls of the same kind at the same line ran before it

    @property
    def identity(self) -> tuple[str, str, CodeLocation | None]:
        """Equal for the same operation in two runs."""
        return self.operator, self.kind, self.location


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded run."""

    operations: Sequence[Operation]
    answers: frozenset[int]


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """The answer of a model to a batch, with the rows as the first axis."""

    logits: NDArray[np.float32]  # `[rows, classes]` or `[rows, width, classes]`
    attention: NDArray[np.float32] | None = None  # `[rows, width]`; None if the model has no output of that name

    def restored(self, layout: StepLayout, batch: PaddedBatch) -> ModelOutput:
        """The answer to the rows of a batch, from that to what the model got for it in a layout."""
        attention = None if layout.packed else self.attention
        if attention is not None:
            attention = layout.restore(attention, batch, has_classes=False)
        return ModelOutput(layout.restore(self.logits, batch), attention)


class Subject(Protocol):
    """A model under check."""

    @property
    def steps(self) -> StepInput:
        """The kind of a step: values or tokens."""

    @property
    def sizes(self) -> frozenset[int]:
        """The sizes of all axes of its weights; the trials use other row counts and widths."""

    @property
    def in_training(self) -> bool:
        """Whether it is checked in training mode: then other rows may change an answer."""

    @property
    def names(self) -> ArgumentNames:
        """The names of the module's arguments, for the code of a fix."""

    @property
    def layout(self) -> StepLayout:
        """How the model gets the steps of a batch."""

    @property
    def state(self) -> ModuleState | None:
        """What a call may change, as it was when the model was read; None if a call cannot change the model."""

    def answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch.

        Raises:
            RunError: The model raises.
        """

    def answer_in_float64(self, batch: PaddedBatch) -> ModelOutput | None:
        """The answer that float64 gives, to show how much the model rounds by itself; None if that cannot be known."""

    def answers_of_rounded_weights(self, batch: PaddedBatch) -> Iterator[ModelOutput]:
        """Answers with weights a few ulps larger or smaller, where float64 cannot be asked: its rounding moves so."""

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch with the framework's default settings, fast paths included."""

    def output_form(self, batch: PaddedBatch) -> tuple[tuple[int, ...], int]:
        """The shape of the answer as the model itself gives it, and how many outputs the model has."""

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch and records the operations that the answer depends on."""

    def with_layout(self, layout: StepLayout) -> Subject:
        """The same model, which gets the steps of a batch in another layout."""

    def alternatives(self) -> Iterator[AlternativeReading]:
        """The same model, called in other ways that the user may have meant."""


@dataclass(frozen=True, slots=True)
class AlternativeReading:
    """A model, called in another way."""

    subject: Subject
    runs: str  # The end of the sentence "the model runs ...", with the option to pass or the code to write

"""The interface between a check and a model: run a batch, and record every operator that the answer depends on.

A model under check is a `Subject`, whether it is a torch module or an ONNX graph. The rest of the check uses only this
interface.

Each tensor of a run has a *key*, an integer: the address of its storage in torch, the hash of its name in ONNX. An
operation whose input has the key of another's output uses that output. In torch a tensor and its slices have one key; a
*view*, `(key, hash)`, tells them apart.

In layouts other than right padding, a turn of a loop over the steps may belong to different sequences in two runs, so
turns cannot be compared one by one. So each call in such a loop becomes one operation for all turns, with an axis of
steps in front of its outputs; in a loop over the packed sequences, with an axis of these (`with_joined_loops`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.checking.rule import Cause
from lengthwise_export.checking.trials import Change, Geometry
from lengthwise_export.layouts import Array, PaddedBatch, StepLayout
from lengthwise_export.onnx_graphs.beside import StepInput
from lengthwise_export.tracing.source_lines import CodeLocation

if TYPE_CHECKING:  # a graph does without torch
    from lengthwise_export.tracing.module_state import ModuleState

SecondRole = Literal["lengths", "mask", "padding-mask"]  # As `Role` in `tracing.call_signature`

Identity: TypeAlias = tuple[str, str, CodeLocation | None]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of one run."""

    operator: str  # Its name in reports, such as `encoder.norm: layer_norm`
    kind: str  # A torch function or an ONNX operator type, by which the table of rules has a cause
    location: CodeLocation | None  # The line of the user's code that called it; None for ONNX
    input_keys: frozenset[int] = frozenset()
    output_keys: frozenset[int] = frozenset()  # The keys of those outputs that the answer depends on
    input_views: frozenset[tuple[int, ...]] = frozenset()  # The views of its inputs; empty if keys tell them apart
    output_views: frozenset[tuple[int, ...]] = frozenset()  # The views of its outputs
    # The outputs of `output_keys`, as pairs of a key and a value; empty if they are not to be compared
    outputs: tuple[tuple[int, NDArray[Any]], ...] = ()
    # Returns the cause of a leak here, if the model knows more than the table of rules
    cause_of: Callable[[Change], Cause] | None = None
    layer: str = ""  # Of a Keras model, the layer that it is in; otherwise empty
    input_shape: tuple[int, ...] = ()  # The shape of its input, if the axes of the call are known
    input_type: str = ""  # The type of its input, such as `float32` or `int8`; empty if it is not known
    reduced_axes: tuple[int, ...] = ()  # The axes of its input that it runs along, counted from the front
    is_loop: bool = False  # Whether it stands for all calls of a loop over the steps (`with_joined_loops`)
    occurrence: int = 0  # How many calls of the same operator at the same line ran before it

    @property
    def identity(self) -> Identity:
        """What is equal for the same operation in two runs: its operator, kind and location."""
        return self.operator, self.kind, self.location

    @property
    def line_or_name(self) -> str:
        """The line of code that called it; its name if it has no line."""
        return self.operator if self.location is None else str(self.location)

    @property
    def has_nan(self) -> bool:
        """Whether an output has a NaN."""
        return any(value.dtype.kind == "f" and bool(np.isnan(value).any()) for _, value in self.outputs)

    @property
    def is_finite(self) -> bool:
        """Whether all outputs are finite."""
        return all(value.dtype.kind != "f" or bool(np.isfinite(value).all()) for _, value in self.outputs)

    @property
    def gives_sizes(self) -> bool:
        """Whether all outputs are integers or single numbers, as sizes and indices are."""
        return all(value.dtype.kind in "iu" or value.ndim == 0 for _, value in self.outputs)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded run."""

    operations: Sequence[Operation]  # In the order of execution
    answers: frozenset[int]  # The keys of the model's outputs


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """The answer of a model to a batch, with the rows as the first axis."""

    logits: NDArray[np.float32]  # `[rows, classes]` or `[rows, width, classes]`
    attention: NDArray[np.float32] | None = None  # `[rows, width]`; None if the model has no output of that name

    def restored(self, layout: StepLayout, batch: PaddedBatch) -> ModelOutput:
        """This answer, to inputs that a layout arranged from a batch, put into the rows of the batch.

        Attention weights of packed rows are left out.
        """
        attention = None if layout.packed else self.attention
        if attention is not None:
            attention = layout.restore(attention, batch, has_classes=False)
        return ModelOutput(layout.restore(self.logits, batch), attention)


@dataclass(frozen=True, slots=True)
class ArgumentNames:
    """The names of a module's arguments, for the code of a fix."""

    width: str = "width"  # Code for the width, such as `x.size(1)`
    lengths_or_mask: str = "lengths"  # The argument that tells which steps are valid
    role: SecondRole = "lengths"  # Whether that holds lengths, or is a mask of valid steps or of padding
    fix: str | None = None  # The fix of every leak, for a model of another framework; None: a fix for the operator
    is_left_padded: bool = False  # Whether each sequence is at the end of its row
    is_to_add: bool = False  # Whether the module has no such argument yet: the name is that of one to add

    @property
    def valid(self) -> str:
        """Code for a mask `[rows, width]` that is true at valid steps."""
        if self.role == "lengths":
            steps, lengths = (
                f"torch.arange({self.width}, device={self.lengths_or_mask}.device)",
                f"{self.lengths_or_mask}[:, None]",
            )
            return f"{steps} >= {self.width} - {lengths}" if self.is_left_padded else f"{steps} < {lengths}"
        return f"{self.lengths_or_mask}.bool()" if self.role == "mask" else f"~{self.lengths_or_mask}.bool()"

    @property
    def first(self) -> str:
        """Code for the index `[rows]` of the first valid step of each row that is padded in front."""
        return f"{self.width} - {self.lengths_or_mask}" if self.role == "lengths" else f"({self.valid}).int().argmax(1)"


DEFAULT_NAMES: Final = ArgumentNames()  # used if the names in the module are not known


class Subject(Protocol):
    """A model under check."""

    @property
    def steps(self) -> StepInput:
        """What a step is: values of features, or a token id."""

    @property
    def sizes(self) -> frozenset[int]:
        """The sizes of all axes of the weights. Row counts and widths of the trials are chosen apart from these."""

    @property
    def in_training(self) -> bool:
        """Whether the model is checked in training mode: then other rows may change an answer."""

    @property
    def names(self) -> ArgumentNames:
        """The names of the module's arguments, for the code of a fix."""

    @property
    def layout(self) -> StepLayout:
        """How the steps of a batch are laid out in what the model gets: where the padding is, or packed."""

    @property
    def state(self) -> ModuleState | None:
        """What a call may change, as it was when the model was read; None if a call cannot change the model."""

    def answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch.

        Raises:
            RunError: The model raises.
        """

    def answer_in_float64(self, batch: PaddedBatch) -> ModelOutput | None:
        """The answer of the model in float64, which shows how much it rounds in float32.

        None if the model cannot run in float64.
        """

    def answers_of_rounded_weights(self, batch: PaddedBatch) -> Iterator[ModelOutput]:
        """Yields answers with weights a few ulps larger or smaller: they show how much rounding may change an answer.

        Yields none for a model that runs in float64, which tells more.
        """

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch with the framework's default settings, fast paths included."""

    def output_form(self, batch: PaddedBatch) -> tuple[tuple[int, ...], int]:
        """The shape of the answer as the model itself gives it, whatever its axes are, and its number of outputs."""

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch and records the operations that the answer depends on."""

    def with_layout(self, layout: StepLayout) -> Subject:
        """The same model, which gets the steps of a batch in another layout."""

    def alternatives(self) -> Iterator[AlternativeCall]:
        """Yields the same model, called in other ways that the user may have meant, such as time-first."""


@dataclass(frozen=True, slots=True)
class AlternativeCall:
    """A model, called in another way."""

    subject: Subject
    sentence_end: str  # The end of "the model runs ...", with the option to pass or the code to write


def with_joined_loops(recording: Recording, batch: Geometry) -> Recording:
    """The recording of a run of a batch, with the calls in a loop over its steps or sequences joined to one operation.

    The joined operation stands where the first call was.
    """
    calls_by_identity: dict[object, list[Operation]] = defaultdict(list)
    for operation in recording.operations:
        calls_by_identity[operation.identity].append(operation)
    joined = {identity: _as_one(group, batch) for identity, group in calls_by_identity.items()}
    # Each call that is not joined, and in the place of the first call of a loop the joined operation
    operations = [
        joined[operation.identity] or operation
        for operation in recording.operations
        if joined[operation.identity] is None or operation is calls_by_identity[operation.identity][0]
    ]
    return replace(recording, operations=operations)


def _as_one(calls: Sequence[Operation], batch: Geometry) -> Operation | None:
    """Joins the calls of all turns of a loop to one operation.

    None if the number of calls is not that of the steps or the sequences, or their outputs cannot be stacked.
    """
    count, first = len(calls), calls[0]
    if count < 2 or any(len(call.outputs) != len(first.outputs) for call in calls):
        return None
    # A loop with a state may begin at the second step.
    is_over_steps = count in (batch.width, batch.width - 1)
    if not is_over_steps and not (batch.is_packed and count in (batch.rows, batch.rows + batch.padding_sequences)):
        return None
    outputs = []
    for numbered in zip(*(call.outputs for call in calls), strict=True):
        stacked = _stacked([value for _, value in numbered], None if is_over_steps else batch.longest)
        if stacked is None:
            return None
        if is_over_steps:
            stacked = np.concatenate((np.zeros_like(stacked[: batch.width - count]), stacked))
        outputs.append((numbered[-1][0], stacked))
    return replace(
        first,
        input_keys=frozenset().union(*(call.input_keys for call in calls)),
        output_keys=frozenset().union(*(call.output_keys for call in calls)),
        input_views=frozenset().union(*(call.input_views for call in calls)),
        output_views=frozenset().union(*(call.output_views for call in calls)),
        outputs=tuple(outputs),
        is_loop=is_over_steps,
    )


def _stacked(values: Sequence[Array], longest: int | None) -> Array | None:
    """The values stacked along a new first axis; axes of different sizes are padded with zeros to `longest`.

    None if they have different numbers of axes, or if sizes differ where `longest` is None or smaller.
    """
    if len({value.ndim for value in values}) > 1:
        return None
    sizes = [{*of_axis} for of_axis in zip(*(value.shape for value in values), strict=True)]
    ragged = [axis for axis, sizes_of_axis in enumerate(sizes) if len(sizes_of_axis) > 1]
    if not ragged:
        return np.stack(values)
    if longest is None or any(value.shape[axis] > longest for value in values for axis in ragged):
        return None
    return np.stack(
        [
            np.pad(value, [(0, longest - size if axis in ragged else 0) for axis, size in enumerate(value.shape)])
            for value in values
        ]
    )

"""The inputs of a user's graph beside its first sequence: static values, and further sequences with their lengths.

The service feeds these by fixed names: `static` `[rows, count]` float32, NAME and NAME_lengths `[rows]` int32. A graph
that takes them in another form, as a mask of its own, int64 lengths or one input for each value, gets a few nodes in
front that make this form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from lengthwise_export.errors import ConfigurationError
from lengthwise_export.onnx_graphs.beside import (
    LENGTHS,
    MOST_SEQUENCES,
    STATIC,
    SequenceInput,
    StaticInput,
    StepInput,
    is_static_name,
    paired,
    safe_name,
    static_input,
)
from lengthwise_export.onnx_graphs.probing import GraphValue, listed
from lengthwise_export.onnx_graphs.protos import NodeWriter, all_names, refill
from lengthwise_export.options import TargetOptions

_NUMBERS: Final = ("float32", "int64", "int32")
_TYPES: Final = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}


@dataclass(frozen=True, slots=True)
class InputsBeside:
    """What a graph takes beside its first sequence."""

    graph: onnx.ModelProto  # The graph, which takes it by the names of the service
    inputs: list[GraphValue]  # The inputs of the first sequence
    static: StaticInput | None = None
    names: tuple[str, ...] = ()  # The names of all sequences, if there are several
    further: tuple[GraphValue, ...] = ()  # The steps of the further ones

    def of(self, step: StepInput, further_step: Callable[[GraphValue], StepInput]) -> StepInput:
        """The step of the first sequence with all that stands beside it; `further_step` of a further sequence."""
        kinds = [step, *map(further_step, self.further)] if self.names else []
        sequences = tuple(
            SequenceInput(name=name, features=kind.features, vocabulary=kind.vocabulary)
            for name, kind in zip(self.names, kinds, strict=True)
        )
        return step.model_copy(update={"static": self.static, "sequences": sequences})


def read_inputs_beside(graph: onnx.ModelProto, inputs: list[GraphValue], hints: TargetOptions) -> InputsBeside:
    """Finds the inputs beside the first sequence, by their axes, their names and the options, and renames them.

    A graph that takes one sequence alone is returned as it is.

    Raises:
        ConfigurationError: An option names an input that the graph does not have, or does not fit the static values.
    """  # noqa: DOC502 - what it calls raises it
    statics = _statics(inputs, hints)
    left = [value for value in inputs if value not in statics]
    ends = [value for value in left if value.rank == 1 or (value.rank == 2 and "mask" in value.name.lower())]
    sequences = [value for value in left if value not in ends and value.can_be_steps]
    sequences.sort(key=lambda value: value.name != hints.values)  # what the user names is the first
    end_of = paired([value.name for value in sequences], [value.name for value in ends])
    is_pair = (
        1 < len(sequences) <= MOST_SEQUENCES
        and len(end_of) == len(sequences)
        and len(sequences) + len(ends) == len(left)
    )
    further = sequences[1:] if is_pair else []
    if not statics and not further:
        return InputsBeside(graph, inputs)
    changed = _Rewriter(deepcopy(graph))
    if statics:
        changed.join_statics(statics)
    by_name = {value.name: value for value in inputs}
    for value in further:
        changed.take_lengths(value, by_name[end_of[value.name]], marks_padding=hints.second == "padding-mask")
    counts = {safe_name(value.name): _count(value) for value in statics}
    own = {value.name for value in (*statics, *further)} | {end_of[value.name] for value in further}
    return InputsBeside(
        changed.finished(),
        [value for value in inputs if value.name not in own],
        static_input(counts, [None] * sum(counts.values()), hints) if statics else None,
        tuple(safe_name(value.name) for value in sequences) if further else (),
        tuple(further),
    )


def _statics(inputs: Sequence[GraphValue], hints: TargetOptions) -> list[GraphValue]:
    """The inputs with static values: those of the option, or by their names and axes.

    An input `[rows, n]` of a fixed size n holds static values where another input holds the steps.

    Raises:
        ConfigurationError: The option names an input that the graph does not have.
    """
    names = hints.static or ()
    if unknown := sorted({*names} - {value.name for value in inputs}):
        raise ConfigurationError(f"--static {', '.join(unknown)}: the graph's inputs are {listed(list(inputs))}")
    taken = (hints.values, hints.lengths, hints.mask)
    statics = []
    for value in inputs:
        has_count = value.rank == 2 and isinstance(value.axes[1], int)
        has_others = any(
            other.can_be_steps and other is not value and not isinstance(other.axes[-2 if other.rank == 3 else -1], int)
            for other in inputs
        )
        is_named = is_static_name(value.name) and (has_count or value.rank == 1)
        is_end = value.name in taken or "mask" in value.name.lower()
        may_be = value.element in _NUMBERS and has_others and not is_end
        if value.name in names or (may_be and (is_named or (has_count and value.element == "float32"))):
            statics.append(value)
    return statics


def _count(value: GraphValue) -> int:
    """How many static values an input holds."""
    size = value.axes[1] if value.rank == 2 else 1
    return size if isinstance(size, int) else 1


class _Rewriter:
    """Changes the inputs of a graph: nodes in front make the old ones from those that the service feeds."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        """Begins with a graph, which is changed in place."""
        self._model = graph
        self._writer = NodeWriter(all_names(graph.graph), "beside_")

    def finished(self) -> onnx.ModelProto:
        """The graph, with all nodes and constants in it."""
        graph = self._model.graph
        refill(graph.node, [*self._writer.nodes, *graph.node])
        graph.initializer.extend(self._writer.constants)
        return self._model

    def join_statics(self, statics: Sequence[GraphValue]) -> None:
        """Makes the inputs with static values parts of one, `static`."""
        if [(value.rank, value.element) for value in statics] == [(2, "float32")]:
            self._take_out(statics[0].name, STATIC)
            self._add_input(STATIC, TensorProto.FLOAT, ["rows", _count(statics[0])])
            return
        own_names = [self._take_out(value.name) for value in statics]
        self._add_input(STATIC, TensorProto.FLOAT, ["rows", sum(map(_count, statics))])
        start = 0
        for value, own_name in zip(statics, own_names, strict=True):
            bounds = [self._writer.constant([bound]) for bound in (start, start + _count(value))]
            part = self._writer.emit("Slice", [STATIC, *bounds, self._writer.constant([1])])
            self._define(own_name, self._writer.squeezed(part, [1] if value.rank == 1 else []), value.element)
            start += _count(value)

    def take_lengths(self, steps: GraphValue, end: GraphValue, *, marks_padding: bool) -> None:
        """Makes the steps of a further sequence from the input NAME, its lengths or mask from NAME_lengths.

        Args:
            steps: The input with the steps of the sequence.
            end: The input with its lengths, or with a mask.
            marks_padding: Whether a mask is true at padding.
        """
        name, writer = safe_name(steps.name), self._writer
        lengths, kind = LENGTHS.format(name), "float32" if steps.element == "float32" else "int64"
        own_steps = self._take_out(steps.name, name if steps.element == kind else "")
        own_end = self._take_out(end.name)
        self._add_input(name, _TYPES[kind], ["rows", f"{name}_width", *steps.axes[2:]])
        self._add_input(lengths, TensorProto.INT32, ["rows"])
        if own_steps != name:
            self._define(own_steps, name, steps.element)
        if end.rank == 1:
            self._define(own_end, lengths, end.element)
            return
        zero, one = (writer.constant(np.int64(number)) for number in (0, 1))
        width = writer.emit("Gather", [writer.emit("Shape", [name]), one])
        own_lengths = writer.unsqueezed(writer.emit("Cast", [lengths], to=TensorProto.INT64), [1])
        valid = writer.emit("Less", [writer.emit("Range", [zero, width, one]), own_lengths])
        self._define(own_end, writer.emit("Not", [valid]) if marks_padding else valid, end.element)

    def _take_out(self, name: str, own_name: str = "") -> str:
        """Removes an input, and returns the name that its readers have for it from now on, by default a new one."""
        graph, own_name = self._model.graph, own_name or self._writer.name(f"{name}_own")
        refill(graph.input, [value for value in graph.input if value.name != name])
        for node in graph.node:
            node.input[:] = [own_name if read == name else read for read in node.input]
        return own_name

    def _add_input(self, name: str, kind: int, axes: Sequence[int | str | None]) -> None:
        """Adds an input of this element type."""
        self._model.graph.input.append(helper.make_tensor_value_info(name, kind, list(axes)))

    def _define(self, name: str, source: str, element: str) -> None:
        """Adds a node that makes a value of this element type from another one."""
        self._writer.nodes.append(helper.make_node("Cast", [source], [name], name=f"{name}_cast", to=_TYPES[element]))

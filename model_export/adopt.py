"""Reads a graph that was made elsewhere: which inputs are the steps, the lengths or the mask, and which axis is time.

The graph stays as it is; what is read here stands in the manifest, and the service feeds the graph by it. A reading is
taken by rank, element type and shared axis names, and must run; where several do, none is guessed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx

from model_export.errors import UncheckableError
from model_export.probing import open_session, refuse_frozen_inside, shape_of_answer, with_int64_tokens
from service.errors import ConfigurationError
from service.manifest import GraphNames, StepInput

_ELEMENTS: Final[dict[int, str]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


@dataclass(frozen=True, slots=True)
class Said:
    """What the caller said about a graph; None where it is to be read."""

    values: str | None = None
    lengths: str | None = None
    mask: str | None = None
    time_first: bool = False
    output: str | None = None
    features: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class Adopted:
    """A graph, and what its inputs and outputs are.

    Attributes:
        graph: As it came; with token ids of int32, it takes int64 in front of a Cast.
        steps: What one step is.
        names: What the inputs and outputs are.
        classes: How many the graph tells apart.
        per_step: Whether it answers each step.
    """

    graph: onnx.ModelProto
    steps: StepInput
    names: GraphNames
    classes: int
    per_step: bool


@dataclass(frozen=True, slots=True)
class _Value:
    """An input or output: its element type, and its axes, each a size, a name or unknown."""

    name: str
    element: str
    axes: tuple[int | str | None, ...]

    @property
    def rank(self) -> int:
        return len(self.axes)

    def __str__(self) -> str:
        return f"{self.name} ({self.element}{list(self.axes)})"


def adopt(graph: onnx.ModelProto, said: Said) -> Adopted:
    """Reads a graph.

    Raises:
        UncheckableError: It says nowhere where a sequence ends, has a frozen axis, or inputs of no known meaning.
        ConfigurationError: It can be read in several ways; names them, and the options that choose.
    """
    weights = {initializer.name for initializer in graph.graph.initializer}
    inputs = [_value(value) for value in graph.graph.input if value.name not in weights]
    outputs = [_value(value) for value in graph.graph.output]
    logits = _logits(outputs, said.output)
    _refuse_unreadable(inputs, said)
    names = [names for names in _candidates(inputs, logits, said) if _agrees(names, inputs, logits)]
    _refuse_frozen(names, inputs)
    running = []
    for candidate in names:
        taken = with_int64_tokens(graph, candidate.sequences)
        session, steps = open_session(taken), _probed(candidate, inputs, said)
        shape = shape_of_answer(session, candidate, steps)
        if shape is not None:
            running.append((candidate, taken, shape))
    if not running:
        for candidate in names:
            session = open_session(with_int64_tokens(graph, candidate.sequences))
            refuse_frozen_inside(session, candidate, _probed(candidate, inputs, said))
        raise UncheckableError(
            f"no reading of the inputs {_listed(inputs)} runs: name them with --values and --lengths or --mask, and "
            "say --time-first where steps come before rows"
        )
    if len(running) > 1:
        readings = "; ".join(_as_options(candidate) for candidate, _, _ in running)
        raise ConfigurationError(f"the inputs {_listed(inputs)} can be read in several ways; say one: {readings}")
    candidate, taken, shape = running[0]
    return Adopted(
        taken, _steps(graph, candidate, inputs, said), candidate, classes=shape[-1], per_step=len(shape) == 3
    )


def _value(proto: onnx.ValueInfoProto) -> _Value:
    tensor = proto.type.tensor_type
    axes = tuple(
        axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or None) for axis in tensor.shape.dim
    )
    return _Value(proto.name, _ELEMENTS.get(tensor.elem_type, f"type {tensor.elem_type}"), axes)


def _logits(outputs: list[_Value], output: str | None) -> _Value:
    by_name = {value.name: value for value in outputs}
    if output is not None:
        name = outputs[int(output)].name if output.isdigit() and int(output) < len(outputs) else output
        if name not in by_name:
            raise ConfigurationError(f"--output {output}: the graph's outputs are {_listed(outputs)}")
        return by_name[name]
    if "logits" in by_name:
        return by_name["logits"]
    fitting = [value for value in outputs if value.element == "float32" and value.rank in (2, 3)]
    if not fitting:
        raise UncheckableError(f"none of the outputs {_listed(outputs)} is [rows, classes] or [rows, width, classes]")
    return fitting[0]


def _refuse_unreadable(inputs: list[_Value], said: Said) -> None:
    for option, name in (("--values", said.values), ("--lengths", said.lengths), ("--mask", said.mask)):
        if name is not None and name not in {value.name for value in inputs}:
            raise ConfigurationError(f"{option} {name}: the graph's inputs are {_listed(inputs)}")
    if len(inputs) == 1:
        raise UncheckableError(
            f"the graph has one input, {inputs[0]}, and nothing says where a sequence ends: export it with lengths "
            "[rows] or a mask [rows, width] as a second one"
        )
    if len([value for value in inputs if _can_be_steps(value) and value.rank == 3]) > 1 or len(inputs) > 3:
        raise UncheckableError(
            f"the graph takes {_listed(inputs)}: a sequence is one input [rows, width, features], with lengths or a "
            "mask beside it"
        )


def _candidates(inputs: list[_Value], logits: _Value, said: Said) -> Iterator[GraphNames]:
    """Every way to give each input a meaning, by rank and element type and by what was said."""
    by_name = {value.name: value for value in inputs}
    for order in itertools.permutations(by_name):
        steps, *rest = (by_name[name] for name in order)
        if (said.values or steps.name) != steps.name or not _can_be_steps(steps):
            continue
        lengths, mask = [value for value in rest if value.rank == 1], [value for value in rest if value.rank == 2]
        if len(lengths) > 1 or len(mask) > 1 or len(lengths) + len(mask) != len(rest):
            continue
        if not all(value.element in ("int32", "int64") for value in lengths):
            continue
        if not all(value.element in ("bool", "int32", "int64", "float32") for value in mask):
            continue
        if said.lengths not in (None, *(value.name for value in lengths)):
            continue
        if said.mask not in (None, *(value.name for value in mask)):
            continue
        for time_first in (True,) if said.time_first else (False, True):
            yield GraphNames(
                sequences=steps.name,
                lengths=lengths[0].name if lengths else None,
                lengths_type="int64" if lengths and lengths[0].element == "int64" else "int32",
                mask=mask[0].name if mask else None,
                mask_type=mask[0].element if mask else "bool",
                time_first=time_first,
                logits=logits.name,
            )


def _can_be_steps(value: _Value) -> bool:
    return (value.element, value.rank) in (("float32", 3), ("int64", 2), ("int32", 2))


def _agrees(names: GraphNames, inputs: list[_Value], logits: _Value) -> bool:
    """Whether the axes that share a name are the same axis in this reading."""
    by_name = {value.name: value for value in inputs}
    steps = by_name[names.sequences]
    rows, width = (steps.axes[1], steps.axes[0]) if names.time_first else (steps.axes[0], steps.axes[1])
    if isinstance(rows, str) and rows == width:
        return True
    known_rows = [by_name[names.lengths].axes[0]] if names.lengths is not None else []
    if logits.rank == 2:
        known_rows.append(logits.axes[0])
    # A name that the steps' other axis has contradicts the reading; a name of its own says nothing.
    return not any(isinstance(axis, str) and axis == width for axis in known_rows)


def _refuse_frozen(readings: list[GraphNames], inputs: list[_Value]) -> None:
    by_name = {value.name: value for value in inputs}
    frozen: list[str] = []
    for names in readings:
        axes = by_name[names.sequences].axes[:2]
        order = ("width", "rows") if names.time_first else ("rows", "width")
        found = [f"{axis} at {size}" for axis, size in zip(order, axes, strict=True) if isinstance(size, int)]
        if not found:
            return
        frozen = frozen or found
    if frozen:
        raise UncheckableError(
            f"the graph is frozen: {' and '.join(frozen)}; export it again with dynamic axes for rows and width"
        )


def _probed(names: GraphNames, inputs: list[_Value], said: Said) -> StepInput:
    """What a step is, as far as it takes to try a reading: of tokens, the first two will do."""
    steps = next(value for value in inputs if value.name == names.sequences)
    if steps.rank == 2:
        return StepInput(kind="tokens", vocabulary=2)
    features = steps.axes[2] if isinstance(steps.axes[2], int) else said.features
    if features is None:
        raise ConfigurationError(f"{steps} leaves the number of features open: say it with --features")
    if said.features not in (None, features):
        raise ConfigurationError(f"--features {said.features} contradicts the graph: {steps}")
    return StepInput(features=features)


def _steps(graph: onnx.ModelProto, names: GraphNames, inputs: list[_Value], said: Said) -> StepInput:
    steps = _probed(names, inputs, said)
    if steps.kind == "values":
        return steps
    vocabulary = said.vocabulary or _vocabulary(graph, names.sequences)
    if vocabulary is None:
        raise ConfigurationError(f"{names.sequences} takes token ids: say how many there are with --vocabulary")
    return StepInput(kind="tokens", vocabulary=vocabulary)


def _vocabulary(graph: onnx.ModelProto, tokens: str) -> int | None:
    """The rows of the table that the tokens look up, where they look one up directly."""
    tables = {initializer.name: initializer.dims[0] for initializer in graph.graph.initializer if initializer.dims}
    for node in graph.graph.node:
        if node.op_type == "Gather" and node.input[1] == tokens and node.input[0] in tables:
            return int(tables[node.input[0]])
    return None


def _as_options(names: GraphNames) -> str:
    options = [f"--values {names.sequences}"]
    options += [f"--lengths {names.lengths}"] if names.lengths is not None else []
    options += [f"--mask {names.mask}"] if names.mask is not None else []
    return " ".join([*options, *(["--time-first"] if names.time_first else [])])


def _listed(values: list[_Value]) -> str:
    return ", ".join(map(str, values))

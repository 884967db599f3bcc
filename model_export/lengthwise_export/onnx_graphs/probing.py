"""What the inputs and outputs of a user's graph may be: the readings that fit, and small batches that try them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise.verification.random_sequences import ROUNDING
from lengthwise_export.errors import UncheckableError
from lengthwise_export.layouts import RIGHT, PackedRole, StepLayout
from lengthwise_export.onnx_graphs.protos import refill
from lengthwise_export.options import ONE_VALUE_HINT, TargetOptions

if TYPE_CHECKING:
    import onnxruntime


_ELEMENTS: Final[dict[int, str]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


@dataclass(frozen=True, slots=True)
class GraphValue:
    """An input or output: its name, its element type and its axes (each a size, a name, or None if unknown)."""

    name: str
    element: str
    axes: tuple[int | str | None, ...]

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return len(self.axes)

    @property
    def can_be_steps(self) -> bool:
        """Whether the value has the type and the axes of sequences."""
        return (self.element, self.rank) in (("float32", 3), ("float32", 2), ("int64", 2), ("int32", 2))

    @property
    def is_raw(self) -> bool:
        """Whether the value may be steps of one feature, without an axis of features."""
        return (self.element, self.rank) == ("float32", 2)

    @classmethod
    def of(cls, proto: onnx.ValueInfoProto) -> GraphValue:
        """The input or output that a graph declares."""
        tensor = proto.type.tensor_type
        axes = tuple(
            axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or None) for axis in tensor.shape.dim
        )
        return cls(proto.name, _ELEMENTS.get(tensor.elem_type, f"type {tensor.elem_type}"), axes)

    def __str__(self) -> str:
        """Such as `x (float32['rows', 'width', 8])`."""
        return f"{self.name} ({self.element}{list(self.axes)})"


def listed(values: list[GraphValue]) -> str:
    """The values in words, for an error."""
    return ", ".join(map(str, values))


def logits_of(outputs: list[GraphValue], output: str | int | None) -> GraphValue:
    """The output that is the answer: by the option `--output`, by its name, or the first of a fitting type.

    Raises:
        ConfigurationError: The graph has no output of that name or index.
        UncheckableError: No output has classes.
    """
    by_name = {value.name: value for value in outputs}
    name = "logits" if output is None else str(output)
    if output is not None and name.isdigit() and int(name) < len(outputs):
        name = outputs[int(name)].name
    has_one_value = any((value.element, value.rank) == ("float32", 1) for value in outputs)
    if name in by_name:
        if (by_name[name].element, by_name[name].rank) == ("float32", 1):
            raise UncheckableError(f"the output {by_name[name]} has no classes: {ONE_VALUE_HINT}")
        return by_name[name]
    if output is not None:
        raise ConfigurationError(f"--output {output}: the graph's outputs are {listed(outputs)}")
    fitting = [value for value in outputs if value.element.startswith("float") and value.rank in (2, 3)]
    if not fitting:
        raise UncheckableError(
            f"none of the outputs {listed(outputs)} is [rows, classes] or [rows, width, classes]"
            + (f"; {ONE_VALUE_HINT}" if has_one_value else "")
        )
    return next((value for value in fitting if value.element == "float32"), fitting[0])


def candidates(
    inputs: list[GraphValue], logits: GraphValue, hints: TargetOptions, new_lengths: str | None
) -> Iterator[GraphNames]:
    """All readings that fit the ranks, the types and the options; steps alone get lengths named `new_lengths`."""
    by_name = {value.name: value for value in inputs}
    for order in itertools.permutations(by_name):
        steps, *rest = (by_name[name] for name in order)
        if (hints.values or steps.name) != steps.name or not steps.can_be_steps:
            continue
        lengths, mask = ([value for value in rest if value.rank == rank] for rank in (1, 2))
        if len(lengths) > 1 or len(mask) > 1 or len(lengths) + len(mask) != len(rest):
            continue
        of_lengths, of_mask = ("int32", "int64"), ("bool", "int32", "int64", "float32")
        if not (_fits(lengths, of_lengths, hints.lengths) and _fits(mask, of_mask, hints.mask)):
            continue
        if mask and steps.is_raw and mask[0].is_raw and "mask" in steps.name.lower():
            continue
        for time_first, channels_first in _orders(steps, hints):
            yield GraphNames(
                sequences=steps.name,
                lengths=lengths[0].name if lengths else None if rest else new_lengths,
                lengths_type="int64" if lengths and lengths[0].element == "int64" else "int32",
                mask=mask[0].name if mask else None,
                mask_type=mask[0].element if mask else "bool",
                mask_marks="padding" if mask and hints.second == "padding-mask" else "valid",
                time_first=time_first,
                channels_first=channels_first,
                features_axis=not steps.is_raw,
                logits=logits.name,
            )


def _fits(values: list[GraphValue], elements: tuple[str, ...], option: str | None) -> bool:
    """Whether all values have one of these element types, and an `option`, if it is given, names one of the values."""
    return all(value.element in elements for value in values) and option in (None, *(value.name for value in values))


def _orders(steps: GraphValue, hints: TargetOptions) -> tuple[tuple[bool, bool], ...]:
    """The orders of the steps' axes to try, as pairs (time_first, channels_first)."""
    if hints.time_first:
        return ((True, False),)
    if hints.channels_first:
        return ((False, steps.rank == 3),)
    if steps.rank == 3 and isinstance(steps.axes[1], int) and not isinstance(steps.axes[2], int):
        return ((False, True),)  # the axis of fixed size holds the features
    return ((False, False), (True, False))


def agrees(names: GraphNames, inputs: list[GraphValue], logits: GraphValue) -> bool:
    """Whether axes with the same name have the same meaning in this reading."""
    by_name = {value.name: value for value in inputs}
    steps = by_name[names.sequences]
    rows, width = (steps.axes[axis] for axis in names.open_axes)
    if isinstance(rows, str) and rows == width:
        return True
    row_axes = [by_name[names.lengths].axes[0]] if names.lengths in by_name else []
    if logits.rank == 2:
        row_axes.append(logits.axes[0])
    # If an axis of rows has the name of the width, the reading is wrong. Another name says nothing.
    return not any(isinstance(axis, str) and axis == width for axis in row_axes)


def open_session(
    graph: onnx.ModelProto, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A session of a graph with one thread and without logging.

    Raises:
        UncheckableError: onnxruntime cannot load it.
    """
    import onnxruntime  # the check of a torch module needs none

    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise UncheckableError(f"onnxruntime cannot load the graph: {error}") from error


def open_recording_session(graph: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnxruntime.InferenceSession:
    """A session that outputs the values of these nodes, with graph optimisations off so that every node is kept."""
    import onnxruntime

    recording = deepcopy(graph)
    names = (name for node in nodes for name in node.output if name)
    refill(recording.graph.output, (onnx.ValueInfoProto(name=name) for name in names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(recording, options)


def inputs_of(
    session: onnxruntime.InferenceSession,
    names: GraphNames,
    batch: PaddedBatch,
    layout: StepLayout = RIGHT,
    others: Mapping[str, PackedRole] | None = None,
) -> dict[str, NDArray[Any]]:
    """The inputs of a graph for a batch `[rows, width, features]`; no lengths if the graph does not take them yet."""
    names_of_inputs = {value.name: value for value in session.get_inputs()}
    arranged = layout.arrange(batch)
    inputs = feed(names, PaddedBatch(arranged.steps, batch.lengths), arranged.valid)
    if not layout.has_rows_axis:
        inputs[names.sequences] = inputs[names.sequences][0]
    for name, role in (others or {}).items():
        value, element = arranged.by_role()[role], names_of_inputs[name].type.removeprefix("tensor(").removesuffix(")")
        if len(names_of_inputs[name].shape) == 1:
            value = value.reshape(-1)
        inputs[name] = value.astype({"float": "float32", "double": "float64"}.get(element, element))
    return {name: values for name, values in inputs.items() if name in names_of_inputs}


# Different sizes, so that rows and width cannot be confused.
_ROWS, _WIDTH = 3, 5

_WIDER: Final = (8, 64, 515, 516)  # widths for graphs that need many steps, such as unpadded convolutions
_MOST_COUNTS: Final = 129  # row counts and widths below this are tried to find a frozen axis


@dataclass(frozen=True, slots=True)
class ReadingTrial:
    """One reading of a graph, which is tried with small batches."""

    session: onnxruntime.InferenceSession
    names: GraphNames
    steps: StepInput
    others: Mapping[str, PackedRole] = field(default_factory=dict)
    layout: StepLayout = RIGHT

    def answer(self, batch: PaddedBatch) -> NDArray[Any] | str:
        """The logits `[rows, classes]` or `[rows, width, classes]` for a batch; or what onnxruntime raises."""
        try:
            inputs = inputs_of(self.session, self.names, batch, self.layout, self.others)
            (answer,) = self.session.run([self.names.logits], inputs)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            return str(error).strip().split("\n")[0]
        logits: NDArray[Any] = answer
        if self.names.time_first and logits.ndim == 3:
            logits = logits.swapaxes(0, 1)
        logits = logits.swapaxes(1, 2) if self.names.classes_first and logits.ndim == 3 else logits
        return self.layout.restore(logits, batch)

    def shape(self, rows: int = _ROWS, width: int = _WIDTH) -> tuple[int, ...] | None:
        """The shape of the logits for a small batch; None if it raises or the shape is wrong."""
        answer = self.answer(self._batch(rows, width))
        if isinstance(answer, str) or answer.shape[:-1] not in ((rows,), (rows, width)):
            return None
        return answer.shape

    def shape_at_some_width(self) -> tuple[int, ...] | None:
        """The shape of the logits at the first width that runs, the usual one or one of `_WIDER`.

        Of `_WIDER` two widths must run: a single one may be the width that is frozen in the graph.
        """
        if (usual := self.shape()) is not None:
            return usual
        shapes = [shape for width in _WIDER if (shape := self.shape(width=width)) is not None]
        return shapes[0] if len(shapes) > 1 else None

    def error(self) -> str | None:
        """The error of onnxruntime for a small batch; None if it runs."""
        answer = self.answer(self._batch(_ROWS, _WIDTH))
        return answer if isinstance(answer, str) else None

    def keeps_rows_apart(self) -> bool:
        """Whether a change of the first row of a small batch changes no answer but the first."""
        random = np.random.default_rng(0)
        for width in (_WIDTH, *_WIDER):
            batch = self._batch(_ROWS, width)
            changed = batch.steps.copy()
            if self.steps.kind == "values":
                batch.steps[:] = random.standard_normal(batch.steps.shape)
                changed[:] = batch.steps
                changed[0] = random.standard_normal(batch.steps.shape[1:])
            else:
                changed[0] = 0
            before, after = self.answer(batch), self.answer(PaddedBatch(changed, batch.lengths))
            if not isinstance(before, str) and not isinstance(after, str):
                return np.allclose(before[1:], after[1:], atol=ROUNDING, rtol=ROUNDING, equal_nan=True)
        return False

    def require_dynamic_inside(self, *, cure: str) -> None:
        """Makes sure that a graph with dynamic axes runs at more than one size; `cure` ends the error.

        Raises:
            UncheckableError: It runs at one size only: an axis is frozen inside.
        """
        trials = range(1, _MOST_COUNTS)
        for axis, sizes in (("width", [(_ROWS, n) for n in trials]), ("rows", [(n, _WIDTH) for n in trials])):
            running = [size for size in sizes if self.shape(*size) is not None]
            if len(running) == 1:
                rows, width = running[0]
                raise UncheckableError(
                    f"the graph declares dynamic axes, but runs only at {rows} rows and a width of {width}: "
                    f"the {axis} is frozen inside (usually in a Reshape); take it from Shape instead{cure}"
                )

    def _batch(self, rows: int, width: int) -> PaddedBatch:
        """A batch of zeros, or of the token 1, with different lengths."""
        lengths = np.maximum(width - np.arange(rows, dtype=np.int32), 1)
        if self.steps.kind == "tokens":
            values: NDArray[Any] = np.ones((rows, width), dtype=np.int64) % (self.steps.vocabulary or 1)
        else:
            values = np.zeros((rows, width, self.steps.features or 0), dtype=np.float32)
        return PaddedBatch(values, lengths)


def with_int64_tokens(graph: onnx.ModelProto, tokens: str) -> onnx.ModelProto:
    """The graph with an int32 input of token ids changed to int64, because the service passes int64."""
    if not any(
        value.name == tokens and value.type.tensor_type.elem_type == onnx.TensorProto.INT32
        for value in graph.graph.input
    ):
        return graph
    changed, as_int32 = deepcopy(graph), f"{tokens}_as_int32"
    for node in changed.graph.node:
        node.input[:] = [as_int32 if name == tokens else name for name in node.input]
    cast = onnx.helper.make_node("Cast", [tokens], [as_int32], name=as_int32, to=onnx.TensorProto.INT32)
    changed.graph.node.insert(0, cast)
    for value in changed.graph.input:
        if value.name == tokens:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    return changed

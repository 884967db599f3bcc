"""The readings of a user's graph that fit, and small batches that try them.

A *reading* says which input of a graph is what: it is a `GraphNames` with the names of the steps, the lengths or the
mask, and the order of the axes. See `external_graph`, which chooses one. *Hints* are the options of the user for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import ROUNDING, GraphNames, PaddedBatch, StepInput, feed
from lengthwise_export.errors import ConfigurationError, UncheckableError
from lengthwise_export.layouts import RIGHT, PackedRole, StepLayout
from lengthwise_export.onnx_graphs.beside import completed
from lengthwise_export.onnx_graphs.protos import refill
from lengthwise_export.options import ONE_VALUE_HINT, TargetOptions

if TYPE_CHECKING:
    import onnxruntime


_ELEMENTS: Final[dict[int, str]] = {
    **{number: name.lower() for name, number in onnx.TensorProto.DataType.items() if "FLOAT" not in name},
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
}
"""NumPy's names of the element types of ONNX, without its rarer kinds of floats."""


@dataclass(frozen=True, slots=True)
class GraphValue:
    """An input or an output of a graph."""

    name: str
    element: str  # its element type, such as `float32`
    axes: tuple[int | str | None, ...]  # the size of each; the name of a dynamic one, or None if it has no name

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
        """Reads an input or output that a graph declares."""
        tensor = proto.type.tensor_type
        axes = tuple(
            axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or None) for axis in tensor.shape.dim
        )
        return cls(proto.name, _ELEMENTS.get(tensor.elem_type, f"type {tensor.elem_type}"), axes)

    def __str__(self) -> str:
        """Such as `x (float32['rows', 'width', 8])`."""
        return f"{self.name} ({self.element}{list(self.axes)})"


def listed(values: list[GraphValue]) -> str:
    """The names, types and axes of inputs or outputs as a text for an error."""
    return ", ".join(map(str, values))


def logits_of(outputs: list[GraphValue], output: str | int | None) -> GraphValue:
    """The output that is the answer: that of the option `--output`; by default `logits`, or the first that can be.

    Without an output `logits`, the first float32 output of rank 2 or 3 is taken, or else the first of another float
    type.

    Args:
        outputs: All outputs of the graph.
        output: The name or the index of the option; None without it.

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
    outputs_with_classes = [value for value in outputs if value.element.startswith("float") and value.rank in (2, 3)]
    if not outputs_with_classes:
        raise UncheckableError(
            f"none of the outputs {listed(outputs)} is [rows, classes] or [rows, width, classes]"
            + (f"; {ONE_VALUE_HINT}" if has_one_value else "")
        )
    return next((value for value in outputs_with_classes if value.element == "float32"), outputs_with_classes[0])


def candidates(
    inputs: list[GraphValue], logits: GraphValue, hints: TargetOptions, new_lengths: str | None
) -> Iterator[GraphNames]:
    """Yields all readings that fit the ranks and element types of the inputs, and the options; some more than once.

    Args:
        inputs: The inputs of the graph, without weights.
        logits: The output that is the answer.
        hints: The user's options.
        new_lengths: The name of the input of lengths that a mend will add to a graph that takes the steps alone; None
            for other graphs.
    """
    for steps, *others in itertools.permutations(inputs):
        if (hints.values or steps.name) != steps.name or not steps.can_be_steps:
            continue
        # Beside the steps, there may be one input with the rank of lengths, and one with the rank of a mask
        lengths_inputs, mask_inputs = ([value for value in others if value.rank == rank] for rank in (1, 2))
        if len(lengths_inputs) > 1 or len(mask_inputs) > 1 or len(lengths_inputs) + len(mask_inputs) != len(others):
            continue
        fits_lengths = _fits(lengths_inputs, ("int32", "int64"), hints.lengths)
        if not fits_lengths or not _fits(mask_inputs, ("bool", "int32", "int64", "float32"), hints.mask):
            continue
        # Of two float inputs [rows, width], the one that is named so is the mask
        if mask_inputs and steps.is_raw and mask_inputs[0].is_raw and "mask" in steps.name.lower():
            continue
        lengths, mask = next(iter(lengths_inputs), None), next(iter(mask_inputs), None)
        lengths_name = lengths.name if lengths else None
        for time_first, channels_first in _orders(steps, hints):
            yield GraphNames(
                sequences=steps.name,
                lengths=lengths_name if others else new_lengths,
                lengths_type="int64" if lengths and lengths.element == "int64" else "int32",
                mask=mask.name if mask else None,
                mask_type=mask.element if mask else "bool",
                mask_marks="padding" if mask and hints.second == "padding-mask" else "valid",
                time_first=time_first,
                channels_first=channels_first,
                features_axis=not steps.is_raw,
                logits=logits.name,
            )


def _fits(values: list[GraphValue], elements: tuple[str, ...], option: str | None) -> bool:
    """Whether all values have one of these element types, and the `option`, if it is set, names one of them."""
    return all(value.element in elements for value in values) and option in (None, *(value.name for value in values))


def _orders(steps: GraphValue, hints: TargetOptions) -> tuple[tuple[bool, bool], ...]:
    """The orders of the axes of the steps to try: pairs of `time_first` and `channels_first`, as in `GraphNames`."""
    if hints.time_first:
        return ((True, False),)
    if hints.channels_first:
        return ((False, steps.rank == 3),)
    if steps.rank == 3 and isinstance(steps.axes[1], int) and not isinstance(steps.axes[2], int):
        return ((False, True),)  # the axis of fixed size holds the features
    return ((False, False), (True, False))


def axis_names_agree(names: GraphNames, inputs: list[GraphValue], logits: GraphValue) -> bool:
    """Whether no axis of rows has the name of the width in this reading: then rows and width are confused."""
    by_name = {value.name: value for value in inputs}
    steps = by_name[names.sequences]
    rows, width = (steps.axes[axis] for axis in names.open_axes)
    if isinstance(rows, str) and rows == width:  # the names of this graph say nothing
        return True
    row_axes = [by_name[names.lengths].axes[0]] if names.lengths in by_name else []
    if logits.rank == 2:
        row_axes.append(logits.axes[0])
    return not any(isinstance(axis, str) and axis == width for axis in row_axes)


def open_session(
    graph: onnx.ModelProto, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """Opens a session of a graph on the CPU, with one thread and without logging; changes these in `options`.

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
    """Opens a session of a copy of a graph that outputs all values of these nodes, in their order.

    onnxruntime's optimisations are off, so that it keeps every node.
    """
    import onnxruntime

    recording = deepcopy(graph)
    output_names = (name for node in nodes for name in node.output if name)
    refill(recording.graph.output, (onnx.ValueInfoProto(name=name) for name in output_names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(recording, options)


def inputs_of(
    session: onnxruntime.InferenceSession,
    names: GraphNames,
    steps: StepInput,
    batch: PaddedBatch,
    layout: StepLayout = RIGHT,
    further_inputs: Mapping[str, PackedRole] | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays to feed a graph for a batch, by the name of the input.

    Args:
        session: A session of the graph. A name of the reading that it does not take gets no array: the lengths of a
            graph that is still to be mended.
        names: The reading of the graph.
        steps: What a step is, and what stands beside the sequence.
        batch: A batch of steps `[rows, width, features]`, or of token ids `[rows, width]`, padded on the right.
        layout: Where the graph expects each sequence.
        further_inputs: The roles of inputs that the reading does not have, by name.
    """
    session_inputs = {value.name: value for value in session.get_inputs()}
    batch = completed(batch, steps)
    arranged = layout.arrange(batch)
    inputs = feed(names, replace(batch, steps=arranged.steps), arranged.valid)
    if not layout.has_rows_axis:
        inputs[names.sequences] = inputs[names.sequences][0]
    for name, role in (further_inputs or {}).items():
        value, declared = arranged.by_role()[role], session_inputs[name]
        if len(declared.shape) == 1:
            value = value.reshape(-1)
        element = declared.type.removeprefix("tensor(").removesuffix(")")  # as onnxruntime calls it
        inputs[name] = value.astype({"float": "float32", "double": "float64"}.get(element, element))
    return {name: values for name, values in inputs.items() if name in session_inputs}


_ROWS, _WIDTH = 3, 5  # of a small batch; they differ, so that rows and width cannot be confused

_WIDER: Final = (8, 64, 515, 516)  # widths for graphs that need many steps, such as unpadded convolutions
_MOST_COUNTS: Final = 129  # row counts and widths below this are tried to find a frozen axis


@dataclass(frozen=True, slots=True)
class ReadingTrial:
    """One reading of a graph, which is tried with small batches."""

    session: onnxruntime.InferenceSession  # of the graph
    names: GraphNames  # the reading
    steps: StepInput  # what a step is
    further_inputs: Mapping[str, PackedRole] = field(default_factory=dict)  # the roles of inputs beside it, by name
    layout: StepLayout = RIGHT  # where the graph expects each sequence

    def answer(self, batch: PaddedBatch) -> NDArray[Any] | str:
        """The logits for a batch, `[rows, classes]` or `[rows, width, classes]`; as a text, onnxruntime's error."""
        try:
            inputs = inputs_of(self.session, self.names, self.steps, batch, self.layout, self.further_inputs)
            (answer,) = self.session.run([self.names.logits], inputs)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            return str(error).strip().split("\n")[0]
        logits: NDArray[Any] = answer
        if self.names.time_first and logits.ndim == 3:
            logits = logits.swapaxes(0, 1)
        logits = logits.swapaxes(1, 2) if self.names.classes_first and logits.ndim == 3 else logits
        return self.layout.restore(logits, batch)

    def shape(self, rows: int = _ROWS, width: int = _WIDTH) -> tuple[int, ...] | None:
        """The shape of the logits for a small batch; None if the graph does not run, or the shape has no classes."""
        answer = self.answer(self._batch(rows, width))
        if isinstance(answer, str) or answer.shape[:-1] not in ((rows,), (rows, width)):
            return None
        return answer.shape

    def shape_at_some_width(self) -> tuple[int, ...] | None:
        """The shape of the logits at the first width that runs, `_WIDTH` or one of `_WIDER`; None if none runs.

        At least two of `_WIDER` must run: a single one may be the width that is frozen in the graph.
        """
        if (usual_shape := self.shape()) is not None:
            return usual_shape
        shapes = [shape for width in _WIDER if (shape := self.shape(width=width)) is not None]
        return shapes[0] if len(shapes) > 1 else None

    def error(self) -> str | None:
        """The text of onnxruntime's error for a small batch; None if the graph runs."""
        answer = self.answer(self._batch(_ROWS, _WIDTH))
        return answer if isinstance(answer, str) else None

    def keeps_rows_apart(self) -> bool:
        """Whether a change of the first row of a small batch leaves the answers of all other rows as they are.

        False also if the graph runs at no width.
        """
        random = np.random.default_rng(0)
        for width in (_WIDTH, *_WIDER):
            batch = self._batch(_ROWS, width)
            changed_steps = batch.steps.copy()
            if self.steps.kind == "values":
                batch.steps[:] = random.standard_normal(batch.steps.shape)
                changed_steps[:] = batch.steps
                changed_steps[0] = random.standard_normal(batch.steps.shape[1:])  # not zeros, which a graph may mask
            else:
                changed_steps[0] = 0
            answer, answer_to_changed = self.answer(batch), self.answer(PaddedBatch(changed_steps, batch.lengths))
            if not isinstance(answer, str) and not isinstance(answer_to_changed, str):
                return np.allclose(answer[1:], answer_to_changed[1:], atol=ROUNDING, rtol=ROUNDING, equal_nan=True)
        return False

    def require_dynamic_inside(self, *, advice: str) -> None:
        """Makes sure that a graph which declares dynamic axes runs at more than one size.

        Raises:
            UncheckableError: It runs at one size only: an axis is frozen inside. `advice` ends the message.
        """
        # Many widths at 3 rows, then many row counts at a width of 5
        counts = range(1, _MOST_COUNTS)
        for axis, sizes in (
            ("width", [(_ROWS, count) for count in counts]),
            ("rows", [(count, _WIDTH) for count in counts]),
        ):
            running_sizes = [size for size in sizes if self.shape(*size) is not None]
            if len(running_sizes) == 1:
                rows, width = running_sizes[0]
                raise UncheckableError(
                    f"the graph declares dynamic axes, but runs only at {rows} rows and a width of {width}: "
                    f"the {axis} is frozen inside (usually in a Reshape); take it from Shape instead{advice}"
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
    """A copy of the graph whose input `tokens` is int64 and not int32, because the service passes int64.

    A Cast to int32 follows the input. If the input is no int32, the graph itself.
    """
    if not any(
        value.name == tokens and value.type.tensor_type.elem_type == onnx.TensorProto.INT32
        for value in graph.graph.input
    ):
        return graph
    converted, as_int32 = deepcopy(graph), f"{tokens}_as_int32"
    for node in converted.graph.node:
        node.input[:] = [as_int32 if name == tokens else name for name in node.input]
    cast = onnx.helper.make_node("Cast", [tokens], [as_int32], name=as_int32, to=onnx.TensorProto.INT32)
    converted.graph.node.insert(0, cast)
    for value in converted.graph.input:
        if value.name == tokens:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    return converted

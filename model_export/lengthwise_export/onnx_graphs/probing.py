"""Runs a graph with small batches, to test an interpretation of its inputs and to find frozen axes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise.verification.random_sequences import ROUNDING
from lengthwise_export.errors import UncheckableError
from lengthwise_export.onnx_graphs.protos import refill

if TYPE_CHECKING:
    import onnxruntime

# Different sizes, so that rows and width cannot be confused.
_ROWS, _WIDTH = 3, 5

_WIDER: Final = (8, 64, 515, 516)  # widths for graphs that need many steps, such as unpadded convolutions
_MAX_TRIED: Final = 129  # row counts and widths below this are tried to find a frozen axis


def open_session(
    graph: onnx.ModelProto, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A session of a graph with one thread and without logging."""
    import onnxruntime  # the check of a torch module needs none

    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise UncheckableError(f"onnxruntime cannot load the graph: {error}") from error


def inputs_of(session: onnxruntime.InferenceSession, names: GraphNames, batch: PaddedBatch) -> dict[str, NDArray[Any]]:
    """The inputs of a graph for a batch; without lengths if the graph does not take them yet."""
    taken = {value.name for value in session.get_inputs()}
    return {name: values for name, values in feed(names, batch).items() if name in taken}


def shape_at_some_width(
    session: onnxruntime.InferenceSession, names: GraphNames, steps: StepInput
) -> tuple[int, ...] | None:
    """The shape of the logits at the first width that runs. Larger widths count only if two of them run."""
    shape = shape_of_answer(session, names, steps)
    if shape is not None:
        return shape
    shapes = [one for width in _WIDER if (one := shape_of_answer(session, names, steps, width=width)) is not None]
    return shapes[0] if len(shapes) > 1 else None


def rows_are_independent(session: onnxruntime.InferenceSession, names: GraphNames, steps: StepInput) -> bool:
    """Whether the answers of a small batch keep to their rows: another first row changes only the first answer."""
    random = np.random.default_rng(0)
    for width in (_WIDTH, *_WIDER):
        batch = _batch(steps, _ROWS, width)
        changed = batch.steps.copy()
        if steps.kind == "values":
            batch.steps[:] = random.standard_normal(batch.steps.shape)
            changed[:] = batch.steps
            changed[0] = random.standard_normal(batch.steps.shape[1:])
        else:
            changed[0] = 0
        try:
            (before,), (after,) = (
                session.run([names.logits], inputs_of(session, names, one))
                for one in (batch, PaddedBatch(changed, batch.lengths))
            )
        except Exception:  # onnxruntime's exceptions have no common base class
            continue
        rows = 1 if names.time_first and before.ndim == 3 else 0
        before, after = np.moveaxis(before, rows, 0), np.moveaxis(after, rows, 0)
        return bool(np.allclose(before[1:], after[1:], atol=ROUNDING, rtol=ROUNDING, equal_nan=True))
    return False


def open_recording_session(graph: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnxruntime.InferenceSession:
    """A session that outputs the values of these nodes, with graph optimisations off so that every node is kept."""
    import onnxruntime

    recording = deepcopy(graph)
    names = (name for node in nodes for name in node.output if name)
    refill(recording.graph.output, (onnx.ValueInfoProto(name=name) for name in names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(recording, options)


def shape_of_answer(
    session: onnxruntime.InferenceSession, names: GraphNames, steps: StepInput, rows: int = _ROWS, width: int = _WIDTH
) -> tuple[int, ...] | None:
    """The shape of the logits for a small batch, rows first; None if it raises or the shape is wrong."""
    try:
        (answer,) = session.run([names.logits], inputs_of(session, names, _batch(steps, rows, width)))
    except Exception:  # onnxruntime's exceptions have no common base class
        return None
    shape = tuple(int(size) for size in answer.shape)
    if names.time_first and len(shape) == 3:
        shape = (shape[1], shape[0], shape[2])
    if names.classes_first and len(shape) == 3:
        shape = (shape[0], shape[2], shape[1])
    return shape if shape[:-1] in ((rows,), (rows, width)) else None


def what_it_raises(session: onnxruntime.InferenceSession, names: GraphNames, steps: StepInput) -> str | None:
    """The error of onnxruntime for a small batch; None if it runs."""
    try:
        session.run([names.logits], inputs_of(session, names, _batch(steps, _ROWS, _WIDTH)))
    except Exception as error:  # as above
        return str(error).strip().split("\n")[0]
    return None


def _batch(steps: StepInput, rows: int, width: int) -> PaddedBatch:
    """A batch of zeros, or of the token 1, with different lengths."""
    lengths = np.maximum(width - np.arange(rows, dtype=np.int32), 1)
    if steps.kind == "tokens":
        values: NDArray[Any] = np.ones((rows, width), dtype=np.int64) % (steps.vocabulary or 1)
    else:
        values = np.zeros((rows, width, steps.features or 0), dtype=np.float32)
    return PaddedBatch(values, lengths)


def require_dynamic_inside(
    session: onnxruntime.InferenceSession, names: GraphNames, steps: StepInput, *, cure: str = ""
) -> None:
    """Refuses a graph with dynamic axes that runs at one size only; `cure` ends the error."""
    tried = range(1, _MAX_TRIED)
    for axis, sizes in (("width", [(_ROWS, width) for width in tried]), ("rows", [(rows, _WIDTH) for rows in tried])):
        good = [size for size in sizes if shape_of_answer(session, names, steps, *size) is not None]
        if len(good) == 1:
            raise UncheckableError(
                f"the graph declares dynamic axes, but runs only at {good[0][0]} rows and a width of {good[0][1]}: the "
                f"{axis} is frozen inside (usually in a Reshape); take it from Shape instead{cure}"
            )


def with_int64_tokens(graph: onnx.ModelProto, tokens: str) -> onnx.ModelProto:
    """The graph with an int32 input of token ids changed to int64, because the service passes int64."""
    (value,) = (value for value in graph.graph.input if value.name == tokens)
    if value.type.tensor_type.elem_type != onnx.TensorProto.INT32:
        return graph
    wider, inside = deepcopy(graph), f"{tokens}_as_int32"
    for node in wider.graph.node:
        node.input[:] = [inside if name == tokens else name for name in node.input]
    cast = onnx.helper.make_node("Cast", [tokens], [inside], name=inside, to=onnx.TensorProto.INT32)
    wider.graph.node.insert(0, cast)
    for value in wider.graph.input:
        if value.name == tokens:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    return wider

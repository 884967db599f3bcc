"""Follows the nodes of a graph that streams: each is written by its rule, and what it gives is known from then on.

A value may be a count of steps, a mask, a share of a sum: what the rules ask of it is noted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto

from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.engine import NodeOutputs, apply, shown_operator
from lengthwise_export.mending.values import DataTensor, constant_in
from lengthwise_export.streaming.carried import (
    DOUBLE,
    StreamingMender,
)
from lengthwise_export.tracing.source_lines import location_of_node

_MOVES: Final = frozenset({"Transpose", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Cast", "Expand"})
"""Operators that move elements, whatever these are."""

_COMPARISONS: Final = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
"""Operators whose output is the same if both operands are counted from the sequence's first step or the chunk's."""

_SUMS: Final = frozenset({"MatMul", "Gemm", "ReduceSum", "Einsum"})
_OF_A_STEP: Final = "takes a figure of all steps so far at each step, so earlier steps would change with each chunk"


def follow(mender: StreamingMender, node: NodeProto) -> None:
    """Writes what stands for a node in the streaming graph, and notes what is known of its outputs.

    Raises:
        UnmendableError: It cannot stream; the error names it, with its line of code.
    """
    try:
        outputs = _outputs(mender, node)
        inputs = {name: mender.values[name] for name in node.input if name}
        data = {name: value for name, value in inputs.items() if isinstance(value, DataTensor)}
        for name, value in zip(node.output, outputs, strict=False):
            if name and value is not None:
                mender.values[name] = value
            if name and isinstance(value, DataTensor):
                _note(mender, node, data, name, value)
    except UnmendableError as error:
        if error.operator:
            raise
        raise UnmendableError(shown_operator(node), error.reason, location_of_node(node)) from error


def _note(
    mender: StreamingMender, node: NodeProto, inputs: Mapping[str, DataTensor], name: str, value: DataTensor
) -> None:
    """Notes what is known of an output of a node: whether it is of the whole, a position, or looks ahead.

    Args:
        mender: The mender.
        node: The node.
        inputs: Its inputs that are data, by name.
        name: The name of the output.
        value: The output.

    Raises:
        UnmendableError: It has two axes of time, or an axis of time and depends on a figure of all steps.
    """
    sources = frozenset[str]().union(*(tensor.sources for tensor in inputs.values()))
    is_steps = node.op_type in ("Cast", "Identity") and any(tensor.is_steps for tensor in [*inputs.values()][:1])
    mender.values[name] = value.with_name(value.name, cause="", sources=sources, is_steps=is_steps)
    times = value.time_dims()
    if len(times) > 1:
        raise UnmendableError(
            "",
            "compares each step with every other (attention over all steps), so it looks ahead without bound, or its "
            "state would grow: use a recurrent layer, a causal convolution or attention pooling",
        )
    reach = max((mender.look_ahead.get(other, 0) for other in inputs), default=0)
    mender.look_ahead[name] = reach + mender.moved.get(name, 0)
    _note_mask(mender, node, name)
    hides = node.op_type == "Where" and node.input[0] in mender.masks
    if hides and (fill := constant_in(mender.values[node.input[2]])) is not None and fill.size == 1:
        mender.fills[value.name] = float(fill.item())
    seen = [*inputs][:2] if hides else inputs  # the third one is at padding only
    whole = [other for other in seen if other in mender.of_the_whole and not inputs[other].time_dims()]
    if not times:
        if (whole or any(tensor.time_dims() for tensor in inputs.values())) and name not in mender.settled:
            mender.of_the_whole.add(name)
        return
    if whole and name not in mender.rescales and not _is_of_counts(mender, node) and node.op_type not in _LAYERS:
        raise UnmendableError("", f"{_OF_A_STEP}: use figures of the step, or of the training split")
    if (inputs and all(other in mender.positions for other in inputs)) or node.op_type == "Range":
        mender.positions.add(name)


def _note_mask(mender: StreamingMender, node: NodeProto, name: str) -> None:
    """Notes whether the output of a node is a mask, true at each row's own steps and nowhere else."""
    first = node.input[0]
    if node.op_type == "Less" and _is_of_counts(mender, node):
        compares_position = first in mender.positions and node.input[1] not in mender.positions
        is_mask = compares_position and mender.shifted.isdisjoint(node.input)
    else:
        is_mask = node.op_type in _MOVES and first in mender.masks
        if node.op_type in ("Add", "Sub") or first in mender.shifted:
            mender.shifted.add(name)
    if is_mask:
        mender.masks.add(name)


_LAYERS: Final = ("LSTM", "GRU", "RNN")  # their rule looks at what they take beside the steps


def _is_of_counts(mender: StreamingMender, node: NodeProto) -> bool:
    """Whether a node compares values that are all counted from the first step of the chunk."""
    return node.op_type in _COMPARISONS and all(name in mender.totals for name in node.input)


def _outputs(mender: StreamingMender, node: NodeProto) -> NodeOutputs:
    """Writes the nodes that stand for a node; returns what is known of its outputs.

    1. It compares counts or positions: with those of the chunk.
    2. It moves counts, or adds a constant to them: it is written for those of the chunk, and again for the totals.
    3. It computes with counts in another way: with the totals.
    4. It takes a share: by `_outputs_of_share`.

    Raises:
        UnmendableError: It cannot stream.
    """  # noqa: DOC502 - the rules raise it
    counts = {name: mender.totals[name] for name in node.input if name in mender.totals}
    if counts and not _is_of_counts(mender, node):
        if node.op_type in _COMPARISONS:
            _settle(mender, node, counts)
        further = [mender.values[name] for name in node.input if name and name not in counts]
        adds_constant = node.op_type in ("Add", "Sub") and all(constant_in(value) is not None for value in further)
        if node.op_type in _MOVES or (adds_constant and len(counts) == 1):
            (name,) = counts
            mender.totals[node.output[0]] = _moved(mender, node, name, counts[name])
        else:
            return apply(mender, _with_inputs(mender, node, counts, node.output))
    shares = [name for name in node.input if name in mender.rescales]
    if shares:
        return _outputs_of_share(mender, node, shares[0])
    outputs = apply(mender, node)
    if node.op_type in ("Div", "Mul") and isinstance(outputs[0], DataTensor) and outputs[0].time_dims():
        _note_division(mender, node, outputs[0])
    return outputs


def _settle(mender: StreamingMender, node: NodeProto, counts: Mapping[str, DataTensor]) -> None:
    """Notes the comparison of a total with a number: the result is the same for all sequences longer than the number.

    So it is no figure of the whole, if the states lag that number of steps behind.

    Raises:
        LooksAhead: They lag fewer steps behind.
    """  # noqa: DOC502 - `require_look_ahead` raises it
    numbers = [constant_in(mender.values[name]) for name in node.input if name not in counts]
    if all(number is not None for number in numbers) and not any(value.time_dims() for value in counts.values()):
        mender.require_look_ahead(max(0, *(int(np.max(number)) for number in numbers if number is not None)))
        mender.settled.update(node.output)


def _with_inputs(
    mender: StreamingMender, node: NodeProto, inputs: Mapping[str, DataTensor], outputs: Sequence[str]
) -> NodeProto:
    """Copies a node with other inputs, by the names of the inputs that they replace, and with other output names."""
    copied = NodeProto()
    copied.CopyFrom(node)
    names = {name: mender.register(value) for name, value in inputs.items()}
    for name, new_name in names.items():
        if name in mender.positions:
            mender.positions.add(new_name)
    copied.input[:] = [names.get(name, name) for name in node.input]
    copied.output[:] = list(outputs)
    return copied


def _note_division(mender: StreamingMender, node: NodeProto, result: DataTensor) -> None:
    """Makes an output a share, if steps are divided or multiplied by a figure of all steps: writes its rescale."""
    steps, figure = (mender.values[name] for name in node.input)
    name = node.input[1]
    if node.op_type == "Mul" and node.input[0] in mender.of_the_whole:
        steps, figure, name = figure, steps, node.input[0]
    if name not in mender.of_the_whole or not isinstance(figure, DataTensor) or not isinstance(steps, DataTensor):
        return
    if figure.time_dims() or not steps.time_dims() or figure.dtype != TensorProto.FLOAT:
        return
    mender = replace(mender, node=node)
    if figure.has_added_rows:
        (_, figure), _ = mender.align_axes([steps, figure])
    else:
        figure = mender.unsqueezed(figure, range(result.rank - figure.rank))
    carried = mender.carried(figure, DOUBLE, float(node.op_type == "Mul"))  # begins as the figure of no steps
    now = mender.writer.cast(figure.name, DOUBLE)
    mender.keep(carried, now)
    factors = [carried.value.name, now] if node.op_type == "Div" else [now, carried.value.name]
    zero = mender.writer.constant(np.float64(0))
    was_zero = mender.emit("Equal", [carried.value.name, zero])  # before the first step
    rescale = mender.emit("Where", [was_zero, zero, mender.emit("Div", factors)])
    mender.rescales[node.output[0]] = (figure.with_name(rescale, dtype=DOUBLE),)


def _outputs_of_share(mender: StreamingMender, node: NodeProto, share: str) -> NodeOutputs:
    """Writes a node that takes a share, and returns its outputs; notes the rescale of an output that is a share, too.

    1. It takes the sizes of the share, or sums it over the steps: its rule takes the rescale.
    2. It moves axes: the rescale is moved alike.
    3. It copies the share, multiplies it by values of the steps, or hides steps: the rescale stays.
    4. Else it is refused.

    Raises:
        UnmendableError: It computes further with the share.
    """
    kind, rescales, (name, *_) = node.op_type, mender.rescales[share], node.output
    outputs = apply(mender, node)
    result = outputs[0]
    if not isinstance(result, DataTensor) or (kind in _SUMS and not result.time_dims()):
        return outputs
    others = [other for other in node.input if other != share and other]
    are_of_steps = all(other not in mender.of_the_whole and other not in mender.rescales for other in others)
    if kind in ("Transpose", "Unsqueeze", "Squeeze"):
        rescales = tuple(_moved(mender, node, share, factor) for factor in rescales)
    elif kind not in ("Identity", "Cast", "Mul", "Where", "Dropout", "Expand") or not are_of_steps:
        raise UnmendableError("", f"{_OF_A_STEP}: sum the shares (attention weights) over the steps before")
    mender.rescales[name] = tuple(mender.unsqueezed(factor, range(result.rank - factor.rank)) for factor in rescales)
    return outputs


def _moved(mender: StreamingMender, node: NodeProto, name: str, value: DataTensor) -> DataTensor:
    """Writes a node once more, with another tensor in the place of its input `name`; returns the output."""
    copied = _with_inputs(mender, node, {name: value}, [mender.writer.name(f"{node.output[0]}_moved")])
    copied.name = mender.writer.name(f"{node.name}_moved")
    (result,) = apply(mender, copied)
    assert isinstance(result, DataTensor)
    return result

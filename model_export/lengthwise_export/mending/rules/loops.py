"""Recurrent layers, and loops over the steps.

A layer gets each row's length, which ends the forward direction and begins the backward one. A Loop or Scan becomes the
layer that its body is, or gets states that stay beyond a row's own last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from lengthwise_export.mending.cell_body import NotACell
from lengthwise_export.mending.cells import Cell, recognise
from lengthwise_export.mending.mender import BOOL, FLOAT, Mender, rule
from lengthwise_export.mending.node_mender import StepsHidden
from lengthwise_export.mending.recurrences import as_scan
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    DataTensor,
    Group,
    KnownTensor,
    Size,
    axis_text,
    has_size_one,
    is_pure,
)
from lengthwise_export.onnx_graphs.protos import refill


@rule("LSTM", "GRU", "RNN")
def recurrent(mender: Mender) -> None:
    """A recurrent layer over `[time, rows, features]`.

    1. It has no lengths, or some that are computed from the width: it gets each row's own length, which ends the
       forward direction and begins the backward one.
    2. It has lengths from an input, or computed from the steps: the node stays.
    3. It runs over an axis of fixed size, row by row: the node stays.
    4. Rows that are merged with another axis (a bag of sequences) get the row's length once for each part.
    5. It takes the rows for its steps (`batch_first` forgotten), or merged steps: refused.
    """
    value = mender.data_input(0)
    _refuse_other_forms(mender, value)
    time, group = value.groups[0][0], value.groups[1]
    names = mender.copy_node(_inputs(mender, value, _ends(mender, time, group)))
    directions = mender.fixed_size(2 if mender.attribute("direction", "forward") == "bidirectional" else 1)
    hidden = mender.fixed_size(int(mender.attribute("hidden_size")))
    all_steps = ((time,), (directions,), group, (hidden,))
    for index, name in enumerate(names):
        if name:
            groups = all_steps if index == 0 else all_steps[1:]
            if len(group) > 1:
                name = mender.emit_with_shape("Reshape", name, (size for axes in groups for size in axes))
            mender.set_output(DataTensor(name, value.dtype, groups, zero_padded=index == 0 and time.is_time), index)


def _refuse_other_forms(mender: Mender, value: DataTensor) -> None:
    """Refuses a layer that does not run over the steps, or over another axis of one size, row by row."""
    mender.refuse_if(mender.attribute("layout", 0), "has the layout 1, which no runtime takes: transpose around it")
    mender.refuse_if(
        value.has_added_rows or len(value.groups[0]) != 1 or len(value.groups[2]) != 1, "runs over merged axes"
    )
    time, group = value.groups[0][0], value.groups[1]
    if time.is_rows or group[0].is_time:
        order = f"{axis_text(value.groups[0])} as steps and {axis_text(group)} as rows"
        mender.refuse(f"runs over {order} (is batch_first forgotten?): {CROSSES_ROWS}")
    mender.refuse_if(not any(size.is_rows for size in group), "does not run over the rows of the batch")
    mender.refuse_if(not time.is_time and time.fixed is None, "runs over an axis that is no time")


def _ends(mender: Mender, time: Size, group: Group) -> str:
    """The name of the layer's lengths, `[rows]` int32; empty if it runs over an axis of fixed size."""
    lengths = mender.node.input[4] if mender.input_value(4) is not None else ""
    if lengths and (
        not time.is_time or lengths in mender.depends_on_lengths | mender.depends_on_steps
    ):  # not from the width
        return mender.values[lengths].name
    if not time.is_time:
        return ""
    mender.refuse_if(
        len(group) > 1 and any(size.is_time for size in group),
        f"runs over {axis_text(group)} as rows, so each step of a sequence is one of its rows",
    )
    mender.causes.append(
        "it runs through the padding, and backwards begins in it"
        if mender.attribute("direction", "forward") != "forward"
        else "it runs on through the padding, so its last state is of a padded step"
    )
    ends = mender.writer.lengths_int32(time)
    if len(group) == 1:
        return ends
    # Rows that are merged with another axis: each row's length is repeated for each index of that axis.
    single = mender.writer.unsqueezed(ends, [dim for dim, size in enumerate(group) if not size.is_rows])
    return mender.emit("Reshape", [mender.emit_with_shape("Expand", single, group), mender.writer.constant([-1])])


def _inputs(mender: Mender, value: DataTensor, ends: str) -> list[str]:
    """The inputs of the layer: constant weights, the ends of the rows, and its first states."""
    inputs = list(mender.node.input) + [""] * (8 - len(mender.node.input))
    for index in (1, 2, 3, 7):
        if inputs[index]:
            mender.constant_input(index)
            inputs[index] = mender.values[inputs[index]].name
    inputs[0], inputs[4] = mender.in_original_shape(value), ends
    for index in (5, 6):
        if inputs[index]:
            inputs[index] = _state(mender, index, value.groups[1])
    return inputs


def _state(mender: Mender, index: int, group: Group) -> str:
    """An initial state `[directions, rows, hidden]`."""
    state = mender.data_input(index)
    mender.refuse_if(state.has_added_rows or len(state.groups) != 3, "its initial state has merged axes")
    if has_size_one(state.groups[1]) and isinstance(mender.input_value(index), KnownTensor):
        shape = [mender.writer.constant([1]), mender.axis_size_at_width(group), mender.writer.constant([1])]
        return mender.emit("Expand", [state.name, mender.emit("Concat", shape, axis=0)])
    mender.refuse_if(not mender.matches(state.groups[1], group), "its initial state has other rows than its input")
    return mender.in_original_shape(state)


@rule("Loop")
def _loop(mender: Mender) -> None:
    """A Loop over the steps becomes a Scan; nodes that compute the same at each turn move in front of it."""
    mender.node = _with_invariant_nodes_outside(mender)
    mender.node = as_scan(mender)
    _scan(mender)


def _with_invariant_nodes_outside(mender: Mender) -> NodeProto:
    """Loop-invariant code motion: emits nodes that compute the same in each iteration, and returns the Loop without."""
    loop, causes = deepcopy(mender.node), mender.causes
    body: GraphProto = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    moved: dict[str, str] = {}  # by the name of a value in the body, its name outside
    for tensor in body.initializer:
        array = numpy_helper.to_array(tensor)
        moved[tensor.name] = mender.writer.constant(array, dtype=array.dtype)
        mender.values[moved[tensor.name]] = mender.constant_tensor(moved[tensor.name], array)
    varying = {value.name for value in body.input}
    nodes = []
    for node in body.node:
        node.input[:] = [moved.get(name, name) for name in node.input]
        if not is_pure(node) or varying.intersection(node.input):
            varying.update(node.output)
            nodes.append(node)
            continue
        for index, name in enumerate(node.output):
            moved[name] = mender.writer.name(f"{name}_outside") if name else ""
            node.output[index] = moved[name]
        mender.follow(mender, node)
    for value in body.output:
        if value.name in moved:  # a body has to make its outputs itself
            nodes.append(helper.make_node("Identity", [moved[value.name]], [value.name]))
    del body.initializer[:]
    refill(body.node, nodes)
    mender.causes = causes
    return loop


@rule("Scan")
def _scan(mender: Mender) -> None:
    """A Scan over the steps.

    1. Its body is an LSTM, GRU or RNN: that layer takes its place, see `recurrent`.
    2. Else its body gets one more input, whether a row has this step, and keeps its states where it has not.
    3. It scans the rows or both directions at once, or its body mixes steps as well: refused.
    """
    node = mender.node
    body: GraphProto = mender.attribute("body")
    scanned = mender.attribute("num_scan_inputs")
    states = len(node.input) - scanned
    values = _scanned(mender, states)
    for tensor in body.initializer:
        mender.values[tensor.name] = mender.constant_tensor(tensor.name, numpy_helper.to_array(tensor))
    time = values[states].groups[0][0]
    directions = mender.attribute("scan_input_directions") or [0] * scanned
    forwards = not any(directions) and not any(mender.attribute("scan_output_directions") or [])
    if forwards and _as_layer(mender, body, values, states):
        return
    inside = [value.with_name(value.name, groups=value.groups[1:], zero_padded=False) for value in values[states:]]
    results = _follow_body(mender, body, [*values[:states], *inside])
    for start, end in zip(values[:states], results[:states], strict=True):
        mender.refuse_if(
            not start.groups[0][0].is_rows or not all(map(mender.matches, start.groups, end.groups)),
            "has a state whose first axis is not the rows",
        )
    mender.node = node
    mender.causes.append("it runs on through the padding, or begins in it")
    masked = _with_valid_steps_only(mender, body, states, len(values[0].groups))
    # [steps, rows]: true at each row's own steps.
    mask = mender.writer.transposed(mender.writer.mask(time), (1, 0))
    mender.refuse_if(any(directions) and not all(directions), "scans in both directions at once")
    names = mender.copy_node(
        [*(value.name for value in values), mask],
        body=masked,
        num_scan_inputs=scanned + 1,
        scan_input_directions=[*directions, directions[0]],
        drop=["scan_input_axes"],
    )
    for index, (name, result) in enumerate(zip(names, results, strict=True)):
        if name:
            groups = result.groups if index < states else ((time,), *result.groups)
            mender.set_output(DataTensor(name, result.dtype, groups), index)


def _scanned(mender: Mender, states: int) -> list[DataTensor]:
    """The inputs of a Scan over the steps: its states, and what it scans."""
    mender.refuse_if(
        any(mender.attribute("scan_input_axes") or []) or any(mender.attribute("scan_output_axes") or []),
        "scans another axis than the first: transpose around it",
    )
    values = [mender.data_input(index) for index in range(len(mender.node.input))]
    mender.refuse_if(any(value.has_merged_axes or value.has_added_rows for value in values), "scans merged axes")
    time = values[states].groups[0][0]
    mender.refuse_if(
        not time.is_time or any(not value.groups[0][0].equals(time) for value in values[states:]),
        f"does not scan the steps: {CROSSES_ROWS}" if time.is_rows else "does not scan the steps",
    )
    return values


def _as_layer(mender: Mender, body: GraphProto, values: Sequence[DataTensor], count: int) -> bool:
    """Replaces a Scan of `count` states by the LSTM, GRU or RNN that its body computes; False if it computes another.

    Raises:
        StepsHidden: It is a layer, without a mask that the values of the steps decide; the mend begins again.
    """
    node, inputs = mender.node, [value.name for value in body.input]
    scanned = list(zip(inputs[count:], node.input[count:], values[count:], strict=True))
    masks = {name: source for name, source, value in scanned if value.dtype == BOOL}
    if not mender.always_true_masks.union(mender.hiding_masks).issuperset(masks.values()):
        return False
    steps = [(name, value) for name, _, value in scanned if name not in masks]
    afters = dict(zip(inputs, (value.name for value in body.output), strict=False))
    states = {name: (afters[name], _features(value, 2)) for name, value in zip(inputs, values[:count], strict=False)}
    features = _features(steps[0][1], 3) if len(steps) == 1 else 0
    if not features or not all(hidden_size for _, hidden_size in states.values()):
        return False
    known, others = _known_outside(mender, body)
    known |= {name: np.ones((1, 1), dtype=bool) for name in masks}
    try:
        cell = recognise(body.node, (steps[0][0], features), states, known, others)
    except NotACell:
        return False
    ends = {name: body.output[index].name for index, name in enumerate(node.output) if name in mender.used_names}
    finals = {name: inside for name, inside in ends.items() if name in node.output[:count]}
    if not cell.states.union(cell.memories).issuperset(finals.values()):
        return False
    if not cell.states.issuperset(inside for name, inside in ends.items() if name not in finals):
        return False
    if hidden := [mender.hiding_masks[name] for name in masks.values() if name not in mender.always_true_masks]:
        raise StepsHidden({mask.name: mask.number for mask in hidden})
    all_steps, *last = _layer(mender, cell, steps[0][1], dict(zip(inputs, values, strict=True)))
    for name, inside in ends.items():
        result, directions_axis = (last[0 if inside in cell.states else 1], 0) if name in finals else (all_steps, 1)
        mender.values[name] = mender.squeezed(result, [directions_axis])
    return True


def _known_outside(mender: Mender, body: GraphProto) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """What a body uses from outside: the constants, and the numbers of features of data `[rows, features]`."""
    known: dict[str, NDArray[Any]] = {}
    others: dict[str, int] = {}
    for name in _outside(body):
        value = mender.values.get(name)
        if isinstance(value, DataTensor) and (features := _features(value, 2)):
            others[name] = features
        elif isinstance(value, KnownTensor) and value.is_constant:
            known[name] = np.asarray(value.table[0, 0])
    return known, others


def _features(value: DataTensor, rank: int) -> int:
    """The number of features of float32 data `[..., rows, features]` of this rank; 0 for other data."""
    if value.rank != rank or value.has_merged_axes or value.has_added_rows or value.dtype != FLOAT:
        return 0
    rows = value.groups[-2][0]
    return (value.groups[-1][0].fixed or 0) if rows.is_rows else 0


def _layer(mender: Mender, cell: Cell, steps: DataTensor, starts: Mapping[str, DataTensor]) -> list[DataTensor]:
    """Emits the layer that replaces a loop; returns its outputs: all steps, the last state, and an LSTM's last cell."""
    loop = mender.node
    article = "a" if cell.kind == "GRU" else "an"
    mender.causes.append(f"it is {article} {cell.kind} written out as a loop, which runs through the padding")
    inputs = [mender.register(steps)]
    for array in (cell.weights, cell.recurrence, cell.bias):
        inputs.append(mender.writer.constant(array))
        mender.values[inputs[-1]] = mender.constant_tensor(inputs[-1], array)
    inputs.append("")
    for state in (cell.state, cell.memory):
        if state is not None:
            start = starts[state]
            with_directions = mender.unsqueezed(start, [0])
            inputs.append("" if _is_zero(mender, start.name) else mender.register(with_directions))
    outputs = [mender.writer.name(f"{loop.output[0]}_{end}") for end in ("steps", "state", "memory")]
    outputs = outputs if cell.kind == "LSTM" else outputs[:2]
    mender.node = helper.make_node(cell.kind, inputs, outputs, name=loop.name, **cell.attributes)
    recurrent(mender)
    return [mender.as_data(mender.values[name]) for name in outputs]


def _is_zero(mender: Mender, name: str) -> bool:
    """Whether a value of the mended graph is a constant of zeros, in any shape."""
    if (node := next((each for each in mender.writer.nodes if name in each.output), None)) is not None:
        return node.op_type in ("Expand", "Identity", "Unsqueeze", "Cast") and _is_zero(mender, node.input[0])
    value = mender.values.get(name)
    return isinstance(value, KnownTensor) and value.is_constant and not value.table[0, 0].any()


def _follow_body(mender: Mender, body: GraphProto, inputs: Sequence[DataTensor]) -> list[DataTensor]:
    """The axes of the body's outputs, for these inputs; refuses a body of which a node needs a mend.

    The nodes are followed with a writer whose nodes are not used: the body stays as it is.
    """
    writer, causes = mender.writer, mender.causes
    before = dict(mender.values)
    mender.writer = writer.scratch_writer()
    for value, described in zip(body.input, inputs, strict=True):
        mender.values[value.name] = described.with_name(value.name)
    for name in _outside(body):
        outside = before.get(name)
        if isinstance(outside, DataTensor) and (outside.has_added_rows or outside.has_merged_axes):
            mender.refuse(f"uses {name} in its body, which differs between rows only by their lengths, or is merged")
        if isinstance(outside, KnownTensor) and not outside.is_constant:
            mender.refuse(f"uses {name} in its body, which depends on the width")
    changed = [change for node in body.node for change in mender.follow(mender, node)]
    results = [mender.as_data(mender.values[value.name]) for value in body.output]
    mender.writer, mender.causes, mender.values = writer, causes, before
    mender.refuse_if(
        changed or any(result.has_added_rows or result.has_merged_axes for result in results),
        "mixes the steps inside of its body as well",
    )
    return results


def _outside(body: GraphProto) -> list[str]:
    """The values that a body uses from outside: neither its inputs nor outputs of its nodes."""
    inside = {value.name for value in body.input} | {name for node in body.node for name in node.output}
    return [name for node in body.node for name in node.input if name and name not in inside]


def _with_valid_steps_only(mender: Mender, body: GraphProto, states: int, rank: int) -> GraphProto:
    """The body with one more input, bool `[rows]`: where it is false, the row has ended and keeps its states."""
    copied = deepcopy(body)
    outside = {name: mender.values[name].name for name in _outside(body)}
    for node in copied.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
    valid = mender.writer.name("mended_has_step")
    copied.input.append(helper.make_tensor_value_info(valid, TensorProto.BOOL, None))
    if rank > 1:
        column, axes = mender.writer.name("mended_has_step_column"), mender.writer.constant([*range(1, rank)])
        copied.node.append(helper.make_node("Unsqueeze", [valid, axes], [column]))
        valid = column
    for start, end in zip(copied.input[:states], copied.output[:states], strict=True):
        after, end.name = end.name, mender.writer.name(f"{end.name}_kept")
        copied.node.append(helper.make_node("Where", [valid, after, start.name], [end.name]))
    return copied

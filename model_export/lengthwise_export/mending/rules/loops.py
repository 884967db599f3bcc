"""Rules for recurrent layers, and for loops over the steps.

A recurrent layer gets each row's length, which ends the forward direction and begins the backward one. A Loop or Scan
becomes the recurrent layer that its body computes; else it gets states that stay as they are at a row's padding.

Words: an *axis* is one of the original's tensor, a *dim* one of the mended graph's; the *group* of an axis has the
sizes of its dims, several if the axis is *merged*. Added rows are dim 0 of a tensor that the original has once and each
row has its own. *Own size* and *own steps* of a row are those that the original has for this sequence alone. *The node
stays*: the mended graph has the same operator. The *body* is the graph inside a Loop or Scan; values *outside* are
those of the graph around it, which the body may use by their names. A body's *state* is what one iteration passes on to
the next: an input and an output of the body. A *lone* sequence is a batch of one row without padding. A *cause* is a
text in `mender.causes`, which says how padding would reach the node's output. A node that is *refused* ends the mend.
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
from lengthwise_export.mending.recurrences import LoopOverSteps
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
def recurrent(mender: Mender) -> dict[str, DataTensor]:
    """Mends a recurrent layer over `[time, rows, features]`.

    1. It has no lengths, or some that are computed from the width: it gets each row's own length.
    2. It has lengths from an input, or computed from the steps: the node stays.
    3. It runs over an axis of fixed size, row by row: the node stays.
    4. Rows that are merged with another axis (a bag of sequences) get the row's length once for each part.
    5. It takes the rows for its steps (`batch_first` forgotten), or merged steps: refused.

    Returns:
        What is known of its outputs, by their names.
    """
    value = mender.data_input(0)
    _refuse_other_forms(mender, value)
    time, rows = value.groups[0][0], value.groups[1]
    names = mender.copy_node(_inputs(mender, value, _sequence_lens(mender, time, rows)))
    # The first output has the states of all steps, the others only the last states.
    directions = mender.fixed_size(2 if mender.attribute("direction", "forward") == "bidirectional" else 1)
    hidden = mender.fixed_size(int(mender.attribute("hidden_size")))
    all_steps = ((time,), (directions,), rows, (hidden,))
    outputs: dict[str, DataTensor] = {}
    for index, name in enumerate(names):
        if name:
            groups = all_steps if index == 0 else all_steps[1:]
            # Behind the length, all steps are 0 by ONNX's definition.
            output = DataTensor(name, value.dtype, groups, zero_padded=index == 0 and time.is_time)
            if len(rows) > 1:  # the node gives merged rows: `_inputs` merged them
                output = output.with_name(mender.emit_with_shape("Reshape", name, output.dim_sizes))
            outputs[name] = output
    return outputs


def _refuse_other_forms(mender: Mender, value: DataTensor) -> None:
    """Refuses a recurrent layer unless its input is `[time, rows, features]`, or a fixed size instead of time."""
    mender.refuse_if(mender.attribute("layout", 0), "has the layout 1, which no runtime takes: transpose around it")
    steps, rows, features = value.groups
    mender.refuse_if(value.has_added_rows or len(steps) != 1 or len(features) != 1, "runs over merged axes")
    (time,) = steps
    if time.is_rows or rows[0].is_time:
        order = f"{axis_text(steps)} as steps and {axis_text(rows)} as rows"
        mender.refuse(f"runs over {order} (is batch_first forgotten?): {CROSSES_ROWS}")
    mender.refuse_if(not any(size.is_rows for size in rows), "does not run over the rows of the batch")
    mender.refuse_if(not time.is_time and time.fixed is None, "runs over an axis that is no time")


def _sequence_lens(mender: Mender, time: Size, rows: Group) -> str:
    """The name of the input `sequence_lens` of a recurrent layer, `[rows]` int32; notes a cause if the node changes.

    Args:
        mender: The mender.
        time: The size of the axis that the layer runs over.
        rows: The group of the layer's axis of rows.

    Returns:
        The name; empty for an axis of fixed size, which has no padding.
    """
    lengths = mender.node.input[4] if mender.input_value(4) is not None else ""
    # Lengths of an input or computed from the steps are right; those that are computed from the width are not.
    if lengths and (not time.is_time or lengths in mender.depends_on_lengths | mender.depends_on_steps):
        return mender.values[lengths].name
    if not time.is_time:
        return ""
    mender.refuse_if(
        len(rows) > 1 and any(size.is_time for size in rows),
        f"runs over {axis_text(rows)} as rows, so each step of a sequence is one of its rows",
    )
    mender.causes.append(
        "it runs through the padding, and backwards begins in it"
        if mender.attribute("direction", "forward") != "forward"
        else "it runs on through the padding, so its last state is of a padded step"
    )
    ends = mender.writer.sizes_int32(time)
    if len(rows) == 1:
        return ends
    # Rows that are merged with another axis: each row's length is repeated for each index of that axis.
    unsqueezed = mender.writer.unsqueezed(ends, [dim for dim, size in enumerate(rows) if not size.is_rows])
    return mender.emit("Reshape", [mender.emit_with_shape("Expand", unsqueezed, rows), mender.writer.constant([-1])])


def _inputs(mender: Mender, value: DataTensor, sequence_lens: str) -> list[str]:
    """The names of a recurrent layer's inputs in the mended graph.

    Weights, bias and peepholes have to be constant; rows that are merged become one dim.

    Args:
        mender: The mender.
        value: The first input, the sequences.
        sequence_lens: The name of the fifth input, the lengths; empty for none.
    """
    inputs = list(mender.node.input) + [""] * (8 - len(mender.node.input))
    for index in (1, 2, 3, 7):
        if inputs[index]:
            mender.constant_input(index)  # refuses an input that is no constant
            inputs[index] = mender.values[inputs[index]].name
    inputs[0], inputs[4] = mender.in_original_shape(value), sequence_lens
    for index in (5, 6):
        if inputs[index]:
            inputs[index] = _initial_state(mender, index, value.groups[1])
    return inputs


def _initial_state(mender: Mender, index: int, rows: Group) -> str:
    """The name of an initial state `[directions, rows, hidden]`; known numbers for one row are repeated for all.

    Args:
        mender: The mender.
        index: The index of the layer's input with the state.
        rows: The group of the layer's axis of rows, which the state has to have, too.
    """
    state = mender.data_input(index)
    mender.refuse_if(state.has_added_rows or len(state.groups) != 3, "its initial state has merged axes")
    if has_size_one(state.groups[1]) and isinstance(mender.input_value(index), KnownTensor):
        one = mender.writer.constant([1])
        shape = mender.emit("Concat", [one, mender.axis_size_at_width(rows), one], axis=0)
        return mender.emit("Expand", [state.name, shape])
    mender.refuse_if(not mender.matches(state.groups[1], rows), "its initial state has other rows than its input")
    return mender.in_original_shape(state)


@rule("Loop")
def _loop(mender: Mender) -> dict[str, DataTensor]:
    """Mends a Loop over the steps: it is written as a Scan, and mended as that.

    Before, nodes that compute the same in each iteration move out of its body. `mender.node` becomes the Scan, whose
    outputs have the names of the Loop's.
    """
    mender.node = _with_invariant_nodes_outside(mender)
    mender.node = LoopOverSteps(mender).scan()
    return _scan(mender)


def _with_invariant_nodes_outside(mender: Mender) -> NodeProto:
    """A copy of the Loop `mender.node` without those nodes of its body that compute the same in each iteration.

    These nodes are mended here, outside of the Loop, and the copy uses their outputs: loop-invariant code motion, as
    compilers do it. The constants of the body become constants of the graph.
    """
    loop, causes = deepcopy(mender.node), mender.causes
    # The copy's body, to be changed in place
    body: GraphProto = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    # By the name of a value in the body, the name of the value outside that takes its place
    name_outside = {tensor.name: mender.emit_constant(numpy_helper.to_array(tensor)) for tensor in body.initializer}
    varying = {value.name for value in body.input}  # values that may differ between iterations
    nodes = []  # those that stay in the body
    for node in body.node:
        node.input[:] = [name_outside.get(name, name) for name in node.input]
        if not is_pure(node) or varying.intersection(node.input):
            varying.update(node.output)
            nodes.append(node)
        else:
            name_outside |= {name: mender.writer.name(f"{name}_outside") for name in node.output if name}
            node.output[:] = [name_outside.get(name, name) for name in node.output]
            mender.follow(mender, node)
    for value in body.output:
        if value.name in name_outside:  # ONNX wants an output of a body to be made by a node of the body
            nodes.append(helper.make_node("Identity", [name_outside[value.name]], [value.name]))
    del body.initializer[:]
    refill(body.node, nodes)
    mender.causes = causes
    return loop


@rule("Scan")
def _scan(mender: Mender) -> dict[str, DataTensor]:
    """Mends a Scan over the steps.

    1. Its body is an LSTM, GRU or RNN: that layer takes its place, and is mended by `recurrent`.
    2. Else its body gets one more input, whether a row has this step, and keeps the row's states where it has not.
    3. It scans the rows or both directions at once, or its body mixes steps as well: refused.

    Returns:
        What is known of its outputs, by their names.
    """
    body: GraphProto = mender.attribute("body")
    scanned_count = mender.attribute("num_scan_inputs")
    state_count = len(mender.node.input) - scanned_count
    states, scanned = _inputs_of_scan(mender, state_count)
    for tensor in body.initializer:
        mender.values[tensor.name] = mender.constant_tensor(tensor.name, numpy_helper.to_array(tensor))
    # Case 1
    directions = mender.attribute("scan_input_directions") or [0] * scanned_count  # 1: from the last step to the first
    is_forward = not any(directions) and not any(mender.attribute("scan_output_directions") or [])
    if is_forward and (outputs := _outputs_of_layer(mender, body, states, scanned)) is not None:
        return outputs
    # Case 2: what the body computes from the states, and from one step of each tensor that is scanned
    steps = [value.with_name(value.name, groups=value.groups[1:], zero_padded=False) for value in scanned]
    results = _outputs_of_body(mender, body, [*states, *steps])
    for start, end in zip(states, results[:state_count], strict=True):
        mender.refuse_if(
            not start.groups[0][0].is_rows or not all(map(mender.matches, start.groups, end.groups)),
            "has a state whose first axis is not the rows",
        )
    mender.causes.append("it runs on through the padding, or begins in it")
    mender.refuse_if(any(directions) and not all(directions), "scans in both directions at once")
    time = scanned[0].groups[0][0]
    mask = mender.writer.transposed(mender.writer.mask(time), (1, 0))  # `[steps, rows]`
    names = mender.copy_node(
        [*(value.name for value in (*states, *scanned)), mask],
        body=_body_that_keeps_states(mender, body, state_count, (states or scanned)[0].rank),
        num_scan_inputs=scanned_count + 1,
        scan_input_directions=[*directions, directions[0]],
        drop=["scan_input_axes"],
    )
    # The last states, then what the body gives for each step, joined along the time
    groups = [*(result.groups for result in results[:state_count])]
    groups += [((time,), *result.groups) for result in results[state_count:]]
    return {
        name: DataTensor(name, result.dtype, groups_of_result)
        for name, result, groups_of_result in zip(names, results, groups, strict=True)
        if name
    }


def _inputs_of_scan(mender: Mender, state_count: int) -> tuple[list[DataTensor], list[DataTensor]]:
    """The inputs of a Scan: first the initial states, of which there are `state_count`; then the tensors that it scans.

    Refuses a Scan that is not over the steps.
    """
    mender.refuse_if(
        any(mender.attribute("scan_input_axes") or []) or any(mender.attribute("scan_output_axes") or []),
        "scans another axis than the first: transpose around it",
    )
    values = [mender.data_input(index) for index in range(len(mender.node.input))]
    mender.refuse_if(not all(value.has_original_axes for value in values), "scans merged axes")
    time, *further = (value.groups[0][0] for value in values[state_count:])
    mender.refuse_if(
        not time.is_time or any(not size.equals(time) for size in further),
        f"does not scan the steps: {CROSSES_ROWS}" if time.is_rows else "does not scan the steps",
    )
    return values[:state_count], values[state_count:]


def _outputs_of_layer(
    mender: Mender, body: GraphProto, states: Sequence[DataTensor], scanned: Sequence[DataTensor]
) -> dict[str, DataTensor] | None:
    """Replaces the Scan `mender.node` by the LSTM, GRU or RNN that its body computes.

    The body may take the steps of one tensor with features, and masks of steps that may be true everywhere.

    Args:
        mender: The mender; its node becomes the layer.
        body: The body of the Scan.
        states: The initial states of the Scan, for the first inputs of the body.
        scanned: The tensors that it scans, for the other inputs of the body.

    Returns:
        What is known of those outputs of the Scan that are used, by their names. None if the body computes anything
        else: then nothing was written.

    Raises:
        StepsHidden: It is such a layer, if a mask that the values of the steps decide is true everywhere; `mend` begins
            again with this mask opened.
    """
    node, state_count = mender.node, len(states)
    # By the name of each input of the body: the value of the graph that it takes, or takes a step of
    outside = dict(zip((value.name for value in body.input), node.input, strict=True))
    values = dict(zip(outside, (*states, *scanned), strict=True))
    step_inputs = [name for name in [*values][state_count:] if values[name].dtype != BOOL]
    masks = {name: outside[name] for name in [*values][state_count:] if values[name].dtype == BOOL}
    if not mender.always_true_masks.union(mender.hiding_masks).issuperset(masks.values()):
        return None
    next_states = {
        name: (output.name, _feature_count(state, 2))
        for name, state, output in zip(values, states, body.output, strict=False)
    }
    feature_count = _feature_count(values[step_inputs[0]], 3) if len(step_inputs) == 1 else 0
    if not feature_count or not all(hidden_size for _, hidden_size in next_states.values()):
        return None
    constants, feature_counts = _values_outside(mender, body)
    constants |= {name: np.ones((1, 1), dtype=bool) for name in masks}
    try:
        cell = recognise(body.node, (step_inputs[0], feature_count), next_states, constants, feature_counts)
    except NotACell:
        return None
    # Outputs of the Scan that are used have to be outputs of the layer: last states, or the states of all steps. Here
    # with the name of the body's output that each is the last value of, or all values of.
    used = [
        (name, output.name) for name, output in zip(node.output, body.output, strict=False) if name in mender.used_names
    ]
    last = {name: output for name, output in used if name in node.output[:state_count]}
    of_all_steps = {output for name, output in used if name not in last}
    if not ({*last.values()} <= cell.next_states | cell.next_memories and of_all_steps <= cell.next_states):
        return None
    if hidden := [mender.hiding_masks[name] for name in masks.values() if name not in mender.always_true_masks]:
        raise StepsHidden({mask.name: mask.number for mask in hidden})
    # The layer's outputs have an axis of directions, which those of the Scan lack.
    all_steps, *last_states = _emit_layer(mender, cell, values[step_inputs[0]], values)
    return {
        name: mender.squeezed(last_states[0 if output in cell.next_states else 1], [0])
        if name in last
        else mender.squeezed(all_steps, [1])
        for name, output in used
    }


def _values_outside(mender: Mender, body: GraphProto) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """What a body uses from outside, by name: the constants; and the number of features of data `[rows, features]`."""
    outside = {name: mender.values.get(name) for name in _names_outside(body)}
    known = {name: value for name, value in outside.items() if isinstance(value, KnownTensor) and value.is_constant}
    counts = {name: _feature_count(value, 2) for name, value in outside.items() if isinstance(value, DataTensor)}
    constants = {name: np.asarray(value.table[0, 0]) for name, value in known.items()}
    return constants, {name: count for name, count in counts.items() if count}


def _feature_count(value: DataTensor, rank: int) -> int:
    """The number of features of float32 data `[..., rows, features]` of this rank; 0 for another tensor."""
    is_float = value.rank == rank and value.has_original_axes and value.dtype == FLOAT
    return (value.groups[-1][0].fixed or 0) if is_float and value.groups[-2][0].is_rows else 0


def _emit_layer(mender: Mender, cell: Cell, steps: DataTensor, starts: Mapping[str, DataTensor]) -> list[DataTensor]:
    """Writes the recurrent layer that replaces the loop `mender.node`, and mends it.

    Args:
        mender: The mender; its node becomes the layer.
        cell: What the loop's body computes.
        steps: The steps, `[time, rows, features]`.
        starts: The initial states, by their names in the body.

    Returns:
        The layer's outputs: all steps, the last state, and of an LSTM the last memory.
    """
    loop = mender.node
    article = "a" if cell.kind == "GRU" else "an"
    mender.causes.append(f"it is {article} {cell.kind} written out as a loop, which runs through the padding")
    # ONNX's inputs in order. That of the lengths is empty: `recurrent` gives it each row's own length. An initial state
    # of zeros is left out, as ONNX begins with zeros.
    inputs = [mender.register(steps), *map(mender.emit_constant, (cell.weights, cell.recurrence, cell.bias)), ""]
    for state in (cell.state, cell.memory):
        if state is not None:
            with_directions = mender.unsqueezed(starts[state], [0])
            inputs.append("" if _is_zero(mender, starts[state].name) else mender.register(with_directions))
    parts = ("steps", "state", "memory") if cell.kind == "LSTM" else ("steps", "state")
    names = [mender.writer.name(f"{loop.output[0]}_{part}") for part in parts]
    mender.node = helper.make_node(cell.kind, inputs, names, name=loop.name, **cell.attributes)
    outputs = recurrent(mender)
    return [outputs[name] for name in names]


def _is_zero(mender: Mender, name: str) -> bool:
    """Whether a value of the mended graph is a constant of zeros, or one that is only expanded, cast or unsqueezed."""
    if (node := next((node for node in mender.writer.nodes if name in node.output), None)) is not None:
        return node.op_type in ("Expand", "Identity", "Unsqueeze", "Cast") and _is_zero(mender, node.input[0])
    value = mender.values.get(name)
    return isinstance(value, KnownTensor) and value.is_constant and not value.table[0, 0].any()


def _outputs_of_body(mender: Mender, body: GraphProto, inputs: Sequence[DataTensor]) -> list[DataTensor]:
    """The descriptions of a body's outputs for these inputs; refuses a body that has a node which has to be mended.

    The nodes of the body are followed to find out what they give, and stay as they are: they are written by a writer
    whose nodes are thrown away, and afterwards the mender has the same fields as before.
    """
    node, writer, causes, values = mender.node, mender.writer, mender.causes, dict(mender.values)
    mender.writer = writer.scratch_writer()
    for value, description in zip(body.input, inputs, strict=True):
        mender.values[value.name] = description.with_name(value.name)
    for name in _names_outside(body):
        outside = values.get(name)
        if isinstance(outside, DataTensor) and not outside.has_original_axes:
            mender.refuse(f"uses {name} in its body, which differs between rows only by their lengths, or is merged")
        if isinstance(outside, KnownTensor) and not outside.is_constant:
            mender.refuse(f"uses {name} in its body, which depends on the width")
    changes = [change for node in body.node for change in mender.follow(mender, node)]
    results = [mender.as_data(mender.values[value.name]) for value in body.output]
    mender.node, mender.writer, mender.causes, mender.values = node, writer, causes, values
    mender.refuse_if(
        changes or not all(result.has_original_axes for result in results),
        "mixes the steps inside of its body as well",
    )
    return results


def _names_outside(body: GraphProto) -> list[str]:
    """The names of the values that a body uses from outside: neither its inputs nor outputs of its nodes."""
    inside = {value.name for value in body.input} | {name for node in body.node for name in node.output}
    return [name for node in body.node for name in node.input if name and name not in inside]


def _body_that_keeps_states(mender: Mender, body: GraphProto, state_count: int, rank: int) -> GraphProto:
    """A copy of the body of a Scan with one more input, bool `[rows]`: where it is false, the row keeps its states.

    Args:
        mender: The mender, which gives new names.
        body: The body.
        state_count: The number of its states, which are its first inputs and outputs.
        rank: The number of axes of the states.
    """
    copied = deepcopy(body)
    name_outside = {name: mender.values[name].name for name in _names_outside(body)}
    for node in copied.node:
        node.input[:] = [name_outside.get(name, name) for name in node.input]
    has_step = mender.writer.name("mended_has_step")
    copied.input.append(helper.make_tensor_value_info(has_step, TensorProto.BOOL, None))
    if rank > 1:
        column, axes = mender.writer.name("mended_has_step_column"), mender.writer.constant([*range(1, rank)])
        copied.node.append(helper.make_node("Unsqueeze", [has_step, axes], [column]))
        has_step = column
    for state, output in zip(copied.input[:state_count], copied.output[:state_count], strict=True):
        next_state, output.name = output.name, mender.writer.name(f"{output.name}_kept")
        copied.node.append(helper.make_node("Where", [has_step, next_state, state.name], [output.name]))
    return copied

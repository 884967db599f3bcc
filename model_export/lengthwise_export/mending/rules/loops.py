"""Rules for recurrent layers, and for loops over the steps.

A recurrent layer gets each row's length, which ends the forward direction and begins the backward one. A Loop or Scan
becomes the recurrent layer that its body computes; else it gets states that stay as they are at a row's padding.

The *body* is the graph inside a Loop or Scan; values *outside* are those of the graph around it, which the body may use
by their names. A body's *state* is what one iteration passes on to the next: an input and an output of the body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from lengthwise_export.mending.cells import Cell, recognise
from lengthwise_export.mending.engine import NodeOutputs, apply, follow, rule, values
from lengthwise_export.mending.hiding_masks import HidingMask, StepsHidden
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.patterns import NotFound
from lengthwise_export.mending.recurrences import LoopOverSteps
from lengthwise_export.mending.values import (
    BOOL,
    CROSSES_ROWS,
    FLOAT,
    DataTensor,
    Group,
    KnownTensor,
    Size,
    Value,
    axis_text,
    constant_in,
    has_size_one,
    is_pure,
)
from lengthwise_export.onnx_graphs.protos import refill

# The inputs of ONNX's recurrent operators, after the sequences
_WEIGHTS, _RECURRENCE, _BIAS, _LENGTHS, _STATE, _MEMORY, _PEEPHOLES = range(1, 8)


@rule(
    "LSTM",
    "GRU",
    "RNN",
    requires={
        "has the layout 1, which no runtime takes: transpose around it": lambda mender, _: (
            not mender.attribute("layout")
        ),
        "runs over merged axes": lambda _, value: (
            not value.has_added_rows and len(value.groups[0]) == len(value.groups[2]) == 1
        ),
    },
)
def _recurrent(mender: Mender, value: DataTensor) -> list[DataTensor]:
    """Mends a recurrent layer over `[time, rows, features]`.

    1. It has no lengths, or some that are computed from the width: it gets each row's own length.
    2. It has lengths from an input, or computed from the steps: the node stays.
    3. It runs over an axis of fixed size, row by row: the node stays.
    4. Rows that are merged with another axis (a bag of sequences) get the row's length once for each part.
    5. It takes the rows for its steps (`batch_first` forgotten), merged steps, no rows at all, or an axis that is
       neither time nor of fixed size: refused.
    """
    # Case 5; merged steps are refused with the lengths
    (time,), rows, _ = value.groups
    order = f"{axis_text((time,))} as steps and {axis_text(rows)} as rows"
    mender.refuse_if(time.is_rows or rows[0].is_time, f"runs over {order} (is batch_first forgotten?): {CROSSES_ROWS}")
    mender.refuse_if(not any(size.is_rows for size in rows), "does not run over the rows of the batch")
    mender.refuse_if(not time.is_time and time.fixed is None, "runs over an axis that is no time")
    # Cases 1 to 4
    lengths, cause = _sequence_lens(mender, time, rows)
    names = mender.copy_node(_inputs(mender, value, lengths))
    # The first output has the states of all steps, the others only the last states.
    directions = mender.fixed_size(2 if mender.attribute("direction", "forward") == "bidirectional" else 1)
    all_steps = ((time,), (directions,), rows, (mender.fixed_size(int(mender.attribute("hidden_size"))),))
    outputs = [DataTensor(name, value.dtype, all_steps[1:]).because(value.cause or cause) for name in names]
    # Behind the length, all steps are 0 by ONNX's definition.
    outputs[0] = replace(outputs[0], groups=all_steps, zero_padded=time.is_time)
    if len(rows) == 1:
        return outputs
    return [  # `_inputs` merged the rows to one dim
        output.with_name(mender.emit_with_shape("Reshape", output.name, output.dim_sizes)) if output.name else output
        for output in outputs
    ]


def _sequence_lens(mender: Mender, time: Size, rows: Group) -> tuple[str, str]:
    """The input `sequence_lens` of a recurrent layer.

    Args:
        mender: The mender.
        time: The size of the axis that the layer runs over.
        rows: The group of the layer's axis of rows.

    Returns:
        1. Its name, `[rows]` int32; empty for an axis of fixed size, which has no padding.
        2. The cause, if the node changes; else empty.
    """
    lengths = mender.input_value(_LENGTHS)
    # Lengths of an input or computed from the steps are right; those that are computed from the width are not.
    if lengths is not None and (not time.is_time or (isinstance(lengths, DataTensor) and lengths.sources)):
        return lengths.name, ""
    if not time.is_time:
        return "", ""
    mender.refuse_if(
        len(rows) > 1 and any(size.is_time for size in rows),
        f"runs over {axis_text(rows)} as rows, so each step of a sequence is one of its rows",
    )
    is_forward = mender.attribute("direction", "forward") == "forward"
    end = "runs on through the padding, so its last state is of a padded step"
    cause = f"it {end if is_forward else 'runs through the padding, and backwards begins in it'}"
    ends = mender.writer.sizes_int32(time)
    if len(rows) == 1:
        return ends, cause
    # Rows that are merged with another axis: each row's length is repeated for each index of that axis.
    unsqueezed = mender.writer.unsqueezed(ends, [dim for dim, size in enumerate(rows) if not size.is_rows])
    repeated = mender.emit_with_shape("Expand", unsqueezed, rows)
    return mender.emit("Reshape", [repeated, mender.writer.constant([-1])]), cause


def _inputs(mender: Mender, value: DataTensor, sequence_lens: str) -> list[str]:
    """The names of a recurrent layer's inputs in the mended graph.

    Weights, bias and peepholes have to be constant; rows that are merged become one dim.

    Args:
        mender: The mender.
        value: The first input, the sequences.
        sequence_lens: The name of the fifth input, the lengths; empty for none.
    """
    inputs = [mender.in_original_shape(value), *[""] * _PEEPHOLES]
    inputs[_LENGTHS] = sequence_lens
    for index in (_WEIGHTS, _RECURRENCE, _BIAS, _PEEPHOLES):
        if mender.constant_input(index) is not None:  # this refuses an input that is no constant
            inputs[index] = mender.values[mender.node.input[index]].name
    for index in (_STATE, _MEMORY):
        if mender.input_value(index) is not None:
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


@rule("Loop", takes=values)
def _loop(mender: Mender, _: list[Value]) -> NodeOutputs:
    """Mends a Loop over the steps: it is written as a Scan, and mended as that.

    Before, nodes that compute the same in each iteration move out of its body. The outputs of the Scan have the names
    of the Loop's.
    """
    loop = replace(mender, node=_with_invariant_nodes_outside(mender))
    scan, invariants = LoopOverSteps(loop).scan()
    outputs: dict[str, Value | None] = {**invariants, **dict(zip(scan.output, apply(loop, scan), strict=True))}
    return [outputs.get(name) for name in mender.node.output]


def _with_invariant_nodes_outside(mender: Mender) -> NodeProto:
    """Moves the nodes that compute the same in each iteration out of a Loop; returns a copy of the Loop without them.

    The nodes are mended here, in front of the Loop, and the copy uses their outputs: loop-invariant code motion, as
    compilers do it. The constants of the body become constants of the graph.
    """
    loop = deepcopy(mender.node)
    # The copy's body, to be changed in place
    body: GraphProto = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    # By the name of a value in the body, the name of the value outside that takes its place
    name_outside = {
        tensor.name: mender.emit_constant(numpy_helper.to_array(tensor)).name for tensor in body.initializer
    }
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
            follow(mender, node)
    for value in body.output:
        if value.name in name_outside:  # ONNX wants an output of a body to be made by a node of the body
            nodes.append(helper.make_node("Identity", [name_outside[value.name]], [value.name]))
    del body.initializer[:]
    refill(body.node, nodes)
    return loop


@rule(
    "Scan",
    takes=values,
    requires={
        "scans another axis than the first: transpose around it": lambda mender, _: (
            not any(mender.attribute("scan_input_axes") or []) and not any(mender.attribute("scan_output_axes") or [])
        ),
        "scans in both directions at once": lambda mender, _: (
            len({*(mender.attribute("scan_input_directions") or [0])}) == 1
        ),
    },
)
def _scan(mender: Mender, inputs: list[Value]) -> NodeOutputs:
    """Mends a Scan over the steps.

    1. Its body is an LSTM, GRU or RNN: that layer takes its place, and is mended by `_recurrent`.
    2. Else its body gets one more input, which says for each row whether it has this step. A row that has not keeps its
       states.
    3. It scans the rows or both directions at once, or its body mixes steps as well: refused.
    """
    body: GraphProto = mender.attribute("body")
    scanned_count = mender.attribute("num_scan_inputs")
    state_count = len(inputs) - scanned_count
    states, scanned = _inputs_of_scan(mender, state_count)
    constants = {tensor.name: mender.known(tensor.name, numpy_helper.to_array(tensor)) for tensor in body.initializer}
    mender = replace(mender, values={**mender.values, **constants})
    # Case 1
    directions = mender.attribute("scan_input_directions") or [0] * scanned_count  # 1: from the last step to the first
    is_forward = not any(directions) and not any(mender.attribute("scan_output_directions") or [])
    if is_forward and (outputs := _replace_by_layer(mender, body, states, scanned)) is not None:
        return outputs
    # Case 2: what the body computes from the states, and from one step of each tensor that is scanned
    steps = [replace(value, groups=value.groups[1:], zero_padded=False) for value in scanned]
    results = _outputs_of_body(mender, body, [*states, *steps])
    for start, end in zip(states, results[:state_count], strict=True):
        mender.refuse_if(
            not start.groups[0][0].is_rows or not all(map(mender.matches, start.groups, end.groups)),
            "has a state whose first axis is not the rows",
        )
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
    cause = "it runs on through the padding, or begins in it"
    return [
        DataTensor(name, result.dtype, groups_of_result, cause=cause)
        for name, result, groups_of_result in zip(names, results, groups, strict=True)
    ]


def _inputs_of_scan(mender: Mender, state_count: int) -> tuple[list[DataTensor], list[DataTensor]]:
    """The inputs of a Scan: first the initial states, of which there are `state_count`; then the tensors that it scans.

    Refuses a Scan that is not over the steps.
    """
    tensors = [mender.as_data(value) for value in mender.inputs()]
    mender.refuse_if(not all(value.has_original_axes for value in tensors), "scans merged axes")
    time, *further = (value.groups[0][0] for value in tensors[state_count:])
    mender.refuse_if(
        not time.is_time or any(not size.equals(time) for size in further),
        f"does not scan the steps: {CROSSES_ROWS}" if time.is_rows else "does not scan the steps",
    )
    return tensors[:state_count], tensors[state_count:]


def _replace_by_layer(
    mender: Mender, body: GraphProto, states: Sequence[DataTensor], scanned: Sequence[DataTensor]
) -> NodeOutputs | None:
    """Replaces a Scan by the LSTM, GRU or RNN that its body computes.

    At each step the body may take one tensor with features, and masks. The layer knows no masks, so the Scan is
    replaced only if each mask may be taken as true everywhere (`StepsHidden`).

    Args:
        mender: The mender, whose node is the Scan.
        body: The body of the Scan.
        states: The initial states of the Scan, for the first inputs of the body.
        scanned: The tensors that it scans, for the other inputs of the body.

    Returns:
        What is known of the outputs of the Scan; None if the body computes anything else: then nothing was written.

    Raises:
        StepsHidden: The body is such a layer only if a mask that is computed from the steps' values is true everywhere;
            `mend` begins again with this mask opened.
    """
    node, state_count = mender.node, len(states)
    inputs = dict(zip((value.name for value in body.input), (*states, *scanned), strict=True))
    # None in the place of a mask that hides no steps by their values: with such a one `_cell` finds no cell.
    masks = {name: value.hides for name, value in [*inputs.items()][state_count:] if value.dtype == BOOL}
    cell = _cell(mender, body, inputs, state_count, masks)
    # By the index of each output of the Scan that is used: the name of the body's output. The Scan gives the last value
    # of a state, and of other outputs the values of all steps.
    used = {index: body.output[index].name for index, name in enumerate(node.output) if name in mender.used_names}
    if cell is None or not all(
        name in cell.next_states or (index < state_count and name in cell.next_memories) for index, name in used.items()
    ):
        return None
    if hidden := {mask.name: mask.number for mask in masks.values() if mask is not None and not mask.is_opened}:
        raise StepsHidden(hidden)
    # The layer's outputs have an axis of directions, which those of the Scan lack.
    (step_input,) = {*inputs} - {*masks} - {value.name for value in body.input[:state_count]}
    all_steps, *last_states = _emit_layer(mender, cell, inputs[step_input], inputs)
    outputs: list[Value | None] = [None] * len(node.output)
    for index, name in used.items():
        last_state = last_states[0 if name in cell.next_states else 1]
        outputs[index] = mender.squeezed(*((last_state, [0]) if index < state_count else (all_steps, [1])))
    return outputs


def _cell(
    mender: Mender,
    body: GraphProto,
    inputs: Mapping[str, DataTensor],
    state_count: int,
    masks: Mapping[str, HidingMask | None],
) -> Cell | None:
    """The cell of the LSTM, GRU or RNN that the body of a Scan is; None if it is none.

    Args:
        mender: The mender, whose node is the Scan.
        body: The body.
        inputs: Its inputs by name, the states first.
        state_count: The number of states.
        masks: By name, its other inputs that are boolean: the mask that each is; None for one that is not computed from
            the steps' values. With such an input there is no cell.
    """
    states, steps = [*inputs][:state_count], [name for name in [*inputs][state_count:] if name not in masks]
    next_states = {
        name: (output.name, _feature_count(inputs[name], 2)) for name, output in zip(states, body.output, strict=False)
    }
    feature_count = _feature_count(inputs[steps[0]], 3) if len(steps) == 1 else 0
    if None in masks.values() or not feature_count or not all(features for _, features in next_states.values()):
        return None
    # What the body takes from outside: constants, and data `[rows, features]`; a mask is true
    outside = {name: mender.values.get(name) for name in _names_outside(body)}
    constants = {name: constant for name, value in outside.items() if (constant := constant_in(value)) is not None}
    counts = {name: _feature_count(value, 2) for name, value in outside.items() if isinstance(value, DataTensor)}
    others = {name: count for name, count in counts.items() if count}
    constants |= {name: np.ones((1, 1), dtype=bool) for name in masks}
    try:
        return recognise(body.node, (steps[0], feature_count), next_states, constants, others)
    except NotFound:
        return None


def _feature_count(value: DataTensor, rank: int) -> int:
    """The number of features of float32 data `[..., rows, features]` of this rank; 0 for another tensor."""
    is_float = value.rank == rank and value.has_original_axes and value.dtype == FLOAT
    return (value.groups[-1][0].fixed or 0) if is_float and value.groups[-2][0].is_rows else 0


def _emit_layer(mender: Mender, cell: Cell, steps: DataTensor, starts: Mapping[str, DataTensor]) -> list[DataTensor]:
    """Writes the recurrent layer that replaces a loop, and mends it.

    Args:
        mender: The mender, whose node is the loop.
        cell: What the loop's body computes.
        steps: The steps, `[time, rows, features]`.
        starts: The initial states, by their names in the body.

    Returns:
        The layer's outputs: all steps, the last state, and of an LSTM the last memory.
    """
    loop, article = mender.node, "a" if cell.kind == "GRU" else "an"
    steps = steps.because(f"it is {article} {cell.kind} written out as a loop, which runs through the padding")
    # ONNX's inputs in order. That of the lengths is empty: `_recurrent` gives it each row's own length. An initial
    # state of zeros is left out, as ONNX begins with zeros.
    weights = [mender.emit_constant(array).name for array in cell.weights]
    inputs = [mender.register(steps), *weights, ""]
    for state in (cell.state, cell.memory):
        if state is not None:
            with_directions = mender.unsqueezed(starts[state], [0])
            inputs.append("" if is_zero(mender, starts[state].name) else mender.register(with_directions))
    parts = ("steps", "state", "memory") if cell.kind == "LSTM" else ("steps", "state")
    names = [mender.writer.name(f"{loop.output[0]}_{part}") for part in parts]
    outputs = apply(mender, helper.make_node(cell.kind, inputs, names, name=loop.name, **cell.attributes))
    return [output for output in outputs if isinstance(output, DataTensor)]


def is_zero(mender: Mender, name: str) -> bool:
    """Whether a value of the mended graph is a constant of zeros, or one that is only expanded, cast or unsqueezed."""
    if (node := next((node for node in mender.writer.nodes if name in node.output), None)) is not None:
        return node.op_type in ("Expand", "Identity", "Unsqueeze", "Cast") and is_zero(mender, node.input[0])
    constant = constant_in(mender.values.get(name))
    return constant is not None and not constant.any()


def _outputs_of_body(mender: Mender, body: GraphProto, inputs: Sequence[DataTensor]) -> list[DataTensor]:
    """The descriptions of a body's outputs for these inputs; refuses a body that has a node which has to be mended.

    The nodes of the body are followed to find out what they give, and stay as they are: they are written by a writer
    whose nodes are thrown away.
    """
    for name in _names_outside(body):
        outside = mender.values.get(name)
        if isinstance(outside, DataTensor) and not outside.has_original_axes:
            mender.refuse(f"uses {name} in its body, which differs between rows only by their lengths, or is merged")
        if isinstance(outside, KnownTensor) and outside.constant is None:
            mender.refuse(f"uses {name} in its body, which depends on the width")
    given = {value.name: tensor.with_name(value.name) for value, tensor in zip(body.input, inputs, strict=True)}
    inside = replace(mender, writer=mender.writer.scratch_writer(), values={**mender.values, **given})
    changes = [change for node in body.node for change in follow(inside, node)]
    results = [inside.as_data(inside.values[value.name]) for value in body.output]
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

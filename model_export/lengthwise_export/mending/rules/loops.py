"""Scan: a recurrent cell written out. Beyond its own last step, a row keeps its state."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from lengthwise_export.mending.mender import CROSSES_ROWS, Follow, Group, Mender, Rule
from lengthwise_export.mending.values import Numbers, Ragged, Value


def scan_with(follow: Follow) -> Rule:
    """The rule for Scan.

    Args:
        follow: Follows one node of the body.
    """

    def scan(mender: Mender) -> None:
        node = mender.node
        body: GraphProto = mender.attribute("body")
        scanned = mender.attribute("num_scan_inputs")
        states = len(node.input) - scanned
        axes = mender.attribute("scan_input_axes") or [0] * scanned
        out_axes = mender.attribute("scan_output_axes") or [0] * (len(node.output) - states)
        if any(axes) or any(out_axes):
            mender.refuse("scans another axis than the first: transpose around it")
        values = [mender.ragged(place) for place in range(len(node.input))]
        if any(value.is_merged or value.row_added for value in values):
            mender.refuse("scans merged axes")
        time = values[states].groups[0][0]
        if not time.is_time or any(not value.groups[0][0].same(time) for value in values[states:]):
            mender.refuse(f"does not scan the steps: {CROSSES_ROWS}" if time.is_rows else "does not scan the steps")
        inside: list[Value] = [*values[:states]]
        inside += [value.called(value.name, groups=value.groups[1:], zeroed=False) for value in values[states:]]
        results = _followed_inside(mender, body, inside, follow)
        for start, end in zip(values[:states], results[:states], strict=True):
            if not start.groups[0][0].is_rows or not all(map(mender.matches, start.groups, end.groups)):
                mender.refuse("has a state whose first axis is not the rows")
        mender.node = node
        mender.causes.append("it runs on through the padding, or begins in it")
        masked = _held(mender, body, states, len(values[0].groups))
        # [steps, rows]: true at each row's own steps.
        mask = mender.transposed(mender.writer.mask(time), (1, 0))
        directions = mender.attribute("scan_input_directions") or [0] * scanned
        backwards = {direction for direction in directions if direction}
        if backwards and not all(directions):
            mender.refuse("scans in both directions at once")
        names = mender.copy(
            [*(value.name for value in values), mask],
            body=masked,
            num_scan_inputs=scanned + 1,
            scan_input_directions=[*directions, int(bool(backwards))],
            drop=["scan_input_axes"],
        )
        for place, (name, result) in enumerate(zip(names, results, strict=True)):
            if name:
                groups: tuple[Group, ...] = result.groups if place < states else ((time,), *result.groups)
                mender.set(Ragged(name, result.dtype, groups), place)

    return scan


def _followed_inside(mender: Mender, body: GraphProto, inputs: list[Value], follow: Follow) -> list[Ragged]:
    """The outputs of the body, described; its nodes must need no change."""
    writer, causes = mender.writer, mender.causes
    before = dict(mender.values)
    mender.writer = writer.beside()
    for tensor in body.initializer:
        mender.values[tensor.name] = mender.numbers(tensor.name, numpy_helper.to_array(tensor))
    for value, described in zip(body.input, inputs, strict=True):
        name = described.name if isinstance(described, Numbers) else value.name
        mender.values[value.name] = described if isinstance(described, Numbers) else described.called(name)
    changed = [change for node in body.node for change in follow(mender, node)]
    results = [mender.as_ragged(mender.values[value.name]) for value in body.output]
    mender.writer, mender.causes, mender.values = writer, causes, before
    if changed or any(result.row_added or result.is_merged for result in results):
        mender.refuse("mixes the steps inside of its body as well")
    return results


def _held(mender: Mender, body: GraphProto, states: int, rank: int) -> GraphProto:
    """The body with one more input, whether a row has this step, and states that stay where it has not."""
    copied = GraphProto()
    copied.CopyFrom(body)
    valid = mender.writer.name("mended_has_step")
    copied.input.append(helper.make_tensor_value_info(valid, TensorProto.BOOL, None))
    axes = mender.writer.constant([*range(1, rank)])
    column = mender.writer.name("mended_has_step_column")
    nodes: list[NodeProto] = [helper.make_node("Unsqueeze", [valid, axes], [column])] if rank > 1 else []
    for place in range(states):
        after, kept = copied.output[place].name, mender.writer.name(f"{copied.output[place].name}_kept")
        inputs = [column if rank > 1 else valid, after, copied.input[place].name]
        nodes.append(helper.make_node("Where", inputs, [kept]))
        copied.output[place].name = kept
    copied.node.extend(nodes)
    return copied

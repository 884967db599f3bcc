"""Graphs of two sequences, made of two graphs of one."""

from __future__ import annotations

from onnx import ModelProto, compose, helper


def differences(model: ModelProto, other: ModelProto) -> ModelProto:
    """What differs in the logits of two graphs that take `values` and `lengths`: the output `differences`.

    The inputs of the other one are `b_values` and `b_values_lengths`. The first graph is changed.
    """
    second = compose.add_prefix(other, "b_")
    for names in (node.input for node in second.graph.node):
        names[:] = ["b_values_lengths" if name == "b_lengths" else name for name in names]
    second.graph.input[1].name = "b_values_lengths"
    for field in ("node", "input", "initializer"):
        getattr(model.graph, field).extend(getattr(second.graph, field))
    model.graph.node.append(helper.make_node("Sub", ["logits", "b_logits"], ["differences"]))
    model.graph.output[0].name = "differences"
    return model

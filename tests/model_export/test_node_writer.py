"""The writer of nodes: names that nothing else has, constants that are shared, copies of nodes."""

from __future__ import annotations

import numpy as np
from onnx import helper

from lengthwise_export.onnx_graphs.protos import NodeWriter


def test_a_name_is_given_once() -> None:
    writer = NodeWriter({"new_add"}, "new_")
    first, second = writer.emit("Add", ["x", "y"]), writer.emit("Add", ["x", "y"])
    names = [first, second, *(node.name for node in writer.nodes)]
    assert len({"new_add", *names}) == 5
    assert all(name.startswith("new_add") for name in names)


def test_equal_constants_of_one_type_and_shape_are_one_initializer() -> None:
    writer = NodeWriter(set(), "new_")
    assert writer.constant([1, 2]) == writer.constant(np.array([1, 2]))
    others = {writer.constant([1, 2]), writer.constant([[1, 2]]), writer.constant([1, 2], dtype=np.float32)}
    assert len(others) == len(writer.constants) == 3


def test_a_copy_stands_for_its_node_or_beside_it() -> None:
    node = helper.make_node("TopK", ["x", "k"], ["values", ""], name="top", axis=1, largest=1)
    writer = NodeWriter({"values", "top"}, "new_")
    assert writer.copy(node, ["z", "k"], drop=["largest"], axis=0) == ["values", ""]
    assert writer.copy(node, ["z", "k"], name_suffix="again") == ["values_again", ""]
    instead, beside = writer.nodes
    assert [(each.name, each.i) for each in instead.attribute] == [("axis", 0)]
    assert beside.name == "top_again"
    assert list(node.input) == ["x", "k"]

"""What may run on the CPU beside a device computes shapes and lengths, and nothing of the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.settings import bundled_models
from lengthwise_export.onnx_graphs.protos import host_nodes


def graph(*nodes: tuple[str, list[str], list[str]], constants: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Nodes that are named like their operator with their place; no graph that could be run."""
    made = [helper.make_node(kind, given, out, name=f"{kind}_{i}") for i, (kind, given, out) in enumerate(nodes)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["rows", "width", 2])
    return helper.make_model(helper.make_graph(made, "g", [values], [], tensors))


def test_what_takes_the_width_out_of_a_shape_is_one():
    found = graph(
        ("Shape", ["values"], ["shape"]),
        ("Gather", ["shape", "one"], ["width"]),
        ("Range", ["zero", "width", "one"], ["places"]),
        constants={"one": 1, "zero": 0},
    )
    assert host_nodes(found, None) == ("Shape_0", "Gather_1")


def test_what_is_computed_of_values_is_none_though_a_shape_goes_in():
    found = graph(
        ("Shape", ["values"], ["shape"]),
        ("Reshape", ["values", "shape"], ["flat"]),
        ("Add", ["flat", "one"], ["more"]),
        constants={"one": 1.0},
    )
    assert host_nodes(found, None) == ("Shape_0",)


def test_what_is_computed_of_the_lengths_is_one_until_it_has_a_number_for_each_step():
    found = graph(
        ("Cast", ["lengths"], ["sizes"]),
        ("Unsqueeze", ["sizes", "one"], ["column"]),
        ("Less", ["places", "column"], ["mask"]),
        constants={"one": [1]},
    )
    assert host_nodes(found, "lengths") == ("Cast_0", "Unsqueeze_1")
    assert host_nodes(found, None) == ()


def test_a_shape_that_is_chosen_by_comparing_is_one_and_what_it_shapes_is_none():
    found = graph(
        ("Shape", ["values"], ["shape"]),
        ("Equal", ["asked", "unknown"], ["open"]),
        ("Where", ["open", "shape", "asked"], ["whole"]),
        ("Expand", ["values", "whole"], ["larger"]),
        constants={"asked": [-1, 7, 2], "unknown": -1},
    )
    assert host_nodes(found, None) == ("Shape_0", "Where_2")  # the comparison of constants is none at all


def test_a_row_of_a_table_of_weights_is_none_though_a_length_chose_it():
    found = graph(("Gather", ["table", "lengths"], ["row"]), constants={"table": np.zeros((100, 8), np.float32)})
    assert host_nodes(found, "lengths") == ()


def test_constants_count_wherever_they_stand_and_however_they_are_written():
    small = helper.make_node("Constant", [], ["one"], value_int=1)
    large = helper.make_node("Constant", [], ["table"], value=numpy_helper.from_array(np.zeros(1000)))
    found = graph(
        ("Shape", ["values"], ["shape"]), ("Gather", ["shape", "one"], ["width"]), ("Gather", ["table", "width"], ["x"])
    )
    found.graph.node.insert(0, large)
    found.graph.node.insert(0, small)
    assert host_nodes(found, None) == ("Shape_0", "Gather_1")


def test_a_node_of_another_domain_or_without_a_name_is_not_listed():
    found = graph(("Shape", ["values"], ["shape"]), ("Identity", ["shape"], ["same"]), ("Neg", ["same"], ["less"]))
    found.graph.node[1].name = ""
    found.graph.node[2].domain = "com.microsoft"
    assert host_nodes(found, None) == ("Shape_0",)


def test_the_bundled_models_manifest_lists_those_of_its_graph():
    directory = bundled_models() / "japanese-vowels" / "1"
    manifest = Manifest.read(directory)
    found = host_nodes(onnx.load(directory / GRAPH_FILE), manifest.graph.lengths)
    assert found == manifest.host_nodes != ()
    assert not any("LSTM" in name or "MatMul" in name for name in found)

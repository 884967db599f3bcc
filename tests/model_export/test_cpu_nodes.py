"""What may run on the CPU beside a device computes shapes and lengths, and what else CUDA has no kernel for is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise_export.exporting.model_files import host_nodes
from tests.support.cuda_kernels import strangers
from tests.support.model_directories import BUNDLED


def listed(*lines: str, lengths: str | None = None, **constants: Any) -> tuple[str, ...]:
    """What is listed of a graph that could not be run, whose nodes have the names in front of them."""
    graph = onnx.parser.parse_graph("g (float[rows, width, 2] values) => () {" + "\n".join(lines) + "}")
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return host_nodes(onnx.helper.make_model(graph), lengths)


SHAPE = "[shape] shape = Shape (values)"
WIDTH = "[width] width = Gather (shape, one)"


def test_what_takes_the_width_out_of_a_shape_is_one():
    assert listed(SHAPE, WIDTH, "[range] places = Range (zero, width, one)", one=1, zero=0) == ("shape", "width")


def test_what_is_computed_of_values_is_none_though_a_shape_goes_in():
    found = listed(SHAPE, "[flat] flat = Reshape (values, shape)", "[more] more = Add (flat, one)", one=1.0)
    assert found == ("shape",)


def test_what_is_computed_of_the_lengths_is_one_until_it_has_a_number_for_each_step():
    lines = ("[cast] sizes = Cast <to = 7> (lengths)", "[column] column = Unsqueeze (sizes, one)")
    for lengths, expected in (("lengths", ("cast", "column")), (None, ())):
        assert listed(*lines, "[mask] mask = Less (places, column)", lengths=lengths, one=[1]) == expected


def test_a_shape_that_is_chosen_by_comparing_is_one_and_what_it_shapes_is_none():
    chosen = ("[open] open = Equal (asked, unknown)", "[whole] whole = Where (open, shape, asked)")
    found = listed(SHAPE, *chosen, "[larger] larger = Expand (values, whole)", asked=[-1, 7, 2], unknown=-1)
    assert found == ("shape", "whole")  # the comparison of constants is none at all


def test_a_row_of_a_table_of_weights_is_none_though_a_length_chose_it():
    assert listed("[row] row = Gather (table, lengths)", lengths="lengths", table=np.zeros((100, 8), np.float32)) == ()


def test_constants_count_wherever_they_stand_and_however_they_are_written():
    one = "one = Constant <value_int = 1> ()"
    table = f"table = Constant <value = float[1000] {{{', '.join(['0'] * 1000)}}}> ()"
    assert listed(one, table, SHAPE, WIDTH, "[row] x = Gather (table, width)") == ("shape", "width")


def test_a_node_of_another_domain_or_without_a_name_is_not_listed():
    assert listed(SHAPE, "same = Identity (shape)", "[less] less = com.microsoft.Neg (same)") == ("shape",)


def test_the_bundled_models_manifest_lists_those_of_its_graph():
    manifest = Manifest.read(BUNDLED)
    found = host_nodes(onnx.load(BUNDLED / GRAPH_FILE), manifest.graph.lengths)
    assert found == manifest.host_nodes != ()
    assert not any("LSTM" in name or "MatMul" in name for name in found)


def rewired(node: onnx.NodeProto) -> None:
    node.input[4] = "computed"


@pytest.mark.parametrize(
    ("operator", "change", "said"),
    [
        ("Shape", lambda node: setattr(node, "op_type", "Unique"), "node_Shape_0: no Unique of FLOAT"),
        ("LSTM", rewired, "its inputs"),
        ("LSTM", lambda node: node.attribute.append(onnx.helper.make_attribute("clip", 1.0)), "its attributes"),
    ],
)
def test_what_cuda_has_no_kernel_for_is_told_of_a_graph_that_stays_on_a_gpu(
    operator: str, change: Callable[[onnx.NodeProto], None], said: str
):
    bundled = onnx.load(BUNDLED / GRAPH_FILE)
    assert strangers(bundled, "lengths") == []
    change(next(node for node in bundled.graph.node if node.op_type == operator))
    assert said in strangers(bundled, "lengths")[0]

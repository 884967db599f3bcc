"""Which graphs take a time, or give a recurrent layer a number of rows, that depends on what a caller sends."""

from collections.abc import Sequence

import pytest
from onnx import NodeProto, helper

from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.data_dependence import ENDS_WITHOUT_ROWS, has_steady_time, recurrent_without_rows
from lengthwise.runtime.onnx.onnx_graph import Graph
from lengthwise.settings import bundled_models
from tests.support import hostile_models
from tests.support.hostile_models import Made

LSTM = helper.make_node("LSTM", ["x", "W", "R", "", "lengths"], ["y"], hidden_size=2)


def read(*nodes: NodeProto) -> Graph:
    graph = helper.make_graph(nodes, "g", [], [])
    return onnx_graph.read(helper.make_model(graph).SerializeToString())


def node(operator: str, inputs: str, outputs: str) -> NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split())


def operator_without_rows(*nodes: NodeProto) -> str | None:
    return recurrent_without_rows(read(*nodes), "values", ["lengths", "mask"], ENDS_WITHOUT_ROWS)


def branching(outputs: str, *inner: NodeProto) -> NodeProto:
    part = helper.make_graph(inner, "part", [], [])
    return helper.make_node("If", ["condition"], [outputs], then_branch=part, else_branch=part)


DEPENDENT: dict[str, Sequence[NodeProto]] = {
    "a boolean index of the values": [node("Compress", "values condition", "x")],
    "a boolean index by the lengths": [node("NonZero", "lengths", "places"), node("GatherND", "values places", "x")],
    "a boolean index by the mask": [node("NonZero", "mask", "places"), node("Gather", "values places", "x")],
    "unique rows": [node("Unique", "values", "x")],
    "a slice up to what the values say": [node("ReduceMax", "values", "end"), node("Slice", "values zero end", "x")],
    "an expansion": [node("Cast", "values", "size"), node("Expand", "constant size", "x")],
    "a shape made of a boolean index": [
        node("NonZero", "values", "places"),
        node("Shape", "places", "size"),
        node("ConstantOfShape", "size", "x"),
    ],
    "through many nodes": [
        node("Compress", "values condition", "a"),
        node("Transpose", "a", "b"),
        node("MatMul", "b w", "c"),
        node("Add", "c d", "x"),
    ],
    "a branch that the values decide": [
        node("ReduceMax", "values", "condition"),
        branching("x", node("Squeeze", "values", "inside")),
    ],
    "a loop that the values may end": [
        helper.make_node("Loop", ["turns", "", "values"], ["x"], body=helper.make_graph([], "body", [], []))
    ],
    "a branch that selects": [branching("x", node("Compress", "values condition", "inside"))],
}


@pytest.mark.parametrize("before", DEPENDENT.values(), ids=DEPENDENT)
def test_rows_that_a_caller_decides_are_found(before: Sequence[NodeProto]) -> None:
    assert operator_without_rows(*before, LSTM) == "LSTM"


SAFE: dict[str, Sequence[NodeProto]] = {
    "no selection": [node("Transpose", "values", "x")],
    "a reshape by the input's own shape": [node("Shape", "values", "size"), node("Reshape", "values size", "x")],
    "a width by the largest length": [node("ReduceMax", "lengths", "end"), node("Slice", "values zero end", "x")],
    "rows in the order of their lengths": [
        node("TopK", "lengths k", "sorted places"),
        node("Gather", "values places", "x"),
    ],
    "valid steps put back where they were": [
        node("NonZero", "mask", "places"),
        node("GatherND", "values places", "steps"),
        node("Shape", "values", "size"),
        node("ConstantOfShape", "size", "nothing"),
        node("ScatterND", "nothing places steps", "x"),
    ],
    "a branch that a shape decides": [
        node("Shape", "values", "condition"),
        branching("x", node("Squeeze", "values", "inside")),
    ],
    "a scan over the steps": [
        helper.make_node("Scan", ["values"], ["x"], num_scan_inputs=1, body=helper.make_graph([], "body", [], []))
    ],
    "values where a mask is": [node("Where", "mask values zero", "x")],
}


@pytest.mark.parametrize("before", SAFE.values(), ids=SAFE)
def test_rows_that_are_those_of_the_batch_are_not_refused(before: Sequence[NodeProto]) -> None:
    assert operator_without_rows(*before, LSTM) is None


def test_a_selection_behind_the_recurrent_layer_is_not_refused() -> None:
    assert operator_without_rows(node("Transpose", "values", "x"), LSTM, node("NonZero", "y", "places")) is None


def test_a_recurrent_layer_inside_a_branch_is_refused_where_anything_selects() -> None:
    assert operator_without_rows(branching("y", LSTM)) is None
    assert operator_without_rows(node("NonZero", "values", "places"), branching("y", LSTM)) == "LSTM"


@pytest.mark.parametrize(
    ("operators", "steady"),
    [
        (["Add", "LSTM"], True),
        (["Loop"], False),
        (["Scan"], False),
        (["If"], False),
        (["NonZero"], False),
        (["Add", "Compress"], False),
    ],
)
def test_a_graph_that_loops_branches_or_selects_has_no_steady_time(operators: list[str], steady: bool) -> None:
    assert has_steady_time(read(*(node(operator, "x", "y") for operator in operators))) is steady


def test_the_bundled_graph_has_a_steady_time_and_the_rows_of_its_batch() -> None:
    graph = onnx_graph.read((bundled_models() / "japanese-vowels" / "1" / "model.onnx").read_bytes())
    assert has_steady_time(graph)
    assert recurrent_without_rows(graph, "values", ["lengths"], ENDS_WITHOUT_ROWS) is None


@pytest.mark.parametrize(
    ("made", "operator"),
    [(hostile_models.rows_chosen_by_values, "LSTM"), (hostile_models.endless, None), (hostile_models.greedy, None)],
)
def test_whole_graphs_are_told_apart(made: Made, operator: str | None) -> None:
    graph = onnx_graph.read(hostile_models.model(made))
    assert recurrent_without_rows(graph, "values", ["lengths"], ENDS_WITHOUT_ROWS) == operator

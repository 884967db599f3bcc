"""Which graphs take a time, or give a recurrent layer rows, that depends on the caller."""

import onnx
import pytest

from lengthwise.runtime.manifest import GRAPH_FILE
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.data_dependence import (
    ENDS_WITHOUT_ROWS,
    has_steady_time,
    recurrent_without_rows,
)
from lengthwise.runtime.onnx.onnx_graph import Graph
from tests.support import hostile_models
from tests.support.hostile_models import Made
from tests.support.model_directories import BUNDLED

LSTM = "y = LSTM <hidden_size = 2> (x, W, R, , lengths)"


def written(*lines: str) -> bytes:
    graph = onnx.parser.parse_graph("g () => () {" + "\n".join(lines) + "}")
    content: bytes = onnx.helper.make_model(graph).SerializeToString()
    return content


def read(*lines: str) -> Graph:
    return onnx_graph.read(written(*lines))


def operator_without_rows(*lines: str) -> str | None:
    return recurrent_without_rows(read(*lines), "values", ["lengths", "mask"], ENDS_WITHOUT_ROWS)


def branching(output: str, inner: str) -> str:
    part = f"part () => () {{ {inner} }}"
    return f"{output} = If <then_branch = {part}, else_branch = {part}> (condition)"


DEPENDENT = {
    "a boolean index of the values": ["x = Compress (values, condition)"],
    "a boolean index by the lengths": ["places = NonZero (lengths)", "x = GatherND (values, places)"],
    "a boolean index by the mask": ["places = NonZero (mask)", "x = Gather (values, places)"],
    "unique rows": ["x = Unique (values)"],
    "a slice up to what the values say": ["end = ReduceMax (values)", "x = Slice (values, zero, end)"],
    "an expansion": ["size = Cast <to = 7> (values)", "x = Expand (constant, size)"],
    "a shape of a boolean index": ["places = NonZero (values)", "size = Shape (places)", "x = ConstantOfShape (size)"],
    "through many nodes": ["a = Compress (values, c)", "b = Transpose (a)", "c = MatMul (b, w)", "x = Add (c, d)"],
    "a branch that the values decide": ["condition = ReduceMax (values)", branching("x", "inside = Squeeze (values)")],
    "a loop that the values may end": ["x = Loop <body = body () => () { }> (turns, , values)"],
    "a branch that selects": [branching("x", "inside = Compress (values, condition)")],
}


@pytest.mark.parametrize("before", DEPENDENT.values(), ids=DEPENDENT)
def test_rows_that_a_caller_decides_are_found(before: list[str]) -> None:
    assert operator_without_rows(*before, LSTM) == "LSTM"


SAFE = {
    "no selection": ["x = Transpose (values)"],
    "a reshape by the input's own shape": ["size = Shape (values)", "x = Reshape (values, size)"],
    "a width by the largest length": ["end = ReduceMax (lengths)", "x = Slice (values, zero, end)"],
    "rows in the order of their lengths": ["sorted, places = TopK (lengths, k)", "x = Gather (values, places)"],
    "valid steps put back where they were": [
        *("places = NonZero (mask)", "steps = GatherND (values, places)", "size = Shape (values)"),
        *("nothing = ConstantOfShape (size)", "x = ScatterND (nothing, places, steps)"),
    ],
    "a branch that a shape decides": ["condition = Shape (values)", branching("x", "inside = Squeeze (values)")],
    "a scan over the steps": ["x = Scan <num_scan_inputs = 1, body = body () => () { }> (values)"],
    "values where a mask is": ["x = Where (mask, values, zero)"],
}


@pytest.mark.parametrize("before", SAFE.values(), ids=SAFE)
def test_rows_that_are_those_of_the_batch_are_not_refused(before: list[str]) -> None:
    assert operator_without_rows(*before, LSTM) is None


def test_a_recurrent_layer_is_refused_inside_a_branch_with_a_selection() -> None:
    assert operator_without_rows("x = Transpose (values)", LSTM, "places = NonZero (y)") is None
    assert operator_without_rows(branching("y", LSTM)) is None
    assert operator_without_rows("places = NonZero (values)", branching("y", LSTM)) == "LSTM"


@pytest.mark.parametrize(
    ("operators", "steady"),
    [(["Add", "LSTM"], True), *((["Add", name], False) for name in ("Loop", "Scan", "If", "NonZero", "Compress"))],
)
def test_a_graph_that_loops_branches_or_selects_has_no_steady_time(operators: list[str], steady: bool) -> None:
    assert has_steady_time(read(*(f"y = {operator} (x)" for operator in operators))) is steady


def test_the_bundled_graph_has_a_steady_time_and_the_rows_of_its_batch() -> None:
    graph = onnx_graph.read((BUNDLED / GRAPH_FILE).read_bytes())
    assert has_steady_time(graph)
    assert recurrent_without_rows(graph, "values", ["lengths"], ENDS_WITHOUT_ROWS) is None


@pytest.mark.parametrize(
    ("made", "operator"),
    [(hostile_models.rows_chosen_by_values, "LSTM"), (hostile_models.endless, None), (hostile_models.greedy, None)],
)
def test_whole_graphs_are_told_apart(made: Made, operator: str | None) -> None:
    graph = onnx_graph.read(hostile_models.model(made))
    assert recurrent_without_rows(graph, "values", ["lengths"], ENDS_WITHOUT_ROWS) == operator


def test_rows_that_a_state_chooses_are_refused() -> None:
    graph = read("x = Slice (values, zero, state)", LSTM)
    assert recurrent_without_rows(graph, "values", ["lengths"], ENDS_WITHOUT_ROWS) is None
    assert recurrent_without_rows(graph, "values", ["lengths"], ENDS_WITHOUT_ROWS, ["state"]) == "LSTM"

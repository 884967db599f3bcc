"""Values of a loop's body as affine functions: an operator that moves features moves those of the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper

from lengthwise_export.mending.cell_body import Affine, Body, ConstantArray
from lengthwise_export.mending.patterns import NotFound
from lengthwise_export.mending.values import run_node

MOST = np.iinfo(np.int64).max
STATE = 6
CONSTANTS: dict[str, ConstantArray] = {
    "W": np.random.default_rng(0).normal(size=(STATE, STATE)),
    "zeros": np.array([0]),
    "one": np.array([1]),
    "from": np.array([4]),
    "to": np.array([MOST]),
    "pair": np.array([0, 1]),
    "pair_from": np.array([0, 2]),
    "pair_to": np.array([MOST, 5]),
    "back": np.array([-1]),
    "sizes": np.array([1, 5]),
    "order": np.array([3, 0, 3]),
    "number": np.ones((1, 1)),
}
MOVES: dict[str, NodeProto] = {
    "a split in halves": helper.make_node("Split", ["f"], ["y", "z"], axis=1),
    "a split by sizes": helper.make_node("Split", ["f", "sizes"], ["y", "z"], axis=-1),
    "a slice": helper.make_node("Slice", ["f", "from", "to", "one"], ["y"]),
    "a slice backwards": helper.make_node("Slice", ["f", "from", "zeros", "one", "back"], ["y"]),
    "a slice of all rows": helper.make_node("Slice", ["f", "pair_from", "pair_to", "pair"], ["y"]),
    "a gather": helper.make_node("Gather", ["f", "order"], ["y"], axis=1),
    "both joined": helper.make_node("Concat", ["f", "h"], ["y"], axis=1),
}
OTHERS: dict[str, NodeProto] = {
    "a slice of the rows": helper.make_node("Slice", ["f", "zeros", "one", "zeros"], ["y"]),
    "a slice by the data": helper.make_node("Slice", ["f", "h", "to"], ["y"]),
    "joined rows": helper.make_node("Concat", ["f", "h"], ["y"], axis=0),
    "joined with a constant": helper.make_node("Concat", ["f", "number"], ["y"], axis=1),
    "a new axis": helper.make_node("Gather", ["f", "number"], ["y"], axis=1),
}
PRODUCT = helper.make_node("MatMul", ["h", "W"], ["f"])


def at(function: Affine, state: NDArray[Any]) -> NDArray[Any]:
    """The function's values `[rows, width]` for a state `[rows, STATE]`, its only leaf."""
    return sum((state @ matrix for matrix in function.terms.values()), np.zeros((len(state), 1))) + function.bias


@pytest.mark.parametrize("name", MOVES)
def test_features_are_moved_as_the_operator_moves_values(name: str) -> None:
    body, node = Body([PRODUCT, MOVES[name]], CONSTANTS), MOVES[name]
    body.input("h", STATE)
    state = np.random.default_rng(1).normal(size=(3, STATE))
    values = {**CONSTANTS, "h": state, "f": state @ CONSTANTS["W"]}
    expected = run_node(node, [values[each] for each in node.input])
    assert expected is not None
    for output, numbers in zip(node.output, expected, strict=True):
        function = body.affine(output)
        assert function is not None
        assert np.allclose(at(function, state), numbers)


@pytest.mark.parametrize("name", OTHERS)
def test_what_moves_rows_or_joins_constants_is_of_no_cell(name: str) -> None:
    body = Body([PRODUCT, OTHERS[name]], CONSTANTS)
    body.input("h", STATE)
    with pytest.raises(NotFound):
        body.value("y")

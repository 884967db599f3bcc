"""Sizes as tables: an operator on a table gives what it gives at each length alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper

from lengthwise_export.mending.values import run_node, run_on_tables

Array = NDArray[Any]
COUNT = 9  # lengths

MOVES: dict[str, tuple[NodeProto, Sequence[Sequence[int] | None]]] = {
    "a slice": (helper.make_node("Slice", ["x", "a", "b"], ["y"]), [[1], [3]]),
    "a slice of the last axis, backwards": (
        helper.make_node("Slice", ["x", "a", "b", "c", "d"], ["y"]),
        [[-1], [-100], [-1], [-1]],
    ),
    "a gather": (helper.make_node("Gather", ["x", "a"], ["y"]), [[2, 0]]),
    "a gather from the end": (helper.make_node("Gather", ["x", "a"], ["y"], axis=-1), [[-1]]),
    "a new axis": (helper.make_node("Unsqueeze", ["x", "a"], ["y"]), [[0, 3]]),
    "a sum over an axis": (helper.make_node("ReduceSum", ["x", "a"], ["y"], keepdims=0), [[0]]),
    "a product over all axes": (helper.make_node("ReduceProd", ["x"], ["y"]), []),
    "the largest, its axis an attribute": (helper.make_node("ReduceMax", ["x"], ["y"], axes=[1], keepdims=0), []),
    "another shape": (helper.make_node("Reshape", ["x", "a"], ["y"]), [[2, -1]]),
    "a shape that keeps an axis": (helper.make_node("Reshape", ["x", "a"], ["y"]), [[0, 2, 1]]),
    "an expansion by axes in front": (helper.make_node("Expand", ["x", "a"], ["y"]), [[5, 4, 2]]),
    "an expansion to fewer axes": (helper.make_node("Expand", ["x", "a"], ["y"]), [[2]]),
}


@pytest.mark.parametrize("name", MOVES)
def test_an_operator_on_a_table_gives_what_it_gives_at_each_length(name: str) -> None:
    node, constants = MOVES[name]
    table = np.random.default_rng(0).integers(1, 50, (2, COUNT, 4, 2))
    extra = [np.array(numbers) for numbers in constants]
    tables = [np.broadcast_to(numbers, (2, COUNT, *numbers.shape)) for numbers in extra]
    result = run_on_tables(node, [table, *tables])
    assert result is not None
    modern = helper.make_node(node.op_type, ["x", "axes"], ["y"], keepdims=0) if "attribute" in name else node
    for row, length in np.ndindex(2, COUNT):
        (expected,) = run_node(modern, [table[row, length], *([np.array([1])] if modern is not node else extra)]) or []
        assert np.array_equal(result[row, length], expected)


def test_tables_are_joined_along_an_axis_of_their_tensors() -> None:
    first, second = np.arange(2 * COUNT * 3).reshape(2, COUNT, 3), np.arange(2 * COUNT).reshape(2, COUNT, 1)
    joined = run_on_tables(helper.make_node("Concat", ["x", "z"], ["y"], axis=0), [first, second])
    assert joined is not None
    assert np.array_equal(joined, np.concatenate([first, second], axis=2))


def test_a_squeeze_of_every_axis_of_size_one_keeps_lengths_and_rows() -> None:
    table = np.arange(2 * COUNT * 3).reshape(2, COUNT, 1, 3, 1)
    squeezed = run_on_tables(helper.make_node("Squeeze", ["x"], ["y"]), [table])
    assert squeezed is not None
    assert np.array_equal(squeezed, table[:, :, 0, :, 0])


def test_what_is_moved_by_a_size_that_depends_on_the_length_is_no_table() -> None:
    table, ends = np.ones((2, COUNT, 4), np.int64), np.arange(2 * COUNT).reshape(2, COUNT, 1)
    start = np.broadcast_to(np.array([0]), (2, COUNT, 1))
    assert run_on_tables(helper.make_node("Slice", ["x", "a", "b"], ["y"]), [table, start, ends]) is None
    assert run_on_tables(helper.make_node("Gather", ["x", "a"], ["y"]), [table, ends]) is None

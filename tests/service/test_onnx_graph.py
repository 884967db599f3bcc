"""What is read of an ONNX file without the package `onnx`, held against files that the package writes."""

import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lengthwise.runtime.manifest import external_data
from lengthwise.runtime.onnx import onnx_graph


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, as protocol buffers write it; of fewer than 16,384."""
    size = len(content)
    tag = number << 3 | 2
    return (
        (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7]))
        + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7]))
        + content
    )


def weights(name: bytes, *, by: str = "usual") -> bytes:
    """A tensor whose weights are in a file, in several encodings of the same."""
    key, value = field(1, b"location"), field(2, name)
    entry = {
        "usual": key + value,
        "value first": value + key,
        "key twice": field(1, b"other") + value + key,
        "unknown fields between": key + field(15, b"x") + b"\x48\x05" + value,
        "long lengths": b"\x0a\x88\x00location" + b"\x12" + bytes([len(name) | 128, 0]) + name,
    }[by]
    return field(13, entry)


ENCODINGS = ["usual", "value first", "key twice", "unknown fields between", "long lengths"]


@pytest.mark.parametrize("by", ENCODINGS)
@pytest.mark.parametrize(
    "where", ["initializer", "attribute", "attributes", "sparse", "subgraph", "function", "training"]
)
def test_a_file_of_weights_is_found_in_any_place_and_encoding(where: str, by: str) -> None:
    tensor = weights(b"w.bin", by=by)
    model = {
        "initializer": field(7, field(5, tensor)),
        "attribute": field(7, field(1, field(5, field(5, tensor)))),
        "attributes": field(7, field(1, field(5, field(10, tensor)))),
        "sparse": field(7, field(15, field(2, tensor))),
        "subgraph": field(7, field(1, field(5, field(6, field(5, tensor))))),
        "function": field(25, field(7, field(5, field(5, tensor)))),
        "training": field(20, field(1, field(5, tensor))),
    }[where]
    assert external_data(model) == ["w.bin"]
    entries = TensorProto.FromString(tensor).external_data  # as protocol buffers read them
    assert [(entry.key, entry.value) for entry in entries] == [("location", "w.bin")]


def test_nodes_are_those_that_were_written() -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "inner", [], [])
    nodes = [
        helper.make_node("LSTM", ["a", "", "c"], ["", "d"], domain="of.its.own", hidden_size=300),
        helper.make_node("If", ["d"], ["e"], then_branch=inner, else_branch=inner),
    ]
    graph = onnx_graph.read(helper.make_model(helper.make_graph(nodes, "g", [], [])).SerializeToString())
    first, second = graph.nodes
    assert (first.operator, first.domain) == ("LSTM", "of.its.own")
    assert (first.inputs, first.outputs) == (["a", "", "c"], ["", "d"])
    assert [node.operator for part in second.graphs for node in part.nodes] == ["Neg", "Neg"]
    assert [node.operator for node in graph.walk()] == ["LSTM", "If", "Neg", "Neg"]


def test_a_graph_that_stands_there_in_two_parts_is_one() -> None:
    parts = [helper.make_graph([helper.make_node(name, ["x"], ["y"])], "g", [], []) for name in ("Neg", "Abs")]
    model = b"".join(field(7, part.SerializeToString()) for part in parts)
    assert [node.op_type for node in onnx.ModelProto.FromString(model).graph.node] == ["Neg", "Abs"]
    assert [node.operator for node in onnx_graph.read(model).nodes] == ["Neg", "Abs"]


@pytest.mark.parametrize("content", [b"\x3a\x05ab", b"\x3a", b"\x3a\xff", b"\x3b\x3c", b"\x38" + b"\xff" * 11])
def test_what_is_no_message_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any
        onnx_graph.read(content)


def test_graphs_in_graphs_without_end_are_an_error() -> None:
    graph = b""
    for _ in range(100):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(ValueError, match="nested"):
        onnx_graph.read(field(7, graph))


@pytest.mark.parametrize("content", [b"\x07", b"\xff" * 8])  # a packed list of one integer, and no list at all
def test_an_integer_that_is_stored_as_bytes_is_left_out_as_protocol_buffers_do(content: bytes) -> None:
    attribute, tensor = field(1, b"axis") + field(3, content), field(2, content) + field(8, b"t")
    model = field(7, field(1, field(4, b"Concat") + field(5, attribute)) + field(5, tensor))
    graph, expected = onnx_graph.read(model), onnx.ModelProto.FromString(model).graph
    assert not expected.node[0].attribute[0].HasField("i")
    assert (graph.nodes[0].attributes, graph.nodes[0].unread) == ({}, {"axis"})
    assert graph.tensors["t"].kind == expected.initializer[0].data_type == 0


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_are_an_error_of_value(content: bytes) -> None:
    with suppress(ValueError):
        onnx_graph.read(content)


@given(st.lists(st.sampled_from(["Neg", "LSTM", "Loop"]), max_size=5), st.binary(max_size=30), st.data())
def test_a_changed_file_is_read_as_protocol_buffers_read_it_or_is_an_error(
    operators: list[str], raw: bytes, data: Any
) -> None:
    nodes = [helper.make_node(name, ["x"], ["y"]) for name in operators]
    tensor = TensorProto(name="t", raw_data=raw)
    content = bytearray(helper.make_model(helper.make_graph(nodes, "g", [], [], [tensor])).SerializeToString())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected = [node.op_type for node in onnx.ModelProto.FromString(bytes(content)).graph.node]
    except Exception:
        return
    try:
        found = [node.operator for node in onnx_graph.read(bytes(content)).nodes]
    except ValueError:
        return
    assert found == [name.decode(errors="replace") if isinstance(name, bytes) else name for name in expected]


def test_a_graph_is_written_with_one_copy_of_its_weights() -> None:
    weights = np.zeros(2**20, dtype=np.float32)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    made = helper.make_graph([node], "g", [], [], [numpy_helper.from_array(weights, "w")])
    graph = onnx_graph.read(helper.make_model(made).SerializeToString())
    tracemalloc.start()
    try:
        written = graph.write({"of.its.own": 1})
        assert tracemalloc.get_traced_memory()[1] < 1.5 * weights.nbytes
    finally:
        tracemalloc.stop()
    assert onnx_graph.read(written).tensors["w"].shape == weights.shape

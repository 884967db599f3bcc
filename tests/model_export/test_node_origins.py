"""Nodes of a traced graph tell their line and their module; those of a graph from elsewhere tell their name."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.tracing.source_lines import location_of_node, operator_name


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x)).relu()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(x.mT).mT
        y, _ = self.rnn(y)
        y, _ = self.attention(y, y, y)
        weights = torch.softmax(y.sum(-1), dim=1)
        return self.head((weights.unsqueeze(-1) * y).sum(1))


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return targets.read(Model(), TargetOptions(), blind=True).build("model", 18, origins=True)


@pytest.mark.long
def test_every_node_that_computes_more_than_sizes_tells_a_line_of_the_users_code(graph: onnx.ModelProto) -> None:
    without = {node.op_type for node in graph.graph.node if location_of_node(node) is None}
    assert without <= {"Shape", "Squeeze"}  # the sizes of the input
    for node in graph.graph.node:
        location = location_of_node(node)
        assert location is None or (location.file == __file__ and location.source)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "name", "source"),
    [
        ("Conv", "blocks.1.conv: Conv", "return self.conv(self.norm(x)).relu()"),
        ("LSTM", "rnn: LSTM", "y, _ = self.rnn(y)"),
        ("Gemm", "head: Gemm", "return self.head((weights.unsqueeze(-1) * y).sum(1))"),
        ("ReduceSum", "ReduceSum", "return self.head((weights.unsqueeze(-1) * y).sum(1))"),
    ],
)
def test_a_node_tells_its_module(graph: onnx.ModelProto, kind: str, name: str, source: str) -> None:
    nodes = [node for node in graph.graph.node if node.op_type == kind]
    location = location_of_node(nodes[-1])
    assert location is not None
    assert (operator_name(nodes[-1]), location.source) == (name, source)


@pytest.mark.long
def test_attention_belongs_to_its_module(graph: onnx.ModelProto) -> None:
    of_attention = [node for node in graph.graph.node if operator_name(node).startswith("attention: ")]
    assert {"Softmax", "MatMul"} <= {node.op_type for node in of_attention}


def test_a_node_from_elsewhere_tells_its_name() -> None:
    named = onnx.helper.make_node("Relu", ["x"], ["y"], name="/act/Relu")
    nameless = onnx.helper.make_node("Relu", ["x"], ["y"])
    assert (location_of_node(named), operator_name(named)) == (None, "/act/Relu")
    assert (location_of_node(nameless), operator_name(nameless)) == (None, "Relu giving y")


@pytest.mark.parametrize("scopes", ["[", "3", "['', 'other', 'conv']", "__import__('os')"])
def test_metadata_that_is_not_ours_is_not_followed(scopes: str) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "<none>", line 1, in forward')
    assert (location_of_node(node), operator_name(node)) == (None, "relu")

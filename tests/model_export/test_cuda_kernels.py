"""The list of CUDA's kernels tells a graph that stays on a GPU from one that does not."""

from __future__ import annotations

import onnx
import pytest

from lengthwise.runtime.manifest import GRAPH_FILE
from lengthwise.settings import bundled_models
from tests.support.cuda_kernels import strangers


@pytest.fixture
def bundled() -> onnx.ModelProto:
    return onnx.load(bundled_models() / "japanese-vowels" / "1" / GRAPH_FILE)


def test_the_bundled_graph_stays_on_a_gpu(bundled: onnx.ModelProto) -> None:
    assert strangers(bundled, "lengths") == []


def test_an_operator_without_a_kernel_is_told(bundled: onnx.ModelProto) -> None:
    bundled.graph.node[0].op_type = "Unique"
    assert strangers(bundled, "lengths")[0] == "node_Shape_0: no Unique of FLOAT"


def test_a_recurrent_layer_whose_lengths_were_computed_is_told(bundled: onnx.ModelProto) -> None:
    layer = next(node for node in bundled.graph.node if node.op_type == "LSTM")
    layer.input[4] = "computed"
    assert "its inputs" in strangers(bundled, "lengths")[0]


def test_a_recurrent_layer_that_clips_is_told(bundled: onnx.ModelProto) -> None:
    layer = next(node for node in bundled.graph.node if node.op_type == "LSTM")
    layer.attribute.append(onnx.helper.make_attribute("clip", 1.0))
    assert "its attributes" in strangers(bundled, "lengths")[0]

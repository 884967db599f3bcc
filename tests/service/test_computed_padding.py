"""Which graphs compute padding: every layer over the steps that is not in kernels of this project."""

import pytest
from onnx import NodeProto, helper

from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.onnx import fusion
from lengthwise.runtime.onnx.data_dependence import computes_padding
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU, Device
from lengthwise.runtime.session import Session
from tests.support.model_directories import BUNDLED


def node(operator: str, inputs: str, outputs: str, domain: str = "", **attributes: int) -> NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), domain=domain, **attributes)


def constant(name: str, *numbers: int) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=numbers)


LAYER = node("LSTM", "values W R B lengths", "steps state cell")
CAST = node("Cast", "lengths", "wide")
HEAD = node("Gemm", "pooled W2 B2", "logits")

SKIPPED: dict[str, list[NodeProto]] = {
    "the last state": [LAYER, node("Gemm", "state W2 B2", "logits")],
    "attention of the kernels": [
        node("Sub", "values mean", "centred"),
        node("LSTM", "centred W R B lengths", "steps", fusion.DOMAIN),
        node("AttentionPooling", "steps lengths W2 W3", "pooled attention", fusion.DOMAIN),
        HEAD,
    ],
    "lengths of another type": [CAST, node("GRU", "values W R B wide", "steps pooled"), HEAD],
    "the last step, by the lengths": [LAYER, CAST, node("GatherND", "steps wide", "pooled"), HEAD],
    "the first step": [LAYER, constant("first", 0), node("Gather", "steps first", "pooled", axis=1), HEAD],
    "a sum by a mask": [LAYER, node("Less", "places lengths", "mask"), node("MatMul", "mask steps", "pooled"), HEAD],
    "a mean over the steps": [constant("axes", 1), LAYER, node("ReduceMean", "steps axes", "pooled"), HEAD],
    "an embedding of tokens": [
        node("Gather", "table values", "embedded"),
        node("LSTM", "embedded W R B lengths", "s pooled"),
        HEAD,
    ],
}
COMPUTED: dict[str, list[NodeProto]] = {
    "a convolution": [node("Conv", "values K", "x"), node("LSTM", "x W R B lengths", "steps pooled"), HEAD],
    "a dense layer on each step": [LAYER, node("MatMul", "steps W2", "logits")],
    "attention of onnxruntime": [LAYER, node("Transpose", "steps", "turned"), node("MatMul", "weights turned", "x")],
    "a layer without lengths": [node("LSTM", "values W R B", "steps pooled"), HEAD],
    "an embedding before a product": [node("Gather", "table values", "x"), node("MatMul", "x W2", "logits")],
    "one feature of each step": [
        constant("first", 0),
        node("Gather", "values first", "x", axis=2),
        node("MatMul", "x W2", "logits"),
    ],
    "a norm over the features": [
        constant("axes", -1),
        node("ReduceL2", "values axes", "x"),
        node("MatMul", "x W2", "logits"),
    ],
    "a function of the file": [node("Encoder", "values lengths", "pooled", "mine"), HEAD],
    "a loop": [node("Scan", "values", "pooled"), HEAD],
}


def computed(nodes: list[NodeProto], *, own_kernels: bool) -> bool:
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    return computes_padding(model.SerializeToString(), "values", ["lengths"], own_kernels=own_kernels)


@pytest.mark.parametrize("case", SKIPPED)
def test_a_graph_of_the_projects_kernels_computes_none(case: str):
    assert not computed(SKIPPED[case], own_kernels=True)
    assert computed(SKIPPED[case], own_kernels=False)


@pytest.mark.parametrize("case", COMPUTED)
def test_every_other_layer_over_the_steps_computes_padding(case: str):
    assert computed(COMPUTED[case], own_kernels=True)


@pytest.mark.parametrize("device", [CPU_DEVICE, PLAIN_CPU])
def test_the_bundled_model_computes_padding_only_in_onnxruntimes_kernels(device: Device):
    session = Session((BUNDLED / GRAPH_FILE).read_bytes(), Manifest.read(BUNDLED), devices=[device])
    own = recurrent_kernels.INSTRUCTION_SETS and device is CPU_DEVICE
    assert session.computes_padding is not bool(own)

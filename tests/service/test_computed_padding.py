"""Which graphs compute padding: every layer over the steps that is not in kernels of this project."""

import onnx
import pytest

from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.onnx import fusion
from lengthwise.runtime.onnx.data_dependence import computes_padding
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU, Device
from lengthwise.runtime.session import Session
from tests.support.model_directories import BUNDLED

LAYER = "steps, state, cell = LSTM (values, W, R, B, lengths)"
CAST = "wide = Cast <to = 7> (lengths)"
HEAD = "logits = Gemm (pooled, W2, B2)"
FIRST = "first = Constant <value_ints = [0]> ()"
LAST_AXIS = "axes = Constant <value_ints = [-1]> ()"

SKIPPED = {
    "the last state": [LAYER, "logits = Gemm (state, W2, B2)"],
    "attention of the kernels": [
        "centred = Sub (values, mean)",
        f"steps, state = {fusion.DOMAIN}.LSTM (centred, W, R, B, lengths)",
        f"pooled, attention = {fusion.DOMAIN}.AttentionPooling (steps, lengths, W2, W3)",
        HEAD,
    ],
    "lengths of another type": [CAST, "steps, pooled = GRU (values, W, R, B, wide)", HEAD],
    "the last step, by the lengths": [LAYER, CAST, "pooled = GatherND (steps, wide)", HEAD],
    "the first step": [LAYER, FIRST, "pooled = Gather <axis = 1> (steps, first)", HEAD],
    "a sum by a mask": [LAYER, "mask = Less (places, lengths)", "pooled = MatMul (mask, steps)", HEAD],
    "a mean over the steps": [
        "axes = Constant <value_ints = [1]> ()",
        LAYER,
        "pooled = ReduceMean (steps, axes)",
        HEAD,
    ],
    "an embedding of tokens": ["e = Gather (table, values)", "s, pooled = LSTM (e, W, R, B, lengths)", HEAD],
}
COMPUTED = {
    "a convolution": ["x = Conv (values, K)", "steps, pooled = LSTM (x, W, R, B, lengths)", HEAD],
    "a dense layer on each step": [LAYER, "logits = MatMul (steps, W2)"],
    "attention of onnxruntime": [LAYER, "turned = Transpose (steps)", "x = MatMul (weights, turned)"],
    "a layer without lengths": ["steps, pooled = LSTM (values, W, R, B)", HEAD],
    "an embedding before a product": ["x = Gather (table, values)", "logits = MatMul (x, W2)"],
    "one feature of each step": [FIRST, "x = Gather <axis = 2> (values, first)", "logits = MatMul (x, W2)"],
    "a norm over the features": [LAST_AXIS, "x = ReduceL2 (values, axes)", "logits = MatMul (x, W2)"],
    "a function of the file": ["pooled = mine.Encoder (values, lengths)", HEAD],
    "a loop": ["pooled = Scan (values)", HEAD],
}


def computed(lines: list[str], *, own_kernels: bool) -> bool:
    model = onnx.helper.make_model(onnx.parser.parse_graph("g () => () {" + "\n".join(lines) + "}"))
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

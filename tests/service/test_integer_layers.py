"""Int8 graphs: which layers the integer kernels get, and which stay with onnxruntime."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper
from onnx import TensorProto as Element

from lengthwise.padding import pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import GraphNames, Manifest
from lengthwise.runtime.onnx import fusion, integer_layers
from lengthwise.runtime.onnx.integer_layers import fused
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU
from lengthwise.runtime.session import Session
from lengthwise.settings import bundled_models
from lengthwise.verification.random_sequences import draw
from lengthwise_export.onnx_graphs import precision
from tests.gallery.onnx_models import Weights
from tests.gallery.onnx_models import model as onnx_model
from tests.support.integer_graphs import batch, float_graph, integer_graph, opened, product_graph

pytestmark = pytest.mark.skipif(not recurrent_kernels.INTEGER_SETS, reason="no compiler at installation")

MANY = 40


def in_integers(graph: ModelProto) -> ModelProto:
    found = fused(graph.SerializeToString())
    assert found is not None
    return onnx.load_from_string(found)


def kinds(graph: ModelProto) -> list[tuple[str, str]]:
    return [(node.domain, node.op_type) for node in graph.graph.node]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_layer_gets_the_bytes_themselves(kind: str):
    graph = integer_graph(kind, inputs=MANY)
    assert sorted(kinds(graph)) == sorted([("", "DequantizeLinear"), ("", "Reshape")] * 2 + [("", kind)])
    found = in_integers(graph)
    assert kinds(found) == [(integer_layers.DOMAIN, kind)]
    names = ["x", "layer/W_int8", "layer/W_scale", "layer/R_int8", "layer/R_scale", "b", "lengths"]
    assert [*found.graph.node[0].input] == names
    assert found.graph.initializer == graph.graph.initializer
    assert [each.domain for each in found.opset_import] == ["", integer_layers.DOMAIN]
    few = in_integers(integer_graph(kind, inputs=3))  # which keep their weights
    assert [*few.graph.node[0].input] == ["x", "w", "", "layer/R_int8", "layer/R_scale", "b", "lengths"]


def test_a_product_gets_the_bytes_themselves():
    graph = precision.convert(product_graph(40, 40), "int8")
    assert kinds(graph) == [("", "DequantizeLinear"), ("", "MatMul"), ("", "MatMul")]
    found = in_integers(graph)
    assert kinds(found) == [(integer_layers.DOMAIN, "MatMul"), ("", "MatMul")]
    assert [*found.graph.node[0].input] == ["x", "product/weights_int8", "product/weights_scale"]
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 40)).astype(np.float32)
    ours, theirs = (opened(graph, name).run(["y"], {"x": x})[0] for name in (recurrent_kernels.INTEGER_SETS[0], None))
    np.testing.assert_allclose(ours, theirs, atol=0.2)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("inputs", [3, MANY])
def test_onnxruntime_alone_runs_the_file_with_dequantised_weights(kind: str, inputs: int):
    graph = integer_graph(kind, inputs=inputs, hidden=24, direction="bidirectional")
    onnx.checker.check_model(graph, full_check=True)
    feed = batch([9, 4, 1], inputs)
    ours = opened(graph, recurrent_kernels.INTEGER_SETS[0]).run(None, feed)
    for one, other in zip(ours, opened(graph).run(None, feed), strict=True):
        np.testing.assert_allclose(one, other, atol=0.05)


def changed(
    graph: ModelProto, node: int = -1, *, inputs: Sequence[str] = (), domain: str = "", **attributes: Any
) -> ModelProto:
    """With one node of more inputs, of another domain, or with other attributes."""
    one = graph.graph.node[node]
    one.input.extend(inputs)
    one.domain = domain
    graph.opset_import.extend([helper.make_opsetid(domain, 1)] if domain else [])
    kept = [each for each in one.attribute if each.name not in attributes]
    del one.attribute[:]
    one.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])
    more = {"zero": np.zeros(20, np.int8), "state": np.ones((1, 2, 5), np.float32), "p": np.ones((1, 15), np.float32)}
    graph.graph.initializer.extend(numpy_helper.from_array(more[name], name) for name in inputs if name)
    return graph


def with_computed_inputs(graph: ModelProto) -> ModelProto:
    graph.graph.node.insert(0, helper.make_node("Neg", ["w"], ["negative"]))
    graph.graph.node[-1].input[1] = "negative"
    return graph


OTHER_FORMS: dict[str, Callable[[], ModelProto]] = {
    "another axis": lambda: changed(integer_graph(), 0, axis=1),
    "a zero point": lambda: changed(integer_graph(), 0, inputs=["zero"]),
    "first states": lambda: changed(integer_graph(), inputs=["state"]),
    "peepholes": lambda: changed(integer_graph(), inputs=["", "", "p"]),
    "a clip": lambda: changed(integer_graph(), clip=0.5),
    "coupled gates": lambda: changed(integer_graph(), input_forget=1),
    "the reset gate before": lambda: changed(integer_graph("GRU"), linear_before_reset=0),
    "bytes of another domain": lambda: changed(integer_graph(), 0, domain="com.microsoft"),
    "a layer of another domain": lambda: changed(integer_graph(), domain="elsewhere"),
    "computed weights of inputs": lambda: with_computed_inputs(integer_graph()),
    "a product of another axis": lambda: changed(precision.convert(product_graph(40, 40), "int8"), 0, axis=0),
    "floats": float_graph,
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_another_form_stays_as_it_is(form: str):
    assert fused(OTHER_FORMS[form]().SerializeToString()) is None


def test_weights_that_something_else_uses_are_still_dequantised():
    graph = integer_graph()
    graph.graph.output.append(helper.make_tensor_value_info(graph.graph.node[0].output[0], Element.FLOAT, [20, 5]))
    found = in_integers(graph)
    assert kinds(found) == [("", "DequantizeLinear"), (integer_layers.DOMAIN, "LSTM")]
    session = opened(graph, recurrent_kernels.INTEGER_SETS[0])
    np.testing.assert_array_equal(session.run(None, batch([3]))[-1], opened(graph).run(None, batch([3]))[-1])


@given(st.binary(max_size=60))
def test_bytes_that_are_no_graph_are_refused_or_left(junk: bytes):
    for content in (junk, b"DequantizeLinear" + junk):
        with contextlib.suppress(ValueError):
            assert fused(content) is None


@given(st.data())
def test_a_damaged_graph_is_refused_or_left_or_a_graph(data: st.DataObject):
    content = bytearray(integer_graph().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = fused(bytes(content))
    except ValueError:
        return
    assert found is None or isinstance(found, bytes)


@pytest.mark.parametrize("instructions", recurrent_kernels.INTEGER_SETS or ("none",))
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("perm", [[0, 2, 1, 3], [2, 0, 1, 3]], ids=["steps first", "rows first"])
def test_a_layer_writes_its_output_in_the_order_that_is_read(instructions: str, kind: str, perm: list[int]):
    graph = integer_graph(kind, hidden=9, inputs=MANY, direction="bidirectional")
    graph.graph.node.append(helper.make_node("Transpose", ["y"], ["turned"], perm=perm))
    graph.graph.node.append(helper.make_node("Reshape", ["turned", "flat"], ["flat_y"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 18]), "flat"))
    del graph.graph.output[0]
    graph.graph.output.append(helper.make_tensor_value_info("flat_y", Element.FLOAT, [None, None, 18]))
    turned = fusion.fused(graph.SerializeToString(), GraphNames(sequences="x", time_first=True))
    assert turned is not None
    around = [(fusion.DOMAIN, "Pack"), (integer_layers.DOMAIN, kind), (fusion.DOMAIN, "Unpack")]
    assert kinds(in_integers(onnx.load_from_string(turned.graph))) == around
    sessions = [opened(each, instructions) for each in (graph, turned.graph)]
    for lengths in ([5, 1, 8, 0], [3, 7] * 30):
        feed = batch(lengths, MANY, steps=9)
        for one, other in zip(*(session.run(["flat_y", "last_h"], feed) for session in sessions), strict=True):
            np.testing.assert_array_equal(one, other)


# Sessions


def model() -> tuple[ModelProto, Manifest]:
    """An int8 graph whose last states are the logits, as a model directory has it."""
    graph = onnx_model(
        f"g (float[rows, width, {MANY}] values, int32[rows] lengths) => (float[rows, 2] logits)",
        """x = Transpose <perm = [1, 0, 2]> (values)
        [layer] y, last_h = LSTM <hidden_size = 1, direction = "bidirectional"> (x, w, r, b, lengths)
        rows_first = Transpose <perm = [1, 0, 2]> (last_h)
        logits = Squeeze (rows_first, last_axis)""",
        Weights(0).named(f"w 2x4x{MANY}*1, r 2x4x1*1, b 2x8*1") | {"last_axis": np.array([2])},
        producer="test",
        opset=18,
    )
    wants = {"name": "m", "version": 1, "input": {"features": MANY}, "labels": ["a", "b"], "precision": "int8"}
    return precision.convert(graph, "int8"), Manifest.model_validate(wants)


STEPS = pad([np.ones((3, MANY), np.float32), np.full((5, MANY), 0.5, np.float32)])


def test_a_session_says_that_it_computes_in_integers():
    graph, wants = model()
    session = Session(graph.SerializeToString(), wants)
    assert session.kernels == f"int8 {recurrent_kernels.INTEGER_SETS[0]}"
    plain = Session(graph.SerializeToString(), wants, devices=(PLAIN_CPU,))
    assert plain.kernels == recurrent_kernels.ONNXRUNTIME
    np.testing.assert_allclose(session.run(STEPS).logits, plain.run(STEPS).logits, atol=0.05)


def test_weights_in_files_are_read_from_the_folder_of_the_graph(tmp_path: Path):
    graph, wants = model()
    expected = Session(graph.SerializeToString(), wants).run(STEPS).logits
    onnx.save_model(graph, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=100)
    session = Session(tmp_path / "model.onnx", wants)
    assert session.kernels.startswith("int8")
    np.testing.assert_array_equal(session.run(STEPS).logits, expected)
    weights = {"weights": (tmp_path / "weights").read_bytes()}
    from_memory = Session((tmp_path / "model.onnx").read_bytes(), wants, weights=weights)
    assert from_memory.kernels.startswith("int8")
    np.testing.assert_array_equal(from_memory.run(STEPS).logits, expected)


def test_weights_that_the_kernels_refuse_are_run_by_onnxruntime_and_that_is_said(caplog: pytest.LogCaptureFixture):
    graph, wants = model()
    (tensor,) = [each for each in graph.graph.initializer if each.name == "layer/R_int8"]
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), 127), tensor.name))
    with caplog.at_level(logging.INFO):
        session = Session(graph.SerializeToString(), wants)
    assert session.kernels == recurrent_kernels.ONNXRUNTIME
    assert "at most 63" in caplog.text
    assert np.isfinite(session.run(STEPS).logits).all()


def test_a_layer_that_stays_in_float32_runs_beside_one_in_integers():
    graph, wants = model()
    layer = next(node for node in graph.graph.node if node.op_type == "LSTM")
    second = onnx.NodeProto()
    second.CopyFrom(layer)
    second.name, second.input[1:3] = "second", ["w2", "r2"]
    second.output[:] = ["y2", "last_h2"]
    weights = Weights(1).named(f"w2 2x4x{MANY}*1, r2 2x4x1*1")
    graph.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    place = [*graph.graph.node].index(layer)
    graph.graph.node.insert(place + 1, second)
    graph.graph.node.insert(place + 2, helper.make_node("Add", ["last_h", "last_h2"], ["both"]))
    graph.graph.node[place + 3].input[0] = "both"
    content = graph.SerializeToString()
    session, plain = (Session(content, wants, devices=(device,)) for device in (CPU_DEVICE, PLAIN_CPU))
    assert session.kernels.startswith("int8")
    np.testing.assert_allclose(session.run(STEPS).logits, plain.run(STEPS).logits, atol=0.05)


@pytest.mark.skipif(not recurrent_kernels.INSTRUCTION_SETS, reason="neither AVX2 nor AVX-512")
def test_attention_pooling_at_int8_has_the_same_bits_in_every_batch():
    directory = bundled_models() / "japanese-vowels" / "1"
    exact = Manifest.read(directory)
    wants = precision.manifest_at(exact, "int8")
    graph = precision.convert(onnx.load(directory / "model.onnx"), "int8").SerializeToString()
    session = Session(graph, wants)
    assert session.kernels == f"int8 {recurrent_kernels.INTEGER_SETS[0]}{recurrent_kernels.POOLING}"
    sequences = draw(wants, [1, 29, 7, 4, 16], 0)
    together = session.run(pad(sequences, width=40), ("logits", "attention"))
    float_session = Session.load(directory, exact)
    for row, steps in enumerate(sequences):
        alone = session.run(pad([steps], multiple=4), ("logits", "attention"))
        np.testing.assert_array_equal(together.logits[row], alone.logits[0])
        assert together.attention is not None
        assert alone.attention is not None
        np.testing.assert_array_equal(together.attention[row, : len(steps)], alone.attention[0, : len(steps)])
        near = float_session.run(pad([steps], multiple=4)).logits[0]
        np.testing.assert_allclose(alone.logits[0], near, atol=0.1 * np.abs(near).max())


def test_an_installation_without_the_module_runs_the_file_in_onnxruntime(monkeypatch: pytest.MonkeyPatch):
    graph, wants = model()
    monkeypatch.setattr(recurrent_kernels, "INTEGER_SETS", ())
    session = Session(graph.SerializeToString(), wants)
    assert session.kernels in (recurrent_kernels.ONNXRUNTIME, *recurrent_kernels.INSTRUCTION_SETS)
    plain = Session(graph.SerializeToString(), wants, devices=(PLAIN_CPU,))
    np.testing.assert_array_equal(session.run(STEPS).logits, plain.run(STEPS).logits)

"""Recurrent layers and what people write around them, over packed steps: the same answers, and no padding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

from lengthwise.padding import PaddedBatch, Sample, pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.onnx import fusion, integer_layers
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU
from lengthwise.runtime.session import Session
from lengthwise_export.onnx_graphs import precision
from tests.gallery.onnx_models import Weights, integers, scalar
from tests.support.lent_cores import lent_and_taken_back
from tests.support.pairs import differences

pytestmark = pytest.mark.skipif(not recurrent_kernels.INSTRUCTION_SETS, reason="no kernels for this processor")

FEATURES, HIDDEN, CLASSES = 6, 20, 3
WIDE = 2 * HIDDEN
CLOSE = 5e-6
LENGTHS = (7, 1, 29, 64, 3, 12, 65, 1, 16, 2)

MASK = """shape = Shape <start = 1, end = 2> (values)
    width = Squeeze (shape)
    index = Range (zero, width, one)
    long_lengths = Cast <to = 7> (lengths)
    ends = Unsqueeze (long_lengths, axis1)
    mask = Less (index, ends)
    padding = Not (mask)
    column = Unsqueeze (mask, minus_one)
    hidden = Not (column)
    float_column = Cast <to = 1> (column)"""
"""The mask `[rows, steps]`, and as a column, for valid steps and for padding."""

WITHOUT = {"inputs": "", "layers": 2, "head": WIDE}
"""What a form has unless it says something else: nothing before its layers, and as many features behind its pooling."""

FORMS: dict[str, dict[str, Any]] = {
    "additive attention": {
        "weights": f"w1 {WIDE}x16, b1 16, w2 16x1",
        "pooling": """product = MatMul (steps, w1)
            sum = Add (product, b1)
            units = Tanh (sum)
            score = MatMul (units, w2)
            flat_scores = Squeeze (score, axis2)
            masked = Where (padding, least, flat_scores)
            attention = Softmax <axis = 1> (masked)
            shares = Unsqueeze (attention, axis1)
            weighted = MatMul (shares, steps)
            pooled = Squeeze (weighted, axis1)""",
        "attention": True,
    },
    "attention of tanh": {
        "weights": f"w1 {WIDE}x1",
        "pooling": """units = Tanh (steps)
            score = MatMul (units, w1)
            flat_scores = Squeeze (score, axis2)
            masked = Where (mask, flat_scores, least)
            attention = Softmax <axis = -1> (masked)
            shares = Unsqueeze (attention, minus_one)
            weighted = Mul (steps, shares)
            pooled = ReduceSum <keepdims = 0> (weighted, axis1)""",
        "attention": True,
    },
    "attention by a product, and a bias": {
        "weights": f"w1 {WIDE}x1, b1 1",
        "pooling": """score = MatMul (steps, w1)
            sum = Add (score, b1)
            masked = Where (hidden, low, sum)
            shares = Softmax <axis = 1> (masked)
            turned = Transpose <perm = [0, 2, 1]> (steps)
            weighted = MatMul (turned, shares)
            pooled = Squeeze (weighted, axis2)""",
    },
    "four heads": {
        "weights": f"w1 {WIDE}x16, w2 16x4",
        "pooling": """product = MatMul (steps, w1)
            units = Tanh (product)
            scores = MatMul (units, w2)
            masked = Where (hidden, least, scores)
            shares = Softmax <axis = 1> (masked)
            turned = Transpose <perm = [0, 2, 1]> (shares)
            weighted = MatMul (turned, steps)
            pooled = Reshape (weighted, flat_heads)""",
        "head": 4 * WIDE,
    },
    "a dense layer before": {
        "weights": f"w0 {FEATURES}x9, b0 9",
        "inputs": """product0 = MatMul (values, w0)
            sum0 = Add (product0, b0)
            x = Relu (sum0)""",
        "features": 9,
        "pooling": "pooled = Identity (last)",
    },
    "a dense head, and the mean": {
        "weights": f"w1 {WIDE}x10, b1 10",
        "pooling": """product = MatMul (steps, w1)
            sum = Add (product, b1)
            units = Relu (sum)
            masked = Mul (units, float_column)
            total = ReduceSum <keepdims = 0> (masked, axis1)
            count = Cast <to = 1> (ends)
            pooled = Div (total, count)""",
        "head": 10,
    },
    "a masked convolution before": {
        "weights": f"w0 9x{FEATURES}x3, b0 9",
        "inputs": """row_mask = Unsqueeze (mask, axis1)
            channels = Transpose <perm = [0, 2, 1]> (values)
            masked0 = Where (row_mask, channels, nought)
            convolved = Conv <kernel_shape = [3], dilations = [2], pads = [2, 2]> (masked0, w0, b0)
            rectified = Relu (convolved)
            x = Transpose <perm = [0, 2, 1]> (rectified)""",
        "features": 9,
        "pooling": "pooled = Identity (last)",
    },
    "the last state": {"pooling": "pooled = Identity (last)"},
    "attention by the last state": {
        "weights": f"w1 {WIDE}x{WIDE}, w2 {WIDE}x{WIDE}",
        "pooling": """query = MatMul (last, w1)
            query_column = Unsqueeze (query, axis2)
            score = MatMul (steps, query_column)
            flat_scores = Squeeze (score, axis2)
            masked = Where (padding, least, flat_scores)
            attention = Softmax <axis = 1> (masked)
            shares = Unsqueeze (attention, axis1)
            weighted = MatMul (shares, steps)
            pooled = Squeeze (weighted, axis1)""",
        "attention": True,
    },
    "the mean": {
        "pooling": """masked = Mul (float_column, steps)
            total = ReduceSum <keepdims = 0> (masked, axis1)
            count = ReduceSum <keepdims = 0> (float_column, axis1)
            pooled = Div (total, count)""",
    },
    "the maximum": {
        "pooling": """masked = Where (column, steps, least)
            pooled = ReduceMax <axes = [1], keepdims = 0> (masked)""",
    },
    "a norm, and a third layer": {
        "weights": f"gain {WIDE}+1, shift {WIDE}",
        "layers": 3,
        "pooling": "pooled = Identity (last)",
    },
}
"""The forms of poolings and layers that people write; each reads `steps`, or `last`, and gives `pooled`."""

MORE_FORMS: dict[str, dict[str, Any]] = {
    "the last state in additive attention": {
        "weights": f"w1 {WIDE}x16, w2 {WIDE}x16, w3 16x1",
        "pooling": """product = MatMul (steps, w1)
            query = MatMul (last, w2)
            query_row = Unsqueeze (query, axis1)
            sum = Add (product, query_row)
            units = Tanh (sum)
            score = MatMul (units, w3)
            masked = Where (hidden, least, score)
            shares = Softmax <axis = 1> (masked)
            weighted = Mul (shares, steps)
            pooled = ReduceSum <keepdims = 0> (weighted, axis1)""",
    },
    "a softmax written out, as in Keras": {
        "weights": f"w1 {WIDE}x1",
        "pooling": """score = MatMul (steps, w1)
            units = Tanh (score)
            grown = Exp (units)
            kept = Mul (grown, float_column)
            total = ReduceSum <keepdims = 1> (kept, axis1)
            shares = Div (kept, total)
            weighted = Mul (shares, steps)
            pooled = ReduceSum <keepdims = 0> (weighted, axis1)""",
    },
    "states that stay at padding, as in Keras": {
        "weights": f"w1 {WIDE}x5",
        "pooling": """row = Unsqueeze (last, axis1)
            carried = Where (column, steps, row)
            product = MatMul (carried, w1)
            kept = Where (column, product, nought)
            total = ReduceSum <keepdims = 0> (kept, axis1)
            count = Cast <to = 1> (ends)
            pooled = Div (total, count)""",
        "head": 5,
    },
    "the sum of layers": {
        "pooling": """first_rows = Transpose <perm = [1, 0, 2]> (flat_1)
            both = Add (steps, first_rows)
            pooled = ReduceSum <keepdims = 0> (both, axis1)""",
    },
    "the mean beside the maximum": {
        "pooling": """masked = Mul (steps, float_column)
            total = ReduceSum <keepdims = 0> (masked, axis1)
            count = Cast <to = 1> (ends)
            mean = Div (total, count)
            high = Where (column, steps, least)
            most = ReduceMax <axes = [1], keepdims = 0> (high)
            pooled = Concat <axis = 1> (mean, most)""",
        "head": 2 * WIDE,
    },
}
TWO_READERS: dict[str, Any] = {
    "inputs": "x = Sin (values)",  # no operator on packed steps
    "pooling": f"""y_9, h_9 = LSTM <hidden_size = {HIDDEN}, direction = "bidirectional">
            (steps_first, W1, R1, B1, lengths)
        turned_9 = Transpose <perm = [1, 0, 2]> (h_9)
        last_9 = Reshape (turned_9, last_sizes)
        row = Unsqueeze (last_9, axis1)
        moved = Add (steps, row)
        scaled = Mul (moved, row)
        masked = Mul (scaled, float_column)
        pooled = ReduceSum <keepdims = 0> (masked, axis1)""",
}
"""Two layers read one rectangle, and two operators on steps the same numbers of each row."""
CASES = [(kind, form) for form in (*FORMS, *MORE_FORMS) for kind in ("LSTM", "GRU")]


def layer(index: int, kind: str, weights: Weights, features: int, source: str) -> str:
    """The nodes of a bidirectional layer; its output is `flat_{index}`, `[steps, rows, features]`."""
    gates = 4 if kind == "LSTM" else 3
    size = f"2x{gates * HIDDEN}"
    shapes = f"W{index} {size}x{features}, R{index} {size}x{HIDDEN}, B{index} 2x{2 * gates * HIDDEN}*0.2"
    weights.named(shapes)
    linear = "" if kind == "LSTM" else ", linear_before_reset = 1"
    return f"""y_{index}, h_{index} = {kind} <hidden_size = {HIDDEN}, direction = "bidirectional"{linear}>
            ({source}, W{index}, R{index}, B{index}, lengths)
        beside_{index} = Transpose <perm = [0, 2, 1, 3]> (y_{index})
        flat_{index} = Reshape (beside_{index}, flat)"""


def graph(kind: str, name: str) -> tuple[ModelProto, Manifest]:
    """The graph of a form, and its manifest."""
    form: Mapping[str, Any] = {**WITHOUT, **{**FORMS, **MORE_FORMS, "two readers": TWO_READERS}[name]}
    weights = Weights(0, opset=17).named(
        form.get("weights", "unused 1") + f", head {form['head']}x{CLASSES}, b {CLASSES}"
    )
    weights |= {"least": scalar(-np.inf), "low": scalar(-1e9), "flat_heads": integers(-1, 4 * WIDE)}
    lines = [MASK, form["inputs"] or "x = Identity (values)", "steps_first = Transpose <perm = [1, 0, 2]> (x)"]
    lines.append(layer(1, kind, weights, form.get("features", FEATURES), "steps_first"))
    lines.append(layer(2, kind, weights, WIDE, "flat_1"))
    if form["layers"] == 3:
        lines.append("normed = LayerNormalization <axis = -1> (flat_2, gain, shift)")
        lines.append(layer(3, kind, weights, WIDE, "normed"))
    lines.append(f"""turned_h = Transpose <perm = [1, 0, 2]> (h_{form["layers"]})
        last = Reshape (turned_h, last_sizes)
        steps = Transpose <perm = [1, 0, 2]> (flat_2)
        {form["pooling"]}
        logits = Gemm (pooled, head, b)""")
    weights["last_sizes"] = integers(0, WIDE)
    outputs = "float[rows, 3] logits" + (", float[rows, width] attention" if "attention" in form else "")
    text = f"g (float[rows, width, {FEATURES}] values, int32[rows] lengths) => ({outputs})\n" + "\n".join(lines)
    wants: dict[str, Any] = {"name": "m", "version": 1, "input": {"features": FEATURES}, "labels": ["a", "b", "c"]}
    wants |= {"graph": {"attention": "attention"}} if "attention" in form else {}
    return weights.model(text), Manifest.model_validate(wants)


def pair(kind: str, name: str) -> tuple[ModelProto, Manifest]:
    """Two sequences, each in a graph of a form: what differs in their logits."""
    model, manifest = graph(kind, name)
    model = differences(model, model)
    several = [{"name": name, "features": FEATURES} for name in ("a", "b_values")]
    table = manifest.model_dump() | {"graph": {"logits": "differences"}}
    return model, Manifest.model_validate(table | {"input": {"features": FEATURES, "sequences": several}})


def sequences(*lengths: int, seed: int = 0) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (length, FEATURES)).astype(np.float32) for length in lengths]


def answers(session: Session, manifest: Manifest, batch: PaddedBatch) -> list[NDArray[np.float32]]:
    """Logits and, if there is one, attention."""
    found = session.run(batch, ("logits", "attention") if manifest.graph.attention else ("logits",))
    return [found.logits, *([] if found.attention is None else [found.attention])]


def rectangles(model: bytes, *inputs: str) -> set[str]:
    """The operators that compute sequences over the padding, in a graph whose steps are packed."""
    nodes = onnx.load_from_string(model).graph.node
    with_steps, operators = {"values", *inputs}, set()
    for node in nodes:
        if with_steps.isdisjoint(node.input) or node.op_type in ("Pack", "Shape"):
            continue
        is_attention = node.op_type == "Unpack" and [*node.output] == ["attention"]
        operators.update([] if is_attention else [node.op_type])
        with_steps.update(node.output)
    return operators


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_no_form_computes_padding(kind: str, form: str):
    model, manifest = graph(kind, form)
    packed = fusion.fused(model.SerializeToString(), manifest.graph)
    assert packed is not None
    assert not rectangles(packed.graph)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_each_form_answers_as_onnxruntime_does(kind: str, form: str):
    model, manifest = graph(kind, form)
    session, plain = (
        Session(model.SerializeToString(), manifest, devices=devices) for devices in ((CPU_DEVICE,), (PLAIN_CPU,))
    )
    assert session.kernels.startswith(recurrent_kernels.INSTRUCTION_SETS[0])
    batch = pad(sequences(*LENGTHS), width=72)
    for one, other in zip(answers(session, manifest, batch), answers(plain, manifest, batch), strict=True):
        np.testing.assert_allclose(one, other, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("form", ["additive attention", "a masked convolution before", "the mean beside the maximum"])
def test_each_of_two_sequences_is_packed_by_its_own_lengths(form: str):
    model, manifest = pair("LSTM", form)
    file, others = model.SerializeToString(), [of.graph for of in manifest.further.values()]
    packed = fusion.fused(file, manifest.graph, *others)
    assert packed is not None
    assert not rectangles(packed.graph, "b_values")
    session, plain = (Session(file, manifest, devices=[device]) for device in (CPU_DEVICE, PLAIN_CPU))
    assert session.kernels.endswith(recurrent_kernels.POOLING)
    members = [
        Sample(one, others={"b_values": other})
        for one, other in zip(sequences(*LENGTHS), sequences(*LENGTHS[::-1], seed=1), strict=True)
    ]
    logits = session.run(pad(members)).logits
    np.testing.assert_allclose(logits, plain.run(pad(members)).logits, rtol=CLOSE, atol=CLOSE)
    for row, member in enumerate(members):
        np.testing.assert_array_equal(session.run(pad([member])).logits[0], logits[row])


def test_what_two_layers_or_operators_read_is_packed_once():
    model, manifest = graph("LSTM", "two readers")
    session, plain = (Session(model.SerializeToString(), manifest, devices=[each]) for each in (CPU_DEVICE, PLAIN_CPU))
    assert session.kernels.endswith(recurrent_kernels.POOLING)
    batch = pad(sequences(*LENGTHS), width=72)
    np.testing.assert_allclose(session.run(batch).logits, plain.run(batch).logits, rtol=CLOSE, atol=CLOSE)


COMPUTED_LENGTHS = {
    "at least one": "Clip (b_values_lengths, one_at_least)",
    "the larger of one and them": "Max (one_at_least, b_values_lengths)",
    "at least two, which some are not": "Clip (b_values_lengths, two_at_least)",
}
"""What the layers of a second sequence get for its lengths; its masks are of the lengths themselves."""


@pytest.mark.parametrize("computed", COMPUTED_LENGTHS)
def test_a_second_sequence_is_packed_by_computed_lengths(computed: str):
    model, manifest = pair("LSTM", "the mean")
    others = [of.graph for of in manifest.further.values()]
    for node in model.graph.node:
        if node.op_type == "LSTM" and node.input[4] == "b_values_lengths":
            node.input[4] = "b_kept_lengths"
    model.graph.node.insert(0, onnx.parser.parse_node(f"b_kept_lengths = {COMPUTED_LENGTHS[computed]}"))
    for number, name in ((1, "one_at_least"), (2, "two_at_least")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number, np.int32), name))
    file = model.SerializeToString()
    packed = fusion.fused(file, manifest.graph, *others)
    assert packed is not None
    keeps_lengths = "two" not in computed
    assert bool(rectangles(packed.graph, "b_values")) != keeps_lengths
    model.graph.output.append(onnx.helper.make_tensor_value_info("b_last_next", onnx.TensorProto.FLOAT, None))
    model.graph.node.append(onnx.helper.make_node("Identity", ["b_last"], ["b_last_next"]))
    streams = fusion.fused(model.SerializeToString(), manifest.graph, *others)  # a chunk may have no steps
    assert streams is not None
    assert rectangles(streams.graph, "b_values")
    session, plain = (Session(file, manifest, devices=[device]) for device in (CPU_DEVICE, PLAIN_CPU))
    members = [
        Sample(one, others={"b_values": other})
        for one, other in zip(sequences(*LENGTHS), sequences(*LENGTHS[::-1], seed=1), strict=True)
    ]
    logits = session.run(pad(members)).logits
    np.testing.assert_allclose(logits, plain.run(pad(members)).logits, rtol=CLOSE, atol=CLOSE)


OTHER_STEPS = {
    "cut behind a layer of all steps": f"""y_1, h_1 = LSTM <hidden_size = {HIDDEN}> (steps_first, W1, R1, B1, lengths)
        y_2, h_2 = LSTM <hidden_size = {HIDDEN}> (cut, W2, R2, B2, cut_lengths)""",
    "cut before a sum of all steps": f"""y_1, h_1 = LSTM <hidden_size = {HIDDEN}> (cut, W1, R1, B1, cut_lengths)
        sums = ReduceSum (values, axis1)
        h_2 = Transpose <perm = [1, 0, 2]> (sums)""",
    "none, then one at least": f"""fewer = Sub (lengths, one_step)
        y_1, h_1 = LSTM <hidden_size = {HIDDEN}> (steps_first, W1, R1, B1, fewer)
        one_at_least = Max (fewer, one_step)
        y_2, h_2 = LSTM <hidden_size = {HIDDEN}> (steps_first, W2, R2, B2, one_at_least)""",
    "a half of them, rounded for the layer only": f"""number = Cast <to = 1> (lengths)
        halves = Mul (number, half)
        half_lengths = Cast <to = 6> (halves)
        y_1, h_1 = LSTM <hidden_size = {HIDDEN}> (steps_first, W1, R1, B1, half_lengths)
        y_rows = Squeeze (y_1, axis1)
        places = Cast <to = 1> (index)
        bounds = Unsqueeze (halves, axis1)
        inside = Less (places, bounds)
        first_half = Unsqueeze (inside, minus_one)
        turned = Transpose <perm = [1, 0, 2]> (y_rows)
        hidden_half = Where (first_half, turned, least)
        most = ReduceMax <axes = [1]> (hidden_half)
        h_2 = Transpose <perm = [1, 0, 2]> (most)""",
}
"""Layers of steps or lengths that are not those of the sequence, though they are computed of these."""


@pytest.mark.parametrize("other", OTHER_STEPS)
def test_what_is_not_of_all_steps_answers_as_onnxruntime_does(other: str):
    features = FEATURES if "sums" in OTHER_STEPS[other] else HIDDEN
    gates = 4 * HIDDEN
    shapes = (f"W{i} 1x{gates}x{FEATURES}, R{i} 1x{gates}x{HIDDEN}, B{i} 1x{2 * gates}" for i in (1, 2))
    weights = Weights(0, opset=17).named(", ".join([*shapes, f"head {HIDDEN + features}x{CLASSES}, b {CLASSES}"]))
    weights |= {"least": scalar(-1e9), "half": scalar(0.5), "first": integers(0), "last": integers(16)}
    weights |= {"one_step": np.array(1, np.int32), "sixteen": np.array(16, np.int64)}
    text = f"""g (float[rows, width, {FEATURES}] values, int32[rows] lengths) => (float[rows, 3] logits)
        {MASK}
        steps_first = Transpose <perm = [1, 0, 2]> (values)
        cut = Slice (steps_first, first, last, axis0)
        cut_index = Range (zero, sixteen, one)
        cut_mask = Less (cut_index, ends)
        cut_steps = Cast <to = 6> (cut_mask)
        cut_lengths = ReduceSum <keepdims = 0> (cut_steps, axis1)
        {OTHER_STEPS[other]}
        both = Concat <axis = 2> (h_1, h_2)
        last_states = Squeeze (both, axis0)
        logits = Gemm (last_states, head, b)"""
    file = weights.model(text).SerializeToString()
    manifest = Manifest(name="m", version=1, input={"features": FEATURES}, labels=("a", "b", "c"))
    session, plain = (Session(file, manifest, devices=[device]) for device in (CPU_DEVICE, PLAIN_CPU))
    assert session.kernels != plain.kernels
    batch = pad(sequences(*LENGTHS))
    np.testing.assert_allclose(session.run(batch).logits, plain.run(batch).logits, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(("counted", "are_all"), [("long_ones", True), ("places", False)])
def test_a_mask_may_end_at_the_largest_length(counted: str, are_all: bool):
    model, manifest = graph("GRU", "the mean")
    nodes = [*model.graph.node]
    place = next(place for place, node in enumerate(nodes) if node.op_type == "Range")
    nodes[place].input[1] = "longest"
    new = ["long_ones = Cast <to = 7> (lengths)", "places = Range (zero, width, one)"]
    new.append(f"longest = ReduceMax <keepdims = 0> ({counted})")
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *map(onnx.parser.parse_node, new), *nodes[place:]])
    packed = fusion.fused(model.SerializeToString(), manifest.graph)
    assert packed is not None
    assert packed.pools == are_all


@pytest.mark.parametrize("instructions", recurrent_kernels.INSTRUCTION_SETS or ("none",))
@pytest.mark.parametrize("form", [*FORMS, *MORE_FORMS])
def test_each_form_has_the_same_bits_alone_padded_and_in_company(form: str, instructions: str):
    recurrent_kernels.choose(instructions)
    model, manifest = graph("LSTM", form)
    session = Session(model.SerializeToString(), manifest)
    recurrent_kernels.choose(recurrent_kernels.INSTRUCTION_SETS[0])
    members = sequences(*LENGTHS)
    together = answers(session, manifest, pad(members, width=80))
    junk = pad(members, width=80)
    for row, length in enumerate(junk.lengths):
        junk.steps[row, length:] = np.nan
    for one, other in zip(together, answers(session, manifest, junk), strict=True):
        np.testing.assert_array_equal(one, other)
    for row, member in enumerate(members):
        for alone, all_rows in zip(answers(session, manifest, pad([member])), together, strict=True):
            width = len(member) if all_rows.shape[1] > CLASSES else CLASSES
            np.testing.assert_array_equal(alone[0, :width], all_rows[row, :width])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(0, 20), st.sampled_from([*FORMS]))
def test_bits_do_not_depend_on_the_lengths_of_others(lengths: list[int], wider: int, form: str):
    model, manifest = graph("GRU", form)
    session = Session(model.SerializeToString(), manifest)
    members = sequences(*lengths)
    logits = session.run(pad(members, width=max(lengths) + wider)).logits
    row = len(lengths) // 2
    np.testing.assert_array_equal(session.run(pad([members[row]])).logits[0], logits[row])


@pytest.mark.parametrize("form", FORMS)
def test_each_form_at_int8_answers_as_dequantised_with_the_same_bits_alone(form: str):
    model, manifest = graph("LSTM", form)
    model = precision.convert(model, "int8")
    session, plain = (
        Session(model.SerializeToString(), manifest, devices=devices) for devices in ((CPU_DEVICE,), (PLAIN_CPU,))
    )
    assert session.kernels.startswith("int8")
    packed = integer_layers.with_packed_steps(model.SerializeToString(), manifest.graph)
    assert packed is not None
    assert not rectangles(packed.graph)
    members = sequences(*LENGTHS)
    logits = session.run(pad(members, width=72)).logits
    np.testing.assert_allclose(logits, plain.run(pad(members, width=72)).logits, atol=0.05)
    for row, member in enumerate(members):
        np.testing.assert_array_equal(session.run(pad([member])).logits[0], logits[row])


@pytest.mark.parametrize("form", ["four heads", "a masked convolution before"])
def test_products_of_two_threads_have_the_same_bits(form: str):
    model, manifest = graph("LSTM", form)
    session = Session(model.SerializeToString(), manifest)
    batch = pad(sequences(*[400] * 8, 3, 250))
    expected = session.run(batch).logits
    with lent_and_taken_back():
        for _ in range(20):
            np.testing.assert_array_equal(session.run(batch).logits, expected)


def test_a_row_without_steps_and_no_rows_at_all_are_answered():
    for form in FORMS:
        model, manifest = graph("LSTM", form)
        session = Session(model.SerializeToString(), manifest)
        steps = np.zeros((2, 8, FEATURES), np.float32)
        if "mean" not in form:  # 0 / 0
            assert np.isfinite(session.run(PaddedBatch(steps, np.array([3, 0], np.int32))).logits).all()
        assert session.run(PaddedBatch(steps[:0], np.zeros(0, np.int32))).logits.shape == (0, CLASSES)


OPERATORS = {
    "Pack": "Pack <axes = 'rsf'> (three, lengths)",
    "Unpack": "Unpack <axes = 'rsf'> (x, lengths, three)",
    "Spread": "Spread (x, lengths, rows)",
    "Dense": "Dense (x, lengths, w)",
    "a window": "Dense <taps = 2, left = 1> (x, lengths, w2)",
    "Dots": "Dots (x, lengths, rows)",
    "StepSoftmax": "StepSoftmax (x, lengths)",
    "StepSum": "StepSum (x, lengths)",
    "StepMax": "StepMax (x, lengths)",
    "OuterSum": "OuterSum (x, lengths, x)",
    "LSTM": "LSTM <hidden_size = 1, packed = 1> (x, W, R, , lengths)",
}


HOSTILE = [
    (operator, lengths)
    for operator in OPERATORS
    for lengths in ([17, 0], [9, 8], [-1, 3], [2**31 - 1, 2**31 - 1], [-(2**31), 16])
    if (operator, lengths) != ("Pack", [9, 8])  # each is within its row
]


@pytest.mark.parametrize(("operator", "lengths"), HOSTILE)
def test_lengths_beyond_the_steps_are_an_error(operator: str, lengths: list[int]):
    session = session_of(operator)
    feed = {
        "x": np.ones((16, 2), np.float32),
        "three": np.ones((2, 16, 2), np.float32),
        "rows": np.ones((2, 2), np.float32),
    }
    with pytest.raises(Exception, match="a length is not between"):
        run(session, feed | {"lengths": np.array(lengths, np.int32)})
    assert run(session, feed | {"lengths": np.array([9, 7], np.int32)})


@pytest.mark.parametrize("operator", OPERATORS)
def test_shapes_that_do_not_fit_are_an_error(operator: str):
    session = session_of(operator)
    good = {
        "x": np.ones((16, 2), np.float32),
        "three": np.ones((2, 16, 2), np.float32),
        "rows": np.ones((2, 2), np.float32),
    }
    bad = {
        "x": np.ones((16, 3, 2), np.float32),
        "three": np.ones((2,), np.float32),
        "rows": np.ones((1, 2), np.float32),
    }
    read = {node.name for node in session.get_inputs()} - {"lengths"}
    for name in read:
        with pytest.raises(Exception, match="do not fit"):
            run(session, {**good, name: bad[name], "lengths": np.array([9, 7], np.int32)})


def session_of(operator: str) -> Any:
    """A session of one operator on packed steps."""
    text = OPERATORS[operator].replace("'", '"')
    read = [name for name in ("x", "three", "rows") if name in text.split("(")[1]]
    node = onnx.parser.parse_node(f"y = {fusion.DOMAIN}.{text}")
    types = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in read]
    lengths = onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, None)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    weights = Weights(0).named("w 2x3, w2 4x3, W 1x4x2, R 1x4x1")
    tensors = [onnx.numpy_helper.from_array(weights[name], name) for name in weights if name in node.input]
    made = onnx.helper.make_graph([node], "g", [*types, lengths], [output], tensors)
    opsets = [onnx.helper.make_opsetid(name, version) for name, version in (("", 17), (fusion.DOMAIN, 1))]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    recurrent_kernels.register(options)
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: Any, feed: dict[str, Any]) -> list[Any]:
    """The outputs of a session, which gets those of the values that it reads."""
    results: list[Any] = session.run(None, {node.name: feed[node.name] for node in session.get_inputs()})
    return results

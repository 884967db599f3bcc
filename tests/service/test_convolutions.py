"""Convolutions in the kernels in C beside onnxruntime's: the same answers, and the same bits in every batch."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from lengthwise.padding import Steps, pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest, StepInput
from lengthwise.runtime.onnx import convolutions
from lengthwise.runtime.provider import PLAIN_CPU
from lengthwise.runtime.recurrent_kernels import ONNXRUNTIME
from lengthwise.runtime.session import Session

SETS: Final = recurrent_kernels.CONVOLUTION_SETS
pytestmark = pytest.mark.skipif(not SETS, reason="the kernels were not built, or do not run on this processor")
FEATURES: Final = 3
LENGTHS: Final = (1, 2, 3, 7, 8, 9, 16, 17, 40, 100)

# How each begins: the steps with features first, and a mask of valid steps, `[rows, 1, width]`.
MASK: Final = """
    steps = Transpose <perm: ints = [0, 2, 1]> (values)
    sizes = Cast <to: int = 7> (lengths)
    last = Shape <start: int = 1, end: int = 2> (values)
    width = Squeeze (last, first)
    places = Range (nothing, width, one)
    column = Unsqueeze (sizes, second)
    valid = Less (places, column)
    mask = Unsqueeze (valid, second)
"""
SUM: Final = """
    shown = Where (mask, h, zero)
    logits = ReduceSum <keepdims: int = 0> (shown, third)
"""

NETWORKS: Final = {
    "one convolution": ("h = Conv <pads: ints = [1, 1]> (steps, w5_3_3, b5)", SUM),
    "looks back only, dilated": ("h = Conv <pads: ints = [12, 0], dilations: ints = [4]> (steps, w20_3_4, b20)", SUM),
    "norm, rectifier, residual": (
        """
        a = Conv <pads: ints = [4, 4]> (steps, w40_3_9)
        b = BatchNormalization (a, s40, b40, m40, v40)
        c = Relu (b)
        masked = Where (mask, c, zero)
        d = Conv <pads: ints = [2, 2], dilations: ints = [2]> (masked, w40_40_3, b40)
        e = Conv (steps, w40_3_1, b40)
        f = Add (d, e)
        h = Relu (f)
        """,
        SUM,
    ),
    "side by side, with a maximum": (
        """
        a = Conv (steps, w32_3_1)
        masked = Where (mask, a, zero)
        b = Conv <pads: ints = [9, 9]> (masked, w16_32_19)
        wide = Unsqueeze (masked, third)
        c4 = Conv <pads: ints = [0, 2, 0, 2]> (wide, w80_32_1_5, b80)
        c = Squeeze (c4, third)
        low = Where (mask, a, lowest)
        low4 = Unsqueeze (low, third)
        most4 = MaxPool <kernel_shape: ints = [1, 3], pads: ints = [0, 1, 0, 1]> (low4)
        most = Squeeze (most4, third)
        h = Concat <axis: int = 1> (b, c, most)
        """,
        SUM,
    ),
    "the largest of each": (
        "h = Conv <pads: ints = [1, 1]> (steps, w70_3_3, b70)",
        """
        shown = Where (mask, h, lowest)
        logits = ReduceMax <axes: ints = [2], keepdims: int = 0> (shown)
        """,
    ),
    "padding in the place of valid": (
        "h = Conv <pads: ints = [1, 1]> (steps, w5_3_3, b5)",
        """
        padded = Not (mask)
        shown = Where (padded, zero, h)
        logits = ReduceSum <keepdims: int = 0> (shown, third)
        """,
    ),
}
KEPT: Final = {  # as onnxruntime has them
    "no mask before the second": (
        "a = Conv <pads: ints = [1, 1]> (steps, w5_3_3, b5)\nh = Conv <pads: ints = [1, 1]> (a, w5_5_3)",
        SUM,
    ),
    "masked with something else": (
        "a = Conv (steps, w5_3_1)\nb = Where (mask, a, one_float)\nh = Conv <pads: ints = [1, 1]> (b, w5_5_3)",
        SUM,
    ),
    "the sum of all steps": (
        "h = Conv <pads: ints = [1, 1]> (steps, w5_3_3)",
        "logits = ReduceSum <keepdims: int = 0> (h, third)",
    ),
    "fewer steps": ("h = Conv <pads: ints = [1, 1], strides: ints = [2]> (steps, w5_3_3)", SUM),
    "another operator": ("a = Conv <pads: ints = [1, 1]> (steps, w5_3_3)\nh = Sigmoid (a)", SUM),
    "a mask by the values": (
        "h = Conv (steps, w5_3_1)\nmine = Greater (h, zero)",
        "shown = Where (mine, h, zero)\nlogits = ReduceSum <keepdims: int = 0> (shown, third)",
    ),
    "two poolings": (
        "h = Conv <pads: ints = [1, 1]> (steps, w5_3_3)",
        """
        shown = Where (mask, h, zero)
        sums = ReduceSum <keepdims: int = 0> (shown, third)
        low = Where (mask, h, lowest)
        most = ReduceMax <axes: ints = [2], keepdims: int = 0> (low)
        logits = Add (sums, most)
        """,
    ),
    "the sum, and a mean outside": (
        "h = Conv <pads: ints = [1, 1]> (steps, w5_3_3)",
        SUM.replace("logits", "sums")
        + "mean = ReduceMean <axes: ints = [2], keepdims: int = 0> (h)\nlogits = Add (sums, mean)",
    ),
    "a product with what depends on the values": (
        "h = Conv (steps, w5_3_1)",
        """
        largest = ReduceMax <axes: ints = [2], keepdims: int = 0> (values)
        small = Less (largest, ten)
        shares = Cast <to: int = 1> (small)
        row = Unsqueeze (shares, second)
        shown = Where (mask, h, zero)
        turned = Transpose <perm: ints = [0, 2, 1]> (shown)
        product = MatMul (row, turned)
        logits = Gather <axis: int = 1> (product, nothing)
        """,
    ),
}


def network(body: str, pooling: str, mask: str = MASK) -> tuple[bytes, Manifest]:
    """A model with random weights; `w5_3_9` in its text are weights `[5, 3, 9]`, `b5` biases, `v5` variances."""
    text = f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[rows, width, {FEATURES}] values, int32[rows] lengths) => (float[rows, classes] logits)
        {{ {mask} {body} {pooling} }}
    """
    model, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    fixed: dict[str, Any] = {"first": [0], "second": [1], "third": [2], "nothing": np.int64(0), "one": np.int64(1)}
    fixed |= {"zero": np.float32(0), "lowest": np.float32(-np.inf), "one_float": np.float32(1)}
    fixed |= {"hundred": np.int64(100), "ten": np.float32(10)}
    for name in sorted({name for node in model.graph.node for name in node.input}):
        if name in fixed:
            numbers = np.asarray(fixed[name])
        elif name[0] in "wbsmv" and name[1:].replace("_", "").isdigit():
            numbers = random.standard_normal([int(size) for size in name[1:].split("_")]).astype(np.float32)
            numbers = np.abs(numbers) + np.float32(0.1) if name[0] == "v" else numbers
        else:
            continue
        model.graph.initializer.append(numpy_helper.from_array(numbers, name))
    classes = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[1].dim_value
    labels = tuple(f"c{place}" for place in range(max(classes, 2)))
    features = StepInput(features=FEATURES)
    return model.SerializeToString(), Manifest(name="m", version=1, input=features, labels=labels, max_length=128)


def drawn(lengths: tuple[int, ...] = LENGTHS) -> list[Steps]:
    random = np.random.default_rng(1)
    return [random.standard_normal((length, FEATURES)).astype(np.float32) for length in lengths]


@pytest.fixture(params=["avx512", "avx2", "neon"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in SETS:
        pytest.skip(f"this processor has no {request.param}")
    recurrent_kernels.choose(request.param, "convolutions")
    yield request.param
    recurrent_kernels.choose(SETS[0], "convolutions")


@pytest.mark.parametrize("form", NETWORKS)
def test_answers_are_onnxruntimes_and_have_the_same_bits_in_every_batch(form: str, instructions: str):
    graph, manifest = network(*NETWORKS[form])
    own, plain = Session(graph, manifest), Session(graph, manifest, devices=(PLAIN_CPU,))
    assert (own.kernels, plain.kernels) == (f"convolutions {instructions}", ONNXRUNTIME)
    together = own.run(pad(drawn())).logits
    expected = plain.run(pad(drawn())).logits
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.array_equal(together, [own.run(pad([steps])).logits[0] for steps in drawn()])
    wide = pad(drawn(), width=128)
    wide.steps[np.arange(128) >= wide.lengths[:, None]] = np.nan  # what padding holds does not matter
    assert np.array_equal(together, own.run(wide).logits)


@pytest.mark.parametrize("form", KEPT)
def test_a_graph_that_does_something_else_is_left_as_it_is(form: str):
    graph, manifest = network(*KEPT[form])
    assert Session(graph, manifest).kernels == ONNXRUNTIME


def test_a_mask_that_is_not_of_the_valid_steps_is_seen_in_the_answers():
    graph, manifest = network(*NETWORKS["one convolution"], mask=MASK.replace("Less (", "LessOrEqual ("))
    convolutions.fused(graph, "values", "lengths", FEATURES)  # takes the graph, whose nodes have the right operators
    assert Session(graph, manifest).kernels == ONNXRUNTIME


def test_a_product_with_static_values_hides_no_wrong_mask():
    pooling = SUM.replace("logits", "sums") + "logits = Mul (sums, static)"
    for mask, kernels in ((MASK, "convolutions"), (MASK.replace("Less (", "LessOrEqual ("), ONNXRUNTIME)):
        graph, manifest = network(*NETWORKS["one convolution"][:1], pooling, mask)
        model = onnx.load_from_string(graph)
        model.graph.input.append(onnx.helper.make_tensor_value_info("static", onnx.TensorProto.FLOAT, ["rows", 1]))
        takes_static = StepInput(features=FEATURES, static={"count": 1})
        with_static = manifest.model_copy(update={"input": takes_static})
        assert Session(model.SerializeToString(), with_static).kernels.startswith(kernels)


def test_masks_are_tried_with_several_lengths_where_the_shortest_is_long():
    graph, manifest = network(*NETWORKS["one convolution"], mask=MASK.replace("Less (", "LessOrEqual ("))
    assert Session(graph, manifest.model_copy(update={"min_length": 100})).kernels == ONNXRUNTIME


def test_a_mask_that_ends_past_the_lengths_of_the_trial_is_left_as_it_is():
    ends = "early = Less (places, hundred)\nreal = Less (places, column)\nvalid = And (early, real)"
    graph, manifest = network(*NETWORKS["one convolution"], mask=MASK.replace("valid = Less (places, column)", ends))
    assert Session(graph, manifest).kernels == ONNXRUNTIME


def test_a_graph_too_deep_to_be_followed_is_left_as_it_is():
    many = "\n".join(f"r{place + 1} = Relu (r{place})" for place in range(1000))
    graph, manifest = network(f"r0 = Conv (steps, w5_3_1)\n{many}", SUM.replace(", h,", ", r1000,"))
    assert Session(graph, manifest).kernels == ONNXRUNTIME


@pytest.mark.parametrize("numbers", [float("nan"), float("inf"), 3e38])
def test_one_row_that_is_not_finite_changes_no_other(numbers: float):
    graph, manifest = network(*NETWORKS["side by side, with a maximum"])
    own = Session(graph, manifest)
    alone = own.run(pad(drawn())).logits
    odd = drawn()
    odd[4][2, 1] = numbers
    answers = own.run(pad(odd)).logits
    assert not np.isfinite(answers[4]).all()
    assert np.array_equal(np.delete(answers, 4, axis=0), np.delete(alone, 4, axis=0))


def test_values_share_memory_once_they_are_no_longer_needed():
    many = "\n".join(f"r{place + 1} = Relu (r{place})" for place in range(30))
    graph, _ = network(f"r0 = Conv (steps, w5_3_1)\n{many}", SUM.replace(", h,", ", r30,"))
    plan, _ = planned(graph)
    assert numpy_helper.to_array(plan)[1] == 2


def planned(graph: bytes) -> tuple[onnx.TensorProto, onnx.ModelProto]:
    """The plan of the operator in a graph with it, and this graph."""
    model = onnx.load_from_string(convolutions.fused(graph, "values", "lengths", FEATURES))
    (plan,) = (each for each in model.graph.initializer if each.name == "lengthwise.plan")
    return plan, model


def test_a_damaged_plan_is_refused_or_stays_within_its_memory():
    plan, model = planned(network(*NETWORKS["norm, rectifier, residual"])[0])
    numbers, steps, random = numpy_helper.to_array(plan).copy(), pad(drawn((5, 9))), np.random.default_rng(0)
    refusals = []
    for place in range(len(numbers)):
        for value in (-1, 1 << 30, int(random.integers(0, 400))):
            damaged = numbers.copy()
            damaged[place] = value
            plan.CopyFrom(numpy_helper.from_array(damaged, "lengthwise.plan"))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            recurrent_kernels.register(options, "convolutions")
            with suppress(Exception):  # onnxruntime's exceptions have no common base of their own
                session = onnxruntime.InferenceSession(model.SerializeToString(), options)
                session.run(None, {"values": steps.steps, "lengths": steps.lengths})
                continue
            refusals.append((place, value))
    assert {(0, -1), (1, -1), (5, -1), (len(numbers) - 1, 1 << 30)} <= {*refusals}

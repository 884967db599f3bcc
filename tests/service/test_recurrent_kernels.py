"""The recurrent kernels: no step that is nobody's, the same bits in any company, in floats onnxruntime's answers."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lengthwise.errors import ModelError
from lengthwise.padding import pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU, choose
from lengthwise.runtime.session import Session
from tests.gallery.onnx_models import model as onnx_model
from tests.support.integer_graphs import SETS, Array, Numbers, batch, float_graph, layer, opened
from tests.support.lent_cores import is_helped, lent_and_taken_back
from tests.support.pairs import differences

pytestmark = pytest.mark.skipif(not SETS["float32"], reason="no compiler at installation, or neither AVX2 nor AVX-512")

CLOSE = 5e-6
"""How far answers may lie from onnxruntime's: both round, each in its own order."""
FEW, MANY = 3, 40
"""Inputs whose weights stay floats at int8, and inputs whose weights are bytes."""
Kernels = tuple[Numbers, str]
KERNELS: list[Kernels] = [(numbers, each) for numbers in ("float32", "int8") for each in SETS[numbers]]
of_all = pytest.mark.parametrize("kernels", KERNELS, ids=" ".join)
of_both = pytest.mark.parametrize("kind", ["LSTM", "GRU"])
in_floats = pytest.mark.parametrize("instructions", SETS["float32"])


def ours(graph: ModelProto, kernels: Kernels) -> Any:
    """A session with some kernels."""
    return opened(graph, kernels[1], kernels[0])


def assert_same(one: Sequence[Array], other: Sequence[Array]) -> None:
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first.view(np.int32), second.view(np.int32))


def states(kind: str, directions: int, rows: int, hidden: int) -> dict[str, Array]:
    random = np.random.default_rng(9)
    names = ["h", "c"] if kind == "LSTM" else ["h"]
    return {name: random.normal(0, 0.5, (directions, rows, hidden)).astype(np.float32) for name in names}


@given(
    st.sampled_from(["LSTM", "GRU"]),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.sampled_from([1, 7, 8, 16, 17, 48]) | st.integers(1, 40),
    st.integers(1, 20),
    st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any),
    st.sampled_from(SETS["float32"] or ("none",)),
    st.booleans(),
    st.booleans(),
)
def test_any_layer_answers_as_onnxruntimes_own(
    kind: str,
    direction: str,
    hidden: int,
    inputs: int,
    lengths: list[int],
    instructions: str,
    biases: bool,
    initial: bool,
):
    graph = float_graph(kind, hidden=hidden, inputs=inputs, direction=direction, biases=biases, initial=initial)
    feed = batch(lengths, inputs)
    if initial:
        feed |= states(kind, 2 if direction == "bidirectional" else 1, len(lengths), hidden)
    found = ours(graph, ("float32", instructions)).run(None, feed)
    for one, other in zip(found, opened(graph).run(None, feed), strict=True):
        np.testing.assert_allclose(one, other, atol=CLOSE)


@given(
    st.sampled_from(["LSTM", "GRU"]),
    st.lists(st.integers(0, 25), min_size=1, max_size=70),
    st.sampled_from([4, 16, 37]),
    st.sampled_from([FEW, MANY]),
    st.randoms(use_true_random=False),
    st.sampled_from(KERNELS or [("float32", "none")]),
)
def test_a_row_has_the_same_bits_alone_and_in_any_company(
    kind: str, lengths: list[int], hidden: int, inputs: int, random: Any, kernels: Kernels
):
    session = ours(layer(kernels[0], kind, hidden=hidden, inputs=inputs, direction="bidirectional"), kernels)
    feed = batch(lengths, inputs, steps=26)
    order = list(range(len(lengths)))
    random.shuffle(order)
    together = session.run(None, feed)
    shuffled = session.run(None, {"x": feed["x"][:, order], "lengths": feed["lengths"][order]})
    for place, row in enumerate(order):
        alone = session.run(None, {"x": feed["x"][: lengths[row], [row]], "lengths": feed["lengths"][[row]]})
        for one, all_of, other in zip(alone, together, shuffled, strict=True):
            length = len(one) if one.ndim == 4 else None
            np.testing.assert_array_equal(one[..., 0, :], all_of[:length, ..., row, :])
            np.testing.assert_array_equal(one[..., 0, :], other[:length, ..., place, :])


@pytest.mark.sampled(4)
@of_both
@pytest.mark.parametrize("inputs", [FEW, MANY])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e38])
@of_all
def test_padding_is_not_read_and_its_outputs_are_zero(kernels: Kernels, kind: str, inputs: int, junk: float):
    session = ours(layer(kernels[0], kind, inputs=inputs, direction="bidirectional"), kernels)
    feed = batch([4, 1, 6, 0], inputs, steps=8)
    clean = session.run(None, feed)
    for row, length in enumerate(feed["lengths"]):
        feed["x"][length:, row] = junk
        assert not clean[0][length:, :, row].any()
        assert length or not any(each[:, row].any() for each in clean[1:])
    assert_same(clean, session.run(None, feed))


@pytest.mark.sampled(15)
@of_both
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("initial", [False, True], ids=["no initial state", "initial state"])
@pytest.mark.parametrize("computed", [False, True], ids=["given", "computed"])
@pytest.mark.parametrize(("rows", "steps"), [(3, 0), (0, 5), (0, 0)])
@of_all
def test_of_no_rows_or_no_steps_the_outputs_are_empty_or_zero(
    kernels: Kernels, kind: str, direction: str, initial: bool, computed: bool, rows: int, steps: int
):
    form = {"initial": True} if initial and kernels[0] == "float32" else {}
    graph = layer(kernels[0], kind, direction=direction, **form)
    directions = 2 if direction == "bidirectional" else 1
    feed = {"x": np.zeros((steps, rows, FEW), np.float32), "lengths": np.zeros(rows, np.int32)}
    if form:
        feed |= states(kind, directions, rows, 5)
    if computed:  # a tensor without elements that a node makes has no data, and one that is given has
        feed |= {"kept": np.ones(rows, np.bool_)}
        graph.graph.input.append(helper.make_tensor_value_info("kept", TensorProto.BOOL, ["rows"]))
        node = graph.graph.node.pop()
        for place, name in enumerate(node.input):
            if name in ("x", "lengths", "h", "c"):
                axis = 0 if name == "lengths" else 1
                graph.graph.node.append(helper.make_node("Compress", [name, "kept"], [f"{name}_kept"], axis=axis))
                node.input[place] = f"{name}_kept"
        graph.graph.node.append(node)
    found = ours(graph, kernels).run(None, feed)
    assert [each.shape for each in found] == [(steps, directions, rows, 5), *[(directions, rows, 5)] * (len(found) - 1)]
    assert not any(each.any() for each in found)
    if rows and kernels[0] == "float32":  # of no rows, onnxruntime's own kernels end the process
        assert_same(found, opened(graph).run(None, feed))


@of_both
@pytest.mark.parametrize("wanted", ["y", "last_h", "last_c"])
@of_all
def test_a_node_may_leave_out_lengths_and_outputs(kernels: Kernels, kind: str, wanted: str):
    graph, feed = layer(kernels[0], kind, direction="bidirectional"), batch([6, 6])
    names = [output.name for output in graph.graph.output]
    if wanted not in names:
        return
    expected = dict(zip(names, ours(graph, kernels).run(None, feed), strict=True))
    node = graph.graph.node[-1]
    node.input[4] = ""
    node.output[:] = [name if name == wanted else "" for name in node.output]
    kept = [output for output in graph.graph.output if output.name == wanted]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    (found,) = ours(graph, kernels).run(None, feed)
    np.testing.assert_array_equal(found, expected[wanted])


@pytest.mark.parametrize("wanted", ["y", "last_h", "last_c"])
@of_all
def test_an_output_that_cannot_be_made_is_an_error(kernels: Kernels, wanted: str):
    session, feed = ours(layer(kernels[0]), kernels), batch([3, 3])
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_cpu_input(name, value)
    for name in {"y", "last_h", "last_c"} - {wanted}:
        binding.bind_output(name)
    of_one_row = np.zeros((3, 1, 1, 5) if wanted == "y" else (1, 1, 5), np.float32)
    binding.bind_ortvalue_output(wanted, onnxruntime.OrtValue.ortvalue_from_numpy(of_one_row))
    with pytest.raises(Exception, match="has shape"):
        session.run_with_iobinding(binding)


@pytest.mark.parametrize("lengths", [[3, 5], [3, -1], [3, 3, 3]])
@of_all
def test_a_length_that_cannot_be_is_an_error(kernels: Kernels, lengths: list[int]):
    feed = batch([3, 3]) | {"lengths": np.array(lengths, np.int32)}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        ours(layer(kernels[0]), kernels).run(None, feed)


@pytest.mark.sampled(4)
@of_both
@pytest.mark.parametrize("inputs", [FEW, MANY])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@of_all
def test_what_is_no_number_stays_in_its_row_and_is_never_a_number_after_it(
    kernels: Kernels, kind: str, inputs: int, value: float
):
    session = ours(layer(kernels[0], kind, hidden=20, inputs=inputs), kernels)
    # With one lane for each row, and with lanes that are handed on
    for lengths in ([4, 4, 4], [4, 4] * 40):
        feed = batch(lengths, inputs)
        clean = session.run(["y"], feed)[0]
        feed["x"][1, 1, 0] = value
        found = session.run(["y"], feed)[0]
        if np.isnan(value) or (inputs == MANY and kernels[0] == "int8"):
            assert np.isnan(found[1:, :, 1]).all()
        others = [row for row in range(len(lengths)) if row != 1]
        np.testing.assert_array_equal(found[:, :, others], clean[:, :, others])
        np.testing.assert_array_equal(found[0], clean[0])


@of_all
def test_tanh_and_sigmoid_are_those_of_double_precision(kernels: Kernels):
    """A GRU of one unit without a state: (1 - sigmoid(x)) tanh(x), where all weights of inputs are 1."""
    is_float = kernels[0] == "float32"
    more = [0.0, 1e-30, 1e-6, 88.0, 1e4, *([np.inf, -np.inf] if is_float else [])]
    x = np.concatenate([np.linspace(-30, 30, 4001), more]).astype(np.float32)
    ones = {"w": np.ones((1, 3, 1), np.float32), "r": np.ones((1, 3, 1), np.float32)}
    session = ours(layer(kernels[0], "GRU", hidden=1, inputs=1, biases=False, weights=ones), kernels)
    found = session.run(["last_h"], {"x": x[None, :, None], "lengths": np.ones(len(x), np.int32)})[0][0, :, 0]
    wide = np.clip(x.astype(np.float64), -700, 700)
    expected = np.tanh(wide) / (1 + np.exp(wide))
    np.testing.assert_allclose(found, expected, atol=3e-7 if is_float else 6e-6)
    small = np.abs(x) < 1e-3
    np.testing.assert_allclose(found[small], expected[small], rtol=1e-6 if is_float else 1e-5)


@pytest.mark.sampled(9)
@of_all
def test_several_threads_run_one_session(kernels: Kernels):
    session = ours(layer(kernels[0], hidden=40, inputs=MANY, direction="bidirectional"), kernels)
    feeds = [batch([1 + (seed * 7 + row) % 30 for row in range(1 + seed % 9)], MANY, seed=seed) for seed in range(40)]
    one_by_one = [session.run(None, feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(one_by_one, pool.map(lambda feed: session.run(None, feed), feeds), strict=True):
            assert_same(expected, found)


@pytest.fixture
def lending() -> Iterator[None]:
    """No core stays lent after the test."""
    yield
    recurrent_kernels.lend_cores(0)


@pytest.mark.sampled(15)
@of_both
@of_all
@pytest.mark.usefixtures("lending")
def test_two_directions_at_once_give_the_same_bits(kernels: Kernels, kind: str):
    session = ours(layer(kernels[0], kind, hidden=64, direction="bidirectional"), kernels)
    feeds = [batch([1 + (seed * 17 + row) % 60 for row in range(1 + seed)], seed=seed) for seed in range(0, 12, 3)]
    one_by_one = [session.run(None, feed) for feed in feeds]
    for lent in (-5, 1, 2, 10**6):
        recurrent_kernels.lend_cores(lent)
        for expected, feed in zip(one_by_one * 4, feeds * 4, strict=True):
            assert_same(expected, session.run(None, feed))


@pytest.mark.long
@pytest.mark.sampled(9)
@of_all
@pytest.mark.usefixtures("lending")
def test_a_core_that_is_taken_back_at_any_step_changes_no_bit(kernels: Kernels):
    session = ours(layer(kernels[0], hidden=64, inputs=MANY, direction="bidirectional"), kernels)
    feed = batch([60, 9, 33, 41, 60, 1] * 8, MANY)
    expected = session.run(None, feed)
    times = {"portable": 10, "amx_emulated": 3}.get(kernels[1], 60)
    with lent_and_taken_back(), ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: session.run(None, feed), range(times)):
            assert_same(expected, found)


@pytest.mark.parametrize("numbers", ["float32", "int8"])
@pytest.mark.usefixtures("lending")
def test_what_helpers_do_counts_as_time_of_the_thread_that_they_help(numbers: Numbers):
    session = ours(layer(numbers, hidden=128, inputs=MANY, direction="bidirectional"), (numbers, SETS[numbers][0]))
    feed = batch([60] * 6, MANY)
    assert is_helped(lambda: session.run(None, feed))


# Floats


@in_floats
@of_both
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_gates_that_are_shut_wide_open_or_hardly_moved_are_as_onnxruntimes(instructions: str, kind: str, scale: float):
    graph, feed = float_graph(kind, scale=scale, hidden=24, biases=False), batch([12, 4, 9])
    found, theirs = (session.run(["y"], feed)[0] for session in (ours(graph, ("float32", instructions)), opened(graph)))
    assert np.abs(found).max() <= 1 + 1e-6
    # Of large weights a rounding may tip a gate the other way in the next step; the first has no such past.
    steps = slice(1) if scale > 1 else slice(None)
    np.testing.assert_allclose(found[steps], theirs[steps], atol=CLOSE)


@in_floats
def test_a_shut_gate_forgets_whatever_was_kept(instructions: str):
    weights = {"w": np.zeros((1, 4, 1)), "r": np.zeros((1, 4, 1)), "b": np.array([[-100, 100, -100, 0, 0, 0, 0, 0]])}
    as_floats = {key: array.astype(np.float32) for key, array in weights.items()}
    cell = ours(float_graph(hidden=1, inputs=1, initial=True, weights=as_floats), ("float32", instructions))
    nothing = np.zeros((1, 1, 1), np.float32)
    for kept in (1e6, 1e33):
        feed = {"x": nothing, "lengths": np.ones(1, np.int32), "h": nothing, "c": nothing + np.float32(kept)}
        assert cell.run(["last_c"], feed)[0].item() == 0


@pytest.mark.sampled(3)
@in_floats
@of_both
@pytest.mark.parametrize("hidden", [1, 7, 129, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("lengths", [[], [5], [1, 0, 5] * 21 + [30, 0]], ids=["0", "1", "65"])
def test_odd_sizes_answer_as_onnxruntimes_own(instructions: str, kind: str, hidden: int, lengths: list[int]):
    graph = float_graph(kind, hidden=hidden, direction="bidirectional", biases=hidden < 1000)
    feed = batch(lengths, steps=33)
    clean = feed["x"].copy()
    for row, length in enumerate(lengths):
        feed["x"][length:, row] = np.nan
    found = ours(graph, ("float32", instructions)).run(None, feed)
    assert found[0].shape == (33, 2, len(lengths), hidden)
    if lengths:  # of no rows, onnxruntime's own kernels end the process
        for one, other in zip(found, opened(graph).run(None, feed | {"x": clean}), strict=True):
            np.testing.assert_allclose(one, other, atol=CLOSE)


def with_peepholes(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 15), np.float32), "p"))
    graph.node[0].input.extend(["", "", "p"])


def with_computed_weights(graph: onnx.GraphProto) -> None:
    graph.node[0].input[2] = "computed"
    graph.node.insert(0, helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=0))
    graph.node.insert(1, helper.make_node("Cast", ["longest"], ["factor"], to=TensorProto.FLOAT))
    graph.node.insert(2, helper.make_node("Mul", ["r", "factor"], ["computed"]))


@pytest.mark.parametrize(
    ("kind", "attributes", "edit"),
    [
        ("LSTM", {}, with_peepholes),
        ("LSTM", {}, with_computed_weights),
        ("LSTM", {"input_forget": 1}, lambda _: None),
        ("GRU", {"linear_before_reset": 0}, lambda _: None),
        ("LSTM", {"layout": 1}, lambda _: None),  # onnxruntime refuses it, too
    ],
    ids=["peepholes", "computed weights", "input_forget", "reset before", "layout"],
)
def test_a_form_that_they_do_not_know_is_refused_when_the_session_is_opened(
    kind: str, attributes: Mapping[str, Any], edit: Callable[[onnx.GraphProto], None]
):
    graph = float_graph(kind, attributes=attributes)
    edit(graph.graph)
    assert "layout" in attributes or opened(graph).run(None, batch([3, 2]))
    with pytest.raises(Exception, match=r"not the plain form|not constant|layout"):
        ours(graph, ("float32", SETS["float32"][0]))


# Sessions

WANTS = Manifest.model_validate({"name": "m", "version": 1, "input": {"features": 3}, "labels": ["a", "b"]})
STEPS = pad([np.ones((3, 3), np.float32), np.ones((5, 3), np.float32)])
LAYER = "x = Transpose <perm = [1, 0, 2]> (values)\n y, h = LSTM <hidden_size = 2> (x, W, R, , lengths)\n"
STATE = "logits = Squeeze (h, first)"


def graph(body: str = LAYER + STATE, gates: int = 4) -> bytes:
    """A graph as a model directory has it, with one layer whose last state is the logits."""
    weights = {
        "W": np.full((1, gates * 2, 3), 0.3, np.float32),
        "R": np.full((1, gates * 2, 2), 0.2, np.float32),
        "first": np.array([0]),
        "nothing": np.array(0, np.float32),
    }
    signature = "g (float[rows, width, 3] values, int32[rows] lengths) => (float[rows, 2] logits)"
    return onnx_model(signature, body, weights, producer="test", opset=18).SerializeToString()


NO_LAYER = """time = Constant <value_ints = [1]> ()
t = ReduceMax <keepdims = 0> (values, time)
ends = Constant <value_ints = [2]> ()
logits = Slice (t, first, ends, time)"""
# The body of a Scan wants the shapes of its outputs inferred.
IN_A_SCAN = """x = Transpose <perm = [1, 0, 2]> (values)
all = Scan <num_scan_inputs = 1, body = turn (float[rows, 3] step) => (each) {
    one = Unsqueeze (step, first)
    y, h = LSTM <hidden_size = 2> (one, W, R)
    each = Squeeze (h, first)
}> (x)
logits = ReduceSum <keepdims = 0> (all, first)"""


@pytest.mark.parametrize(
    "body",
    [
        LAYER.replace("hidden_size = 2", "hidden_size = 2, clip = 0.01") + STATE,
        LAYER.replace("hidden_size = 2", 'hidden_size = 2, activations = ["Sigmoid", "Tanh", "Relu"]') + STATE,
        IN_A_SCAN,
    ],
    ids=["clip", "activations", "in a scan"],
)
def test_a_graph_for_onnxruntimes_kernels_only_is_run_there(body: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        session = Session(graph(body), WANTS)
    assert session.kernels == recurrent_kernels.ONNXRUNTIME
    assert "onnxruntime's own kernels run its recurrent layers" in caplog.text
    expected = Session(graph(body), WANTS, devices=(PLAIN_CPU,)).run(STEPS).logits
    np.testing.assert_array_equal(session.run(STEPS).logits, expected)


def of_another_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 999


def with_an_unknown_attribute(model: ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("foo", 1))


def without_nodes(model: ModelProto) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize("change", [of_another_opset, with_an_unknown_attribute, without_nodes])
def test_what_onnxruntime_refuses_stays_refused_and_no_kernels_are_tried(
    change: Callable[[ModelProto], None], caplog: pytest.LogCaptureFixture
):
    made = onnx.load_from_string(graph())
    change(made)
    with caplog.at_level(logging.INFO), pytest.raises(ModelError):
        Session(made.SerializeToString(), WANTS)
    assert "kernels" not in caplog.text


HANDLES = WANTS.model_copy(update={"missing": "handled"})
SEEN = "missing = IsNaN (values)\n present = Where (missing, nothing, values)\n"
REPLACED = SEEN + LAYER.replace("(values)", "(present)") + STATE


@pytest.mark.parametrize(
    ("body", "is_replaced"), [(REPLACED, True), (SEEN + LAYER + STATE, False), (LAYER + STATE, False)]
)
def test_a_graph_that_handles_nan_gets_them_if_nan_never_reaches_its_layers(
    body: str, is_replaced: bool, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        session = Session(graph(body), HANDLES)
    assert session.kernels == (recurrent_kernels.INSTRUCTION_SETS[0] if is_replaced else recurrent_kernels.ONNXRUNTIME)
    assert ("NaN may reach them" in caplog.text) is not is_replaced


@pytest.mark.parametrize(("second", "is_replaced"), [(REPLACED, True), (LAYER + STATE, False)])
def test_nan_is_tried_in_each_of_two_sequences(second: str, is_replaced: bool):
    model = differences(*map(onnx.load_from_string, (graph(REPLACED), graph(second))))
    several = [{"name": name, "features": 3} for name in ("a", "b_values")]
    table = HANDLES.model_dump() | {"graph": {"logits": "differences"}, "input": {"features": 3, "sequences": several}}
    session = Session(model.SerializeToString(), Manifest.model_validate(table))
    assert (session.kernels != recurrent_kernels.ONNXRUNTIME) is is_replaced


@pytest.mark.parametrize("features", [1, 3])
def test_with_nan_the_answers_are_those_of_onnxruntimes(features: int):
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (9, 3)).astype(np.float32)
    values[random.random((9, 3)) < features / 4] = np.nan
    batch_of_nan = pad([values, values[:4], np.full((5, 3), np.nan, np.float32)])
    found = Session(graph(REPLACED), HANDLES).run(batch_of_nan).logits
    theirs = Session(graph(REPLACED), HANDLES, devices=(PLAIN_CPU,)).run(batch_of_nan).logits
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, theirs, atol=CLOSE)


def test_they_can_be_turned_off_or_be_absent_and_sessions_and_log_say_so(monkeypatch: pytest.MonkeyPatch):
    assert choose("cpu", recurrent_kernels=True).devices == (CPU_DEVICE,)
    assert choose("cpu", recurrent_kernels=False).devices == (PLAIN_CPU,)
    assert CPU_DEVICE.label == PLAIN_CPU.label
    best = recurrent_kernels.INSTRUCTION_SETS[0]
    gru = graph(LAYER.replace("LSTM <", "GRU <linear_before_reset = 1, ") + STATE, gates=3)
    assert Session(gru, WANTS).kernels == best
    assert Session(gru, WANTS, devices=(PLAIN_CPU,)).kernels == recurrent_kernels.ONNXRUNTIME
    assert Session(graph(NO_LAYER), WANTS).kernels == recurrent_kernels.ONNXRUNTIME
    assert recurrent_kernels.described(option=True) == f"valid steps only, with {best}"
    assert recurrent_kernels.described(option=False) == "in onnxruntime's own kernels, as was asked for"
    monkeypatch.setattr(recurrent_kernels, "INSTRUCTION_SETS", ())
    assert Session(gru, WANTS).kernels == recurrent_kernels.ONNXRUNTIME
    assert "none of AVX-512, AVX2 and NEON" in recurrent_kernels.described(option=True)
    monkeypatch.setattr(recurrent_kernels, "COMPILED", False)
    assert "was not built" in recurrent_kernels.described(option=True)


@pytest.mark.parametrize("numbers", ["float32", "int8", "shares", "float64"])
def test_an_instruction_set_that_is_not_here_is_refused(numbers: Any):
    with pytest.raises(ValueError, match="no"):
        recurrent_kernels.choose("avx1024", numbers)

"""The recurrent kernels: onnxruntime's answers, no step that is nobody's, and the same bits in any company."""

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
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lengthwise.errors import ModelError
from lengthwise.padding import pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU, choose
from lengthwise.runtime.session import Session
from lengthwise.settings import bundled_models
from tests.support import proc
from tests.support.lent_cores import is_helped, lent_and_taken_back

pytestmark = pytest.mark.skipif(
    not recurrent_kernels.INSTRUCTION_SETS, reason="no compiler at installation, or neither AVX2 nor AVX-512"
)

Array = NDArray[np.float32]
GATES = {"LSTM": 4, "GRU": 3}
CLOSE = 5e-6
"""How far answers may lie from onnxruntime's: both round, each in its own order."""


@pytest.fixture(autouse=True)
def best() -> Iterator[None]:
    """Whatever a test chose, the next has the best instruction set."""
    yield
    recurrent_kernels.choose(recurrent_kernels.INSTRUCTION_SETS[0])


@pytest.fixture(params=recurrent_kernels.INSTRUCTION_SETS or ["none"])
def instructions(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this processor has."""
    recurrent_kernels.choose(request.param)
    return str(request.param)


def graph(
    kind: str = "LSTM",
    *,
    inputs: int = 3,
    hidden: int = 5,
    direction: str = "forward",
    biases: bool = True,
    initial: bool = False,
    scale: float = 1.0,
    peepholes: bool = False,
    computed: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> bytes:
    """One recurrent layer: `x [steps, rows, inputs]` and `lengths [rows]` to all of its outputs."""
    random = np.random.default_rng(hidden * 31 + inputs)
    directions, gates = 2 if direction == "bidirectional" else 1, GATES[kind]

    def weights(name: str, *shape: int) -> TensorProto:
        values = random.normal(0, scale / max(1, shape[-1]) ** 0.5, (directions, *shape))
        return numpy_helper.from_array(values.astype(np.float32), name)

    made = [weights("w", gates * hidden, inputs), weights("r", gates * hidden, hidden)]
    names = ["x", "w", "r", "", "lengths", "", "", ""]
    given_inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "rows", inputs]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
    ]
    if biases:
        made.append(weights("b", 2 * gates * hidden))
        names[3] = "b"
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    if initial:
        names[5 : 5 + len(states)] = states
        given_inputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [directions, "rows", hidden]) for name in states
        ]
    if peepholes:
        made.append(weights("p", 3 * hidden))
        names[7] = "p"
    nodes = []
    if computed:
        nodes.append(helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=0))
        nodes.append(helper.make_node("Cast", ["longest"], ["factor"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["r", "factor"], ["r_computed"]))
        names[2] = "r_computed"
    outputs = ["y", *(f"last_{name}" for name in states)]
    own = {"hidden_size": hidden, "direction": direction} | ({"linear_before_reset": 1} if kind == "GRU" else {})
    while not names[-1]:
        names.pop()
    nodes.append(helper.make_node(kind, names, outputs, **(own | dict(attributes or {}))))
    shapes = [["steps", directions, "rows", hidden], *[[directions, "rows", hidden]] * len(states)]
    given_outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(outputs, shapes, strict=True)
    ]
    whole = helper.make_graph(nodes, "layer", given_inputs, given_outputs, made)
    opset = [helper.make_opsetid("", 18)]
    serialized: bytes = helper.make_model(whole, opset_imports=opset, ir_version=9).SerializeToString()
    return serialized


def opened(layer: bytes, *, kernels: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if kernels:
        recurrent_kernels.register(options)
    return onnxruntime.InferenceSession(layer, options, providers=["CPUExecutionProvider"])


def batch(lengths: Sequence[int], inputs: int = 3, *, steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (steps or max(lengths), len(lengths), inputs)).astype(np.float32)
    return {"x": x, "lengths": np.array(lengths, np.int32)}


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
    st.sampled_from(recurrent_kernels.INSTRUCTION_SETS or ("none",)),
    st.booleans(),
    st.booleans(),
)
def test_any_layer_answers_as_onnxruntimes_own(
    kind: str,
    direction: str,
    hidden: int,
    inputs: int,
    lengths: list[int],
    instruction_set: str,
    biases: bool,
    initial: bool,
):
    recurrent_kernels.choose(instruction_set)
    layer = graph(kind, hidden=hidden, inputs=inputs, direction=direction, biases=biases, initial=initial)
    feed = batch(lengths, inputs)
    if initial:
        feed |= states(kind, 2 if direction == "bidirectional" else 1, len(lengths), hidden)
    for ours, theirs in zip(opened(layer).run(None, feed), opened(layer, kernels=False).run(None, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=CLOSE)


@given(
    st.sampled_from(["LSTM", "GRU"]),
    st.lists(st.integers(1, 25), min_size=1, max_size=30),
    st.sampled_from([4, 16, 37]),
    st.randoms(use_true_random=False),
    st.sampled_from(recurrent_kernels.INSTRUCTION_SETS or ("none",)),
)
def test_a_row_has_the_same_bits_alone_and_in_any_company(
    kind: str, lengths: list[int], hidden: int, random: Any, instruction_set: str
):
    recurrent_kernels.choose(instruction_set)
    session = opened(graph(kind, hidden=hidden, direction="bidirectional"))
    feed = batch(lengths)
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


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e38])
@pytest.mark.usefixtures("instructions")
def test_padding_is_not_read_and_its_outputs_are_zero(kind: str, junk: float):
    session = opened(graph(kind, direction="bidirectional"))
    feed = batch([4, 1, 6], steps=8)
    clean = session.run(None, feed)
    for row, length in enumerate(feed["lengths"]):
        feed["x"][length:, row] = junk
        assert not clean[0][length:, :, row].any()
    for before, after in zip(clean, session.run(None, feed), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.usefixtures("instructions")
def test_a_row_without_a_step_is_zero_and_disturbs_nobody(kind: str):
    session = opened(graph(kind, direction="bidirectional"))
    feed = batch([3, 0, 2])
    y, *last = session.run(None, feed)
    assert not y[:, :, 1].any()
    assert not any(each[:, 1].any() for each in last)
    others = session.run(None, {"x": feed["x"][:, [0, 2]], "lengths": feed["lengths"][[0, 2]]})
    np.testing.assert_array_equal(others[0], y[:, :, [0, 2]])


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("initial", [False, True], ids=["no initial state", "initial state"])
@pytest.mark.parametrize("computed", [False, True], ids=["given", "computed"])
@pytest.mark.parametrize(("rows", "steps"), [(3, 0), (0, 5), (0, 0)])
@pytest.mark.usefixtures("instructions")
def test_of_no_rows_or_no_steps_the_outputs_are_empty_or_zero(
    kind: str, direction: str, initial: bool, computed: bool, rows: int, steps: int
):
    model = onnx.load_from_string(graph(kind, direction=direction, initial=initial))
    directions = 2 if direction == "bidirectional" else 1
    feed = {"x": np.zeros((steps, rows, 3), np.float32), "lengths": np.zeros(rows, np.int32)}
    if initial:
        feed |= states(kind, directions, rows, 5)
    if computed:  # a tensor without elements that a node makes has no data, and one that is given has
        feed |= {"kept": np.ones(rows, np.bool_)}
        model.graph.input.append(helper.make_tensor_value_info("kept", TensorProto.BOOL, ["rows"]))
        layer = model.graph.node.pop()
        for place, name in enumerate(layer.input):
            if name in ("x", "lengths", "h", "c"):
                axis = 0 if name == "lengths" else 1
                model.graph.node.append(helper.make_node("Compress", [name, "kept"], [f"{name}_kept"], axis=axis))
                layer.input[place] = f"{name}_kept"
        model.graph.node.append(layer)
    found = opened(model.SerializeToString()).run(None, feed)
    assert [each.shape for each in found] == [(steps, directions, rows, 5), *[(directions, rows, 5)] * (len(found) - 1)]
    assert not any(each.any() for each in found)
    if rows:  # of no rows, onnxruntime's own kernels end the process
        expected = opened(model.SerializeToString(), kernels=False).run(None, feed)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.usefixtures("instructions")
def test_a_node_may_leave_out_lengths_and_outputs(kind: str):
    feed = batch([6, 6])
    expected = opened(graph(kind), kernels=False).run(None, feed)
    for place, wanted in enumerate(("y", "last_h")):
        model = onnx.load_from_string(graph(kind))
        node = model.graph.node[0]
        node.input[4] = ""
        node.output[:] = [name if name == wanted else "" for name in node.output]
        kept = [output for output in model.graph.output if output.name == wanted]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        (found,) = opened(model.SerializeToString()).run(None, feed)
        np.testing.assert_allclose(found, expected[place], atol=CLOSE)


@pytest.mark.parametrize("wanted", ["y", "last_h", "last_c"])
@pytest.mark.usefixtures("instructions")
def test_an_output_that_cannot_be_made_is_an_error(wanted: str):
    session, feed = opened(graph()), batch([3, 3])
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_cpu_input(name, value)
    for name, of_one_row in (("y", (3, 1, 1, 5)), ("last_h", (1, 1, 5)), ("last_c", (1, 1, 5))):
        if name == wanted:
            one = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(of_one_row, np.float32))
            binding.bind_ortvalue_output(name, one)
        else:
            binding.bind_output(name)
    with pytest.raises(Exception, match="has shape"):
        session.run_with_iobinding(binding)


@pytest.mark.parametrize("lengths", [[3, 5], [3, -1], [3, 3, 3]])
@pytest.mark.usefixtures("instructions")
def test_a_length_that_cannot_be_is_an_error(lengths: list[int]):
    feed = batch([3, 3]) | {"lengths": np.array(lengths, np.int32)}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        opened(graph()).run(None, feed)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
@pytest.mark.usefixtures("instructions")
def test_gates_that_are_shut_wide_open_or_hardly_moved_are_as_onnxruntimes(kind: str, scale: float):
    layer = graph(kind, scale=scale, hidden=24)
    feed = batch([12, 4, 9])
    ours, theirs = opened(layer).run(["y"], feed)[0], opened(layer, kernels=False).run(["y"], feed)[0]
    assert np.abs(ours).max() <= 1 + 1e-6
    # Of large weights a rounding may tip a gate the other way in the next step; the first has no such past.
    steps = slice(1) if scale > 1 else slice(None)
    np.testing.assert_allclose(ours[steps], theirs[steps], atol=CLOSE)


@pytest.mark.usefixtures("instructions")
def test_a_shut_gate_forgets_whatever_was_kept():
    weights = [
        numpy_helper.from_array(np.zeros((1, 4, 1), np.float32), "w"),
        numpy_helper.from_array(np.array([[-100, 100, -100, 0, 0, 0, 0, 0]], np.float32), "b"),
    ]
    made = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "w", "b", "lengths", "h", "c"], ["", "", "last_c"], hidden_size=1)],
        "cell",
        [
            helper.make_tensor_value_info("lengths", TensorProto.INT32, [1]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1]) for name in ("x", "h", "c")),
        ],
        [helper.make_tensor_value_info("last_c", TensorProto.FLOAT, [1, 1, 1])],
        weights,
    )
    cell = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    nothing = np.zeros((1, 1, 1), np.float32)
    for kept in (1e6, 1e33):
        feed = {"x": nothing, "lengths": np.ones(1, np.int32), "h": nothing, "c": nothing + np.float32(kept)}
        assert opened(cell).run(None, feed)[0].item() == 0


@pytest.mark.usefixtures("instructions")
def test_tanh_and_sigmoid_are_those_of_double_precision():
    """A GRU of one unit without a state: (1 - sigmoid(x)) tanh(x), where all weights are 1."""
    x = np.concatenate([np.linspace(-30, 30, 4001), [0.0, 1e-30, 1e-6, 88.0, 1e4, np.inf, -np.inf]]).astype(np.float32)
    ones = numpy_helper.from_array(np.ones((1, 3, 1), np.float32), "w")
    made = helper.make_graph(
        [helper.make_node("GRU", ["x", "w", "w"], ["", "h"], hidden_size=1, linear_before_reset=1)],
        "cell",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "rows", 1])],
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, "rows", 1])],
        [ones],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (found,) = opened(model.SerializeToString()).run(None, {"x": x[None, :, None]})
    wide = np.clip(x.astype(np.float64), -700, 700)
    expected = np.tanh(wide) / (1 + np.exp(wide))
    np.testing.assert_allclose(found[0, :, 0], expected, atol=3e-7)
    small = np.abs(x) < 1e-3
    np.testing.assert_allclose(found[0, small, 0], expected[small], rtol=1e-6)


@pytest.mark.usefixtures("instructions")
def test_what_is_no_number_stays_none_and_stays_in_its_row():
    session = opened(graph(hidden=20))
    feed = batch([4, 4, 4])
    clean = session.run(["y"], feed)[0]
    feed["x"][1, 1, 0] = np.nan
    found = session.run(["y"], feed)[0]
    assert np.isnan(found[1:, :, 1]).all()
    np.testing.assert_array_equal(found[:, :, [0, 2]], clean[:, :, [0, 2]])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("hidden", [1, 7, 129, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("lengths", [[], [5], [1, 0, 5] * 21 + [30, 0]], ids=["0", "1", "65"])
@pytest.mark.usefixtures("instructions")
def test_odd_sizes_answer_as_onnxruntimes_own(kind: str, hidden: int, lengths: list[int]):
    layer = graph(kind, hidden=hidden, direction="bidirectional")
    feed = batch(lengths, steps=33)
    for row, length in enumerate(lengths):
        feed["x"][length:, row] = np.nan
    ours = opened(layer).run(None, feed)
    assert ours[0].shape == (33, 2, len(lengths), hidden)
    if lengths:  # of no rows, onnxruntime's own kernels end the process
        clean = np.nan_to_num(feed["x"])
        theirs = opened(layer, kernels=False).run(None, feed | {"x": clean})
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=CLOSE)


@pytest.fixture
def lending() -> Iterator[None]:
    """No core stays lent after the test."""
    yield
    recurrent_kernels.lend_cores(0)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.usefixtures("instructions", "lending")
def test_two_directions_at_once_give_the_same_bits(kind: str):
    session = opened(graph(kind, hidden=64, direction="bidirectional"))
    feeds = [batch([1 + (seed * 17 + row) % 60 for row in range(1 + seed)], seed=seed) for seed in range(12)]
    one_by_one = [session.run(None, feed) for feed in feeds]
    for lent in (1, 2, 1000):
        recurrent_kernels.lend_cores(lent)
        for expected, feed in zip(one_by_one * 4, feeds * 4, strict=True):
            for one, other in zip(expected, session.run(None, feed), strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("lending")
def test_a_core_that_is_taken_back_at_any_step_changes_no_bit():
    session = opened(graph("LSTM", hidden=64, direction="bidirectional"))
    feed = batch([60, 9, 33, 41, 60, 1])
    expected = session.run(None, feed)
    with lent_and_taken_back(), ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: session.run(None, feed), range(300)):
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("lending")
def test_what_helpers_do_counts_as_time_of_the_thread_that_they_help():
    session = opened(graph("LSTM", hidden=128, direction="bidirectional"))
    feed = batch([60] * 6)
    assert is_helped(lambda: session.run(None, feed))


@pytest.mark.parametrize("count", [-5, 0, 10**6])
@pytest.mark.usefixtures("lending")
def test_any_number_of_cores_may_be_lent(count: int):
    recurrent_kernels.lend_cores(count)
    session = opened(graph("LSTM", hidden=128, direction="bidirectional"))
    assert np.isfinite(session.run(None, batch([40, 20]))[0]).all()


@pytest.mark.usefixtures("instructions")
def test_several_threads_run_one_session():
    session = opened(graph(hidden=40, direction="bidirectional"))
    feeds = [batch([1 + (seed * 7 + row) % 30 for row in range(1 + seed % 9)], seed=seed) for seed in range(40)]
    one_by_one = [session.run(None, feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            at_once = list(pool.map(lambda feed: session.run(None, feed), feeds))
            for expected, found in zip(one_by_one, at_once, strict=True):
                for one, other in zip(expected, found, strict=True):
                    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("LSTM", {"peepholes": True}),
        ("LSTM", {"computed": True}),
        ("LSTM", {"attributes": {"input_forget": 1}}),
        ("GRU", {"attributes": {"linear_before_reset": 0}}),
    ],
    ids=["peepholes", "computed weights", "input_forget", "reset before"],
)
def test_a_form_that_they_do_not_know_is_refused_when_the_session_is_opened(kind: str, form: dict[str, Any]):
    layer = graph(kind, **form)
    assert opened(layer, kernels=False).run(None, batch([3, 2]))
    with pytest.raises(Exception, match=r"not the plain form|not constant"):
        opened(layer)


def test_rows_before_steps_are_refused_as_onnxruntime_refuses_them():
    layer = graph(attributes={"layout": 1})
    for kernels in (True, False):
        with pytest.raises(Exception, match=r"layout|not the plain form"):
            opened(layer, kernels=kernels)


def model(layer: str, *, opset: int = 18, **attributes: Any) -> tuple[bytes, Manifest]:
    """A model directory's graph with one layer: the last state is the logits."""
    wants = Manifest.model_validate({"name": "m", "version": 1, "input": {"features": 3}, "labels": ["a", "b"]})
    made = helper.make_graph(
        [
            helper.make_node("Transpose", ["values"], ["x"], perm=[1, 0, 2]),
            helper.make_node(layer, ["x", "w", "r", "", "lengths"], ["", "h"], hidden_size=2, **attributes),
            helper.make_node("Squeeze", ["h", "first"], ["logits"]),
        ],
        "model",
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["rows", "width", 3]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 2])],
        [
            numpy_helper.from_array(np.full((1, GATES[layer] * 2, 3), 0.3, np.float32), "w"),
            numpy_helper.from_array(np.full((1, GATES[layer] * 2, 2), 0.2, np.float32), "r"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
        ],
    )
    whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return whole.SerializeToString(), wants


STEPS = pad([np.ones((3, 3), np.float32), np.ones((5, 3), np.float32)])


def test_a_session_says_whose_kernels_it_has():
    layer, wants = model("LSTM")
    assert Session(layer, wants).kernels == recurrent_kernels.INSTRUCTION_SETS[0]
    assert Session(layer, wants, devices=(PLAIN_CPU,)).kernels == recurrent_kernels.ONNXRUNTIME


def in_a_scan() -> tuple[bytes, Manifest]:
    """The same with the layer in the body of a Scan, which wants its outputs' shapes inferred."""
    whole, wants = model("LSTM")
    outer = onnx.load_from_string(whole)
    layer = outer.graph.node[1]
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["step", "first"], ["x_one"]),
            helper.make_node("LSTM", ["x_one", "w", "r"], ["", "h_one"], hidden_size=2),
            helper.make_node("Squeeze", ["h_one", "first"], ["each"]),
        ],
        "body",
        [helper.make_tensor_value_info("step", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("each", TensorProto.FLOAT, None)],
    )
    outer.graph.node.insert(1, helper.make_node("Scan", ["x"], ["all"], body=body, num_scan_inputs=1))
    outer.graph.node.insert(2, helper.make_node("ReduceSum", ["all", "first"], ["logits"], keepdims=0))
    outer.graph.node.remove(layer)
    del outer.graph.node[-1]
    return outer.SerializeToString(), wants


@pytest.mark.parametrize(
    "made",
    [lambda: model("LSTM", clip=0.01), lambda: model("LSTM", activations=["Sigmoid", "Tanh", "Relu"]), in_a_scan],
    ids=["clip", "activations", "in a scan"],
)
def test_a_graph_for_onnxruntimes_kernels_only_is_run_there(
    made: Callable[[], tuple[bytes, Manifest]], caplog: pytest.LogCaptureFixture
):
    layer, wants = made()
    with caplog.at_level(logging.INFO):
        session = Session(layer, wants)
    assert session.kernels == recurrent_kernels.ONNXRUNTIME
    assert "onnxruntime's own kernels run its recurrent layers" in caplog.text
    expected = Session(layer, wants, devices=(PLAIN_CPU,)).run(STEPS).logits
    np.testing.assert_array_equal(session.run(STEPS).logits, expected)


@pytest.mark.parametrize("wrong", [{"opset": 999}, {"foo": 1}], ids=str)
def test_what_onnxruntime_refuses_stays_refused(wrong: dict[str, Any]):
    with pytest.raises(ModelError):
        Session(*model("LSTM", **wrong))


def test_a_graph_without_a_recurrent_layer_is_onnxruntimes():
    wants = Manifest.model_validate({"name": "m", "version": 1, "input": {"features": 2}, "labels": ["a", "b"]})
    made = helper.make_graph(
        [helper.make_node("ReduceMax", ["values", "time"], ["logits"], keepdims=0)],
        "none",
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["rows", "width", 2]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(np.array([1], np.int64), "time")],
    )
    whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert Session(whole.SerializeToString(), wants).kernels == recurrent_kernels.ONNXRUNTIME


def test_a_graph_that_takes_missing_values_keeps_onnxruntimes():
    layer, wants = model("LSTM")
    handles = wants.model_copy(update={"missing": "handled"})
    assert Session(layer, handles).kernels == recurrent_kernels.ONNXRUNTIME


def handling(*, seen: bool, replaced: bool) -> tuple[bytes, Manifest]:
    """A model that says that it handles NaN: `seen`, with an IsNaN; `replaced`, before its layer."""
    whole, wants = model("LSTM")
    outer = onnx.load_from_string(whole)
    outer.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    if seen:
        outer.graph.node.insert(0, helper.make_node("IsNaN", ["values"], ["missing"]))
        outer.graph.node.insert(1, helper.make_node("Where", ["missing", "nothing", "values"], ["present"]))
        turn = next(node for node in outer.graph.node if node.op_type == "Transpose")
        turn.input[0] = "present" if replaced else "values"
    return outer.SerializeToString(), wants.model_copy(update={"missing": "handled"})


@pytest.mark.parametrize(("seen", "replaced"), [(True, True), (True, False), (False, False)])
def test_a_graph_that_handles_nan_gets_them_if_nan_never_reaches_its_layers(
    seen: bool, replaced: bool, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        session = Session(*handling(seen=seen, replaced=replaced))
    assert session.kernels == (recurrent_kernels.INSTRUCTION_SETS[0] if replaced else recurrent_kernels.ONNXRUNTIME)
    assert ("NaN may reach them" in caplog.text) is not replaced


@pytest.mark.parametrize("features", [1, 3])
def test_with_nan_the_answers_are_those_of_onnxruntimes(features: int):
    layer, wants = handling(seen=True, replaced=True)
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (9, 3)).astype(np.float32)
    values[random.random((9, 3)) < features / 4] = np.nan
    batch_of_nan = pad([values, values[:4], np.full((5, 3), np.nan, np.float32)])
    ours = Session(layer, wants).run(batch_of_nan).logits
    theirs = Session(layer, wants, devices=(PLAIN_CPU,)).run(batch_of_nan).logits
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, theirs, atol=CLOSE)


def test_a_graph_that_nobody_can_load_is_an_error_of_the_graph(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO), pytest.raises(ModelError):
        Session(b"no graph", model("LSTM")[1])
    assert "kernels" not in caplog.text


def test_a_processor_without_them_runs_onnxruntimes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recurrent_kernels, "INSTRUCTION_SETS", ())
    assert Session(*model("GRU", linear_before_reset=1)).kernels == recurrent_kernels.ONNXRUNTIME


def test_the_log_says_how_layers_run_and_why(monkeypatch: pytest.MonkeyPatch):
    assert recurrent_kernels.described(wanted=True) == f"valid steps only, with {recurrent_kernels.INSTRUCTION_SETS[0]}"
    assert recurrent_kernels.described(wanted=False) == "in onnxruntime's own kernels, as was asked for"
    monkeypatch.setattr(recurrent_kernels, "INSTRUCTION_SETS", ())
    assert "none of AVX-512, AVX2 and NEON" in recurrent_kernels.described(wanted=True)
    monkeypatch.setattr(recurrent_kernels, "COMPILED", False)
    assert "was not built" in recurrent_kernels.described(wanted=True)


@pytest.mark.parametrize("numbers", ["float32", "int8", "shares", "float64"])
def test_an_instruction_set_that_is_not_here_is_refused(numbers: Any):
    with pytest.raises(ValueError, match="no"):
        recurrent_kernels.choose("avx1024", numbers)


def test_a_processor_that_has_the_instructions_is_known_by_them():
    flags = proc.processor_flags()
    wanted = [name for name, flag in (("avx512", "avx512dq"), ("avx2", "avx2")) if flag in flags]
    assert [*recurrent_kernels.INSTRUCTION_SETS] == wanted


def test_they_can_be_turned_off():
    assert choose("cpu", recurrent_kernels=True).devices == (CPU_DEVICE,)
    assert choose("cpu", recurrent_kernels=False).devices == (PLAIN_CPU,)
    assert CPU_DEVICE.label == PLAIN_CPU.label


def test_the_bundled_model_answers_as_with_onnxruntimes_kernels():
    directory = bundled_models() / "japanese-vowels" / "1"
    manifest = Manifest.read(directory)
    own, plain = (Session.load(directory, manifest, devices=(device,)) for device in (CPU_DEVICE, PLAIN_CPU))
    random = np.random.default_rng(0)
    several = pad([random.normal(0, 1, (length, 12)).astype(np.float32) for length in (7, 29, 12, 18)])
    ours, theirs = own.run(several, ("logits", "attention")), plain.run(several, ("logits", "attention"))
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=CLOSE)
    assert ours.attention is not None
    assert theirs.attention is not None
    np.testing.assert_allclose(ours.attention, theirs.attention, atol=CLOSE)

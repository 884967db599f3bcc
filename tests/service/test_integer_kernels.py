"""The integer kernels: exact sums, and the same bits on every instruction set and in any company."""

import ctypes
import importlib.util
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from lengthwise.runtime import recurrent_kernels
from lengthwise_export.onnx_graphs import precision
from tests.support import proc
from tests.support.integer_graphs import batch, float_graph, in_numpy, integer_graph, opened, product_graph

SETS = recurrent_kernels.INTEGER_SETS or ("none",)
pytestmark = pytest.mark.skipif(not recurrent_kernels.INTEGER_SETS, reason="no compiler at installation")

CLOSE = 4e-3
"""How far answers may lie from NumPy's: cells round there in another way, which moves a state by a unit of 1/127 now
and then."""
FEW, MANY = 3, 40
"""Inputs whose weights stay floats, and inputs whose weights are bytes."""


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this processor has."""
    return str(request.param)


def of_every_set(graph: Any, feed: dict[str, Any]) -> list[Any]:
    """The outputs, which have the same bits on every instruction set."""
    first, *others = [opened(graph, each).run(None, feed) for each in SETS]
    for other in others:
        for one, same in zip(first, other, strict=True):
            np.testing.assert_array_equal(one.view(np.int32), same.view(np.int32))
    return list(first)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("hidden", [1, 7, 16, 33])
@pytest.mark.parametrize("inputs", [FEW, MANY])
@pytest.mark.parametrize("biases", [True, False])
def test_a_layer_answers_as_the_same_arithmetic_in_numpy(
    kind: str, direction: str, hidden: int, inputs: int, biases: bool
):
    graph = integer_graph(kind, hidden=hidden, inputs=inputs, direction=direction, biases=biases)
    feed = batch([5, 1, 9, 9, 3, 0, 7], inputs)
    expected = in_numpy(graph, feed["x"], feed["lengths"])
    y, last_h, *_ = opened(graph, SETS[0]).run(None, feed)
    np.testing.assert_allclose(y, expected, atol=CLOSE)
    for row, length in enumerate(feed["lengths"]):
        for d in range(y.shape[1]):
            backward = d == 1 or direction == "reverse"
            at_end = y[0 if backward else length - 1, d, row] if length else np.zeros(hidden, np.float32)
            np.testing.assert_array_equal(last_h[d, row], at_end)


@given(
    st.sampled_from(["LSTM", "GRU"]),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.integers(1, 50),
    st.integers(1, 50),
    st.lists(st.integers(0, 20), min_size=1, max_size=70),
)
def test_every_instruction_set_gives_the_same_bits(
    kind: str, direction: str, hidden: int, inputs: int, lengths: list[int]
):
    graph = integer_graph(kind, hidden=hidden, inputs=inputs, direction=direction)
    of_every_set(graph, batch(lengths, inputs, steps=21))


@pytest.mark.sampled(9)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("hidden", [1, 7, 64, 129])
@pytest.mark.parametrize("rows", [1, 9, 16, 17, 65])
def test_every_instruction_set_gives_the_same_bits_at_odd_sizes(kind: str, hidden: int, rows: int):
    graph = integer_graph(kind, hidden=hidden, inputs=MANY, direction="bidirectional")
    of_every_set(graph, batch([1 + row * 7 % 12 for row in range(rows)], MANY, steps=14))


@pytest.mark.parametrize("kind", ["LSTM", pytest.param("GRU", marks=pytest.mark.long)])
def test_a_thousand_units_give_the_same_bits_on_every_instruction_set(kind: str):
    graph = integer_graph(kind, hidden=1000, inputs=FEW)
    feed = batch([3, 1, 2])
    np.testing.assert_allclose(of_every_set(graph, feed)[0], in_numpy(graph, feed["x"], feed["lengths"]), atol=CLOSE)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("inputs", [1, MANY])
def test_extreme_inputs_give_the_same_bits_on_every_instruction_set(kind: str, inputs: int):
    feed = batch([6] * 5, inputs)
    for row, size in enumerate((1e38, 1e-38, 1e-45, 0)):
        feed["x"][:, row] *= np.float32(size)
    if inputs == 1:  # its gates are shut or wide open, and all of its states are numbers
        feed["x"][1, 4, 0] = np.inf
    for hidden in (8, 20):
        found = of_every_set(integer_graph(kind, hidden=hidden, inputs=inputs), feed)
        assert all(np.isfinite(each).all() for each in found)
    if inputs == MANY:  # inputs too small for a scale count as zeros
        np.testing.assert_array_equal(found[0][:, :, 1], found[0][:, :, 3])


@pytest.mark.sampled(9)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("hidden", [64, 1000])
def test_the_largest_weights_and_states_saturate_nothing(instructions: str, sign: int, hidden: int):
    """All states become 1 or -1, and all weights are 63: each pair of products is the largest that there can be.

    The recurrent part of the cell gate is then 0.64, where tanh moves: it would be less if 16 bits overflowed.
    """
    r = np.zeros((1, 4 * hidden, hidden), np.float32)
    r[:, : 2 * hidden] = 0.64 / hidden  # the input gate and the output gate, open in any case
    r[:, 3 * hidden :] = 0.64 / hidden  # the cell gate
    b = np.zeros((1, 8 * hidden), np.float32)
    b[:, : 3 * hidden] = 50
    w = np.zeros((1, 4 * hidden, 1), np.float32)
    w[:, 3 * hidden :] = 1
    graph = integer_graph(hidden=hidden, inputs=1, weights={"w": w, "r": r, "b": b})
    feed = {"x": np.full((8, 1, 1), sign, np.float32), "lengths": np.array([8], np.int32)}
    session = opened(graph, instructions)
    y, _, last_c = session.run(None, feed)
    state, kept = 0.0, 0.0
    for step in range(8):
        gate = np.rint(state * 127) / 127 * 0.64 + sign
        kept += np.tanh(gate)
        state = np.tanh(kept)
        np.testing.assert_allclose(y[step], state, atol=1e-4)
    assert abs(np.rint(state * 127)) == 127
    np.testing.assert_allclose(last_c, kept, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        *(
            ("layer/R_int8", lambda held, one=one: np.full_like(held, one), "at most 63")
            for one in (64, -64, 127, -128)
        ),
        ("layer/R_scale", lambda held: held[:3], "with a scale each"),
    ],
)
def test_a_weight_of_more_than_seven_bits_and_scales_of_other_rows_are_refused(name: str, change: Any, said: str):
    graph = integer_graph()
    (tensor,) = [each for each in graph.graph.initializer if each.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    with pytest.raises(Exception, match=said):
        opened(graph, SETS[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_layer_lies_near_its_float32_original(kind: str):
    form: dict[str, Any] = {"hidden": 48, "inputs": MANY, "direction": "bidirectional"}
    feed = batch([40, 3, 17], MANY)
    exact = opened(float_graph(kind, **form)).run(["y"], feed)[0]
    found = opened(integer_graph(kind, **form), SETS[0]).run(["y"], feed)[0]
    assert 0 < np.abs(found - exact).max() < 0.08


# Products


def product(instructions: str, inputs: int, outputs: int, **form: Any) -> Any:
    return opened(precision.convert(product_graph(inputs, outputs, **form), "int8"), instructions)


@pytest.mark.sampled(14)
@pytest.mark.parametrize("inputs", [32, 35, 200])
@pytest.mark.parametrize("outputs", [32, 33, 129])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 65), (2, 1, 3)])
def test_a_product_is_that_of_whole_numbers(instructions: str, inputs: int, outputs: int, shape: tuple[int, ...]):
    graph = precision.convert(product_graph(inputs, outputs, rank=len(shape) + 1), "int8")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    x = np.random.default_rng(1).normal(0, 3, (*shape, inputs)).astype(np.float32)
    (y,) = opened(graph, instructions).run(["y"], {"x": x})
    unit = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    whole = np.rint(x.astype(np.float64) * (np.float32(127) / np.abs(x).max(axis=-1, keepdims=True)))
    expected = (whole @ held["product/weights_int8"].astype(np.float64)) * unit * held["product/weights_scale"]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@given(st.integers(32, 150), st.integers(32, 150), st.integers(1, 70))
def test_a_product_has_the_same_bits_on_every_instruction_set_and_alone(inputs: int, outputs: int, rows: int):
    x = np.random.default_rng(rows).normal(0, 1, (rows, inputs)).astype(np.float32)
    found = [product(each, inputs, outputs, rank=2).run(["y"], {"x": x})[0] for each in SETS]
    session = product(SETS[0], inputs, outputs, rank=2)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    for row in range(rows):
        np.testing.assert_array_equal(session.run(["y"], {"x": x[[row]]})[0], found[0][[row]])


def test_the_largest_products_saturate_nothing(instructions: str):
    session = product(instructions, 1000, 32, weights=np.full((1000, 32), 0.01, np.float32))
    for sign in (1, -1):
        (y,) = session.run(["y"], {"x": np.full((1, 2, 1000), sign, np.float32)})
        np.testing.assert_allclose(y, sign * 10.0, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_with_what_is_no_number_has_no_number_and_disturbs_no_other(instructions: str, value: float):
    session = product(instructions, 40, 40)
    x = np.ones((2, 70, 40), np.float32)
    (clean,) = session.run(["y"], {"x": x})
    x[1, 3, 5] = value
    (found,) = session.run(["y"], {"x": x})
    assert np.isnan(found[1, 3]).all()
    found[1, 3] = clean[1, 3]
    np.testing.assert_array_equal(found, clean)


def test_a_product_of_no_rows_is_empty_and_with_other_inputs_an_error(instructions: str):
    graph = precision.convert(product_graph(40, 33), "int8")
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "any"
    session = opened(graph, instructions)
    (y,) = session.run(["y"], {"x": np.zeros((3, 0, 40), np.float32)})
    assert y.shape == (3, 0, 33)
    for inputs in (41, 0):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
            session.run(["y"], {"x": np.zeros((1, 1, inputs), np.float32)})


def tiles_are_permitted() -> bool:
    """Whether Linux gives this process the registers of tiles: `arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`."""
    if (platform.machine(), sys.platform) != ("x86_64", "linux"):
        return False
    return int(ctypes.CDLL(None).syscall(158, 0x1023, 18)) == 0


def test_a_processor_that_has_the_instructions_is_known_by_them():
    wanted = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx512": "avx512bw", "avx2": "avx2"}
    flags = proc.processor_flags() - ({"amx_int8"} if not tiles_are_permitted() else set())
    named = [name for name, flag in ({"amx": "amx_int8"} | wanted).items() if flag in flags]
    assert [*SETS] == [*named, "portable", "amx_emulated"]
    in_floats = [name for name, flag in (("avx512", "avx512dq"), ("avx2", "avx2")) if flag in flags]
    assert [*recurrent_kernels.INSTRUCTION_SETS] == in_floats


# The kernel refuses tiles to a process with a signal stack that is too small for them.
REFUSED = """
import ctypes, importlib.util, sys
class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(room), 0, 8192)), None) == 0
spec = importlib.util.spec_from_file_location("_kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
print(*kernels.INSTRUCTION_SETS["int8"])
"""


@pytest.mark.process
@pytest.mark.skipif("amx" not in SETS, reason="no tiles here")
def test_where_the_system_refuses_tiles_the_next_set_is_the_best():
    library = importlib.util.find_spec("lengthwise.runtime.kernels._kernels")
    assert library is not None
    command = [sys.executable, "-c", REFUSED, str(library.origin)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found == [name for name in SETS if name != "amx"]

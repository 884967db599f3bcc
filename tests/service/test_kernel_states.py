"""States in and out of the recurrent kernels: a sequence that is cut has the bits of the whole, wherever it is cut."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from lengthwise.runtime.manifest import GraphNames
from lengthwise.runtime.onnx import fusion, integer_layers
from lengthwise_export.onnx_graphs import precision
from tests.gallery.onnx_models import Weights, scalar
from tests.support.integer_graphs import SETS, Array, Numbers, opened

pytestmark = pytest.mark.skipif(not SETS["float32"], reason="no compiler at installation, or neither AVX2 nor AVX-512")

FEW, MANY, HIDDEN = 3, 40, 20
LEAST = -3e38
CLOSE = 5e-6
Kernels = tuple[Numbers, str]
KERNELS: list[Kernels] = [(numbers, each) for numbers in ("float32", "int8") for each in SETS[numbers]]
of_all = pytest.mark.parametrize("kernels", KERNELS, ids=" ".join)
of_both = pytest.mark.parametrize("kind", ["LSTM", "GRU"])
Values = dict[str, Array]


MASK = """shape = Shape <start = 1, end = 2> (values)
    width = Squeeze (shape)
    index = Range (zero, width, one)
    long_lengths = Cast <to = 7> (lengths)
    ends = Unsqueeze (long_lengths, axis1)
    mask = Less (index, ends)
    column = Unsqueeze (mask, minus_one)"""


def graph(kind: str = "LSTM", numbers: Numbers = "float32", *, features: int = MANY, keeps: bool = True) -> ModelProto:
    """A layer with its states as inputs and outputs: `scores [rows, steps, 4]`, `h_next`, maybe `c_next`, ...

    The others, `sum_next` and `max_next`, are those of the layer's outputs. `keeps`: a Where keeps the states of rows
    without steps.
    """
    cell = ["h", "c"][: 2 if kind == "LSTM" else 1]
    gates, linear = (4, "") if kind == "LSTM" else (3, ", linear_before_reset = 1")
    weights = Weights(5).recurrent(gates, features, HIDDEN).named(f"head {HIDDEN}x4, b 4")
    weights |= {"none": scalar(0, np.int32), "least": scalar(LEAST)}
    after = "Where (has_steps, row_{0}, {0})" if keeps else "Identity (row_{0})"
    inputs, outputs = (
        ", ".join(f"float[rows, {HIDDEN}] {name}{end}" for name in (*cell, "sum", "max")) for end in ("", "_next")
    )
    lines = [
        f"g (float[rows, width, {features}] values, int32[rows] lengths, {inputs})",
        f"=> (float[rows, width, 4] scores, {outputs})",
        MASK,
        "steps_first = Transpose <perm = [1, 0, 2]> (values)",
        *(f"first_{name} = Unsqueeze ({name}, axis0)" for name in cell),
        f"y, {', '.join(f'last_{name}' for name in cell)} = {kind} <hidden_size = {HIDDEN}{linear}>",
        "(steps_first, W, R, B, lengths)",
        "any_step = Greater (lengths, none)\nhas_steps = Unsqueeze (any_step, axis1)",
        *(f"row_{name} = Squeeze (last_{name}, axis0)" for name in cell),
        *(f"{name}_next = {after.format(name)}" for name in cell),
        "flat_steps = Squeeze (y, axis1)\nsteps = Transpose <perm = [1, 0, 2]> (flat_steps)",
        "product = MatMul (steps, head)\nbiased = Add (product, b)\nscores = Where (column, biased, nought)",
        "valid = Where (column, steps, nought)\ntotal = ReduceSum <keepdims = 0> (valid, axis1)",
        "sum_next = Add (sum, total)",
        "high = Where (column, steps, least)\nmost = ReduceMax <axes = [1], keepdims = 0> (high)",
        "max_next = Max (most, max)",
    ]
    model = weights.model("\n".join(lines))
    model = precision.convert(model, "int8") if numbers == "int8" else model
    (layer,) = [node for node in model.graph.node if node.op_type == kind]
    layer.input.extend(f"first_{name}" for name in cell)
    return model


def packed(model: ModelProto) -> bytes:
    """The graph with packed steps."""
    found = integer_layers.with_packed_steps(model.SerializeToString(), GraphNames())
    assert found is not None
    return found.graph


def ours(model: ModelProto, kernels: Kernels) -> Any:
    """A session whose layer reads packed steps."""
    return opened(packed(model), kernels[1], kernels[0])


def run(session: Any, chunks: Sequence[Array], states: Sequence[Values]) -> tuple[list[Array], list[Values]]:
    """Runs chunks, the next steps of their sequences, as one batch; returns the scores of each, and its next states."""
    lengths = [len(chunk) for chunk in chunks]
    values = np.zeros((len(chunks), max(1, *lengths), chunks[0].shape[1]), np.float32)
    values[:] = np.nan  # padding is not read
    for row, chunk in zip(values, chunks, strict=True):
        row[: len(chunk)] = chunk
    names = [*states[0]]
    inputs = {name: np.stack([state[name] for state in states]) for name in names}
    outputs = ["scores", *(f"{name}_next" for name in names)]
    scores, *after = session.run(outputs, {"values": values, "lengths": np.array(lengths, np.int32), **inputs})
    rows = range(len(chunks))
    next_states = [dict(zip(names, (all_rows[row] for all_rows in after), strict=True)) for row in rows]
    return [scores[row, : lengths[row]] for row in rows], next_states


def sequences(lengths: Sequence[int], features: int, seed: int = 0) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (length, features)).astype(np.float32) for length in lengths]


def nothing_seen(kind: str) -> Values:
    """The states before the first step."""
    names = ("h", "c", "sum", "max") if kind == "LSTM" else ("h", "sum", "max")
    return {name: np.full(HIDDEN, LEAST if name == "max" else 0, np.float32) for name in names}


def drawn_states(kind: str, rows: int, seed: int = 0) -> list[Values]:
    """A state for each row."""
    random = np.random.default_rng(seed)
    return [
        {name: random.uniform(-1, 1, HIDDEN).astype(np.float32) for name in nothing_seen(kind)} for _ in range(rows)
    ]


def cut_and_run(session: Any, kind: str, members: Sequence[Array], random: Random) -> tuple[list[Array], list[Values]]:
    """Cuts each sequence anywhere, also into empty chunks, and runs the chunks in batches of any others' chunks."""
    states = [nothing_seen(kind) for _ in members]
    scores: list[list[Array]] = [[] for _ in members]
    seen = [0] * len(members)
    while any(begin < len(member) for begin, member in zip(seen, members, strict=True)):
        rows = random.sample(range(len(members)), random.randint(1, len(members)))
        counts = [random.choice([0, 1, 1, 2, random.randint(0, 20)]) for _ in rows]
        chunks = [members[row][seen[row] : seen[row] + count] for row, count in zip(rows, counts, strict=True)]
        of_chunks, next_states = run(session, chunks, [states[row] for row in rows])
        for place, row in enumerate(rows):
            scores[row].append(of_chunks[place])
            states[row] = next_states[place]
            seen[row] += len(chunks[place])
    return [np.concatenate(parts) if parts else np.zeros((0, 4), np.float32) for parts in scores], states


def assert_same(one: tuple[list[Array], list[Values]], other: tuple[list[Array], list[Values]]) -> None:
    for first, second in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(first, second)
    for state, same in zip(one[1], other[1], strict=True):
        for name in state:
            np.testing.assert_array_equal(state[name], same[name])


@given(
    st.sampled_from(["LSTM", "GRU"]),
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.sampled_from([FEW, MANY]),
    st.randoms(use_true_random=False),
    st.sampled_from(KERNELS or [("float32", "none")]),
)
def test_a_sequence_cut_anywhere_has_the_bits_of_the_whole(
    kind: str, lengths: list[int], features: int, random: Random, kernels: Kernels
):
    session = ours(graph(kind, kernels[0], features=features), kernels)
    members = sequences(lengths, features)
    whole = run(session, members, [nothing_seen(kind)] * len(members))
    assert_same(whole, cut_and_run(session, kind, members, random))


@of_both
@pytest.mark.parametrize("numbers", ["float32", "int8"])
def test_a_graph_in_onnxruntimes_own_kernels_answers_the_same_when_cut(kind: str, numbers: Numbers):
    model = graph(kind, numbers)
    members = sequences([17, 0, 5, 30], MANY)
    first = [nothing_seen(kind)] * 4
    ours_whole = run(ours(model, (numbers, SETS[numbers][0])), members, first)
    plain = opened(model)
    for found in (run(plain, members, first), cut_and_run(plain, kind, members, Random(0))):
        for one, other in zip(found[0], ours_whole[0], strict=True):
            np.testing.assert_allclose(one, other, atol=CLOSE if numbers == "float32" else 0.05)


@of_both
@of_all
def test_a_row_without_steps_keeps_its_state(kernels: Kernels, kind: str):
    for keeps in (True, False):
        session = ours(graph(kind, kernels[0], keeps=keeps), kernels)
        random = np.random.default_rng(3)
        states = [
            {name: random.uniform(-1, 1, HIDDEN).astype(np.float32) for name in nothing_seen(kind)} for _ in range(5)
        ]
        chunks = sequences([0, 3, 0, 1, 0], MANY)
        _, together = run(session, chunks, states)
        _, alone = run(session, [chunks[0]], [states[0]])
        for row in (0, 2, 4):
            for name, state in states[row].items():
                np.testing.assert_array_equal(together[row][name], state)
        np.testing.assert_array_equal(alone[0]["h"], states[0]["h"])


@pytest.mark.sampled(3)
@of_both
def test_states_have_the_same_bits_on_every_integer_instruction_set(kind: str):
    members = sequences([9, 1, 4] * 7, MANY)
    states = drawn_states(kind, len(members))
    model = graph(kind, "int8")
    first, *others = [run(ours(model, ("int8", each)), members, states) for each in SETS["int8"]]
    for other in others:
        assert_same(first, other)


@of_both
@of_all
@pytest.mark.parametrize("value", [np.nan, np.inf, -7.5])
def test_a_state_that_none_can_be_never_reaches_another_row(kernels: Kernels, kind: str, value: float):
    session = ours(graph(kind, kernels[0]), kernels)
    members = sequences([2] * 40, MANY)
    states = [nothing_seen(kind) for _ in members]
    clean = run(session, members, states)
    states[7] = {name: state.copy() for name, state in states[7].items()}
    states[7]["h"][3] = value
    found = run(session, members, states)
    if np.isnan(value) or kernels[0] == "int8":
        assert np.isnan(found[0][7]).all()
        assert np.isnan(found[1][7]["h"]).all()
    for results in (clean, found):
        del results[0][7], results[1][7]
    assert_same(clean, found)


@of_both
@pytest.mark.parametrize("numbers", ["float32", "int8"])
def test_threads_that_run_one_session_get_the_same_bits(kind: str, numbers: Numbers):
    session = ours(graph(kind, numbers), (numbers, SETS[numbers][0]))
    batches = []
    for seed in range(12):
        members = sequences([1 + (seed + row) % 3 for row in range(1 + 3 * seed)], MANY, seed)
        batches.append((members, drawn_states(kind, len(members), seed)))
    one_by_one = [run(session, *batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(one_by_one, pool.map(lambda batch: run(session, *batch), batches), strict=True):
            assert_same(expected, found)


def test_steps_are_packed_and_states_stay_rows():
    nodes = onnx.load_from_string(packed(graph())).graph.node
    own = [node.op_type for node in nodes if node.domain == fusion.DOMAIN]
    assert own == ["Pack", "LSTM", "Dense", "StepSum", "StepMax", "Unpack"]
    assert [node.op_type for node in nodes if node.op_type == "Where"] == ["Where", "Where"]
    (layer,) = [node for node in nodes if node.op_type == "LSTM"]
    assert [*layer.input[5:]] == ["first_h", "first_c"]
    for node, state in zip(
        [node for node in nodes if node.op_type in ("StepSum", "StepMax")], ("sum", "max"), strict=True
    ):
        assert (node.input[2], node.output) == (state, [f"{state}_next"])


def test_a_maximum_that_goes_on_otherwise_is_as_the_graph_says():
    model = graph()
    (largest,) = [node for node in model.graph.node if node.op_type == "Max"]
    largest.input[1] = "turned"
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["max"], ["turned"]))
    assert b"StepMax" not in packed(model)
    chunks, states = sequences([0, 3], MANY), drawn_states("LSTM", 2)
    _, (without, _) = run(ours(model, ("float32", SETS["float32"][0])), chunks, states)
    np.testing.assert_array_equal(without["max"], -states[0]["max"])


@pytest.mark.parametrize("rows", [0, 3])
@of_all
def test_a_batch_without_a_step_is_answered(kernels: Kernels, rows: int):
    session = ours(graph("GRU", kernels[0]), kernels)
    h = np.full((rows, HIDDEN), 0.5, np.float32)
    feed = {
        "values": np.zeros((rows, 4, MANY), np.float32),
        "lengths": np.zeros(rows, np.int32),
        "h": h,
        "sum": h,
        "max": h,
    }
    scores, *states = session.run(["scores", "h_next", "sum_next", "max_next"], feed)
    assert (scores.shape, scores.any()) == ((rows, 4, 4), False)
    for state in states:
        np.testing.assert_array_equal(state, h)

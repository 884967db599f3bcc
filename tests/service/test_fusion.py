"""Operators that compute valid steps only, in the place of nodes: the same answers, and other patterns stay."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lengthwise.padding import PaddedBatch, pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.onnx import fusion, onnx_graph
from lengthwise.runtime.provider import PLAIN_CPU
from lengthwise.runtime.session import Session
from tests.support.lent_cores import lent_and_taken_back
from tests.support.long import long_but
from tests.support.model_directories import BUNDLED

pytestmark = pytest.mark.skipif(
    not recurrent_kernels.INSTRUCTION_SETS, reason="no compiler at installation, or neither AVX2 nor AVX-512"
)

MANIFEST = Manifest.read(BUNDLED)
GRAPH = (BUNDLED / GRAPH_FILE).read_bytes()
CLOSE = 5e-6
BOTH = ("logits", "attention")


def both(session: Session, batch: PaddedBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and attention."""
    found = session.run(batch, BOTH)
    assert found.attention is not None
    return found.logits, found.attention


def assert_same(one: tuple[NDArray[np.float32], ...], other: tuple[NDArray[np.float32], ...]) -> None:
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.fixture(autouse=True)
def best() -> Iterator[None]:
    """Whatever a test chose, the next has the best instruction set."""
    yield
    recurrent_kernels.choose(recurrent_kernels.INSTRUCTION_SETS[0])


@pytest.fixture(params=recurrent_kernels.INSTRUCTION_SETS or ["none"])
def own(request: pytest.FixtureRequest) -> Session:
    """The bundled model in the kernels, with each instruction set that this processor has."""
    recurrent_kernels.choose(request.param)
    session = Session(GRAPH, MANIFEST)
    assert session.kernels == request.param + recurrent_kernels.POOLING
    return session


def sequences(*lengths: int, seed: int = 0) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (length, 12)).astype(np.float32) for length in lengths]


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def edited(edit: Callable[[onnx.GraphProto], None]) -> bytes:
    model = onnx.load_from_string(GRAPH)
    edit(model.graph)
    serialized: bytes = model.SerializeToString()
    return serialized


def only(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    (node,) = [node for node in graph.node if node.op_type == operator]
    return node


def test_the_nodes_around_the_layers_become_part_of_them():
    found = fusion.fused(GRAPH)
    assert found is not None
    assert found.pools
    model = onnx.load_from_string(found.graph)
    own = [node for node in model.graph.node if node.domain == fusion.DOMAIN]
    assert [node.op_type for node in own] == ["LSTM", "LSTM", "AttentionPooling"]
    assert all(helper.get_node_attr_value(node, "zeros") == 0 for node in own[:2])
    assert not {"Softmax", "Tanh", "Reshape"} & {node.op_type for node in model.graph.node}
    outputs = [each.name for each in onnx.load_from_string(GRAPH).graph.output]
    assert [each.name for each in model.graph.output] == outputs


def test_a_model_that_is_read_and_written_is_the_same():
    read, written = onnx.load_from_string(GRAPH), onnx.load_from_string(onnx_graph.read(GRAPH).write({}))
    assert read == written


def test_answers_and_attention_are_those_of_onnxruntime(own: Session):
    batch = pad(sequences(7, 1, 29, 64, 3, 12, 65), multiple=4)
    ours, theirs = both(own, batch), both(Session(GRAPH, MANIFEST, devices=(PLAIN_CPU,)), batch)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=CLOSE)
    for row, length in enumerate(batch.lengths):
        assert not ours[1][row, length:].any()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=70), st.integers(0, 40))
def test_a_row_has_the_same_bits_alone_in_any_company_and_at_any_width(lengths: list[int], wider: int):
    session = Session(GRAPH, MANIFEST)
    members = sequences(*lengths)
    logits, attention = both(session, pad(members, width=max(lengths) + wider))
    for row, member in list(enumerate(members))[:: max(1, len(members) // 8)]:
        alone, weights = both(session, pad([member]))
        assert_same((alone[0], weights[0, : len(member)]), (logits[row], attention[row, : len(member)]))


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e38])
def test_what_padding_holds_is_not_read(own: Session, junk: float):
    batch = pad(sequences(4, 1, 30), width=48)
    clean = both(own, batch)
    for row, length in enumerate(batch.lengths):
        batch.steps[row, length:] = junk
    assert_same(clean, both(own, batch))


def test_memory_of_an_earlier_batch_is_not_read(own: Session):
    """Padding is not written: what a larger batch left there must have no effect on a smaller one."""
    small = pad(sequences(3, 1, 9, seed=1), width=40)
    fresh = both(own, small)
    own.run(pad([np.full((40, 12), np.nan, np.float32)] * 8), BOTH)
    assert_same(fresh, both(own, small))


@pytest.mark.parametrize(("rows", "width"), [(0, 4), (0, 0)])
def test_of_no_rows_the_answers_are_empty(own: Session, rows: int, width: int):
    nothing = PaddedBatch(np.zeros((rows, width, 12), np.float32), np.zeros(rows, np.int32))
    logits, attention = both(own, nothing)
    assert (logits.shape, attention.shape) == ((rows, 9), (rows, width))


@pytest.mark.parametrize(
    "lengths",
    long_but([[400], [3, 0, 150, 1, 0, 90, 0], [128, 64], [1] * 130, [0, 0]], lambda lengths: 0 in lengths),
)
def test_scores_of_two_threads_have_the_same_bits(own: Session, lengths: list[int]):
    steps = np.random.default_rng(0).normal(0, 1, (len(lengths), max(lengths) + 5, 12)).astype(np.float32)
    batch = PaddedBatch(steps, np.array(lengths, np.int32))
    expected = both(own, batch)
    with lent_and_taken_back():
        for _ in range(100):
            assert_same(expected, both(own, batch))


def test_a_row_without_a_step_pools_nothing(own: Session):
    batch = PaddedBatch(np.zeros((2, 8, 12), np.float32), np.array([3, 0], np.int32))
    logits, attention = both(own, batch)
    assert np.isfinite(logits).all()
    assert not attention[1].any()


def another_mask(graph: onnx.GraphProto) -> None:
    """The mask of the scores has one step more than the lengths."""
    node = only(graph, "Less")
    node.op_type = "LessOrEqual"


def counted_from_one(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "one_more"))
    only(graph, "Range").input[0] = "one_more"


def scores_that_stay(graph: onnx.GraphProto) -> None:
    """A score at padding that keeps a share in the softmax."""
    where = [node for node in graph.node if node.op_type == "Where"][-1]
    graph.initializer.append(numpy_helper.from_array(np.array(-3, np.float32), "small"))
    where.input[2] = "small"


def unmasked_scores_are_an_output(graph: onnx.GraphProto) -> None:
    graph.output.append(helper.make_tensor_value_info(only(graph, "Tanh").output[0], TensorProto.FLOAT, None))


def masked_scores(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The Where of the scores."""
    return [node for node in graph.node if node.op_type == "Where"][-1]


def before(graph: onnx.GraphProto, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    """Puts new nodes before a node."""
    place = [each.output[0] for each in graph.node].index(node.output[0])
    for each in reversed(new):
        graph.node.insert(place, each)


def masked_by_padding(graph: onnx.GraphProto) -> None:
    """As torch's `masked_fill(~mask, ...)` is exported."""
    where = masked_scores(graph)
    before(graph, where, helper.make_node("Not", [where.input[0]], ["padding"]))
    where.input[:] = ["padding", where.input[2], where.input[1]]


def masked_by_past_the_end(graph: onnx.GraphProto) -> None:
    where, less = masked_scores(graph), only(graph, "Less")
    before(graph, where, helper.make_node("GreaterOrEqual", [*less.input], ["padding"]))
    where.input[:] = ["padding", where.input[2], where.input[1]]


def masked_with_lengths_first(graph: onnx.GraphProto) -> None:
    where, less = masked_scores(graph), only(graph, "Less")
    before(graph, where, helper.make_node("Greater", [less.input[1], less.input[0]], ["valid"]))
    where.input[0] = "valid"


def masked_with_a_large_number(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(-1e9, np.float32), "least"))
    masked_scores(graph).input[2] = "least"


def summed_over_an_axis_of_one(graph: onnx.GraphProto) -> None:
    """As `(softmax(scores, 1) * values).sum(1)` is exported, with scores `[rows, steps, 1]`."""
    where, softmax = masked_scores(graph), only(graph, "Softmax")
    product, squeeze = [node for node in graph.node if node.op_type == "MatMul"][-1], graph.node[-2]
    scores = next(node for node in graph.node if node.output[0] == where.input[1])
    unsqueezed = next(node for node in graph.node if node.output[0] == product.input[0])
    graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "last_axis"))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "steps_axis"))
    before(graph, where, helper.make_node("Unsqueeze", [where.input[0], "last_axis"], ["wide_mask"]))
    where.input[:] = ["wide_mask", scores.input[0], where.input[2]]
    softmax.attribute[0].i = 1
    values, pooled, attention = product.input[1], squeeze.output[0], softmax.output[0]
    softmax.output[0] = "wide_attention"
    before(
        graph,
        product,
        helper.make_node("Mul", ["wide_attention", values], ["shares"]),
        helper.make_node("ReduceSum", ["shares", "steps_axis"], [pooled], keepdims=0),
    )
    for node in (scores, unsqueezed, product, squeeze):
        graph.node.remove(node)
    graph.output.remove(next(each for each in graph.output if each.name == attention))


FORMS = [
    masked_by_padding,
    masked_by_past_the_end,
    masked_with_lengths_first,
    masked_with_a_large_number,
    summed_over_an_axis_of_one,
]


@pytest.mark.parametrize("edit", FORMS)
def test_other_forms_of_the_same_pooling_are_known(edit: Callable[[onnx.GraphProto], None]):
    graph = edited(edit)
    found = fusion.fused(graph)
    assert found is not None
    assert found.pools
    assert "Softmax" not in operators(found.graph)
    has_attention = edit is not summed_over_an_axis_of_one
    names = MANIFEST.graph.model_copy(update={"attention": MANIFEST.graph.attention if has_attention else None})
    wants = MANIFEST.model_copy(update={"graph": names})
    session, plain = Session(graph, wants), Session(graph, wants, devices=(PLAIN_CPU,))
    assert session.kernels.endswith(recurrent_kernels.POOLING)
    batch = pad(sequences(7, 1, 29, 64), multiple=4)
    np.testing.assert_allclose(session.run(batch).logits, plain.run(batch).logits, atol=CLOSE)


def valid_steps_are_masked(graph: onnx.GraphProto) -> None:
    """The wrong way round: what is left is padding."""
    where = masked_scores(graph)
    where.input[:] = [where.input[0], where.input[2], where.input[1]]


def values_are_an_output(graph: onnx.GraphProto) -> None:
    last = [node for node in graph.node if node.op_type == "Reshape"][-1]
    graph.output.append(helper.make_tensor_value_info(last.output[0], TensorProto.FLOAT, None))


def masked_by_something_else(graph: onnx.GraphProto) -> None:
    where = masked_scores(graph)
    before(graph, where, helper.make_node("And", [where.input[0], where.input[0]], ["other"]))
    where.input[0] = "other"


@pytest.mark.parametrize(
    "edit",
    [
        valid_steps_are_masked,
        masked_by_something_else,
        another_mask,
        counted_from_one,
        scores_that_stay,
        unmasked_scores_are_an_output,
        values_are_an_output,
    ],
)
def test_another_pooling_stays_as_it_is_and_what_is_read_at_padding_is_written(edit: Callable[[onnx.GraphProto], None]):
    found = fusion.fused(edited(edit))
    assert found is not None
    if edit is not values_are_an_output:
        assert not found.pools
        assert "AttentionPooling" not in operators(found.graph)
    last = [node for node in onnx.load_from_string(found.graph).graph.node if node.op_type == "LSTM"][-1]
    assert not any(attribute.name == "zeros" for attribute in last.attribute)  # its padding is read


@pytest.mark.parametrize(
    "attribute",
    [
        helper.make_attribute("activations", ["Sigmoid", "Relu", "Relu"] * 2),
        helper.make_attribute("activation_alpha", [0.5] * 6),
        helper.make_attribute("clip", 0.5),
    ],
    ids=lambda attribute: attribute.name,
)
def test_a_layer_of_another_arithmetic_stays_as_it_is_and_answers_as_in_onnxruntime(attribute: onnx.AttributeProto):
    def edit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.op_type == "LSTM":
                node.attribute.append(attribute)

    graph = edited(edit)
    if attribute.name == "activation_alpha":  # of no activation
        assert fusion.fused(graph) is None
    else:
        with pytest.raises(ValueError, match="of its own"):
            fusion.fused(graph)
    batch = pad(sequences(9, 4, 1))
    plain = Session(graph, MANIFEST, devices=(PLAIN_CPU,)).run(batch).logits
    assert np.abs(Session(graph, MANIFEST).run(batch).logits - plain).max() <= CLOSE


def test_a_layer_whose_turned_output_others_use_stays_as_it_is():
    def used_twice(graph: onnx.GraphProto) -> None:
        for node in [node for node in graph.node if node.op_type == "LSTM"]:
            graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))

    assert fusion.fused(edited(used_twice)) is None


@pytest.mark.parametrize("junk", [b"no graph", GRAPH[:2000], b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_graph_is_an_error(junk: bytes):
    with pytest.raises(ValueError, match=r"cut off|no message"):
        fusion.fused(junk)


def test_a_graph_that_does_not_run_with_them_runs_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fusion, "fused", lambda model: fusion.FusedGraph(b"broken", pools=True))
    assert Session(GRAPH, MANIFEST).kernels == recurrent_kernels.INSTRUCTION_SETS[0]


def test_bits_are_the_same_in_threads():
    session = Session(GRAPH, MANIFEST)
    made = [pad(sequences(*range(1 + seed % 5, 40, 3), seed=seed)) for seed in range(8)]
    one_by_one = [both(session, batch) for batch in made]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(one_by_one * 3, pool.map(lambda batch: both(session, batch), made * 3), strict=True):
            assert_same(expected, found)

"""Operators that compute valid steps only, in the place of nodes: the same answers, and other patterns stay."""

from collections.abc import Iterator, Mapping, Sequence
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


CONSTANTS = {
    "one_more": np.array(1),
    "last_axis": np.array([2]),
    "steps_axis": np.array([1]),
    "small": np.array(-3, np.float32),
    "least": np.array(-1e9, np.float32),
    "one": np.array(1, np.float32),
}


def edited(edits: Mapping[str, str], outputs: Sequence[str] = ()) -> bytes:
    """The bundled graph with other nodes in the place of those that make these values, and with more outputs."""
    model = onnx.load_from_string(GRAPH)
    made: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes = edits.get(node.output[0])
        made += [node] if nodes is None else map(onnx.parser.parse_node, filter(None, nodes.split("; ")))
    assert {*edits} <= {node.output[0] for node in model.graph.node}
    read, written = ({name for node in made for name in getattr(node, field)} for field in ("input", "output"))
    kept = [output for output in model.graph.output if output.name in written]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(made)
    more = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    model.graph.output.extend([*kept, *more])
    model.graph.initializer.extend(numpy_helper.from_array(CONSTANTS[name], name) for name in read & CONSTANTS.keys())
    serialized: bytes = model.SerializeToString()
    return serialized


def test_the_nodes_around_the_layers_become_part_of_them():
    found = fusion.fused(GRAPH, MANIFEST.graph)
    assert found is not None
    assert found.pools
    model = onnx.load_from_string(found.graph)
    own = [node for node in model.graph.node if node.domain == fusion.DOMAIN]
    names = ["Pack", "LSTM", "LSTM", "Dense", "Dense", "StepSoftmax", "OuterSum", "Unpack"]
    assert [node.op_type for node in own] == names
    assert all(helper.get_node_attr_value(node, "packed") == 1 for node in own[1:3])
    assert own[-1].output == ["attention"]
    assert not {"Softmax", "Where", "Transpose", "Reshape"} & {node.op_type for node in model.graph.node}
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


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "lengths", long_but([[400], [3, 0, 150, 1, 0, 90, 0], [128, 64], [1] * 130, [0, 0]], lambda lengths: 0 in lengths)
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


FORMS = {
    "masked by padding, as torch's `masked_fill(~mask, ...)`": {
        "where_1": "padding = Not (lt); where_1 = Where (padding, val_23, squeeze)"
    },
    "masked past the end": {
        "where_1": "padding = GreaterOrEqual (arange, unsqueeze); where_1 = Where (padding, val_23, squeeze)"
    },
    "masked with the lengths first": {
        "where_1": "valid = Greater (unsqueeze, arange); where_1 = Where (valid, squeeze, val_23)"
    },
    "masked twice": {"where_1": "other = And (lt, lt); where_1 = Where (other, squeeze, val_23)"},
    "masked by a sum, as Keras's": {
        "where_1": "valid = Cast <to = 1> (lt); padding = Sub (one, valid); "
        "far = Mul (padding, least); where_1 = Add (far, squeeze)"
    },
    "masked with a large number": {"where_1": "where_1 = Where (lt, squeeze, least)"},
    "summed over an axis of one, as `(softmax(scores, 1) * values).sum(1)`": {
        "squeeze": "",
        "where_1": "wide_mask = Unsqueeze (lt, last_axis); where_1 = Where (wide_mask, linear_1, val_23)",
        "attention": "wide_attention = Softmax <axis = 1> (where_1)",
        "unsqueeze_2": "",
        "matmul": "shares = Mul (wide_attention, getitem)",
        "squeeze_1": "squeeze_1 = ReduceSum <keepdims = 0> (shares, steps_axis)",
    },
}
"""The bundled graph names its lengths' mask `lt`, the scores `squeeze`, the values `getitem`, the sum `squeeze_1`."""


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_the_same_pooling_are_known(form: str):
    graph = edited(FORMS[form])
    found = fusion.fused(graph, MANIFEST.graph)
    assert found is not None
    assert found.pools
    assert "Softmax" not in operators(found.graph)
    attention = MANIFEST.graph.attention if "attention" not in FORMS[form] else None
    wants = MANIFEST.model_copy(update={"graph": MANIFEST.graph.model_copy(update={"attention": attention})})
    session, plain = Session(graph, wants), Session(graph, wants, devices=(PLAIN_CPU,))
    assert session.kernels.endswith(recurrent_kernels.POOLING)
    batch = pad(sequences(7, 1, 29, 64), multiple=4)
    np.testing.assert_allclose(session.run(batch).logits, plain.run(batch).logits, atol=CLOSE)


OTHERS: dict[str, tuple[dict[str, str], list[str]]] = {
    "valid steps are masked, and padding is left": ({"where_1": "where_1 = Where (lt, val_23, squeeze)"}, []),
    "masked by something else": (
        {"where_1": "is_high = Greater (squeeze, small); where_1 = Where (is_high, squeeze, val_23)"},
        [],
    ),
    "a mask of one step more": ({"lt": "lt = LessOrEqual (arange, unsqueeze)"}, []),
    "counted from one": ({"arange": "arange = Range (one_more, sym_size_int_6, val_4)"}, []),
    "a score at padding that keeps a share": ({"where_1": "where_1 = Where (lt, squeeze, small)"}, []),
    "unmasked scores are an output": ({}, ["tanh"]),
    "values are an output": ({}, ["getitem"]),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_pooling_stays_as_it_is_and_what_is_read_at_padding_is_written(other: str):
    found = fusion.fused(edited(*OTHERS[other]), MANIFEST.graph)
    assert found is not None
    if other != "values are an output":
        assert not found.pools
        assert not {"Dense", "OuterSum"} & {*operators(found.graph)}
    assert "Unpack" in operators(found.graph)  # the layer's output is read at padding


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
    model = onnx.load_from_string(GRAPH)
    for node in model.graph.node:
        node.attribute.extend([attribute] if node.op_type == "LSTM" else [])
    graph = model.SerializeToString()
    if attribute.name == "activation_alpha":  # of no activation
        assert fusion.fused(graph, MANIFEST.graph) is None
    else:
        with pytest.raises(ValueError, match="of its own"):
            fusion.fused(graph, MANIFEST.graph)
    batch = pad(sequences(9, 4, 1))
    plain = Session(graph, MANIFEST, devices=(PLAIN_CPU,)).run(batch).logits
    assert np.abs(Session(graph, MANIFEST).run(batch).logits - plain).max() <= CLOSE


def test_a_layer_whose_turned_output_others_use_stays_as_it_is():
    assert fusion.fused(edited({}, ["val_9", "val_15"]), MANIFEST.graph) is None


@pytest.mark.parametrize("junk", [b"no graph", GRAPH[:2000], b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_graph_is_an_error(junk: bytes):
    with pytest.raises(ValueError, match=r"cut off|no message"):
        fusion.fused(junk, MANIFEST.graph)


def test_a_graph_that_does_not_run_with_them_runs_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fusion, "fused", lambda model, names: fusion.FusedGraph(b"broken", pools=True))
    assert Session(GRAPH, MANIFEST).kernels == recurrent_kernels.INSTRUCTION_SETS[0]


def test_a_graph_that_answers_otherwise_with_them_runs_as_it_is(monkeypatch: pytest.MonkeyPatch):
    fuse, wrong = fusion.fused, onnx.load_from_string(GRAPH)
    weights = next(each for each in wrong.graph.initializer if each.name == "model.head.weight")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.01), weights.name))
    monkeypatch.setattr(fusion, "fused", lambda model, *names: fuse(wrong.SerializeToString(), *names))
    session, batch = Session(GRAPH, MANIFEST), pad(sequences(9, 4, 1))
    assert session.kernels == recurrent_kernels.INSTRUCTION_SETS[0]
    plain = Session(GRAPH, MANIFEST, devices=(PLAIN_CPU,)).run(batch).logits
    assert np.abs(session.run(batch).logits - plain).max() <= CLOSE


def test_bits_are_the_same_in_threads():
    session = Session(GRAPH, MANIFEST)
    made = [pad(sequences(*range(1 + seed % 5, 40, 3), seed=seed)) for seed in range(8)]
    one_by_one = [both(session, batch) for batch in made]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(one_by_one * 3, pool.map(lambda batch: both(session, batch), made * 3), strict=True):
            assert_same(expected, found)

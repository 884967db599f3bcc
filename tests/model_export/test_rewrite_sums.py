import numpy as np
import onnx
import pytest

from lengthwise.padding import pad
from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput
from lengthwise.runtime.session import Session
from lengthwise_export import rewrite_sums
from lengthwise_export.candidate import Candidate
from lengthwise_export.rewrite_sums import with_sums_as_products, with_sums_rewritten
from tests.gallery.onnx_models import Weights, integers, model

MANIFEST = Manifest(
    name="m", version=1, input=StepInput(features=4), labels=("a", "b"), graph=GraphNames(mask="mask", lengths=None)
)
MASKED = """
[hide] h = Where (m3, values, nought)
[steep] e = MatMul (h, K)
[pool] s = ReduceSum <keepdims = 0> (e, axis)
[head] logits = MatMul (s, V)
"""


def masked_sum(body: str = MASKED, opset: int = 17, **more: np.ndarray) -> onnx.ModelProto:
    w = Weights(0)
    weights = {
        "axis": integers(1),
        "two": integers(2),
        "nought": np.zeros(1, np.float32),
        "K": w.normal(4, 16),
        "V": w.normal(16, 2),
    }
    signature = "g (float[rows,width,4] values, bool[rows,width] mask) => (float[rows,2] logits)"
    return model(signature, "[m] m3 = Unsqueeze (mask, two)\n" + body, weights | more, producer="test", opset=opset)


def answers(proto: onnx.ModelProto, lengths: list[int]) -> np.ndarray:
    random = np.random.default_rng(0)
    rows = [random.normal(size=(length, 4)).astype(np.float32) for length in lengths]
    return Session(proto.SerializeToString(), MANIFEST).run(pad(rows)).logits


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


HIDDEN = "[hide] h = Where (m3, values, nought)\n[steep] e = MatMul (h, K)\n"
HEAD = "\n[head] logits = MatMul (s, V)"
FORMS = {
    "before the last axis": MASKED,
    "kept as an axis": HIDDEN + "[pool] k = ReduceSum (e, axis)\n[drop] s = Squeeze (k, axis)" + HEAD,
    "the last axis": HIDDEN
    + "[turn] t = Transpose <perm = [0, 2, 1]> (e)\n[pool] s = ReduceSum <keepdims = 0> (t, two)"
    + HEAD,
    "steps first": HIDDEN
    + "[turn] t = Transpose <perm = [1, 0, 2]> (e)\n[pool] s = ReduceSum <keepdims = 0> (t, zero)"
    + HEAD,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_sum_over_the_steps_becomes_a_product_and_answers_alike(form: str) -> None:
    before = masked_sum(FORMS[form], zero=integers(0))
    after, replaced = with_sums_as_products(before)
    onnx.checker.check_model(after, full_check=True)
    assert replaced == ["pool"]
    assert "ReduceSum" not in kinds(after)
    assert np.abs(answers(after, [9, 1, 4]) - answers(before, [9, 1, 4])).max() < 1e-5


def test_sums_over_features_and_old_graphs_stay() -> None:
    over_features = masked_sum(
        MASKED.replace("(e, axis)", "(e, two)").replace("(s, V)", "(s, W)"), W=np.ones((1, 2), "f4")
    )
    assert with_sums_as_products(over_features)[1] == []
    assert with_sums_as_products(masked_sum(opset=13))[1] == []


def test_other_sums_stay() -> None:
    both = masked_sum(
        MASKED.replace("(e, axis)", "(e, both)")
        .replace("(s, V)", "(r, W)")
        .replace("[head]", "[r] r = Unsqueeze (s, axis)\n[head]"),
        both=integers(1, 2),
        W=np.ones((1, 2), "f4"),
    )
    counted = masked_sum(
        MASKED.replace("(e, axis)", "(i, axis)")
        .replace("[pool]", "[i] i = Cast <to = 6> (e)\n[pool]")
        .replace("[head]", "[f] f = Cast <to = 1> (s)\n[head]")
        .replace("(s, V)", "(f, V)")
    )
    computed = masked_sum(
        MASKED.replace("(e, axis)", "(e, found)").replace(
            "[pool]",
            "[sized] r = Size (mask)\n[z] zz = Mul (r, zero)"
            "\n[a] aa = Add (zz, one)\n[u] found = Unsqueeze (aa, zero1)\n[pool]",
        ),
        zero=np.array(0),
        one=np.array(1),
        zero1=integers(0),
    )
    for proto in (both, counted, computed):
        assert with_sums_as_products(proto)[1] == []


def built(proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, *bits: bool) -> tuple[onnx.ModelProto, str]:
    """What `rewriting` makes of a graph, where the proof would find the same bits or not, one time after the other."""
    found = iter(bits)
    monkeypatch.setattr(rewrite_sums, "keeps_bits", lambda graph, manifest: next(found))
    told: list[str] = []
    source = Candidate(MANIFEST, lambda named: proto, None)
    return with_sums_rewritten(source, told.append).build(MANIFEST), told[0]


def test_what_was_done_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, told = built(masked_sum(), monkeypatch, False, True)
    assert "ReduceSum" not in kinds(graph)
    assert told.startswith("rewritten as matrix products with ones: pool")


@pytest.mark.parametrize(
    ("bits", "why"), [((True,), "already gives the same bits"), ((False, False), "bits still depend on the batch")]
)
def test_a_graph_stays_where_rewriting_gains_nothing(
    monkeypatch: pytest.MonkeyPatch, bits: tuple[bool, ...], why: str
) -> None:
    proto = masked_sum()
    graph, told = built(proto, monkeypatch, *bits)
    assert graph is proto
    assert why in told


def test_a_graph_without_such_a_sum_or_that_would_answer_otherwise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    maximum = masked_sum(
        MASKED.replace("ReduceSum <keepdims = 0> (e, axis)", "ReduceMax <axes = [1], keepdims = 0> (e)")
    )
    assert "has no ReduceSum" in built(maximum, monkeypatch, False)[1]
    monkeypatch.setattr(rewrite_sums, "largest_difference", lambda *graphs: 0.5)
    assert "would change an answer by 0.5" in built(masked_sum(), monkeypatch, False)[1]


def test_the_rewritten_graph_is_batch_invariant() -> None:
    told: list[str] = []
    graph = with_sums_rewritten(Candidate(MANIFEST, lambda named: masked_sum(), None), told.append).build(MANIFEST)
    assert told[0].startswith("rewritten"), told
    together = answers(graph, [21, 3, 8, 5])
    random = np.random.default_rng(0)
    rows = [random.normal(size=(length, 4)).astype(np.float32) for length in (21, 3, 8, 5)]
    session = Session(graph.SerializeToString(), MANIFEST)
    for row, expected in zip(rows, together, strict=True):
        assert np.array_equal(session.run(pad([row])).logits[0], expected)

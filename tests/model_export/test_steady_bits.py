"""Rewrites of operators whose bits depend on the batch, each alone; `test_capture` has whole models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lengthwise.runtime.manifest import GRAPH_FILE
from lengthwise.runtime.session import Session
from lengthwise_export.errors import UncheckableError
from lengthwise_export.exporting.candidate import Candidate
from lengthwise_export.exporting.flow import publish
from lengthwise_export.options import ExportOptions
from lengthwise_export.steady_bits import rewriting
from lengthwise_export.steady_bits.rewriting import (
    REWRITES,
    LossOfBits,
    RewrittenOperator,
    first_loss,
    keeps_bits,
    rewrite,
    with_steady_bits,
)
from tests.gallery.onnx_models import Weights, integers, model
from tests.support.operator_forms import (
    FORMS,
    LARGEST,
    MANIFEST,
    POOLED,
    SIGNATURE,
    Form,
    convolution,
    filters,
    same_bits,
    sequences,
)


def kinds(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", FORMS)
def test_an_operator_becomes_others_with_the_same_bits_in_every_batch(name: str) -> None:
    form = FORMS[name]
    before = form.graph
    after, rewritten = rewrite(before, MANIFEST)
    onnx.checker.check_model(after, full_check=True)
    assert {one.operator.partition("/")[0] for one in rewritten} == {form.rewritten}
    assert rewriting.largest_difference(before, after, MANIFEST) < 1e-5
    members = sequences()
    assert same_bits(after, members) == len(members)


def test_every_rewrite_of_the_table_is_tried() -> None:
    tried = {node.op_type for form in FORMS.values() for node in form.graph.graph.node if node.name == form.rewritten}
    assert {*REWRITES} - tried == {"Asin", "Acos"}  # as Atan


STAY = {
    "a sum over the features of each step": Form(
        "[sum] u = ReduceSum (e, two)\n[sub] d = Sub (e, u)\n"
        + LARGEST.replace("m3, e,", "m3, d,")
        + "[s] s = Abs (p)",
        "",
    ),
    "a mean over the width": Form("[pool] s = ReduceMean <keepdims = 0> (e, one)", ""),
    "a sum of integers": Form(
        "[cast] i = Cast <to = 6> (e)\n[sum] n = ReduceSum <keepdims = 0> (i, one)\n[back] s = Cast <to = 1> (n)", ""
    ),
    "a sum over axes that are computed": Form(
        "[shape] z = Shape <start = 0, end = 1> (values)\n[mul] y = Mul (z, zero)\n[axis] x = Add (y, one)\n"
        "[sum] s = ReduceSum <keepdims = 0> (e, x)",
        "",
    ),
    "a convolution of few numbers": Form(convolution(3), "", weights=filters(16, 16, 3)),
    "a product with a constant": Form(
        LARGEST + "[product] s = MatMul (p, Q)", "", weights={"Q": np.eye(16, dtype="f4")}
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_what_keeps_its_bits_or_cannot_stays(name: str) -> None:
    before = STAY[name].graph
    after, rewritten = rewrite(before, MANIFEST)
    assert rewritten == []
    assert after is before


def test_an_einsum_that_only_copies_an_input_leaves_its_name() -> None:
    before = Form(
        '[copy] i = Einsum <equation = "bsf->bsf"> (values)\n[sum] s3 = Add (i, i)\n'
        "[widen] s2 = MatMul (s3, K)\n[pool] s = ReduceMax <keepdims = 0> (s2, one)",
        "",
    ).graph
    after, rewritten = rewrite(before, MANIFEST, at_all_sizes=True)
    onnx.checker.check_model(after, full_check=True)
    assert "copy" in {one.operator for one in rewritten}
    assert [value.name for value in after.graph.input] == ["values", "mask"]
    assert rewriting.largest_difference(before, after, MANIFEST) == 0


def test_a_graph_of_an_old_opset_stays() -> None:
    body = "[cast] f = Cast <to = 1> (mask)\n[m] m3 = Unsqueeze <axes = [2]> (f)\n[mul] e = Mul (values, m3)\n"
    body += "[pool] s = ReduceSum <axes = [1], keepdims = 0> (e)\n[head] logits = MatMul (s, V)"
    before = model(SIGNATURE, body, {"V": Weights(0).normal(4, 2)}, producer="test", opset=12)
    assert rewrite(before, MANIFEST) == (before, [])


def test_convolutions_behind_each_other_stay_in_two_axes() -> None:
    two = "[relu] f2 = Relu (f1)\n[conv2] f = Conv <kernel_shape = [1]> (f2, G, b)"
    weights = filters(16, 16, 9) | {"G": Weights(4).normal(16, 16, 1)}
    after, rewritten = rewrite(Form(convolution(9, after=two), "", weights=weights).graph, MANIFEST, at_all_sizes=True)
    assert [one.operator for one in rewritten] == ["conv", "conv2"]
    # one of STEPS, one of CHANNELS, and one for the first convolution
    assert (kinds(after).count("Unsqueeze"), kinds(after).count("Squeeze")) == (3, 1)
    members = sequences()
    assert same_bits(after, members) == len(members)


def test_a_graph_that_runs_at_no_small_batch_is_refused() -> None:
    body = "[far] x = Reshape (e, shape)\n[pool] s = ReduceSum <keepdims = 0> (x, one)"
    with pytest.raises(UncheckableError):
        rewrite(Form(body, "", weights={"shape": integers(7, 7, 16)}).graph, MANIFEST)


SUM = FORMS["a sum over the steps"].graph
REWRITTEN_SUM = [RewrittenOperator("pool", "ReduceSum", ("Shape", "Concat", "ConstantOfShape", "MatMul", "Gather"))]


def told(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, *bits: bool
) -> tuple[onnx.ModelProto, list[RewrittenOperator], str]:
    """What becomes of a graph whose bits are measured to be the same or not, one time after the other, and is said."""
    measured = iter(bits)
    monkeypatch.setattr(rewriting, "keeps_bits", lambda graph, manifest: next(measured))
    said: list[str] = []
    after, rewritten = with_steady_bits(graph, MANIFEST, said.append)
    (line,) = said
    return after, rewritten, line


def test_what_was_rewritten_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    after, rewritten, line = told(SUM, monkeypatch, False, True)
    assert "ReduceSum" not in kinds(after)
    assert rewritten == REWRITTEN_SUM
    assert line.startswith("rewritten: ReduceSum (pool); this changed answers by ")
    sums = "\n".join(f"[p{place}] s{place} = ReduceSum <keepdims = 0> (e, one)" for place in range(6))
    graph = Form(f"{sums}\n[all] s = Sum (s0, s1, s2, s3, s4, s5)", "").graph
    assert told(graph, monkeypatch, False, True)[2].startswith("rewritten: ReduceSum (p0, p1, p2, p3 and 2 more); ")


def test_a_graph_that_keeps_its_bits_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(SUM, monkeypatch, True) == (
        SUM,
        [],
        "nothing rewritten: the graph already gives the same bits batched and unbatched",
    )


def test_where_bits_are_lost_first_is_told_if_no_rewrite_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "first_loss", lambda graph, manifest: LossOfBits("odd", "Odd", 1e-7))
    after, rewritten, line = told(SUM, monkeypatch, False, False)
    assert after is SUM
    assert rewritten == []
    assert line == (
        "nothing rewritten: with ReduceSum (pool) rewritten, bits still depend on the batch, first at odd (Odd), and "
        "no rewrite is known for that"
    )
    monkeypatch.setattr(rewriting, "first_loss", lambda graph, manifest: None)
    mean = STAY["a mean over the width"].graph
    assert told(mean, monkeypatch, False)[2] == (
        "nothing rewritten: bits depend on the batch, and no rewrite is known for that"
    )


def test_a_rewrite_that_would_change_an_answer_by_more_than_rounding_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rewriting, "largest_difference", lambda *graphs: 0.5)
    after, rewritten, line = told(SUM, monkeypatch, False)
    assert (after, rewritten) == (SUM, [])
    assert "would change an answer by 0.5" in line


def test_the_second_try_rewrites_also_what_its_size_does_not_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Form(convolution(3), "", weights=filters(16, 16, 3)).graph
    after, rewritten, _ = told(graph, monkeypatch, False, True)
    assert [one.operator for one in rewritten] == ["conv"]
    members = sequences()
    assert same_bits(after, members) == len(members)


def test_nodes_without_names_and_of_one_weight_are_rewritten_apart() -> None:
    twice = "[conv2] f2 = Conv <kernel_shape = [9], pads = [4, 4]> (c, F, b)\n[add] f = Add (f1, f2)"
    before = Form(convolution(9, after=twice), "", weights=filters(16, 16, 9)).graph
    for node in before.graph.node:
        node.name = "f1/Conv_2" if node.op_type == "Add" else ""
    after, rewritten = rewrite(before, MANIFEST)
    assert [one.operator for one in rewritten] == ["Conv giving f1", "Conv giving f2"]
    onnx.checker.check_model(after, full_check=True)
    assert "F" not in {tensor.name for tensor in after.graph.initializer}
    members = sequences()
    assert same_bits(after, members) == len(members)


def test_verification_decides_whether_and_where_bits_are_lost() -> None:
    after, _ = rewrite(SUM, MANIFEST)
    assert (keeps_bits(SUM, MANIFEST), keeps_bits(after, MANIFEST)) == (False, True)
    loss = first_loss(SUM, MANIFEST)
    assert loss is not None
    assert str(loss) == "pool (ReduceSum)"
    assert 0 < loss.difference < 1e-5
    assert first_loss(after, MANIFEST) is None


def test_values_of_another_layout_are_not_compared() -> None:
    """The convolution along two axes runs in such a layout; what loses bits is the sum behind it."""
    pooled = "[hide_more] k = Where (mc, f1, nought)\n[late] s = ReduceSum <keepdims = 0> (k, two)"
    conv = Form(convolution(9).replace(POOLED, pooled), "", weights=filters(16, 16, 9)).graph
    blocked, rewritten = rewrite(conv, MANIFEST)
    (place,) = (number for number, one in enumerate(rewritten) if one.operator == "late")
    assert place == len(rewritten) - 1
    assert first_loss(blocked, MANIFEST) is None


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("tolerance", "made_here", "rewritten"), [(None, True, True), (0.0, True, False), (None, False, False)]
)
def test_an_export_keeps_bits_but_for_a_tolerance_and_a_graph_made_elsewhere(
    tolerance: float | None, made_here: bool, rewritten: bool, tmp_path: Path
) -> None:
    session = Session(SUM.SerializeToString(), MANIFEST)
    reference = (lambda batch: session.run(batch).logits) if made_here else None
    source = Candidate(MANIFEST, lambda named: SUM, reference, tolerance=0.0)
    published = publish(source, tmp_path / "sum", ExportOptions(tolerance=tolerance))
    graph = onnx.load(published.directory / GRAPH_FILE)
    assert ("ReduceSum" in kinds(graph)) == (not rewritten)
    assert published.manifest.promises[0].bits == rewritten
    assert len(published.notices) == rewritten

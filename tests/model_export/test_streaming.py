"""A graph that streams answers chunks as the whole, or is refused by operator."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from lengthwise.errors import VerificationError
from lengthwise.padding import PaddedBatch, Sample, pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.onnx.beginnings import without_states
from lengthwise.runtime.onnx.pattern import NotFound
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import draw
from lengthwise_export.onnx_graphs import precision
from lengthwise_export.streaming.proof import prove
from lengthwise_export.streaming.stream import stream
from tests.gallery.streaming_models import INT8, REFUSED, STREAMING, graph, manifest


def streaming(name: str, *, int8: bool = False) -> tuple[ModelProto, Manifest]:
    """The streaming graph of a model, and its manifest."""
    streaming_graph, said = stream(graph(name), manifest(name))
    if int8:
        streaming_graph = precision.convert(streaming_graph, "int8")
    return streaming_graph, manifest(name, said)


def whole(name: str, batch: PaddedBatch) -> np.ndarray:
    """What the whole graph answers to a batch, whose states it does not take."""
    session = Session(graph(name).SerializeToString(), manifest(name))
    return session.run(PaddedBatch(batch.steps, batch.lengths)).logits


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", STREAMING)
def test_chunks_have_the_answer_to_the_whole(name: str):
    promise = prove(*streaming(name), partial(whole, name), seed=1)
    assert promise.max_difference < 1e-4


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", INT8)
def test_chunks_have_the_answer_to_the_whole_at_int8(name: str):
    streaming_graph, described = streaming(name, int8=True)
    assert Session(streaming_graph.SerializeToString(), described).integer
    prove(streaming_graph, described, None, seed=1)


def test_running_attention_is_computed_of_valid_steps_only():
    model, described = streaming("attention_pooling")
    assert Session(model.SerializeToString(), described).kernels.endswith("+attention")


READ_OTHERWISE = (
    *("a_figure_of_short_sequences", "a_tap_far_ahead", "a_tap_far_back", "attention_behind_convolutions"),
    *("attention_summed_by_a_product_with_ones", "causal_convolutions", "convolution_that_looks_ahead"),
    *("convolution_that_looks_ahead_of_a_mask", "differences_of_steps", "each_step_behind_convolutions"),
    *("each_step_of_causal_taps", "many_figures_behind_convolutions", "missing_values_before_a_convolution"),
)
"""Models whose states are joined to the steps: they are read also where a sequence begins."""


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name in STREAMING if name != "positions_without_an_end"])
def test_a_graph_without_its_states_has_the_same_bits(name: str):
    model, described = streaming(name)
    content = model.SerializeToString()
    if name in READ_OTHERWISE:
        with pytest.raises(NotFound):
            without_states(content, described)
        return
    rows = draw(described, [1, 3, 20, 33, 6], 10)
    steps = [row.steps if isinstance(row, Sample) else row for row in rows]
    expected = Session(content, described).run(pad(rows), ("logits", "attention"))
    found = Session(without_states(content, described), manifest(name)).run(pad(steps), ("logits", "attention"))
    np.testing.assert_array_equal(found.logits, expected.logits)
    if expected.attention is not None:
        np.testing.assert_array_equal(found.attention, expected.attention)


@pytest.mark.parametrize("name", REFUSED)
def test_what_looks_ahead_is_refused_by_operator(name: str):
    _, operator, reason = REFUSED[name]
    with pytest.raises(VerificationError, match=f"streams/1 cannot stream: {operator}: .*{reason}"):
        stream(graph(name), manifest(name))


def test_several_sequences_are_refused_with_a_cure():
    table = manifest("gru_last").model_dump()
    step = {"features": table["input"]["features"], "max_length": table["max_length"]}
    table["input"]["sequences"] = [{"name": "values", **step}, {"name": "second", **step}]
    with pytest.raises(VerificationError, match=r"takes several sequences, .*stream a model of each"):
        stream(graph("gru_last"), Manifest.model_validate(table))


def with_factor(model: ModelProto, state: str, factor: np.ndarray) -> None:
    """Multiplies an output by a factor, in place: what a wrong rule might do to a state."""
    for node in model.graph.node:
        node.output[:] = [f"{state}_right" if name == state else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(factor, f"{state}_factor"))
    model.graph.node.append(helper.make_node("Mul", [f"{state}_right", f"{state}_factor"], [state]))


def test_a_state_that_forgets_its_first_steps_fails_the_proof():
    model, described = streaming("a_tap_far_back")
    kept = np.repeat(np.float32([0, 1]), [64 - 41, 41])
    with_factor(model, "state_p_next", kept)
    with pytest.raises(VerificationError, match=r"does not stream: .* its answer differs"):
        prove(model, described, None, seed=0)


def test_a_wrong_state_far_behind_the_last_step_fails_the_proof():
    model, described = streaming("a_tap_far_ahead")
    assert described.streaming is not None
    for state in described.streaming.states:
        if state.name not in ("steps_seen", "state_last_steps"):
            with_factor(model, f"{state.name}_next", np.array(5, state.dtype))
    with pytest.raises(VerificationError, match=r"does not stream: .* its answer differs"):
        prove(model, described, None, seed=0)


def test_attention_among_the_chunk_alone_fails_the_proof():
    model, described = streaming("attention_as_an_output")
    (attention,) = (node for node in model.graph.node if node.output[0] == "att")
    attention.input[0] = next(node.output[0] for node in model.graph.node if node.op_type == "Softmax")
    with pytest.raises(VerificationError, match=r"does not stream: .* its attention differs"):
        prove(model, described, None, seed=0)


@pytest.mark.parametrize(("name", "max_length", "lines"), [("a_tap_far_back", 70, 1), ("gru_last", 10, 0)])
def test_a_proof_says_where_it_is_too_short(name: str, max_length: int, lines: int):
    model, described = streaming(name)
    told: list[str] = []
    prove(model, described.model_copy(update={"max_length": max_length}), None, seed=0, notify=told.append)
    assert len(told) == lines
    assert all("proved for up to 70 steps" in line and "--max-length 169" in line for line in told)


@pytest.mark.parametrize("name", ["a_tap_far_ahead", "first_and_last_step", "positions_without_an_end"])
@pytest.mark.parametrize("count", [-(2**63), -(2**62), -1, 2**62, 2**63 - 1])
def test_a_made_up_count_of_steps_changes_no_other_row(name: str, count: int):
    model, described = streaming(name)
    session = Session(model.SerializeToString(), described)
    honest, forged = draw(described, [9, 5], seed=0)
    assert isinstance(honest, Sample)
    assert isinstance(forged, Sample)
    forged = replace(forged, beside={**forged.beside, "steps_seen": np.array([count])})
    together = session.run(pad([honest, forged], blank=described.blank)).logits
    alone = session.run(pad([honest], blank=described.blank)).logits
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)

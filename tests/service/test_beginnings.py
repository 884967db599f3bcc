"""Ordinary sequences of a model that streams run without its states, with the same bits."""

from dataclasses import replace

import numpy as np
import pytest

from lengthwise.padding import Sample, pad
from lengthwise.runtime.onnx import beginnings
from lengthwise.runtime.session import Session
from tests.support.streaming_models import graph_bytes, gru, manifest, sequences

CONTENT = graph_bytes(gru)
OF = manifest(gru, CONTENT)
STEPS = sequences([3, 1, 9])


def test_an_ordinary_batch_reads_no_state() -> None:
    session, batch = Session(CONTENT, OF), pad(STEPS, blank=OF.blank)
    assert batch.begins
    nothing = replace(batch, beside={"hidden": np.full((3, 8), np.nan, np.float32)})
    np.testing.assert_array_equal(session.run(nothing).logits, session.run(batch).logits)


def test_a_batch_with_a_state_reads_all_states() -> None:
    session, state = Session(CONTENT, OF), {"hidden": np.ones(8, np.float32)}
    mixed = session.run(pad([STEPS[0], Sample(STEPS[1], state)], blank=OF.blank))
    alone = [session.run(pad([row], blank=OF.blank)).logits[0] for row in (STEPS[0], Sample(STEPS[1], state))]
    np.testing.assert_allclose(mixed.logits, alone, rtol=1e-6)
    assert not np.allclose(mixed.logits[1], session.run(pad([STEPS[1]], blank=OF.blank)).logits[0])


def test_next_states_are_those_of_the_streaming_graph() -> None:
    session, batch = Session(CONTENT, OF), pad(STEPS, blank=OF.blank)
    assert session.run(batch, ("logits", "states")).states[0].shape == (3, 8)
    assert session.run(batch).states == ()


def test_a_graph_with_other_answers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Session(CONTENT, OF).run(pad(STEPS, blank=OF.blank)).logits
    other = beginnings.without_states(graph_bytes(gru, seed=1), OF)
    monkeypatch.setattr(beginnings, "without_states", lambda *_: other)
    np.testing.assert_array_equal(Session(CONTENT, OF).run(pad(STEPS, blank=OF.blank)).logits, expected)

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.session import Outputs
from tests.support import streaming_models
from tests.support.numpy_models import manifest

LENGTHS = np.array([2, 1], dtype=np.int32)


def outputs(logits: Any, attention: Any = None) -> Outputs:
    weights = None if attention is None else np.asarray(attention, dtype=np.float32)
    return Outputs(np.asarray(logits, dtype=np.float32), weights)


def scored(given: Outputs, lengths: Any = LENGTHS, task: Any = "single-label") -> list[Answer]:
    """The answers of rows that all have one."""
    found = answers.score(given, lengths, manifest(task=task))
    assert None not in found
    return [answer for answer in found if answer is not None]


def test_a_row_is_softmaxed_its_best_class_named_and_its_attention_cut_at_its_length() -> None:
    first, second = scored(outputs([[0, 0, 0], [0, 9, 0]]))
    assert first.probabilities.tolist() == pytest.approx([1 / 3] * 3)
    assert (second.best, second.attention) == (1, None)
    assert second.probabilities.dtype == np.float32
    found = scored(outputs(np.zeros((2, 3)), [[0.5, 0.5, 0, 0], [1, 0, 0, 0]]))
    assert [np.asarray(answer.attention).tolist() for answer in found] == [[0.5, 0.5], [1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_no_answer_and_the_others_have_theirs(bad: float) -> None:
    (alone,) = scored(outputs([[1, 2, 3]]), LENGTHS[:1])
    first, second = answers.score(outputs([[0, bad, 0], [1, 2, 3]]), LENGTHS, manifest())
    assert first is None
    assert second is not None
    assert second.probabilities.tobytes() == alone.probabilities.tobytes()


def test_what_is_not_finite_counts_in_a_per_step_answer_up_to_the_length() -> None:
    logits = np.zeros((2, 4, 3))
    logits[1, 1:] = np.nan
    assert [answer.probabilities.shape for answer in scored(outputs(logits), task="per-step")] == [(2, 3), (1, 3)]
    logits[0, 1, 2] = np.nan
    first, second = answers.score(outputs(logits), LENGTHS, manifest(task="per-step"))
    assert first is None
    assert second is not None


def test_states_are_little_endian_and_none_where_one_is_not_finite() -> None:
    streams = streaming_models.manifest(streaming_models.gru, b"")
    states = np.arange(24, dtype=">f4").reshape(3, 8)
    states[1, 5] = np.inf
    found = Outputs(np.zeros((3, 3), np.float32), states=(states,))
    first, second, third = answers.score(found, np.array([1, 1, 1], np.int32), streams)
    assert None not in (first, second, third)
    assert [first.state, second.state] == [np.arange(8, dtype="<f4").tobytes(), None]
    assert third.state == np.arange(16, 24, dtype="<f4").tobytes()
    assert answers.with_states([first, second, third]) == [first, None, third]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_probabilities_of_finite_logits_are_finite_and_sum_to_one(
    row: list[float],
) -> None:
    one, several = (
        answers.probabilities(np.array([row], dtype=np.float32), manifest(task=task))
        for task in ("single-label", "multi-label")
    )
    assert np.isfinite(one).all()
    assert one.sum() == pytest.approx(1, abs=1e-6)
    assert ((several >= 0) & (several <= 1)).all()


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=2, max_size=9),
    st.sampled_from(["single-label", "multi-label"]),
)
def test_company_changes_no_bit_of_a_rows_probabilities(rows: list[list[float]], task: Any) -> None:
    logits = np.array(rows, dtype=np.float32)
    together = answers.probabilities(logits, manifest(task=task))
    alone = np.concatenate([answers.probabilities(row[None], manifest(task=task)) for row in logits])
    assert together.tobytes() == alone.tobytes()


def test_probabilities_of_the_graph_stay_as_they_are() -> None:
    row = np.array([[0.2, 0.2, 0.2]], dtype=np.float32)
    assert answers.probabilities(row, manifest(scores="probabilities")) is row


@given(st.integers(1, 60), st.integers(1, 20))
def test_windows_cover_every_step_and_all_of_a_long_sequence_are_full(length: int, longest: int) -> None:
    steps = np.arange(length, dtype=np.int64)
    parts = answers.windows(steps, longest)
    assert sorted({int(step) for _, part in parts for step in part}) == steps.tolist()
    assert all(part.tolist() == steps[start : start + len(part)].tolist() for start, part in parts)
    assert {len(part) for _, part in parts} == {min(length, longest)}
    assert len(parts) == -(-length // longest)


def test_windows_are_merged_by_their_mean_without_attention_where_there_is_none() -> None:
    rows = [np.array(row, dtype=np.float32) for row in ([1, 0, 0], [0, 0, 1], [0, 0, 1])]
    weights = np.array([0.5, 0.5], dtype=np.float32)
    merged = answers.merge([Answer(row, 0, weights) for row in rows], [0, 2, 3], 5, manifest(max_length=2))
    assert merged.probabilities.tolist() == pytest.approx([1 / 3, 0, 2 / 3])
    assert merged.best == 2
    assert merged.attention is not None
    assert merged.attention.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 3, 1 / 6])
    assert merged.windows is not None
    assert [(window["start"], window["length"]) for window in merged.windows] == [(0, 2), (2, 2), (3, 2)]
    assert answers.merge([Answer(rows[0])] * 2, [0, 1], 3, manifest(max_length=2)).attention is None


def test_a_step_in_two_windows_is_answered_by_the_first() -> None:
    first, second = (np.full((2, 3), figure, dtype=np.float32) for figure in (1, 2))
    merged = answers.merge([Answer(first), Answer(second)], [0, 1], 3, manifest(max_length=2, task="per-step"))
    assert merged.probabilities[:, 0].tolist() == [1, 1, 2]
    assert merged.windows == [{"start": 0, "length": 2}, {"start": 1, "length": 2}]

"""A proof accepts a right mend only, names the worst sequence of a wrong one, and tries what it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lengthwise.padding import PaddedBatch
from lengthwise_export.mending.proof import BATCH_ROWS, SEQUENCES, proof_lengths, prove
from tests.support.mends import (
    NumpySubject,
    each_step,
    each_valid_step,
    over_the_steps,
    over_the_width,
    raising_below,
)


@pytest.mark.parametrize(
    ("before", "after"), [(over_the_width, over_the_steps), (each_step, each_valid_step)], ids=["sequence", "per step"]
)
def test_a_right_mend_is_proved(before: Callable, after: Callable) -> None:
    original, mended = NumpySubject(before), NumpySubject(after)
    proof = prove(original, mended, max_length=100)
    assert proof.holds, proof.wrong
    assert proof.sequences == SEQUENCES
    assert proof.difference <= 1e-5  # raw values are among its sequences
    assert proof.as_json()["holds"] is True
    # The original is the oracle: it never sees padding or company.
    assert {rows for rows, _ in original.widths} == {1}
    assert {1, *BATCH_ROWS} >= {rows for rows, _ in mended.widths} > {1, 2, 3}


def test_the_original_itself_is_no_mend() -> None:
    proof = prove(NumpySubject(over_the_width), NumpySubject(over_the_width), max_length=100)
    assert not proof.holds
    assert proof.worst is not None
    assert proof.worst.width > proof.worst.length
    assert f"({proof.worst.length} steps)" in str(proof)
    assert f"{proof.difference:.3g}" in str(proof)
    assert not proof.bits


def test_a_difference_at_one_length_is_seen() -> None:
    def wrong_at(length: int) -> Callable[[PaddedBatch], np.ndarray]:
        def run(batch: PaddedBatch) -> np.ndarray:
            return over_the_steps(batch) + np.where(batch.lengths == length, np.float32(1e-3), 0)[:, None]

        return run

    for length in (1, 2, 5, 97, 99, 100):
        proof = prove(NumpySubject(over_the_width), NumpySubject(wrong_at(length)), max_length=100)
        assert proof.worst is not None, length
        assert not proof.holds
        assert proof.worst.length == length


def test_a_mend_that_lets_a_neighbour_in_is_seen() -> None:
    def with_neighbour(batch: PaddedBatch) -> np.ndarray:
        return over_the_steps(batch) + np.float32(0.1) * (batch.rows > 1)

    proof = prove(NumpySubject(over_the_width), NumpySubject(with_neighbour), max_length=60)
    assert not proof.holds
    assert proof.worst is not None
    assert proof.worst.rows > 1


def test_junk_is_tried_beside_zeros() -> None:
    def sums_of_all(batch: PaddedBatch) -> np.ndarray:  # right as long as padding is zeros
        return batch.steps.sum(axis=1) / batch.lengths[:, None] @ np.ones((3, 4), np.float32)

    def mean(batch: PaddedBatch) -> np.ndarray:
        return batch.steps.mean(axis=1) @ np.ones((3, 4), np.float32)

    proof = prove(NumpySubject(mean), NumpySubject(sums_of_all), max_length=60)
    assert not proof.holds
    assert proof.worst is not None
    assert "junk" in proof.worst.padding


@pytest.mark.parametrize("own_rounding", [0.0, 1e-3], ids=["exact", "rounding by itself"])
def test_what_the_original_rounds_by_itself_explains_a_difference_at_raw_values(own_rounding: float) -> None:
    def large(batch: PaddedBatch) -> np.ndarray:
        sizes = [np.abs(row[:length]).max() for row, length in zip(batch.steps, batch.lengths, strict=True)]
        return (np.asarray(sizes) > 500)[:, None]

    def mended(batch: PaddedBatch) -> np.ndarray:
        answer = over_the_steps(batch)
        apart = 5e-4 * np.maximum(1, np.abs(answer).max(1, keepdims=True))
        return np.where(large(batch), answer + apart, answer).astype(np.float32)

    def in_float64(batch: PaddedBatch) -> np.ndarray:
        answer = over_the_width(batch)
        return answer + np.float32(own_rounding) * np.maximum(1, np.abs(answer).max(1, keepdims=True))

    proof = prove(NumpySubject(over_the_width, in_float64), NumpySubject(mended), max_length=100)
    assert proof.holds == (own_rounding > 0), proof.wrong
    assert (proof.ill_conditioned > 0) == (own_rounding > 0)


def test_bits_are_told_apart_from_rounding() -> None:
    def rounded_by_rows(batch: PaddedBatch) -> np.ndarray:
        return over_the_steps(batch) * np.float32(1 + 2e-7 * (batch.rows > 2))

    proof = prove(NumpySubject(over_the_width), NumpySubject(rounded_by_rows), max_length=60)
    assert proof.holds
    assert not proof.bits
    assert 0 < proof.in_company <= 1e-6


def test_lengths_at_which_the_original_raises_are_skipped_and_give_the_shortest() -> None:
    original = NumpySubject(raising_below(4, over_the_width))
    proof = prove(original, NumpySubject(over_the_steps), max_length=60)
    assert proof.holds
    assert (proof.min_length, set(proof.raised)) == (4, {1, 2, 3})
    assert proof.sequences < SEQUENCES


def test_an_original_that_raises_in_between_proves_nothing() -> None:
    def only_even(batch: PaddedBatch) -> np.ndarray:
        if batch.width % 2:
            raising_below(10**6, over_the_width)(batch)
        return over_the_width(batch)

    proof = prove(NumpySubject(only_even), NumpySubject(over_the_steps), max_length=60)
    assert not proof.holds
    assert "raises alone at" in str(proof)


def test_an_original_without_an_answer_proves_nothing() -> None:
    proof = prove(NumpySubject(raising_below(99, over_the_width)), NumpySubject(over_the_steps), max_length=60)
    assert not proof.holds
    assert proof.sequences == 0


def test_a_mend_that_raises_does_not_hold() -> None:
    def few_rows(batch: PaddedBatch) -> np.ndarray:
        return (raising_below(10**6, over_the_steps) if batch.rows > 2 else over_the_steps)(batch)

    proof = prove(NumpySubject(over_the_width), NumpySubject(few_rows), max_length=60)
    assert not proof.holds
    assert "the mended model raises" in str(proof)


def test_an_answer_that_is_not_finite_does_not_hold() -> None:
    def broken(batch: PaddedBatch) -> np.ndarray:
        return np.where(batch.lengths[:, None] == 7, np.float32(np.nan), over_the_steps(batch))

    proof = prove(NumpySubject(over_the_width), NumpySubject(broken), max_length=60)
    assert not proof.holds
    assert proof.as_json()["difference"] is None


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1024), (1, 1), (5, 40), (17, 512), (1, 3)])
def test_lengths_hold_the_ends_primes_and_multiples_of_four(shortest: int, longest: int) -> None:
    lengths = proof_lengths(shortest, longest, SEQUENCES)
    assert len(lengths) == SEQUENCES
    assert (min(lengths), max(lengths)) == (shortest, longest)
    if longest >= 40:
        assert {longest - 1, longest, shortest, shortest + 1} <= set(lengths)
        assert sum(length % 4 == 0 for length in lengths) > 20
        assert len({17, 19, 23, 29, 31, 37} & set(lengths)) >= 3


def test_progress_is_told() -> None:
    told: list[str] = []
    prove(NumpySubject(over_the_width), NumpySubject(over_the_steps), max_length=20, progress=told.append)
    assert any("the original alone" in line for line in told)
    assert any("in batches" in line for line in told)

"""A proof accepts a right mend only, names the worst sequence of a wrong one, and tries what it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lengthwise.padding import PaddedBatch
from lengthwise_export.mending.proof import BATCH_ROWS, SEQUENCES, ComparedSequence, MendProof, proof_lengths, prove
from tests.support.mends import (
    WEIGHTS,
    Compute,
    NumpySubject,
    each_step,
    each_valid_step,
    over_the_steps,
    over_the_width,
    raising_below,
)


def proved(before: Compute, after: Compute, max_length: int = 60) -> MendProof:
    return prove(NumpySubject(before), NumpySubject(after), max_length=max_length)


def changed(change: Callable[[PaddedBatch], object]) -> Compute:
    """The right mend, but for what is added."""
    return lambda batch: (over_the_steps(batch) + change(batch)).astype(np.float32)


@pytest.mark.parametrize(
    ("before", "after"), [(over_the_width, over_the_steps), (each_step, each_valid_step)], ids=["sequence", "per step"]
)
def test_a_right_mend_is_proved(before: Compute, after: Compute) -> None:
    original, mended = NumpySubject(before), NumpySubject(after)
    told: list[str] = []
    proof = prove(original, mended, max_length=100, progress=told.append)
    assert proof.holds, proof.wrong
    assert proof.sequences == SEQUENCES
    assert proof.difference <= 1e-5  # raw values are among its sequences
    assert proof.as_json()["holds"] is True
    # The original is the oracle: it never sees padding or company.
    assert {rows for rows, _ in original.widths} == {1}
    assert {1, *BATCH_ROWS} >= {rows for rows, _ in mended.widths} > {1, 2, 3}
    assert any("the original alone" in line for line in told)
    assert any("in batches" in line for line in told)


def test_the_original_itself_is_no_mend() -> None:
    proof = proved(over_the_width, over_the_width)
    assert not proof.holds
    assert proof.worst is not None
    assert proof.worst.width > proof.worst.length
    assert f"({proof.worst.length} steps)" in str(proof)
    assert f"{proof.difference:.3g}" in str(proof)
    assert not proof.bits


@pytest.mark.parametrize("length", [1, 2, 5, 97, 99, 100])
def test_a_difference_at_one_length_is_seen(length: int) -> None:
    proof = proved(over_the_width, changed(lambda batch: 1e-3 * (batch.lengths == length)[:, None]), 100)
    assert not proof.holds
    assert proof.worst is not None
    assert proof.worst.length == length


def sums_of_all(batch: PaddedBatch) -> np.ndarray:
    """Right as long as padding is zeros."""
    return batch.steps.sum(axis=1) / batch.lengths[:, None] @ WEIGHTS


@pytest.mark.parametrize(
    ("mended", "seen"),
    [
        (changed(lambda batch: 0.1 * (batch.rows > 1)), lambda worst: worst.rows > 1),
        (sums_of_all, lambda worst: "junk" in worst.padding),
        (changed(lambda batch: np.where(batch.lengths[:, None] == 7, np.nan, 0)), lambda worst: worst.length == 7),
    ],
    ids=["with a neighbour", "sums of all", "not finite"],
)
def test_the_worst_sequence_of_a_wrong_mend_is_told(mended: Compute, seen: Callable[[ComparedSequence], bool]) -> None:
    proof = proved(over_the_width, mended)
    assert not proof.holds
    assert proof.worst is not None
    assert seen(proof.worst)
    assert proof.as_json()["difference"] == (proof.difference if np.isfinite(proof.difference) else None)


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
    proof = proved(over_the_width, lambda batch: over_the_steps(batch) * np.float32(1 + 2e-7 * (batch.rows > 2)))
    assert proof.holds
    assert not proof.bits
    assert 0 < proof.in_company <= 1e-6


def test_lengths_at_which_the_original_raises_are_skipped_and_give_the_shortest() -> None:
    proof = proved(raising_below(4, over_the_width), over_the_steps)
    assert proof.holds
    assert (proof.min_length, set(proof.raised)) == (4, {1, 2, 3})
    assert 0 < proof.sequences < SEQUENCES


def raising_if(raises: Callable[[PaddedBatch], bool], compute: Compute) -> Compute:
    return lambda batch: raising_below(10**6 if raises(batch) else 0, compute)(batch)


@pytest.mark.parametrize(
    ("original", "mended", "why"),
    [
        (raising_if(lambda batch: batch.width % 2 == 1, over_the_width), over_the_steps, "raises alone at"),
        (raising_below(99, over_the_width), over_the_steps, "raises alone at every length"),
        (over_the_width, raising_if(lambda batch: batch.rows > 2, over_the_steps), "the mended model raises"),
    ],
    ids=["original in between", "original everywhere", "mend"],
)
def test_what_raises_proves_nothing(original: Compute, mended: Compute, why: str) -> None:
    proof = proved(original, mended)
    assert not proof.holds
    assert why in str(proof)


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1024), (1, 1), (5, 40), (17, 512), (1, 3)])
def test_lengths_hold_the_ends_primes_and_multiples_of_four(shortest: int, longest: int) -> None:
    lengths = proof_lengths(shortest, longest, SEQUENCES)
    assert len(lengths) == SEQUENCES
    assert (min(lengths), max(lengths)) == (shortest, longest)
    if longest >= 40:
        assert {longest - 1, longest, shortest, shortest + 1} <= set(lengths)
        assert sum(length % 4 == 0 for length in lengths) > 20
        assert len({17, 19, 23, 29, 31, 37} & set(lengths)) >= 3

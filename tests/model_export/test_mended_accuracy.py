"""The accuracy before and after a mend: each way to run the original, and the labels that move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lengthwise.datasets.dataset import Record
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import Manifest, StepInput
from lengthwise.runtime.session import Session
from lengthwise_export.mending.mended_accuracy import MendAccuracy, measure
from tests.support.mends import WEIGHTS, NumpySubject, mended_mean, over_the_steps, raising_below

MANIFEST = Manifest(name="m", version=1, input=StepInput(features=3), labels=("a", "b", "c", "d"), max_length=60)
LENGTHS = range(1, 41)


def records(*, labelled: bool = True) -> list[Record]:
    """Recordings with the label that the mean over their steps gives; the last one is the longest."""
    random = np.random.default_rng(0)
    found = []
    for length in LENGTHS:
        steps = random.normal(size=(length, 3)).astype(np.float32)
        label = MANIFEST.labels[int((steps.mean(axis=0) @ WEIGHTS).argmax())]
        found.append(Record(id=str(length), steps=steps, label=label if labelled else None, place=f"data:{length}"))
    return found


def turned_when_padded(batch: PaddedBatch) -> np.ndarray:
    """The mean over the steps, with the classes turned by one where a row has padding."""
    right = over_the_steps(batch)
    return np.where((batch.lengths < batch.width)[:, None], np.roll(right, 1, axis=1), right)


def measured(compute: Callable[[PaddedBatch], np.ndarray]) -> MendAccuracy:
    session = Session(mended_mean().SerializeToString(), MANIFEST)
    answer = measure(NumpySubject(compute), session, MANIFEST, records())
    assert answer is not None
    return answer


def test_each_way_has_its_accuracy_and_the_labels_that_the_mend_moves() -> None:
    figures = measured(turned_when_padded)
    # Only the longest of all, or of a batch of 32, has no padding.
    assert (figures.fixed.accuracy, figures.fixed.moved) == (pytest.approx(1 / 40), 39)
    assert (figures.batches.accuracy, figures.batches.moved) == (pytest.approx(2 / 40), 38)
    assert (figures.alone.accuracy, figures.alone.moved, figures.mended) == (1.0, 0, 1.0)
    assert figures.as_json()["labels_moved"]["from_padded_to_a_fixed_length"] == 39
    assert "0.0250 padded to a fixed length (from there 39 of 40 labels move)" in str(figures)


def test_a_way_in_which_the_original_raises_is_said() -> None:
    figures = measured(raising_below(30, over_the_steps))
    assert (figures.alone.accuracy, figures.alone.moved) == (None, None)
    assert figures.fixed.accuracy == 1.0
    assert "the original raises alone" in str(figures)
    assert figures.as_json()["alone"] is None


def test_without_labels_there_is_nothing_to_compare() -> None:
    session = Session(mended_mean().SerializeToString(), MANIFEST)
    assert measure(NumpySubject(over_the_steps), session, MANIFEST, records(labelled=False)) is None

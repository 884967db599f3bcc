"""Keras models that leak are mended: each then answers as Keras alone, or is refused with the reason."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras", reason="the extra `keras` is not installed")

from lengthwise.errors import LengthwiseError
from lengthwise_export.mending.mend import Mended, mend
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.company import mended_model
from tests.gallery.keras_index import KERAS_BLIND, KERAS_LEAKING, KerasExhibit
from tests.gallery.keras_trials import calm, keras_model, loaded, made, ragged, saved, worst_difference
from tests.gallery.trials import TOLERANCE, Array, Model, alone, padded

OPSET = 20
WIDEST = 128

NOT_MENDED = {
    "batch_statistics": "rows",
    "pooled_between_lstms": "pads in the mode edge by an amount that depends on the width",
}
"""Models that are not mended, and words of the reason."""


MENDED = [exhibit for exhibit in KERAS_LEAKING + KERAS_BLIND if exhibit.name not in NOT_MENDED]


@functools.cache
def mended(exhibit: KerasExhibit) -> tuple[Mended, Model, Model]:
    """The mend, how to run its graph, and how to run the model in Keras."""
    with tempfile.TemporaryDirectory() as folder, calm():
        file = None if exhibit.custom else saved(exhibit, Path(folder))
        options = TargetOptions(vocabulary=exhibit.vocabulary if exhibit.custom else None)
        target = targets.read(exhibit.target if file is None else str(file), options)
        assert target.alone is not None
        graph = target.alone.build(exhibit.name, OPSET)
        longest = min(exhibit.longest or WIDEST, WIDEST)
        result = mend(graph, target.alone.names, target.steps, max_length=longest)
        original = made(exhibit) if file is None else loaded(file)
    return result, mended_model(result.graph, exhibit, target.alone.names), keras_model(original)


def difference(exhibit: KerasExhibit, count: int) -> float:
    """The largest one between Keras alone and the mended graph in batches of many widths, with junk for padding."""
    _, graph, original = mended(exhibit)
    rows = ragged(exhibit, count)
    expected = alone(original, rows)
    random = np.random.default_rng(7)

    def junk(shape: tuple[int, ...]) -> Array:
        if exhibit.vocabulary is not None:
            return random.integers(0, exhibit.vocabulary, size=shape)
        return random.normal(scale=3.0, size=shape)

    def run(members: list[Array], start: int) -> Array:
        return graph(*padded(members, max(map(len, members)) + start % 5, junk))

    return worst_difference(exhibit, rows, expected, run)


@pytest.mark.sampled(34)
@pytest.mark.parametrize("exhibit", MENDED, ids=str)
def test_a_mended_model_answers_as_keras_alone(exhibit: KerasExhibit) -> None:
    assert difference(exhibit, 48) <= TOLERANCE
    assert mended(exhibit)[0].changes


@pytest.mark.gallery
@pytest.mark.parametrize("exhibit", MENDED, ids=str)
def test_a_mended_model_answers_a_thousand_sequences_as_keras_alone(exhibit: KerasExhibit) -> None:
    assert difference(exhibit, 1000) <= TOLERANCE


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", sorted(NOT_MENDED))
def test_what_cannot_be_mended_is_refused_with_the_reason(name: str) -> None:
    (exhibit,) = (each for each in KERAS_LEAKING + KERAS_BLIND if each.name == name)
    with pytest.raises(LengthwiseError) as refused:
        mended(exhibit)
    assert NOT_MENDED[name] in str(refused.value).lower(), refused.value

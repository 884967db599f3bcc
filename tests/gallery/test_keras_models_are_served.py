"""Keras models become graphs that answer as Keras does alone: sound ones as they are, those that leak mended."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import LengthwiseError
from lengthwise.padding import pad
from lengthwise.runtime.session import Session
from lengthwise_export.mending.mend import mend
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import Target
from tests.gallery.company import mended_model
from tests.gallery.keras_index import KERAS_BLIND, KERAS_LEAKING, KERAS_SOUND, KerasExhibit
from tests.gallery.keras_trials import calm, keras_model, loaded, made, ragged, saved, worst_difference
from tests.gallery.trials import TOLERANCE, Array, Model, alone, padded
from tests.support.keras_models import NEEDS_KERAS

pytestmark = NEEDS_KERAS

OPSET = 20
WIDEST = 128

NOT_MENDED = {"batch_statistics": "rows"}
"""Models that are not mended, and words of the reason."""

TO_MEND = {exhibit.name: exhibit for exhibit in KERAS_LEAKING + KERAS_BLIND}
MENDED = [exhibit for name, exhibit in TO_MEND.items() if name not in NOT_MENDED]

COUNTS = [48, pytest.param(1000, marks=pytest.mark.gallery)]


def read(exhibit: KerasExhibit, folder: str) -> tuple[Target, Model]:
    """The target that an export has, and how to run in Keras what Keras reads."""
    file = None if exhibit.custom else saved(exhibit, Path(folder))
    options = TargetOptions(vocabulary=exhibit.vocabulary if exhibit.custom else None)
    target = targets.read(exhibit.target if file is None else str(file), options)
    return target, keras_model(made(exhibit) if file is None else loaded(file))


@functools.cache
def exported(exhibit: KerasExhibit) -> tuple[Model, Session]:
    """How to run the model in Keras, and a session on its graph."""
    with tempfile.TemporaryDirectory() as folder, calm():
        target, original = read(exhibit, folder)
        return original, Session(target.build("model", OPSET).SerializeToString(), target.describe())


@functools.cache
def mended(exhibit: KerasExhibit) -> tuple[Model, Model]:
    """How to run the model in Keras, and its mended graph."""
    with tempfile.TemporaryDirectory() as folder, calm():
        target, original = read(exhibit, folder)
        assert target.without_lengths is not None
        graph, longest = target.without_lengths.build(exhibit.name, OPSET), min(exhibit.longest or WIDEST, WIDEST)
        result = mend(graph, target.without_lengths.names, target.steps, max_length=longest)
    assert result.changes
    return original, mended_model(result.graph, exhibit, target.without_lengths.names)


@pytest.mark.gallery
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("exhibit", KERAS_SOUND, ids=str)
def test_a_graph_answers_as_keras_alone(exhibit: KerasExhibit, count: int) -> None:
    original, session = exported(exhibit)
    wanted = np.int64 if exhibit.vocabulary is not None else np.float32

    def run(members: list[Array], start: int) -> Array:
        return session.run(pad([steps.astype(wanted) for steps in members])).logits

    rows = ragged(exhibit, count)
    assert worst_difference(exhibit, rows, alone(original, rows), run) <= TOLERANCE


@pytest.mark.gallery
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("exhibit", MENDED, ids=str)
def test_a_mended_model_answers_as_keras_alone(exhibit: KerasExhibit, count: int) -> None:
    """In batches of many widths, with junk for padding."""
    original, graph = mended(exhibit)
    rows, random = ragged(exhibit, count), np.random.default_rng(7)

    def junk(shape: tuple[int, ...]) -> Array:
        if exhibit.vocabulary is not None:
            return random.integers(0, exhibit.vocabulary, size=shape)
        return random.normal(scale=3.0, size=shape)

    def run(members: list[Array], start: int) -> Array:
        return graph(*padded(members, max(map(len, members)) + start % 5, junk))

    assert worst_difference(exhibit, rows, alone(original, rows), run) <= TOLERANCE


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", sorted(NOT_MENDED))
def test_what_cannot_be_mended_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(LengthwiseError) as refused:
        mended(TO_MEND[name])
    assert NOT_MENDED[name] in str(refused.value).lower(), refused.value


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["masking_lstm_lstm_dense", "embedding_mask_zero_lstm"])
def test_predict_is_what_keras_answers_batch_by_batch(name: str) -> None:
    exhibit = next(each for each in KERAS_SOUND if each.name == name)
    model = made(exhibit)
    for steps in ragged(exhibit, 5):
        with calm():
            assert np.array_equal(model.predict(steps[None], verbose=0), model.predict_on_batch(steps[None]))

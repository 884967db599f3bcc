"""Every sound Keras model of the gallery becomes a graph that answers as `model.predict` does to a sequence alone."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras", reason="the extra `keras` is not installed")

from lengthwise.padding import pad
from lengthwise.runtime.session import Session
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.keras_index import KERAS_SOUND, KerasExhibit
from tests.gallery.keras_trials import calm, keras_model, loaded, made, ragged, saved, worst_difference
from tests.gallery.trials import TOLERANCE, Array, alone


@functools.cache
def exported(exhibit: KerasExhibit) -> tuple[object, Session]:
    """The model as Keras reads it, and a session on its graph."""
    with tempfile.TemporaryDirectory() as folder, calm():
        file = None if exhibit.custom else saved(exhibit, Path(folder))
        options = TargetOptions(vocabulary=exhibit.vocabulary if exhibit.custom else None)
        target = targets.read(exhibit.target if file is None else str(file), options)
        manifest = target.described()
        graph = target.build("model", 20)
        return made(exhibit) if file is None else loaded(file), Session(graph.SerializeToString(), manifest)


def difference(exhibit: KerasExhibit, count: int) -> float:
    """The largest one between Keras alone, and the graph among others."""
    model, session = exported(exhibit)
    wanted = np.int64 if exhibit.vocabulary is not None else np.float32

    def run(members: list[Array], start: int) -> Array:
        return session.run(pad([steps.astype(wanted) for steps in members])).logits

    rows = ragged(exhibit, count)
    return worst_difference(exhibit, rows, alone(keras_model(model), rows), run)


@pytest.mark.sampled(32)
@pytest.mark.parametrize("exhibit", KERAS_SOUND, ids=str)
def test_a_graph_answers_as_keras_alone(exhibit: KerasExhibit) -> None:
    assert difference(exhibit, 48) <= TOLERANCE


@pytest.mark.gallery
@pytest.mark.parametrize("exhibit", KERAS_SOUND, ids=str)
def test_a_graph_answers_a_thousand_sequences_as_keras_alone(exhibit: KerasExhibit) -> None:
    assert difference(exhibit, 1000) <= TOLERANCE


@pytest.mark.parametrize("name", ["masking_lstm_lstm_dense", "embedding_mask_zero_lstm"])
def test_predict_is_what_keras_answers_batch_by_batch(name: str) -> None:
    exhibit = next(each for each in KERAS_SOUND if each.name == name)
    model = made(exhibit)
    for steps in ragged(exhibit, 5):
        with calm():
            assert np.array_equal(model.predict(steps[None], verbose=0), model.predict_on_batch(steps[None]))

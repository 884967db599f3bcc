"""What the catalogue says of Keras models holds: seen by running them in Keras, without any checker."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras", reason="the extra `keras` is not installed")

from tests.gallery.keras_index import KERAS_BLIND, KERAS_LEAKING, KERAS_REFUSED, KERAS_SOUND, KerasExhibit
from tests.gallery.keras_trials import (
    calm,
    keras_model,
    loaded,
    made,
    mask_differences,
    mask_padding,
    saved,
    sequences,
)
from tests.gallery.trials import TOLERANCE, alone, padded

BY_NAME = {exhibit.name: exhibit for exhibit in KERAS_REFUSED}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("exhibit", KERAS_LEAKING + KERAS_BLIND, ids=str)
def test_a_leaking_model_leaks_in_keras(exhibit: KerasExhibit) -> None:
    differences = mask_differences(exhibit, keras_model(made(exhibit)))
    assert 10 * TOLERANCE < max(differences.values()) < np.inf, differences


@pytest.mark.sampled(4)
@pytest.mark.parametrize("exhibit", KERAS_SOUND, ids=str)
def test_a_sound_model_answers_alike_alone_and_padded_in_keras(exhibit: KerasExhibit) -> None:
    differences = mask_differences(exhibit, keras_model(made(exhibit)))
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.sampled(4)
@pytest.mark.parametrize("exhibit", KERAS_LEAKING + KERAS_SOUND, ids=str)
def test_a_saved_model_computes_what_it_computed_before(exhibit: KerasExhibit, tmp_path: Path) -> None:
    model = made(exhibit)
    with calm():
        model.save(tmp_path / "model.keras")
    rows = sequences(exhibit)
    batch = padded(rows, 14, mask_padding(exhibit))
    again = keras_model(loaded(tmp_path / "model.keras"))
    assert np.array_equal(keras_model(model)(*batch), again(*batch))
    assert all(map(np.array_equal, alone(keras_model(model), rows), alone(again, rows)))


@pytest.mark.parametrize("exhibit", KERAS_LEAKING, ids=str)
def test_a_leaking_model_has_a_layer_of_the_expected_name(exhibit: KerasExhibit) -> None:
    names = [operation.name for operation in getattr(made(exhibit), "operations", None) or made(exhibit).layers]
    assert any(operator in name for operator in exhibit.operator for name in names), names


@pytest.mark.parametrize("name", ["lambda_layer", "words_looked_up", "keras_two"])
def test_keras_does_not_read_the_file(name: str, tmp_path: Path) -> None:
    path = saved(BY_NAME[name], tmp_path)
    with pytest.raises((ValueError, TypeError, ImportError)):
        loaded(path)


def test_a_model_of_one_width_runs_at_no_other() -> None:
    model = keras_model(made(BY_NAME["flattened"]))
    model(np.zeros((2, 20, 4), np.float32), np.array([20, 20]))
    for other in (19, 21):
        with pytest.raises(ValueError, match="incompatible"):
            model(np.zeros((2, other, 4), np.float32), np.array([other, other]))


def test_a_model_of_sixteen_rows_runs_with_no_others() -> None:
    model = keras_model(made(BY_NAME["frozen_rows"]))
    model(np.ones((16, 3, 4), np.float32), np.full(16, 3))
    with pytest.raises(RuntimeError):
        model(np.ones((2, 3, 4), np.float32), np.full(2, 3))


@pytest.mark.parametrize(("name", "rows"), [("dropout_always_on", 2), ("stateful", 1)])
def test_the_same_sequence_gets_another_answer_the_second_time(name: str, rows: int) -> None:
    model, batch = keras_model(made(BY_NAME[name])), (np.ones((rows, 3, 4), np.float32), np.full(rows, 3))
    assert np.abs(model(*batch) - model(*batch)).max() > TOLERANCE


def test_inputs_and_outputs_are_more_than_one_or_of_more_axes() -> None:
    assert len(made(BY_NAME["two_inputs"]).inputs) == 2
    assert len(made(BY_NAME["states_returned"]).outputs) == 3
    assert [len(made(BY_NAME[name]).inputs[0].shape) for name in ("conv_lstm", "images")] == [4, 5]


def test_half_precision_is_computed_where_the_policy_says_so() -> None:
    assert {layer.compute_dtype for layer in made(BY_NAME["mixed_precision"]).layers} == {"float16", "float32"}

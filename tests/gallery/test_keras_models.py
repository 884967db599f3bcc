"""The Keras gallery is the exam of `lengthwise check`, of the export and of the mends."""

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("keras", reason="the extra `keras` is not installed")

from lengthwise.commands.cli import main
from lengthwise.errors import LengthwiseError
from lengthwise.padding import pad
from lengthwise.runtime.session import Session
from lengthwise_export.mending.mend import Mended, mend
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.company import mended_model
from tests.gallery.keras_index import KERAS_BLIND, KERAS_LEAKING, KERAS_REFUSED, KERAS_SOUND, KerasExhibit
from tests.gallery.keras_trials import calm, keras_model, loaded, made, ragged, saved, worst_difference
from tests.gallery.trials import TOLERANCE, Array, Model, alone, junk, padded

EXIT_CODES = {"sound": 0, "warning": 0, "leak": 1, "uncheckable": 2}
OPSET = 20
WIDEST = 128
NOT_MENDED = {
    "batch_statistics": "rows",
    "pooled_between_lstms": "pads in the mode edge by an amount that depends on the width",
}
"""Models that are not mended, and words of the reason."""
MENDED = [exhibit for exhibit in KERAS_LEAKING + KERAS_BLIND if exhibit.name not in NOT_MENDED]


# They are judged rightly, and at the right layer.


def checked(target: str, exhibit: KerasExhibit, *more: str) -> Result:
    return CliRunner().invoke(main, ["check", target, *exhibit.options, "--max-length", "64", *more])


def reported(exhibit: KerasExhibit, folder: Path) -> dict[str, Any]:
    """The report on the file that its user has, or on the factory where the model needs a class of its own."""
    result = checked(exhibit.target if exhibit.custom else str(saved(exhibit, folder)), exhibit, "--json")
    report = json.loads(result.stdout)
    assert (report["verdict"], result.exit_code) == (exhibit.verdict, EXIT_CODES[exhibit.verdict]), report
    return report


@pytest.mark.sampled(12)
@pytest.mark.parametrize("exhibit", KERAS_LEAKING + KERAS_BLIND, ids=str)
def test_a_leak_is_found_at_the_layer_where_it_begins(exhibit: KerasExhibit, tmp_path: Path) -> None:
    first = reported(exhibit, tmp_path)["leaks"][0]
    assert any(part in first["operator"] for part in exhibit.operator), first
    told = " ".join(str(first[part]) for part in ("cause", "cause_at", "fix", "source")).lower()
    assert any(word in told for word in exhibit.cause), first
    assert first["cause"]
    assert first["fix"]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("exhibit", KERAS_SOUND, ids=str)
def test_a_sound_model_is_called_sound(exhibit: KerasExhibit, tmp_path: Path) -> None:
    reported(exhibit, tmp_path)


@pytest.mark.parametrize("exhibit", KERAS_REFUSED, ids=str)
def test_what_cannot_be_judged_is_refused_with_the_reason(exhibit: KerasExhibit, tmp_path: Path) -> None:
    # A class that a file needs is not at hand where the file is read: only the file is given.
    result = checked(str(saved(exhibit, tmp_path)), exhibit)
    assert result.exit_code == 2, result.output
    told = " ".join((result.stdout + result.stderr).lower().split())
    assert any(reason in told for reason in exhibit.reason), told
    assert "traceback" not in told


def test_a_factory_and_the_file_of_its_model_get_the_same_report(tmp_path: Path) -> None:
    for exhibit in (KERAS_LEAKING[0], KERAS_SOUND[0]):
        file, factory = (
            json.loads(checked(target, exhibit, "--json").stdout)
            for target in (str(saved(exhibit, tmp_path)), exhibit.target)
        )
        assert file["verdict"] == factory["verdict"]
        named = [re.sub(r"_\d+", "", leak["operator"]) for leak in file["leaks"]]  # Keras counts layers of one kind
        assert named == [re.sub(r"_\d+", "", leak["operator"]) for leak in factory["leaks"]]


# A sound one is exported, a leaking one mended: each graph then answers as Keras does to a sequence alone.


def read(exhibit: KerasExhibit) -> tuple[Any, Any]:
    """The target that its user has, and the model as Keras has it."""
    with tempfile.TemporaryDirectory() as folder, calm():
        file = None if exhibit.custom else saved(exhibit, Path(folder))
        options = TargetOptions(vocabulary=exhibit.vocabulary if exhibit.custom else None)
        target = targets.read(exhibit.target if file is None else str(file), options)
        return target, made(exhibit) if file is None else loaded(file)


@functools.cache
def exported(exhibit: KerasExhibit) -> tuple[Model, Session]:
    """How to run the model in Keras, and a session on its graph."""
    with calm():
        target, model = read(exhibit)
        manifest = target.described()
        return keras_model(model), Session(target.build("model", OPSET).SerializeToString(), manifest)


@functools.cache
def mended(exhibit: KerasExhibit) -> tuple[Mended, Model, Model]:
    """The mend, how to run its graph, and how to run the model in Keras."""
    with calm():
        target, model = read(exhibit)
        assert target.alone is not None
        graph = target.alone.build(exhibit.name, OPSET)
    result = mend(graph, target.alone.names, target.steps, max_length=min(exhibit.longest or WIDEST, WIDEST))
    return result, mended_model(result.graph, exhibit, target.alone.names), keras_model(model)


def exported_difference(exhibit: KerasExhibit, count: int) -> float:
    """The largest one between Keras alone, and the graph among others."""
    original, session = exported(exhibit)
    element = np.int64 if exhibit.vocabulary is not None else np.float32

    def run(members: list[Array], _: int) -> Array:
        return session.run(pad([steps.astype(element) for steps in members])).logits

    rows = ragged(exhibit, count)
    return worst_difference(exhibit, rows, alone(original, rows), run)


def mended_difference(exhibit: KerasExhibit, count: int) -> float:
    """The same of the mended graph, in batches of many widths, with junk for padding."""
    _, graph, original = mended(exhibit)
    padding = junk(exhibit)

    def run(members: list[Array], start: int) -> Array:
        return graph(*padded(members, max(map(len, members)) + start % 5, padding))

    rows = ragged(exhibit, count)
    return worst_difference(exhibit, rows, alone(original, rows), run)


@pytest.mark.sampled(32)
@pytest.mark.parametrize("exhibit", KERAS_SOUND, ids=str)
def test_a_graph_answers_as_keras_alone(exhibit: KerasExhibit) -> None:
    assert exported_difference(exhibit, 48) <= TOLERANCE


@pytest.mark.sampled(34)
@pytest.mark.parametrize("exhibit", MENDED, ids=str)
def test_a_mended_model_answers_as_keras_alone(exhibit: KerasExhibit) -> None:
    assert mended_difference(exhibit, 48) <= TOLERANCE
    assert mended(exhibit)[0].changes


@pytest.mark.gallery
@pytest.mark.parametrize("exhibit", [*KERAS_SOUND, *MENDED], ids=str)
def test_a_graph_answers_a_thousand_sequences_as_keras_alone(exhibit: KerasExhibit) -> None:
    compared = exported_difference if exhibit in KERAS_SOUND else mended_difference
    assert compared(exhibit, 1000) <= TOLERANCE


@pytest.mark.parametrize("name", ["masking_lstm_lstm_dense", "embedding_mask_zero_lstm"])
def test_predict_is_what_keras_answers_batch_by_batch(name: str) -> None:
    exhibit = next(each for each in KERAS_SOUND if each.name == name)
    model = made(exhibit)
    for steps in ragged(exhibit, 5):
        with calm():
            assert np.array_equal(model.predict(steps[None], verbose=0), model.predict_on_batch(steps[None]))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", sorted(NOT_MENDED))
def test_what_cannot_be_mended_is_refused_with_the_reason(name: str) -> None:
    (exhibit,) = (each for each in KERAS_LEAKING + KERAS_BLIND if each.name == name)
    with pytest.raises(LengthwiseError) as refused:
        mended(exhibit)
    assert NOT_MENDED[name] in str(refused.value).lower(), refused.value

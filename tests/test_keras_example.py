"""examples/keras_vowels.py: what a Keras model answers is what the service answers."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lengthwise.commands.cli import main as lengthwise
from tests.support.keras_models import NEEDS_KERAS
from tests.support.server_process import started

pytestmark = [
    NEEDS_KERAS,
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]


@pytest.mark.long
def test_a_model_that_has_learnt_answers_over_http_as_in_keras(tmp_path: Path) -> None:
    from examples import keras_vowels

    file, models = str(tmp_path / "vowels.keras"), tmp_path / "models"

    def run(command: click.Command, *words: str) -> str:
        done = CliRunner().invoke(command, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output + done.stderr
        return done.stdout

    run(keras_vowels.main, "train", file, "--epochs", "20")
    labels = ",".join(keras_vowels.LABELS)
    run(lengthwise, "export", file, "--labels", labels, "--max-length", "64", "--out", str(models / "vowels" / "1"))
    with started(str(models)) as server:
        said = run(keras_vowels.main, "compare", file, f"http://127.0.0.1:{server.port}")
    told = dict(re.findall(r"^(.*?): +(\S.*)$", said, re.M))
    assert float(told["accuracy in Keras"]) > 0.85
    assert told["accuracy in Keras"] == told["accuracy over HTTP"]
    assert told["the same label"] == "370 of 370"
    assert float(told["largest difference of a probability"]) <= 1e-5

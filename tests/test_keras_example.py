"""examples/keras_vowels.py: what a Keras model answers is what the service answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("keras", reason="the extra `keras` is not installed")

from examples import keras_vowels
from lengthwise.commands.cli import main as lengthwise
from tests.support.server_process import started

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def trained_and_compared(folder: Path, *options: str, every: int = 1) -> dict[str, str]:
    """What the example prints at its end, after its own commands."""
    file = folder / "vowels.keras"
    done = CliRunner().invoke(
        keras_vowels.main, ["train", str(file), "--every", str(every), *options], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    words = ["export", str(file), "--labels", ",".join(keras_vowels.LABELS), "--max-length", "64"]
    done = CliRunner().invoke(lengthwise, [*words, "--out", str(folder / "models" / "vowels" / "1")])
    assert done.exit_code == 0, done.output + done.stderr
    with started(str(folder / "models")) as server:
        url = f"http://127.0.0.1:{server.port}"
        done = CliRunner().invoke(
            keras_vowels.main, ["compare", str(file), url, "--every", str(every)], catch_exceptions=False
        )
    assert done.exit_code == 0, done.output
    return dict(re.findall(r"^(.*?): +(\S.*)$", done.stdout, re.M))


def test_a_trained_keras_model_answers_over_http_as_in_keras(tmp_path: Path) -> None:
    told = trained_and_compared(tmp_path, "--epochs", "1", "--hidden", "8", every=10)
    assert told["accuracy in Keras"] == told["accuracy over HTTP"]
    assert told["the same label"] == "37 of 37"
    assert float(told["largest difference of a probability"]) <= 1e-5


@pytest.mark.long
def test_a_model_that_has_learnt_answers_over_http_as_in_keras(tmp_path: Path) -> None:
    told = trained_and_compared(tmp_path, "--epochs", "20")
    assert float(told["accuracy in Keras"]) > 0.85
    assert told["accuracy in Keras"] == told["accuracy over HTTP"]
    assert told["the same label"] == "370 of 370"

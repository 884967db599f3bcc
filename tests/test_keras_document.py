"""docs/keras.md is true: its commands run and say what it says, and its list of layers is that of the code."""

import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lengthwise_export.interface.cli import main
from lengthwise_export.keras_models.config import LAYERS, REFUSED
from tests.support.keras_models import keras

DOCUMENT = (Path(__file__).parents[1] / "docs" / "keras.md").read_text()
COMMANDS = re.findall(r"^\.venv/bin/lengthwise (check .*?)  # (\w+)$", DOCUMENT, re.MULTILINE)
EXIT_CODES = {"sound": 0, "leak": 1, "refused": 2}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Keras', about masks that layers drop
        yield


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize(("command", "verdict"), COMMANDS)
def test_a_check_says_what_the_page_says(command: str, verdict: str) -> None:
    told = CliRunner().invoke(main, shlex.split(command))
    assert told.exit_code == EXIT_CODES[verdict], told.output
    if verdict != "refused":
        assert told.stdout.startswith(verdict)
    if "--fix" in command:
        assert "publishes the mended graph" in told.stdout


def test_the_page_lists_the_layers_that_are_read() -> None:
    (listed,) = re.findall(r"^Layers: (.*?)\.$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == LAYERS


def test_every_layer_that_is_read_or_refused_is_one_of_keras() -> None:
    made = keras().layers
    cells = {"Sequential", "Functional", "Model"}
    known = {name for name in LAYERS - cells if hasattr(made, name)}
    assert LAYERS - cells - known <= {"GroupedQueryAttention", "Functional"}
    assert {"Lambda", "TFSMLayer", "TextVectorization"} <= set(REFUSED)

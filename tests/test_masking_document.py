"""The tables of docs/masking.md are those that are measured, and the studies that pages link to run."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import layer_table, masking
from benchmarks.layer_table import Row

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "masking.md").read_text()
SHORTENED = {
    "masks": "--seeds 1 --epochs 1",
    "mending": "--only bilstm --sequences 20",
    "missing_values": "--seeds 1 --epochs 1",
    "exported_models": "--only step_tagger --count 20",
    "keras_models": "--only step_tagger --count 20",
    "steady_bits": "--only logarithm --count 20",
}
"""What makes a study short."""


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return [layer_table.measure(case) for case in layer_table.cases()]


@pytest.mark.process
@pytest.mark.long
def test_the_losses_in_keras_are_what_the_page_says() -> None:
    words = [sys.executable, "-W", "ignore", "examples/keras_masking.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    losses = [[float(word) for word in line[50:].split()[-3:]] for line in done.stdout.splitlines()]
    _, masked, unmasked, weighted, mean = losses
    assert max(masked) - min(masked) < 1e-4
    assert max(unmasked) - min(unmasked) > 1e-3
    assert weighted[0] == pytest.approx(2 * weighted[1], rel=1e-2)
    assert max(mean) - min(mean) < 1e-4


@pytest.mark.parametrize("name", masking.from_results())
def test_a_table_of_results_is_that_of_the_committed_ones(name: str) -> None:
    assert masking.written_into(DOCUMENT, name, masking.from_results()[name]) == DOCUMENT


@pytest.mark.long
@pytest.mark.parametrize("study", SHORTENED)
def test_a_study_runs(study: str) -> None:
    command = importlib.import_module(f"benchmarks.{study}").main
    done = CliRunner().invoke(command, shlex.split(SHORTENED[study]))
    assert done.exit_code == 0, done.output


FIGURES = re.compile(r"(safe|correct|passes on no mask|\*\*leaks\*\*), \S+")
"""A verdict with a figure: figures differ with the processor."""


def verdicts(table: str) -> list[list[str]]:
    """Of each line its layer, both expressions and their verdicts: figures differ with the processor."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [[cell for cell in line if not re.match(r"[\d.]|not finite", cell)] for line in lines]


@pytest.mark.long
def test_the_table_of_layers_says_what_is_measured(measured: list[Row]) -> None:
    made = FIGURES.sub(r"\1", masking.layers(measured))
    shown = FIGURES.sub(r"\1", DOCUMENT.partition("<!-- begin: layers -->")[2])
    assert verdicts(shown) == verdicts(made)


@pytest.mark.long
def test_what_to_write_instead_is_safe(measured: list[Row]) -> None:
    assert [row.case.name for row in measured if row.instead is not None and row.instead.verdict != "safe"] == []


@pytest.mark.long
def test_what_is_not_safe_has_something_to_write_instead_and_only_that(measured: list[Row]) -> None:
    assert [row.case.name for row in measured if (row.written.verdict == "safe") != (row.case.instead is None)] == []

"""docs/masking.md is true: its commands run and say what it says, and its tables are those that are measured."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import torch
from click.testing import CliRunner

from benchmarks import layer_table, masking
from benchmarks.layer_table import Figures, Row
from lengthwise_export.interface.cli import main as lengthwise
from tests.support.server_process import started

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "masking.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.M | re.S) for line in block.splitlines()]

SHORTENED = {
    "layer_table": [],
    "masks": ["--seeds", "1", "--epochs", "1"],
    "missing_values": ["--seeds", "1", "--epochs", "1"],
    "exported_models": ["--only", "step_tagger", "--count", "20"],
    "keras_models": ["--only", "step_tagger", "--count", "20"],
    "keras_exports": ["--rounds", "1", "--seconds", "0.5"],
    "steady_bits": ["--only", "logarithm", "--count", "20"],
}
"""What makes a benchmark short."""


# What Keras says of the models that leak.
pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached to it")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return [layer_table.measure(case) for case in layer_table.cases()]


def beginning(words: str) -> list[str]:
    return sorted({line for line in COMMANDS if line.startswith(words)})


def test_no_command_is_left_out_here() -> None:
    kinds = (".venv/bin/lengthwise check", ".venv/bin/python -m benchmarks.", LOSSES, *SERVING)
    assert [line for line in COMMANDS if not line.startswith(kinds)] == []


@pytest.mark.parametrize("line", beginning(".venv/bin/lengthwise check"))
def test_a_check_says_what_the_page_says(line: str) -> None:
    command, _, verdict = line.partition("# ")
    done = CliRunner().invoke(lengthwise, shlex.split(command)[1:])
    assert done.exit_code == {"sound": 0, "leak": 1}[verdict]
    assert done.stdout.split()[0] == verdict


@pytest.mark.long
@pytest.mark.parametrize("line", beginning(".venv/bin/python -m benchmarks."))
def test_a_benchmark_runs(line: str) -> None:
    module, *words = line.partition("benchmarks.")[2].split()
    command = importlib.import_module(f"benchmarks.{module}").main
    done = CliRunner().invoke(command, [*words, *SHORTENED[module]])
    assert done.exit_code == 0, done.output


def test_the_losses_in_keras_are_what_the_page_says() -> None:
    (line,) = beginning(LOSSES)
    words = [sys.executable, "-W", "ignore", *shlex.split(line)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    losses = {line[:50].strip(): [float(word) for word in line[50:].split()[-3:]] for line in done.stdout.splitlines()}
    _, masked, unmasked, weighted, mean = losses.values()
    assert max(masked) - min(masked) < 1e-4
    assert max(unmasked) - min(unmasked) > 1e-3
    assert weighted[0] == pytest.approx(2 * weighted[1], rel=1e-2)
    assert max(mean) - min(mean) < 1e-4


LOSSES = ".venv/bin/python examples/keras_masking.py"
SERVING = (".venv/bin/lengthwise export", ".venv/bin/lengthwise serve", "curl -s")


@pytest.mark.long
def test_a_missing_feature_by_null_or_by_mask_gets_the_same_answer_and_a_zero_another(tmp_path: Path) -> None:
    ((export,), (serve,), (ask,)) = (beginning(words) for words in SERVING)
    words = shlex.split(export.replace("runs/", f"{tmp_path}/"))[1:]
    # Whoever reads the page has other models in the folder too, from the README.
    for out in (words[-1], words[-1].replace("unreliable", "vowels")):
        done = CliRunner().invoke(lengthwise, [*words[:-1], out])
        assert done.exit_code == 0, done.output
    with started(shlex.split(serve.replace("runs/", f"{tmp_path}/"))[-1]) as server:
        curl = shutil.which("curl")
        assert curl is not None
        asked = [curl, *shlex.split(ask.replace("localhost:8000", f"127.0.0.1:{server.port}"))[1:]]
        answer = orjson.loads(subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout)
    answers = {each["id"]: each["probabilities"] for each in answer["predictions"]}
    assert answers["a feature is not, by null"] == answers["a feature is not, by its mask"]
    assert len({tuple(probabilities) for probabilities in answers.values()}) == len(answers) - 1 == 5


@pytest.mark.parametrize("name", ["masks", "missing values", "exported models", "keras models", "steady bits"])
def test_a_table_of_results_is_that_of_the_committed_ones(name: str) -> None:
    assert masking.written_into(DOCUMENT, name, masking.from_results()[name]) == DOCUMENT


FIGURES = re.compile(r"(safe|right|passes on no mask|\*\*leaks\*\*), \S+")
"""A verdict with a figure: figures differ with the processor."""


def verdicts(table: str) -> list[list[str]]:
    """Of each line its layer, both expressions and their verdicts: figures differ with the processor."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [[cell for cell in line if not re.match(r"[\d.]|not finite", cell)] for line in lines]


def test_the_table_of_layers_says_what_is_measured(measured: list[Row]) -> None:
    made = FIGURES.sub(r"\1", masking.layers(measured))
    shown = FIGURES.sub(r"\1", DOCUMENT.partition("<!-- begin: layers -->")[2])
    assert verdicts(shown) == verdicts(made)


def test_what_to_write_instead_is_safe(measured: list[Row]) -> None:
    assert [row.case.name for row in measured if row.instead is not None and row.instead.verdict != "safe"] == []


def test_what_is_not_safe_has_something_to_write_instead_and_only_that(measured: list[Row]) -> None:
    assert [row.case.name for row in measured if (row.written.verdict == "safe") != (row.case.instead is None)] == []


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        (Figures(zeros=1e-6, junk=1e-6, not_finite=0.0, becomes=0.0), "safe"),
        (Figures(zeros=0.0, junk=0.0, not_finite=0.0, becomes=0.1), "needs care"),
        (Figures(zeros=0.0, junk=0.1, not_finite=0.1, becomes=0.0), "needs care"),
        (Figures(zeros=0.0, junk=0.0, not_finite=float("inf"), becomes=None), "needs care"),
        (Figures(zeros=0.1, junk=0.1, not_finite=0.0, becomes=0.0), "leaks"),
    ],
)
def test_a_verdict_follows_from_the_figures(figures: Figures, verdict: str) -> None:
    assert figures.verdict == verdict


def test_a_trained_layer_has_nothing_at_0_that_starts_there() -> None:
    (norm,) = layer_table.trained({"norm": "nn.BatchNorm1d(4)"}).values()
    assert torch.stack([norm.bias, norm.running_mean]).all()
    (table,) = layer_table.trained({"table": "nn.Embedding(5, 4, padding_idx=2)"}).values()
    assert not table.weight[2].any()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)", DOCUMENT))))
def test_what_it_points_to_is_there(link: str) -> None:
    assert (ROOT / "docs" / link).exists()

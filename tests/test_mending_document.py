"""docs/mending.md is true: its commands run and say what it says, and its tables are those that are measured."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import masking, mended_training, mending, pages
from lengthwise_export.interface.cli import main as lengthwise

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "mending.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.M | re.S) for line in block.splitlines()]
CHECK, EXPORT, BENCHMARK = (
    ".venv/bin/lengthwise check",
    ".venv/bin/lengthwise export",
    ".venv/bin/python -m benchmarks.",
)
SHORTENED = {
    "mending": ["--only", "bilstm", "--sequences", "20"],
    "mended_training": ["--seeds", "1", "--epochs", "1"],
}
"""What makes a benchmark short."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def beginning(words: str) -> list[str]:
    return sorted({line for line in COMMANDS if line.startswith(words)})


def test_no_command_is_left_out_here() -> None:
    assert [line for line in COMMANDS if not line.startswith((CHECK, EXPORT, BENCHMARK))] == []
    assert len(beginning(CHECK)) >= 3


@pytest.mark.parametrize("line", beginning(CHECK))
def test_a_fix_says_what_the_page_says(line: str) -> None:
    command, _, expected = line.partition("# ")
    done = CliRunner().invoke(lengthwise, [*shlex.split(command)[1:], "--json"])
    assert done.exit_code == 2, done.output  # these models take no lengths
    fix = json.loads(done.stdout)["fix"]
    assert fix["mendable"] is (expected == "mendable")
    assert bool(fix["changes"]) is fix["mendable"]
    assert {change["file"] for change in fix["changes"]} <= {"examples/mending.py"}
    assert all(change["source"] and change["cause"] and change["after"] for change in fix["changes"])


@pytest.mark.long
def test_the_exports_publish_a_mended_model(tmp_path: Path) -> None:
    weights = tmp_path / "inception.pt"
    torch.manual_seed(0)
    torch.save(mended_training.Inception().state_dict(), weights)
    for line in beginning(EXPORT):
        words = shlex.split(line.replace("runs/models", str(tmp_path)).replace("runs/inception.pt", str(weights)))[1:]
        if "--data" in words:  # untrained weights give the labels in no order
            first = words.index("--data")
            del words[first : first + 4]
        done = CliRunner().invoke(lengthwise, [*words, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["mend"]["proof"]["holds"] is True


@pytest.mark.long
@pytest.mark.parametrize("line", beginning(BENCHMARK))
def test_a_benchmark_runs(line: str, tmp_path: Path) -> None:
    module, *words = line.replace("runs/", f"{tmp_path}/").partition("benchmarks.")[2].split()
    command = importlib.import_module(f"benchmarks.{module}").main
    done = CliRunner().invoke(command, [*words, *SHORTENED[module]])
    assert done.exit_code == 0, done.output
    assert "| --- |" in done.stdout


@pytest.mark.parametrize(("name", "page"), [("mending", mending.PAGE), ("mended training", mended_training.PAGE)])
def test_a_table_is_that_of_the_committed_results(name: str, page: Path) -> None:
    assert masking.written_into(DOCUMENT, name, pages.first_table(page)) == DOCUMENT


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)", DOCUMENT))))
def test_what_it_points_to_is_there(link: str) -> None:
    assert (ROOT / "docs" / link).exists()

"""Every command of the benchmarks can be started: what it imports exists, and it has a help text."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "benchmarks"


def is_command(path: Path) -> bool:
    """Whether a module is run with `python -m`: it ends in `main()` under the usual condition."""
    last = ast.parse(path.read_text()).body[-1]
    return isinstance(last, ast.If) and "__main__" in ast.dump(last.test)


COMMANDS = [path.stem for path in sorted(FOLDER.glob("*.py")) if is_command(path)]


def test_there_are_commands() -> None:
    assert {"bench", "house", "paired", "path", "planner"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_started(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    if isinstance(module.main, click.Command):  # the others stand in for another command, and take its arguments
        done = CliRunner().invoke(module.main, ["--help"])
        assert done.exit_code == 0, done.output

"""Every command of the benchmarks can be started: what it imports exists, and it has a help text."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import click
from click.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "benchmarks"


def is_command(path: Path) -> bool:
    """Whether a module is run with `python -m`: it ends in `main()` under the usual condition."""
    last = ast.parse(path.read_text()).body[-1]
    return isinstance(last, ast.If) and "__main__" in ast.dump(last.test)


COMMANDS = [path.stem for path in sorted(FOLDER.glob("*.py")) if is_command(path)]


def test_every_benchmark_is_importable_and_every_command_has_a_help_text() -> None:
    assert {"bench", "path", "planner", "size", "turns"} <= set(COMMANDS)
    for path in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("gpu/*.py")]):
        module = importlib.import_module(".".join(path.relative_to(FOLDER.parent).with_suffix("").parts))
        if isinstance(getattr(module, "main", None), click.Command):  # the others take another command's arguments
            done = CliRunner().invoke(module.main, ["--help"])
            assert done.exit_code == 0, done.output

"""The commands of a user's day in two builds: `python -m benchmarks.daily_hour --before PYTHON`.

`export` and `check` of small models, and `train` of fixed kernels, are run in alternating turns by this interpreter and
by that of another checkout. What counts are seconds of processor, those of child processes included: other work on the
machine changes them less than the time that passes. Both builds must come to the same answers: verdicts, trials and
proofs, and, of what is written, the same bits of every answer.

Modules are compiled once, into a folder of its own, as an installation by pip has them: a first turn does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command

PAGE = pages.RESULTS / "daily_hour.md"
_EXAMPLES: Final = Path(__file__).resolve().parents[1] / "examples"
TARGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "export": ("export", f"{_EXAMPLES}/packed_lstm.py:make", "--out", "model"),
    "check (torch)": ("check", f"{_EXAMPLES}/packed_lstm.py:make"),
    "check (Keras)": ("check", f"{_EXAMPLES}/keras_models.py:masked_lstm"),
    "train": ("train", "rocket", "aeon:JapaneseVowels_TRAIN", "--out", "model"),
}
_OF_ONE_RUN: Final = frozenset({"seconds", "made", "directory"})
"""Entries of a command's JSON that differ from run to run: times, folders and dates."""
_GRAPHS: Final = (".onnx", ".safetensors")


def turn(python: Path, words: Sequence[str], compiled: Path) -> tuple[float, Any]:
    """Runs a command of Lengthwise once; returns its seconds of processor, and what both builds must agree on.

    Raises:
        ClickException: The command fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(compiled)}
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        command = [str(python), "-m", "lengthwise", *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        after = os.times()
        if done.returncode:
            raise click.ClickException(f"{' '.join(command)}: {done.stderr[-2000:]}")
        files = [path for path in sorted(Path(folder).rglob("*")) if path.suffix in _GRAPHS]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, (_comparable(json.loads(done.stdout)), digests)


def _comparable(value: Any) -> Any:
    """A value of JSON without the entries that differ from run to run."""
    if isinstance(value, dict):
        return {name: _comparable(entry) for name, entry in value.items() if name not in _OF_ONE_RUN}
    return [_comparable(entry) for entry in value] if isinstance(value, list) else value


def measure(builds: Sequence[Path], words: Sequence[str], rounds: int, compiled: Path) -> dict[str, Any]:
    """A command in turns of both builds; the first round does not count, and who begins changes from round to round."""
    seconds, said = list[tuple[float, ...]](), list[Any]()
    for number in range(rounds + 1):
        order = builds if number % 2 else builds[::-1]
        results = {python: turn(python, words, compiled) for python in order}
        seconds.append(tuple(results[python][0] for python in builds))
        said += [results[python][1] for python in builds]
    counted = seconds[1:]
    return {
        "before": median(before for before, _ in counted),
        "after": median(after for _, after in counted),
        "ratio": median(after / before for before, after in counted),
        "same": all(answer == said[0] for answer in said),
    }


@click.command(cls=Command)
@click.option("--before", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="Python.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Pairs of turns that count.")
@click.option("--command", "names", type=click.Choice([*TARGETS]), multiple=True, default=[*TARGETS], help="Commands.")
@output.as_json_or_page(PAGE)
def main(before: Path, rounds: int, names: Sequence[str], as_json: bool, out: Path | None) -> None:
    """Measures the commands in another build, whose Python is BEFORE, beside this one."""
    facts, builds = machine.facts(), (before.absolute(), Path(sys.executable))
    with tempfile.TemporaryDirectory() as compiled:
        bar = track(names, "commands", console=Console(stderr=True))
        figures = {name: measure(builds, TARGETS[name], rounds, Path(compiled)) for name in bar}
    lines = [
        [name, *(f"{found[figure]:.2f}" for figure in ("before", "after", "ratio")), "yes" if found["same"] else "NO"]
        for name, found in figures.items()
    ]
    table = pages.table(("command", "before, s", "after, s", "ratio", "same answers and bits"), lines)
    how = f"`python -m benchmarks.daily_hour`: before is {machine.described(before.parents[2])}; medians, of processor."
    output.tell(pages.page(facts, "A user's daily hour", how, table), figures, as_json=as_json, out=out)


if __name__ == "__main__":
    main()

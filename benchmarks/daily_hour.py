"""The commands of a user's day in two builds: `python -m benchmarks.daily_hour --before PYTHON`.

`export` and `check` of small models, and `train` of fixed kernels, are run in alternating turns by this interpreter and
by that of another checkout. What counts are seconds of processor, those of child processes included: other work on the
machine changes them less than the time that passes. What differs is named: of verdicts, trials and proofs the entry,
and of what is written the part of the file. The tensors of a checkpoint, the `node`s and `initializer`s of a graph and
its golden answers are the bits of every answer; `value_info` only describes them.

Modules are compiled once, into a folder of its own, as an installation by pip has them: a first turn does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
import onnx
from rich.console import Console
from rich.progress import track
from safetensors.numpy import load_file

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.wrong_values import first_of

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


def _fields_of(path: Path) -> dict[str, str]:
    """The fields of the graph in an ONNX file, and those beside it, such as `model opset_import`."""
    model = onnx.load(path)
    beside = {f"model {field.name}": str(value) for field, value in model.ListFields() if field.name != "graph"}
    return beside | {field.name: str(value) for field, value in model.graph.ListFields()}


_READERS: Final[Mapping[str, Callable[[Path], Mapping[str, Any]]]] = {
    ".onnx": _fields_of,
    ".npz": np.load,
    ".safetensors": load_file,
}
"""The parts of files that hold answers, or what they are computed with, by the end of the file's name."""


def turn(python: Path, words: Sequence[str], compiled: Path) -> tuple[float, dict[str, Any]]:
    """Runs a command of Lengthwise once; returns its seconds of processor, and what it said and wrote, by name.

    Raises:
        ClickException: The command fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(compiled)
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        command = [str(python), "-m", "lengthwise", *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        after = os.times()
        if done.returncode:
            raise click.ClickException(f"{' '.join(command)}: {done.stderr[-2000:]}")
        made = dict(_entries(json.loads(done.stdout), "--json")) | parts(Path(folder))
    return after.children_user + after.children_system - before.children_user - before.children_system, made


def _entries(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The entries of a value of JSON by their paths, without those that differ from run to run."""
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in _OF_ONE_RUN:
                yield from _entries(entry, f"{name} {key}")
    else:
        yield name, value


def parts(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The parts of the files in a folder, by the names of both: the type, the shape and the bytes of each."""
    return {
        f"{path.name} {name}": (array.dtype.str, array.shape, array.tobytes())
        for path in sorted(folder.rglob("*"))
        if path.suffix in _READERS
        for name, array in ((name, np.asarray(value)) for name, value in _READERS[path.suffix](path).items())
    }


def measure(builds: Sequence[Path], words: Sequence[str], rounds: int, compiled: Path) -> dict[str, Any]:
    """A command in turns of both builds; the first round does not count, and who begins changes from round to round."""
    turns = [
        {python: turn(python, words, compiled) for python in (builds if number % 2 else builds[::-1])}
        for number in range(rounds + 1)
    ]
    counted = [[results[python][0] for python in builds] for results in turns[1:]]
    return {
        "before": median(before for before, _ in counted),
        "after": median(after for _, after in counted),
        "ratio": median(after / before for before, after in counted),
        "differs": differing([made for results in turns for _, made in results.values()]),
    }


def differing(made: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose value is not the same in each of these, or that one of them lacks."""
    return sorted({name for each in made for name, _ in each.items() ^ made[0].items()})


@click.command(cls=Command)
@click.option("--before", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="Python.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Pairs of turns that count.")
@click.option("--command", "names", type=click.Choice([*TARGETS]), multiple=True, default=[*TARGETS], help="Commands.")
@output.as_json_or_page(PAGE)
def main(before: Path, rounds: int, names: Sequence[str], as_json: bool, out: Path | None) -> None:
    """Measures the commands in another build, whose Python is BEFORE, beside this one."""
    facts, builds = machine.facts(), (before.absolute(), Path(sys.executable))
    with tempfile.TemporaryDirectory() as compiled:
        figures = {
            name: measure(builds, TARGETS[name], rounds, Path(compiled))
            for name in track(names, "commands", console=Console(stderr=True))
        }
    how = f"`python -m benchmarks.daily_hour`: before is {machine.described(before.parents[2])}; medians, of processor."
    table = pages.table(
        ("command", "before, s", "after, s", "ratio", "what differs"),
        (
            [
                name,
                *(f"{found[side]:.2f}" for side in ("before", "after", "ratio")),
                first_of(found["differs"]) or "nothing",
            ]
            for name, found in figures.items()
        ),
    )
    output.tell(pages.page(facts, "A user's daily hour", how, table), figures, as_json=as_json, out=out)


if __name__ == "__main__":
    main()

"""The commands of a user's day in two builds: `python -m benchmarks.daily_hour --before PYTHON`.

`export` and `check` of small models, and `train` of fixed kernels, are run in alternating turns by this interpreter and
by that of another checkout. What counts are seconds of processor, those of child processes included: other work on the
machine changes them less than the time that passes. What differs is named: of verdicts, trials and proofs the entry,
and of what is written the part of the file. The tensors of a graph or a checkpoint, its `node`s and golden answers are
the bits of every answer; `value_info` and metadata describe them, and change no answer.

Modules are compiled once, into a folder of its own, as an installation by pip has them: a first turn does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
import onnx
from rich.console import Console
from rich.progress import track
from safetensors import safe_open

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
_OF_ONE_RUN: Final = frozenset({"seconds", "made", "directory", "trained"})
"""Entries of a command's JSON, and of a checkpoint's, that differ from run to run: times, folders and dates."""


def turn(python: Path, words: Sequence[str], compiled: Path) -> tuple[float, dict[str, Any]]:
    """Runs a command of Lengthwise once; returns its seconds of processor, and what it said and wrote, by name.

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
        made = dict(_entries(json.loads(done.stdout), "--json"))
        for path in sorted(Path(folder).rglob("*")):
            made |= _parts(path)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, made


def _entries(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The entries of a value of JSON by their paths, without those that differ from run to run."""
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in _OF_ONE_RUN:
                yield from _entries(entry, f"{name} {key}")
    else:
        yield name, value


def _parts(path: Path) -> dict[str, Any]:
    """The parts of a file with a graph, tensors or golden answers, by their names; of another file none."""
    if path.suffix == ".onnx":
        return {f"{path.name} {name}": value for name, value in _fields(onnx.load(path))}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {f"{path.name} {name}": _bits(array) for name, array in arrays.items()}
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "np") as file:
        tensors = {f"{path.name} {name}": _bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no dict
        said = {name: json.loads(text) for name, text in file.metadata().items()}
    return tensors | dict(_entries(said, f"{path.name} metadata"))


def _fields(message: Any) -> Iterator[tuple[str, bytes]]:
    """The fields of a model of ONNX, and of its graph, by their names."""
    for field, value in message.ListFields():
        if isinstance(value, onnx.GraphProto):
            yield from _fields(value)
        else:
            yield field.name, type(message)(**{field.name: value}).SerializeToString(deterministic=True)


def _bits(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """What two arrays of the same bits have in common."""
    return array.dtype, array.shape, array.tobytes()


def measure(builds: Sequence[Path], words: Sequence[str], rounds: int, compiled: Path) -> dict[str, Any]:
    """A command in turns of both builds; the first round does not count, and who begins changes from round to round."""
    seconds, made = list[tuple[float, ...]](), list[dict[str, Any]]()
    for number in range(rounds + 1):
        order = builds if number % 2 else builds[::-1]
        results = {python: turn(python, words, compiled) for python in order}
        seconds.append(tuple(results[python][0] for python in builds))
        made += [results[python][1] for python in builds]
    counted = seconds[1:]
    return {
        "before": median(before for before, _ in counted),
        "after": median(after for _, after in counted),
        "ratio": median(after / before for before, after in counted),
        "differs": differing(made),
    }


def differing(made: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose value is not the same in each of these, or that one of them lacks."""
    names = dict.fromkeys(name for each in made for name in each)
    return [name for name in names if any(name not in each or each[name] != made[0].get(name) for each in made)]


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
        [
            name,
            *(f"{found[figure]:.2f}" for figure in ("before", "after", "ratio")),
            first_of(found["differs"]) or "nothing",
        ]
        for name, found in figures.items()
    ]
    table = pages.table(("command", "before, s", "after, s", "ratio", "what differs"), lines)
    how = f"`python -m benchmarks.daily_hour`: before is {machine.described(before.parents[2])}; medians, of processor."
    output.tell(pages.page(facts, "A user's daily hour", how, table), figures, as_json=as_json, out=out)


if __name__ == "__main__":
    main()

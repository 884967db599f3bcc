"""Folders that optimum wrote, as they are served, beside FastAPI: `python -m benchmarks.stock_folders FOLDER...`.

Each folder is published by `lengthwise export` once. FastAPI runs the folder's own graph in onnxruntime, once a
request. The folders hold classifiers of sequences. Both servers run on the first core in turns, the load comes from
another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks import machine, output, pages, planning, processes
from benchmarks.contenders import NAIVE, SERVICE
from benchmarks.workloads import CACHE, Work, exported
from lengthwise.bench.workload import Input, draw_lengths, make_sequences
from lengthwise.commands.command import Command
from lengthwise.runtime.manifest import Manifest

_SEQUENCES = 2000


def work(folder: Path) -> Work:
    """Lengths of median 50 and sigma 0.7, as far as the model takes them, and the folder's published model."""
    directory = exported(CACHE.parent / f"bench-folder-{folder.name}" / folder.name / "1", folder)
    manifest, random = Manifest.read(directory), np.random.default_rng(0)
    lengths = draw_lengths("lognormal:50,0.7", _SEQUENCES, manifest.max_length, random)
    sequences = make_sequences(lengths, Input("tokens", manifest.input.vocabulary), random)
    return Work(folder.name, folder.name, directory, sequences)


@click.command(cls=Command)
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--connections", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.2), default=1.5, show_default=True, help="Of each turn.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns of each server.")
@click.option("--out", type=output.PagePath(dir_okay=False), help="Page to write.")
def main(folders: Sequence[Path], connections: int, seconds: float, rounds: int, out: Path | None) -> None:
    """Measures folders of optimum, served by Lengthwise and by FastAPI."""
    facts, core, lines = machine.facts(), processes.first_core(), []
    for folder in folders:
        peer = replace(NAIVE, module=("benchmarks.peers.naive_folder", str(folder.resolve()), "{port}"))
        case = planning.Case(folder.name, partial(work, folder), connections)
        turns = planning.measure(case, seconds=seconds, rounds=rounds, core=core, contenders=(SERVICE, peer))
        lines.append(planning.line(folder.name, turns))
    heads = ["folder", "requests/s", "p99 ms", f"over {NAIVE.title}"]
    text = (
        f"`python -m benchmarks.stock_folders`: {connections} connections, lognormal lengths (median 50, sigma 0.7), "
        f"one core; medians of {rounds} turns of {seconds:g} s. Last: throughput and 99th percentile over the other's."
    )
    output.tell(pages.page(facts, "Folders of optimum beside FastAPI", text, pages.table(heads, lines)), out=out)


if __name__ == "__main__":
    main()

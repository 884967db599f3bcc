"""An adopted graph beside the built-in export of the same weights: `python -m benchmarks.adopted`.

The graph of `make bench`'s lognormal workload is written as a file that names nothing as this project does, and is
exported as any ONNX file is. Both model directories are then run as the service runs them, in turns; the figure is the
fastest run's processor time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx

from benchmarks import machine, pages
from benchmarks.workloads import lognormal
from lengthwise.padding import pad
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.session import Session

PAGE = pages.RESULTS / "adopted.md"
_ROWS = (1, 4, 12, 64)


def renamed(graph: bytes) -> bytes:
    """The same graph with other names of all values, but for its inputs, and without what its exporter noted."""
    model = onnx.load_from_string(graph)
    kept = {each.name for each in model.graph.input}
    names: dict[str, str] = {"": ""}

    def other(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"v{len(names)}")

    for node in model.graph.node:
        node.input[:] = [other(name) for name in node.input]
        node.output[:] = [other(name) for name in node.output]
        node.name = other(node.name)
        del node.metadata_props[:]
    for each in (*model.graph.initializer, *model.graph.output):
        each.name = other(each.name)
    del model.graph.value_info[:], model.metadata_props[:], model.graph.output[1:]
    model.producer_name = model.doc_string = model.graph.doc_string = ""
    serialized: bytes = model.SerializeToString()
    return serialized


def measure(seconds: float, seed: int) -> list[tuple[int, float, float, str, str]]:
    """Of each number of rows: us per valid step of the export and of the adopted graph, and the kernels of both."""
    work = lognormal(seed, 200)
    with tempfile.TemporaryDirectory() as folder:
        file, directory = Path(folder) / "foreign.onnx", Path(folder) / "adopted" / "1"
        file.write_bytes(renamed((work.directory / GRAPH_FILE).read_bytes()))
        command = [sys.executable, "-m", "lengthwise", "export", str(file), "--classes", "9", "--out", str(directory)]
        subprocess.run(command, check=True)
        export, adopted = (Session.load(each, Manifest.read(each)) for each in (work.directory, directory))
        found = []
        for rows in _ROWS:
            batch = pad(work.sequences[:rows], multiple=4)
            fastest = np.full(2, np.inf)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for index, session in enumerate((export, adopted)):
                    before = time.thread_time()
                    session.run(batch)
                    fastest[index] = min(fastest[index], time.thread_time() - before)
            one, other = (fastest / batch.valid_steps * 1e6).tolist()
            found.append((rows, one, other, export.kernels, adopted.kernels))
    return found


@click.command()
@click.option("--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True, help="For each number of rows.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sequences.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True, help="Page.")
def main(seconds: float, seed: int, out: Path) -> None:
    """Measures an adopted graph beside the export with the same weights."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    facts = machine.facts()
    rows = measure(seconds, seed)
    heads = ("rows", "the export, us a valid step", "adopted", "ratio", "kernels of the export", "of the adopted")
    lines = [
        (str(count), f"{one:.2f}", f"{other:.2f}", f"{other / one:.3f}", kernels, others)
        for count, one, other, kernels, others in rows
    ]
    how = "`python -m benchmarks.adopted`: one thread, lognormal lengths, the fastest run."
    text = pages.page(facts, "An adopted graph", how, pages.table(heads, lines))
    pages.write(out, text)
    click.echo(text)


if __name__ == "__main__":
    main()

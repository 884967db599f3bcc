"""First loads of models by two checkouts, in alternating turns: `python -m benchmarks.loads --before PATH`.

A first load finds nothing stored beside the model: it reads and verifies the model, chooses its kernels and measures
its costs. Each is one process of a checkout's own `.venv`, on a copy of the model. Counted is its processor time, which
other work on the machine delays less than the time on a clock, without what the import of its modules takes; and the
most memory that the process had. `python -m benchmarks.path load` counts the calls.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import click

from benchmarks import machine, pages
from benchmarks.workloads import lognormal
from lengthwise.files import bundled_models

_LOAD: Final = """
import json, resource, sys, time
from pathlib import Path
from lengthwise.batching.limits import BatchLimits
from lengthwise.repository import loading
from lengthwise.runtime.provider import TIMED_CPU
start = time.process_time()
loading.load(Path(sys.argv[1]), BatchLimits(), devices=(TIMED_CPU,))
seconds = time.process_time() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def first_load(checkout: Path, model: Path) -> tuple[float, float]:
    """The seconds of processor and the MiB of memory of one first load, in a new process of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, model.parent.name, model.name)
        shutil.copytree(model, directory, ignore=shutil.ignore_patterns("costs.json", "promises.json", "kernels.json"))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(checkout.resolve() / ".venv" / "bin" / "python"), "-c", _LOAD, str(directory)]
        done = subprocess.run(command, capture_output=True, check=True, env=environment, cwd=checkout)
    seconds, mebibytes = json.loads(done.stdout)
    return seconds, mebibytes


def line(before: Path, model: Path, rounds: int) -> list[str]:
    """A line of the table: medians of both checkouts, and the ratio of the seconds with its range."""
    loads = [(first_load(before, model), first_load(Path(), model)) for _ in range(rounds)]
    ratios = sorted(after[0] / earlier[0] for earlier, after in loads)
    cells = [model.parent.name, f"{(model / 'model.onnx').stat().st_size / 2**20:.0f} MiB"]
    for side in (0, 1):
        seconds, mebibytes = (median(load[side][figure] for load in loads) for figure in (0, 1))
        cells.append(f"{seconds:.2f} s, {mebibytes:.0f} MiB")
    return [*cells, f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"]


@click.command()
@click.option(
    "--before", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Checkout."
)
@click.option(
    "--model",
    "models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="Model directory. [default: the bundled model, and a BiLSTM of 512]",
)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Pairs of turns.")
def main(before: Path, models: Sequence[Path], rounds: int) -> None:
    """Measures another checkout beside this one."""
    chosen = models or (bundled_models() / "japanese-vowels" / "1", lognormal(0, 1, model="lstm-512").directory)
    lines = [line(before, model.resolve(), rounds) for model in chosen]
    heads = ["model", "graph", f"checkout {machine.described(before)}", "this one", "ratio (range)"]
    click.echo(pages.table(heads, lines))


if __name__ == "__main__":
    main()

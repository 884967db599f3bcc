"""`lengthwise.Scorer` on engines, beside padded batches in order of arrival: `python -m benchmarks.engines`.

Ray Data, Spark and Beam, two workers each, answer the same Parquet files in turns: with `Scorer`, and as one writes it
by hand (`benchmarks.engine_jobs`). A job is measured from its start to its last answer: it opens models, reads, answers
and collects. So a worker's start counts, which is a second or more; a longer job has less of it. Every job must answer
each row once, with the same label, and with the same probability up to 0.0001.

The engines are in an environment of their own: `make engines` makes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks import machine, pages
from benchmarks.engine_jobs import ENGINES, WORKERS
from benchmarks.workloads import Work, lognormal

PAGE = pages.RESULTS / "engines.md"
PYTHON = Path("runs/engines/bin/python")
OURS = "lengthwise"
_NEAR = 1e-4


def write_data(work: Work, folder: Path, files: int) -> None:
    """The sequences as Parquet files with list columns."""
    kind = pa.list_(pa.list_(pa.float32()))
    for number in range(files):
        rows = range(number, len(work.sequences), files)
        steps = pa.array([work.sequences[row].tolist() for row in rows], kind)
        table = pa.table({"id": [f"r{row}" for row in rows], "steps": steps})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=max(1, len(rows) // 4))


def measure(engine: str, data: Path, model: Path, rounds: int, python: Path) -> dict[str, Any]:
    """What the jobs of an engine print: seconds and answers of each."""
    command = [str(python), "-m", "benchmarks.engine_jobs", engine, "--data", str(data), "--model", str(model)]
    done = subprocess.run([*command, "--rounds", str(rounds)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{engine}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(engine: str, answers: dict[str, list[tuple[str, str, float]]], count: int) -> int:
    """How many labels differ between jobs; rows that are lost, doubled or far from another job's are an error.

    Raises:
        ClickException: A job lost or doubled a row, or a probability differs by more than rounding.
    """
    first = answers[OURS]
    wrong = 0
    for name, rows in answers.items():
        if sorted(row[0] for row in rows) != sorted(f"r{row}" for row in range(count)):
            raise click.ClickException(f"{engine}, {name}: {len(rows)} answers to {count} rows, or not one of each")
        far = max(abs(one[2] - other[2]) for one, other in zip(first, rows, strict=True))
        if far > _NEAR:
            raise click.ClickException(f"{engine}, {name}: a probability differs by {far:.2g}")
        wrong += sum(one[1] != other[1] for one, other in zip(first, rows, strict=True))
    return wrong


def lines(engine: str, seconds: dict[str, list[float]], count: int) -> list[list[str]]:
    """A line of the table for each job: sequences a second, and the ratio of this project's to it in the same round."""
    found = []
    for name, times in seconds.items():
        ratios = sorted(other / own for own, other in zip(seconds[OURS], times, strict=True))
        ratio = "" if name == OURS else f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        found.append([engine, name, f"{count / median(times):,.0f}", f"{median(times):.1f}", ratio])
    return found


@click.command()
@click.option("--count", type=click.IntRange(1), default=20_000, show_default=True, help="Sequences.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--only", "engines", type=click.Choice(list(ENGINES)), multiple=True, default=list(ENGINES))
@click.option("--python", type=click.Path(exists=True, path_type=Path), default=PYTHON, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True, help="Page.")
def main(count: int, rounds: int, engines: list[str], python: Path, out: Path) -> None:
    """Measures a scorer on engines."""
    facts = machine.facts()
    work = lognormal(0, count)
    table: list[list[str]] = []
    wrong = 0
    with tempfile.TemporaryDirectory() as name, Console(stderr=True).status("measuring"):
        write_data(work, Path(name), 8)
        for engine in engines:
            found = measure(engine, Path(name), work.directory.resolve(), rounds, python)
            wrong += check(engine, found["answers"], count)
            table += lines(engine, found["seconds"], count)
    how = (
        f"`python -m benchmarks.engines`: {work.title}; {count:,} sequences, {WORKERS} workers on this machine, "
        f"medians of {rounds} rounds in turns. By hand: batches of so many rows in the order of arrival, padded to "
        "the longest of them, in onnxruntime. A job is measured from start to end, the opening of models included."
    )
    heads = ("engine", "job", "sequences/s", "seconds", "Lengthwise over it (range)")
    end = f"Every job answered each row once. Labels that differ between jobs: {wrong}."
    text = pages.page(facts, "A scorer on engines", how, pages.table(heads, table), end)
    pages.write(out, text)
    click.echo(text)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()

"""Recurrent layers in the service's kernels beside onnxruntime's own: `python -m benchmarks.kernels`.

One two-layer bidirectional LSTM with attention, the graph of `make bench`'s lognormal workload, in one thread. Batches
of one length show the arithmetic, batches of lengths as they come what padding costs. All batches of one number of rows
take turns, in both sessions; the figure is the fastest of the runs over the valid steps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.processes import fastest
from benchmarks.workloads import lognormal
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU
from lengthwise.runtime.session import Session

PAGE = pages.RESULTS / "kernels.md"
_ROWS = (1, 2, 4, 6, 12, 24, 64)
_ONE_LENGTH = 52


def measure(seconds: float, seed: int) -> list[dict[str, Any]]:
    """One row, of so many seconds, for each number of rows, lengths and instruction set."""
    work = lognormal(seed, 2000)
    manifest = Manifest.read(work.directory)
    plain = Session.load(work.directory, manifest, devices=(PLAIN_CPU,))
    alike = [steps for steps in work.sequences if len(steps) >= _ONE_LENGTH]
    found = []
    for instructions in recurrent_kernels.INSTRUCTION_SETS:
        recurrent_kernels.choose(instructions)
        own = Session.load(work.directory, manifest, devices=(CPU_DEVICE,))
        of_instructions = []
        for rows in track(_ROWS, instructions, console=Console(stderr=True)):
            cases = {"one": [steps[:_ONE_LENGTH] for steps in alike[:rows]], "as they come": work.sequences[:rows]}
            batches = [pad(sequences, multiple=manifest.width_multiple) for sequences in cases.values()]
            runs = [partial(session.run, batch) for batch in batches for session in (plain, own)]
            times = np.reshape(fastest(runs, 2 * seconds), (-1, 2))
            for (lengths, sequences), batch, (onnxruntimes, owns) in zip(cases.items(), batches, times, strict=True):
                of_instructions.append(
                    {
                        "instructions": instructions,
                        "lengths": lengths,
                        "rows": rows,
                        "padding_share": 1 - batch.valid_steps / batch.padded_steps,
                        "onnxruntime_us_per_step": onnxruntimes / batch.valid_steps * 1e6,
                        "own_us_per_step": owns / batch.valid_steps * 1e6,
                        "largest_difference": float(np.abs(plain.run(batch).logits - own.run(batch).logits).max()),
                        "same_bits_alone": same_bits(own, sequences, batch, manifest.width_multiple),
                    }
                )
        found += sorted(of_instructions, key=lambda row: row["lengths"] != "one")
    return found


def of_mixed(rows: Sequence[dict[str, Any]], instructions: str) -> float:
    """How much longer a valid step of the largest batch takes in lengths as they come than in one length."""
    (one, mixed) = (
        next(
            row
            for row in rows
            if row["instructions"] == instructions and row["lengths"] == lengths and row["rows"] == _ROWS[-1]
        )
        for lengths in ("one", "as they come")
    )
    return float(mixed["own_us_per_step"] / one["own_us_per_step"])


def same_bits(session: Session, sequences: Sequence[Steps], batch: PaddedBatch, multiple: int) -> bool:
    """Whether each row's answer is the one that it gets alone."""
    alone = [session.run(pad([steps], multiple=multiple)).logits[0] for steps in sequences]
    return np.array_equal(session.run(batch).logits, alone)


def page(facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The figures as a page."""
    lines = [
        (
            row["instructions"],
            row["lengths"],
            str(row["rows"]),
            f"{row['padding_share']:.0%}",
            f"{row['onnxruntime_us_per_step']:.2f}",
            f"{row['own_us_per_step']:.2f}",
            f"{row['onnxruntime_us_per_step'] / row['own_us_per_step']:.2f}",
        )
        for row in rows
    ]
    heads = ("instructions", "lengths", "rows", "padding", "onnxruntime's kernels", "Lengthwise's", "ratio")
    how = (
        "`python -m benchmarks.kernels`: one thread, the fastest run, us per valid step. onnxruntime's kernels use the "
        "processor's best instructions in all rows."
    )
    checks = (
        f"Largest difference of a logit between the two: {max(row['largest_difference'] for row in rows):.1g}. "
        f"Batches with the same bits as unbatched: {sum(row['same_bits_alone'] for row in rows)} of {len(rows)}."
    )
    mixed = [
        (instructions, f"{of_mixed(rows, instructions):.3f}")
        for instructions in dict.fromkeys(row["instructions"] for row in rows)
    ]
    share = f"A valid step in {_ROWS[-1]} rows of lengths as they come, over one in {_ROWS[-1]} rows of one length:"
    tables = (pages.table(heads, lines), share, pages.table(("instructions", "ratio"), mixed))
    return pages.page(facts, "Recurrent kernels", how, *tables, checks)


@click.command()
@click.option("--seconds", type=click.FloatRange(0.01), default=1.0, show_default=True, help="For each row.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sequences.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(seconds: float, seed: int, out: Path) -> None:
    """Measures the recurrent kernels beside onnxruntime's own."""
    if not recurrent_kernels.INSTRUCTION_SETS:
        raise click.ClickException(
            "the kernels cannot run here: they want AVX2 or AVX-512, and a C compiler when the project is installed"
        )
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    facts = machine.facts()
    rows = measure(seconds, seed)
    text = page(facts, rows)
    output.tell(text, out=out)


if __name__ == "__main__":
    main()

"""Graphs at int8 beside the same graphs at fp32, on one thread: `python -m benchmarks.int8_kernels`.

Both are run as the service runs them, in turns; the figure is the fastest of the runs over the valid steps. fp32 has
the processor's best instruction set in all rows, int8 each one in turn. Batches of one length show the arithmetic,
batches of lengths as they come what is left of it beside padding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.kernels import same_bits
from benchmarks.processes import fastest
from benchmarks.workloads import MODELS, lognormal
from lengthwise.padding import pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session

PAGE = pages.RESULTS / "int8_kernels.md"
_ONE_LENGTH: Final = 52


@dataclass(frozen=True, slots=True)
class Int8Time:
    """The time of one batch at fp32 and at int8."""

    model: str  # one of `MODELS`
    instructions: str  # the instruction set at int8
    lengths: str  # "one", or "as they come"
    rows: int  # rows of the batch
    fp32_us_per_step: float  # processor time over the valid steps, at fp32
    int8_us_per_step: float  # the same at int8
    same_bits_alone: bool  # whether each row's answer at int8 has the bits that it has alone
    same_bits_everywhere: bool  # whether the logits at int8 have the same bits on every instruction set


def measure(
    models: Sequence[str], instruction_sets: Sequence[str], rows: Sequence[int], seconds: float, seed: int
) -> Iterator[Int8Time]:
    """One result, of so many seconds, for each model, instruction set, kind of lengths and number of rows."""
    for model in models:
        work, exact = lognormal(seed, 2000, model=model, precision="int8"), lognormal(seed, 1, model=model)
        manifest = Manifest.read(work.directory)
        one = Session.load(exact.directory, Manifest.read(exact.directory))
        sessions = {}
        for name in instruction_sets:
            recurrent_kernels.choose(name, "int8")
            sessions[name] = Session.load(work.directory, manifest)
        alike = [steps[:_ONE_LENGTH] for steps in work.sequences if len(steps) >= _ONE_LENGTH]
        cases = [(kind, count) for kind in ("one", "as they come") for count in rows if kind == "one" or count > 1]
        for kind, count in track(cases, model, console=Console(stderr=True)):
            members = (alike if kind == "one" else work.sequences)[:count]
            batch = pad(members, multiple=manifest.width_multiple)
            exact_seconds, *int8_seconds = fastest(
                [partial(session.run, batch) for session in (one, *sessions.values())], seconds
            )
            logits = {name: session.run(batch).logits for name, session in sessions.items()}
            first = next(iter(logits.values()))
            for (name, session), taken in zip(sessions.items(), int8_seconds, strict=True):
                yield Int8Time(
                    model=model,
                    instructions=name,
                    lengths=kind,
                    rows=count,
                    fp32_us_per_step=1e6 * exact_seconds / batch.valid_steps,
                    int8_us_per_step=1e6 * taken / batch.valid_steps,
                    same_bits_alone=same_bits(session, members, batch, manifest.width_multiple),
                    same_bits_everywhere=all(np.array_equal(each, first) for each in logits.values()),
                )


def lines(found: Sequence[Int8Time]) -> list[tuple[str, ...]]:
    """The lines of the table: one for each batch, with a column for each instruction set."""
    batches: dict[tuple[str, str, int], list[Int8Time]] = {}
    for each in found:
        batches.setdefault((each.model, each.lengths, each.rows), []).append(each)
    return [
        (
            MODELS[model].removesuffix(" with attention"),
            lengths,
            str(rows),
            f"{of_batch[0].fp32_us_per_step:.2f}",
            *(f"{each.fp32_us_per_step / each.int8_us_per_step:.2f}" for each in of_batch),
        )
        for (model, lengths, rows), of_batch in batches.items()
    ]


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice([*MODELS]), help="Only this one. [default: all]")
@click.option(
    "--instructions",
    multiple=True,
    type=click.Choice([*recurrent_kernels.INTEGER_SETS]),
    help="Only this set. [default: all but the portable one]",
)
@click.option("--rows", multiple=True, type=click.IntRange(1), default=(1, 64), show_default=True, help="Rows.")
@click.option("--seconds", type=click.FloatRange(0), default=1.0, show_default=True, help="For each batch.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sequences.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(
    models: tuple[str, ...], instructions: tuple[str, ...], rows: tuple[int, ...], seconds: float, seed: int, out: Path
) -> None:
    """Measures graphs at int8 beside the same graphs at fp32."""
    if not recurrent_kernels.INTEGER_SETS:
        raise click.ClickException("the kernels were not built: they want a C compiler when the project is installed")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    facts = machine.facts()
    sets = instructions or recurrent_kernels.INTEGER_SETS[: recurrent_kernels.INTEGER_SETS.index("portable")]
    found = list(measure(models or [*MODELS], sets, rows, seconds, seed))
    heads = ("model", "lengths", "rows", "fp32", *sets)
    how = (
        "`python -m benchmarks.int8_kernels`: whole graphs in one thread, the fastest run. fp32: us per valid step; "
        "then how many times as fast int8 is with each instruction set."
    )
    checks = (
        f"Batches at int8 with the same bits as unbatched: {sum(each.same_bits_alone for each in found)} of "
        f"{len(found)}; with the same bits on all instruction sets: "
        f"{sum(each.same_bits_everywhere for each in found)}."
    )
    text = pages.page(facts, "Graphs at int8", how, pages.table(heads, lines(found)), checks)
    output.tell(text, out=out)


if __name__ == "__main__":
    main()

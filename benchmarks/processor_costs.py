"""How right a cost table of a processor is after the measurement at load: `python -m benchmarks.processor_costs`.

Each model is measured some times as at load, on one core. Between these its shapes run in random order, three times
each, of which the last two count: the first finds caches that other shapes have filled. The median of these runs is
taken as the truth. Other work on the machine makes a processor slower and faster within a second, so the truth is
within some percent only; of a whole table that is off by one factor, nothing is wrong: serving corrects that (`drift`).
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, output, pages
from benchmarks.planning import CASES
from benchmarks.workloads import Work
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.commands.command import Command
from lengthwise.padding import pad
from lengthwise.repository.loading import load
from lengthwise.repository.scan import MEASURING_SECONDS
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import constant_sequence, measure_cost, measuring_seconds, run_odd_values
from lengthwise.runtime import answers

PAGE = pages.RESULTS / "processor_costs.md"
MODELS: Final = ("float32-64", "int8-64", "vowels", "convolutions", "transformer")
"""Of `benchmarks.planning`."""
_LONGEST: Final = 0.03  # seconds of a shape whose truth is measured
_RUNS: Final = 3  # of a shape in a row, of which the first does not count
LIMITS: Final = BatchLimits()


def measure(work: Work, loads: int, seconds: float) -> dict[str, Any]:
    """The tables of so many loads beside the truth, which takes so many seconds in all."""
    model = load(work.directory, LIMITS)
    session, manifest = model.session, model.manifest

    def run(rows: int, width: int) -> float:
        batch = pad(
            [constant_sequence(manifest, 0.0, min(width, manifest.max_length))] * rows, multiple=manifest.width_multiple
        )
        begin = session.clock()
        answers.score(session.run(batch), batch.lengths, manifest)
        return session.clock() - begin

    random, tables = np.random.default_rng(0), list[CostTable]()
    shapes, runs = list[tuple[int, int]](), defaultdict[tuple[int, int], list[float]](list)
    for _ in range(loads):
        budget_seconds = measuring_seconds(session, run_odd_values(session, manifest), MEASURING_SECONDS)
        tables.append(measure_cost(session, manifest, LIMITS, stopping=Stopping(), budget_seconds=budget_seconds))
        shapes = shapes or [
            (rows, width)
            for rows, width in product(tables[0].rows.tolist(), tables[0].widths.tolist())
            if rows * width <= LIMITS.padded_steps and tables[0].predict(rows, width) <= _LONGEST
        ]
        end = time.perf_counter() + seconds / loads
        while time.perf_counter() < end:
            rows, width = shapes[random.integers(len(shapes))]
            runs[rows, width] += [run(rows, width) for _ in range(_RUNS)][1:]
    truth = {shape: float(np.median(times)) for shape, times in runs.items()}
    steps = float(np.mean([len(sequence) for sequence in work.sequences]))
    return figures(tables, truth, steps)


def figures(tables: Sequence[CostTable], truth: Mapping[tuple[int, int], float], steps: float) -> dict[str, Any]:
    """How far times are off, as factors, and what the rows of a batch cost that follow from each table.

    `steps`: the mean of a sequence. Each table may be off by one factor.
    """
    width = min((width for _, width in truth), key=lambda width: abs(np.log(width / steps)))
    row_seconds = {rows: seconds / rows for (rows, each), seconds in truth.items() if each == width}
    deviations, largest, chosen = list[float](), list[float](), list[int]()
    for table in tables:
        logs: NDArray[np.float64] = np.log([table.predict(*shape) / seconds for shape, seconds in truth.items()])
        logs -= np.median(logs)
        deviations.append(float(logs.std()))
        largest.append(float(np.exp(np.abs(logs).max())))
        chosen.append(table.column(width, LIMITS.rows).balanced_rows)
    paid = [row_seconds[min(row_seconds, key=lambda one: abs(one - rows))] for rows in chosen]
    return {
        "shapes": len(truth),
        "deviation": float(np.mean(deviations)),
        "largest": float(np.mean(largest)),
        "worst": max(largest),
        "rows": (min(chosen), max(chosen)),
        "paid": float(np.mean(paid)) / min(row_seconds.values()),
        "most_paid": max(paid) / min(row_seconds.values()),
    }


@click.command(cls=Command, help=__doc__)
@click.option("--loads", type=click.IntRange(1), default=20, show_default=True, help="Of each model.")
@click.option("--seconds", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Of the truth of each.")
@click.option("--case", "cases", type=click.Choice(MODELS), multiple=True, help="Only this one. [default: all]")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(loads: int, seconds: float, cases: Sequence[str], out: Any) -> None:
    """Measures each model, and writes the page."""
    facts = machine.facts()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    lines = []
    for name in cases or MODELS:
        found = measure(CASES[name].work(), loads, seconds)
        lines.append(
            [
                CASES[name].title.rpartition(",")[0],
                f"{found['shapes']}",
                f"{found['deviation']:.1%}",
                f"{found['largest']:.2f}",
                f"{found['worst']:.2f}",
                "{}-{}".format(*found["rows"]),
                f"{found['paid']:.2f}",
                f"{found['most_paid']:.2f}",
            ]
        )
        click.echo(" | ".join(lines[-1]), err=True)
    heads = ["model", "shapes", "deviation", "largest error", "of all loads", "rows", "cost a row", "of all loads"]
    text = (
        f"`python -m benchmarks.processor_costs`: {loads} loads of each model on one core, beside the median of many "
        "runs of each shape. The deviation is the standard deviation of the times over the truth within a table, the "
        "largest error a factor: the means of all loads, and the most. Rows: those of a batch in order of arrival at "
        "the mean length, the fewest and the most of all loads; what a row costs in such a batch, by the truth, over "
        "the cheapest number of rows."
    )
    table = pages.table(heads, lines)
    pages.write(out, pages.page(facts, "Costs of a processor", text, table))
    click.echo(table)


if __name__ == "__main__":
    main()

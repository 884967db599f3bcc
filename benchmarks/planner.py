"""How long deciding takes, and how close one-batch-at-a-time planning comes to the exact partition.

    python -m benchmarks.planner --waiting 64 --waiting 4096 --json

Everything waits at the start and nothing comes later, so that the cheapest partition is known: the dynamic program over
all sequences in length order, with the same cost table. `ratio` is the planner's predicted seconds over that one's.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.cost import CostTable
from service.padding import rounded_width
from service.plan import BatchLimits, Cost, plan
from service.pool import Pool, Waiting

LONGEST = 1024

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

LENGTHS: dict[str, Draw] = {
    "fixed": lambda _, n: np.full(n, 50.0),
    "uniform": lambda random, n: random.uniform(1, 200, n),
    "lognormal": lambda random, n: random.lognormal(np.log(50), 0.7, n),
    "bimodal": lambda random, n: np.where(random.random(n) < 0.9, random.normal(20, 4, n), random.normal(400, 60, n)),
    "zipf": lambda random, n: random.zipf(1.3, n).astype(np.float64),
}
"""Steps of `n` sequences; cut to 1 .. `LONGEST`."""


def recurrent_table() -> CostTable:
    """A two-layer BiLSTM of 128 on one core: microseconds a step and row, plus what any run costs."""
    rows = [1, 2, 4, 8, 16, 32, 64]
    per_step = np.asarray([11.8, 7.4, 5.4, 5.5, 5.1, 5.2, 5.7]) * 1e-6
    widths = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    return CostTable(rows, widths, 60e-6 + np.outer(np.asarray(rows) * per_step, widths))


def exact_seconds(widths: list[int], cost: Cost, limits: BatchLimits) -> float:
    """Seconds of the cheapest partition: for a cost that does not fall with width one is contiguous in width order."""
    ordered = sorted(widths)
    best = [0.0]
    for end, width in enumerate(ordered, start=1):
        seconds = cost.column(width, limits.rows).seconds
        most = min(end, max(1, min(limits.rows, limits.cost_steps // width)))
        best.append(min(best[end - rows] + seconds[rows] for rows in range(1, most + 1)))
    return best[-1]


def planned(widths: list[int], cost: Cost, limits: BatchLimits) -> tuple[float, list[float]]:
    """Predicted seconds of planning until nothing waits, and the seconds that each decision took."""
    pool = Pool()
    for width in widths:
        pool.add(Waiting(width))
    total, deciding = 0.0, []
    while pool:
        before = time.perf_counter()
        chosen = plan(pool, cost, limits, 0.0)
        deciding.append(time.perf_counter() - before)
        widest = max(waiting.width for waiting in chosen)
        total += cost.column(widest, limits.rows).seconds[len(chosen)]
    return total, deciding


def measured(name: str, waiting: int, rounds: int, seed: int) -> dict[str, str | int | float]:
    """One line of the table: the worst ratio of some rounds, and what a decision took with so many waiting."""
    cost, limits = recurrent_table(), BatchLimits()
    random = np.random.default_rng(seed)
    ratios, first, all_of_them = [], [], []
    for _ in range(rounds):
        lengths = np.clip(LENGTHS[name](random, waiting), 1, LONGEST).astype(int)
        widths = [rounded_width(int(length)) for length in lengths]
        exact = exact_seconds(widths, cost, limits)  # also fills the table's columns
        seconds, deciding = planned(widths, cost, limits)
        ratios.append(seconds / exact)
        first.append(deciding[0])
        all_of_them.extend(deciding)
    return {
        "lengths": name,
        "waiting": waiting,
        "ratio": max(ratios),
        "first_us": statistics.median(first) * 1e6,
        "median_us": statistics.median(all_of_them) * 1e6,
        "p99_us": float(np.quantile(all_of_them, 0.99)) * 1e6,
    }


@click.command(help=__doc__)
@click.option("--waiting", multiple=True, type=click.IntRange(1), default=(16, 64, 256, 1024, 4096), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def main(waiting: tuple[int, ...], rounds: int, seed: int, as_json: bool) -> None:
    """Prints the table."""
    cases = [(name, count) for name in LENGTHS for count in waiting]
    console = Console(stderr=True)
    lines = [measured(name, count, rounds, seed) for name, count in track(cases, "Planning", console=console)]
    if as_json:
        click.echo(json.dumps(lines, indent=2))
        return
    table = Table("lengths", "waiting", "worst ratio", "first us", "median us", "p99 us")
    for line in lines:
        figures = (f"{line[key]:.1f}" for key in ("first_us", "median_us", "p99_us"))
        table.add_row(str(line["lengths"]), str(line["waiting"]), f"{line['ratio']:.4f}", *figures)
    Console().print(table)


if __name__ == "__main__":
    main()

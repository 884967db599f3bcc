"""Time of a planner's decision, and how close planning one batch at a time comes to the exact partition.

    python -m benchmarks.planner --waiting 64 --waiting 4096 --json

All sequences wait at the start and none arrive later, so the cheapest partition is known: the dynamic program over all
sequences in length order, with the same cost table. `worst ratio` is the planner's predicted seconds over those of that
partition, `first` the time of the first decision. `steady` is the median when as many sequences arrive as are run, in
batches as long as may run on the event loop of one core. Costs are those of a two-layer BiLSTM whose batches are
cheapest with some ten rows.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from lengthwise.batching.queues import TURN_SECONDS
from lengthwise.batching.runners import ONE_CORE_INLINE_SECONDS

LONGEST = 1024
_STEADY = 500

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
    """A two-layer BiLSTM of 128 on one core: microseconds per step and row, plus a fixed time per run."""
    rows = [1, 2, 4, 8, 16, 32, 64]
    per_step = np.asarray([11.8, 7.4, 5.4, 5.5, 5.1, 5.2, 5.7]) * 1e-6
    widths = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    return CostTable(rows, widths, 60e-6 + np.outer(np.asarray(rows) * per_step, widths))


def exact_seconds(widths: list[int], cost: CostTable, limits: BatchLimits) -> float:
    """Seconds of the cheapest partition: for a cost that does not fall with width one is contiguous in width order.

    Each batch keeps the limits and the turn that its widest sequence would have.
    """
    ordered = sorted(widths)
    best = [0.0]
    for end, width in enumerate(ordered, start=1):
        column = cost.column(width, limits.rows)
        seconds, most = column.seconds, limits.most_rows(width)
        turn = max(limits.turn_seconds, seconds[min(column.enough_rows, most)])
        in_turn = (rows for rows in range(1, min(end, most) + 1) if rows == 1 or seconds[rows] <= turn)
        best.append(min(best[end - rows] + seconds[rows] for rows in in_turn))
    return best[-1]


def planned(widths: list[int], cost: CostTable, limits: BatchLimits) -> tuple[float, list[float]]:
    """Predicted seconds of all batches until nothing waits, and the seconds of each decision."""
    pool = PendingSequences()
    for width in sorted(widths, reverse=True):  # as a file's are
        pool.add(WaitingSequence(width))
    total, deciding = 0.0, []
    while pool:
        before = time.perf_counter()
        chosen = plan(pool, cost, limits, 0.0)
        deciding.append(time.perf_counter() - before)
        widest = max(waiting.width for waiting in chosen)
        total += cost.column(widest, limits.rows).seconds[len(chosen)]
    return total, deciding


def steady(widths: list[int], waiting: int, cost: CostTable, limits: BatchLimits) -> list[float]:
    """The seconds of each decision with `waiting` sequences in the queue; as many arrive as are run.

    What these widths cost has been asked before, as at work.
    """
    limits = replace(limits, seconds=ONE_CORE_INLINE_SECONDS, turn_seconds=TURN_SECONDS)
    for width in widths:
        cost.column(width, limits.rows)
    pool, coming = PendingSequences(), itertools.cycle(widths)
    for width in itertools.islice(coming, waiting):
        pool.add(WaitingSequence(width))
    deciding = []
    for _ in range(_STEADY):
        before = time.perf_counter()
        chosen = plan(pool, cost, limits, 0.0)
        deciding.append(time.perf_counter() - before)
        for width in itertools.islice(coming, len(chosen)):
            pool.add(WaitingSequence(width))
    return deciding


def measured(
    name: str, waiting: int, rounds: int, seed: int, cost: CostTable, limits: BatchLimits
) -> dict[str, str | int | float]:
    """One line of the table: the worst ratio of some rounds, and the time of a decision."""
    random = np.random.default_rng(seed)
    ratios, first, all_of_them = [], [], []
    for _ in range(rounds):
        widths = _drawn(name, random, waiting)
        exact = exact_seconds(widths, cost, limits)  # also fills the table's columns
        seconds, deciding = planned(widths, cost, limits)
        ratios.append(seconds / exact)
        first.append(deciding[0])
        all_of_them.extend(deciding)
    at_work = steady(_drawn(name, random, 4 * waiting), waiting, cost, limits)
    return {
        "lengths": name,
        "waiting": waiting,
        "ratio": max(ratios),
        "first_us": statistics.median(first) * 1e6,
        "median_us": statistics.median(all_of_them) * 1e6,
        "p99_us": float(np.quantile(all_of_them, 0.99)) * 1e6,
        "steady_us": statistics.median(at_work) * 1e6,
    }


def _drawn(name: str, random: np.random.Generator, count: int) -> list[int]:
    lengths: list[int] = np.clip(LENGTHS[name](random, count), 1, LONGEST).astype(int).tolist()
    return lengths


@click.command(help=__doc__)
@click.option("--waiting", multiple=True, type=click.IntRange(1), default=(16, 64, 256, 1024, 4096), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def main(waiting: tuple[int, ...], rounds: int, seed: int, as_json: bool) -> None:
    """Prints the table."""
    cost, limits = recurrent_table(), BatchLimits()
    cases = [(name, count) for name in LENGTHS for count in waiting]
    console = Console(stderr=True)
    lines = [
        measured(name, count, rounds, seed, cost, limits) for name, count in track(cases, "Planning", console=console)
    ]
    if as_json:
        click.echo(json.dumps(lines, indent=2))
        return
    table = Table("lengths", "waiting", "worst ratio", "first us", "median us", "p99 us", "steady us")
    for line in lines:
        figures = (f"{line[key]:.1f}" for key in ("first_us", "median_us", "p99_us", "steady_us"))
        table.add_row(str(line["lengths"]), str(line["waiting"]), f"{line['ratio']:.4f}", *figures)
    Console().print(table)


if __name__ == "__main__":
    main()

"""Costs and plans of a device, on simulated ones of known costs. `python -m benchmarks.devices`.

A simulated device takes exactly what its formula says. Its *table* is measured as at a load, with some percent of noise
and a slow first run of each shape. Then plans are made with true costs, while as many sequences arrive as run, and
compared with batches in order of arrival of the size with which those run most sequences a second: throughput, the 99th
percentile of the time from arrival to answer, both without the time of the decision, and that time.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import click
import numpy as np

from benchmarks import machine, output, pages
from benchmarks.lengths import LENGTHS, draw
from lengthwise.batching.buckets import BEFORE_READY, MOST_FIRST, BatchShape, BucketedCosts, Buckets, choose
from lengthwise.batching.cost import CostTable
from lengthwise.batching.cost_measurement import grid, measure, rows_grid
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from lengthwise.batching.queues import TURN_SECONDS

MOST_ROWS: Final = 256
MOST_STEPS: Final = 131_072
PAGE = pages.RESULTS / "devices.md"
COSTS: Final = Path(__file__).parent / "gpu" / "costs"
STARTED: Final = ("flat to 256 rows", "H200, BiLSTM 2 x 128", "H200, encoder of 4 layers")  # from load to traffic
LONGEST: Final = 400
WIDEST: Final = 512
WAITING: Final = (64, 256, 1024, 4096, 8192)
RATE: Final = 100.0  # sequences a second
SLOW_RATE: Final = 20.0  # the same
FIRST_SECONDS: Final = 5.0
TURNS: Final = 3  # in which decisions are timed
DRAWS: Final = 3  # of the lengths of each case: which class runs first depends on the first sequences
FOREVER: Final = (float("inf"),)  # the patience of who has no deadline
COLD: Final = 3.0  # the first run of a shape takes so many times longer
_LAUNCH, _STEP = 5e-4, 41.4e-6  # of an H100 that ran a BiLSTM 2 x 128

Truth = Callable[[int, int], float]  # seconds of rows and width


def measured(name: str) -> Truth:
    """The seconds that a service measured on a device, of a file of `benchmarks/gpu/costs`."""
    table = CostTable.from_json(json.loads((COSTS / f"{name}.json").read_bytes()), clock=time.perf_counter)
    return cache(table.predict)


DEVICES: Mapping[str, Truth] = {
    "flat to 256 rows": lambda rows, width: _LAUNCH + _STEP * width * max(1.0, rows / 256),
    "flat to 1,024 rows": lambda rows, width: _LAUNCH + _STEP * width * max(1.0, rows / 1024),
    "in steps of 64 rows": lambda rows, width: _LAUNCH + _STEP * width * -(-rows // 64),
    "H200, BiLSTM 2 x 128": measured("h200-bilstm-128"),
    "H200, encoder of 4 layers": measured("h200-encoder"),
    "in proportion": lambda rows, width: 6e-5 + 5.2e-6 * width * rows + 6.6e-6 * width,
}
# Further ones whose tables are measured; nothing is planned with them.
TABLES: Mapping[str, Truth] = {
    **DEVICES,
    "flat to 8 rows": lambda rows, width: _LAUNCH + _STEP * width * max(1.0, rows / 8),
    "a convolution, in steps of 32 of the width": lambda rows, width: 4e-4 + 4e-4 * -(-width // 32) * max(1, rows / 32),
    "an encoder, quadratic in the width": lambda rows, width: 1e-3 + rows * (3e-7 * width + 4e-9 * width**2),
    "the same, flat to 1.2 ms": lambda rows, width: max(1.2e-3, 2e-4 + rows * (3.2e-7 * width + 6e-9 * width**2)),
}
# How tables are measured: first runs take so many times longer than later ones, noise as a share, the share of stalls,
# and so many seconds that first runs take longer
WAYS: Mapping[str, tuple[float, float, float, float]] = {
    "off by": (COLD, 0.05, 0.0, 0.0),
    "no slow first runs": (0.0, 0.05, 0.0, 0.0),
    "first runs x 10": (9.0, 0.05, 0.0, 0.0),
    "first runs + 10 ms": (0.0, 0.05, 0.0, 0.01),
    "first runs x 3 + 5 ms": (2.0, 0.05, 0.0, 0.005),
    "2 % longer": (COLD, 0.02, 0.0, 0.0),
    "8 % longer": (COLD, 0.08, 0.0, 0.0),
    "one of 20 runs stalls": (COLD, 0.05, 0.05, 0.0),
}
STALL: Final = 0.05  # seconds


def simulated_table(
    truth: Truth,
    seed: int,
    *,
    cold: float = COLD,
    noise: float = 0.05,
    stalls: float = 0.0,
    late: float = 0.0,
) -> tuple[CostTable, set[BatchShape]]:
    """The table of a device as measured at a load, in a second and 60 runs, and the shapes that ran for it.

    Runs take longer than their `truth` by the share `noise` of a normal deviate, first runs by `cold` times of it
    and `late` seconds. A share `stalls` of all runs takes `STALL` seconds longer.
    """
    random, stall, now, ran = np.random.default_rng(seed), np.random.default_rng([seed, 1]), 0.0, set[BatchShape]()

    def run(rows: int, width: int) -> None:
        nonlocal now
        longer, more = (0.0, 0.0) if (rows, width) in ran else (cold, late)
        ran.add((rows, width))
        now += truth(rows, width) * (1 + noise * abs(random.normal()) + longer) + more
        now += STALL * (stall.random() < stalls)

    return measure(run, max_rows=256, max_width=WIDEST, max_padded_steps=65_536, clock=lambda: now), ran


def table_error(
    truth: Truth, seed: int, *, cold: float = COLD, noise: float = 0.05, stalls: float = 0.0, late: float = 0.0
) -> float:
    """How many times a time of a `simulated_table` is too long or too short at most."""
    table, _ = simulated_table(truth, seed, cold=cold, noise=noise, stalls=stalls, late=late)
    shapes = itertools.product(enumerate(table.rows.tolist()), enumerate(table.widths.tolist()))
    off = [table.seconds[i, j] / truth(rows, width) for (i, rows), (j, width) in shapes if rows * width <= 65_536]
    return float(max(max(off), 1 / min(off)))


@dataclass(frozen=True)
class Loop:
    """What a closed loop measured: each sequence that was answered is followed by another one."""

    per_second: float  # answered in time
    p99_seconds: float
    deciding: list[float]  # seconds of each decision
    late: float  # share that was not answered before its deadline
    shapes: int  # that ran


def true_costs(truth: Truth) -> tuple[BucketedCosts, BatchLimits, Buckets]:
    """What a plan for a device gets, where its table is right."""
    rows, widths = sorted({*rows_grid(MOST_ROWS), *range(65, MOST_ROWS, 64)}), grid(WIDEST, smallest=4)
    table = CostTable(rows, widths, np.array([[truth(count, width) for width in widths] for count in rows]))
    limits = BatchLimits(MOST_ROWS, MOST_STEPS)
    buckets = choose(table, limits, max_length=WIDEST)
    return BucketedCosts(table, buckets), replace(limits, turn_seconds=TURN_SECONDS), buckets


def first_seconds(truth: Truth, lengths: list[int], before: int, *, rate: float = RATE) -> tuple[float, float]:
    """The seconds of `before` shapes that run before the model is ready, and the 99th percentile of the first waits.

    Sequences come at random, `rate` a second. The first run of a shape is slow. More shapes run at rest, `MOST_FIRST`
    with those before.
    """
    cost, limits, buckets = true_costs(truth)
    now, ran, pool, begun, waits = 0.0, set[BatchShape](), PendingSequences(), dict[int, float](), list[float]()

    def run(shape: BatchShape) -> None:
        nonlocal now
        now += truth(*shape) * (1 if shape in ran else 1 + COLD)
        ran.add(shape)

    for shape in buckets.first_shapes()[:before]:
        run(shape)
    ready, cold = now, MOST_FIRST - before
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * FIRST_SECONDS))
    coming = list(zip((ready + np.cumsum(gaps)).tolist(), itertools.cycle(lengths)))[::-1]
    while coming or pool:
        while coming and coming[-1][0] <= now:
            came, length = coming.pop()
            pool.add(one := WaitingSequence(buckets.width_of(length)))
            begun[one.urgency] = came
        if pool:
            chosen = plan(pool, cost, limits, now)
            width = max(one.width for one in chosen)
            run((buckets.rows_of(len(chosen), width), width))
            waits += [now - begun.pop(one.urgency) for one in chosen]
        elif cold and pool.widths:
            cold -= 1
            run(max(set(buckets.shapes()) - ran, key=lambda shape: (pool.widths[shape[1]] / shape[0], shape)))
        else:
            now = coming[-1][0]
    return ready, float(np.quantile(waits, 0.99))


def planned_loop(truth: Truth, lengths: list[int], waiting: int, patience: Sequence[float] = FOREVER) -> Loop:
    """Plans with true costs, in the shapes of a device; `patience`: see `closed_loop`."""
    cost, limits, buckets = true_costs(truth)

    def take(pool: PendingSequences, now: float) -> list[WaitingSequence]:
        return plan(pool, cost, limits, now)

    # The service predicts the cost of each sequence when it comes: so no decision is the first to need a column.
    return closed_loop(truth, lengths, waiting, take, buckets, patience, lambda width: cost.column(width, limits.rows))


def arrival_loop(
    truth: Truth,
    lengths: list[int],
    waiting: int,
    rows: int,
    patience: Sequence[float] = FOREVER,
    buckets: Buckets | None = None,
) -> Loop:
    """Batches in order of arrival, to the longest or in the shapes of a device; `patience`: see `closed_loop`."""

    def take(pool: PendingSequences, now: float) -> list[WaitingSequence]:
        chosen = list(itertools.islice(pool, rows))
        pool.take(chosen)
        return chosen

    return closed_loop(truth, lengths, waiting, take, buckets, patience)


def closed_loop(
    truth: Truth,
    lengths: list[int],
    waiting: int,
    take: Callable[[PendingSequences, float], list[WaitingSequence]],
    buckets: Buckets | None,
    patience: Sequence[float],
    predict: Callable[[int], object] = float,
) -> Loop:
    """Runs batches until four times as many sequences as wait have been answered, and some thousand.

    `patience` are the seconds from arrivals to deadlines, in turns. What is late before it runs is replaced. `predict`
    gets the width of each sequence that comes.
    """
    pool, now, begun, coming = PendingSequences(), 0.0, dict[int, float](), itertools.cycle(lengths)
    patient = itertools.cycle(patience)

    def arrive(count: int) -> None:
        for length, seconds in zip(itertools.islice(coming, count), patient, strict=False):
            one = WaitingSequence(length if buckets is None else buckets.width_of(length), now + seconds)
            predict(one.width)
            pool.add(one)
            begun[one.urgency] = now

    arrive(waiting)
    waits: list[float] = []
    deciding: list[float] = []
    # All came at once: not before two generations do they wait as at work. And it is known what comes often.
    start, skip, late = 0.0, max(2 * waiting, 4096), 0
    shapes = set[BatchShape]()
    while len(waits) < skip + max(2 * waiting, 8192):
        waited = len(pool)
        while (first := pool.earliest_deadline()) is not None and first.deadline <= now:
            pool.remove(first)
            waits.append(now - begun.pop(first.urgency))
        expired = waited - len(pool)
        arrive(expired)
        begin = time.perf_counter()
        chosen = take(pool, now)
        deciding.append(time.perf_counter() - begin)
        width = max(one.width for one in chosen)
        rows = len(chosen) if buckets is None else buckets.rows_of(len(chosen), width)
        shapes.add((rows, width))
        now += truth(rows, width)
        waits += [now - begun.pop(one.urgency) for one in chosen]
        late += expired + sum(one.deadline < now for one in chosen)
        if not start and len(waits) >= skip:
            start, skip, late = now, len(waits), 0
        arrive(len(chosen))
    ended = len(waits) - skip
    return Loop(
        (ended - late) / (now - start), float(np.quantile(waits[skip:], 0.99)), deciding, late / ended, len(shapes)
    )


def drawn(name: str, seed: int = 0, count: int = 30_000) -> list[int]:
    """Lengths of a distribution, in steps."""
    lengths: list[int] = draw(name, count, LONGEST, np.random.default_rng(seed)).tolist()
    return lengths


def compared(
    truth: Truth, lengths: list[int], waiting: int, by_arrival: tuple[int, Loop] | None = None
) -> dict[str, float]:
    """Plans over `best_by_arrival`."""
    size, best = by_arrival or best_by_arrival(truth, lengths, waiting)
    loop = planned_loop(truth, lengths, waiting)
    return {
        "per_second": loop.per_second,
        "shapes": loop.shapes,
        "over_arrival": loop.per_second / best.per_second,
        "over_same_shapes": loop.per_second
        / arrival_loop(truth, lengths, waiting, size, buckets=true_costs(truth)[-1]).per_second,
        "p99_over_arrival": loop.p99_seconds / best.p99_seconds,
    }


def best_by_arrival(truth: Truth, lengths: list[int], waiting: int) -> tuple[int, Loop]:
    """The rows with which batches in order of arrival answer most sequences a second, and how they do."""
    loops = {size: arrival_loop(truth, lengths, waiting, size) for size in grid(MOST_ROWS) if size <= waiting}
    return max(loops.items(), key=lambda loop: loop[1].per_second)


def of_draws(truth: Truth, name: str, waiting: int) -> dict[str, float]:
    """The means of some draws of lengths: `DRAWS` where few wait; and of one, what is late, and the time of a decision.

    Of the 99th percentiles over those in order of arrival it is the longest, of the shapes the most. The same plans are
    made `TURNS` times: a decision takes the least of its times, as other work on the machine lengthens each.
    """
    draws = [drawn(name, seed) for seed in range(DRAWS if waiting <= MOST_ROWS else 1)]
    bests = [best_by_arrival(truth, lengths, waiting) for lengths in draws]
    found = [compared(truth, lengths, waiting, best) for lengths, best in zip(draws, bests, strict=True)]
    size, best = bests[0]
    patience = np.random.default_rng(DRAWS).uniform(0.2, 2.0, len(draws[0])) * waiting / best.per_second
    ways: dict[str, Callable[[list[float]], float]] = {"p99_over_arrival": max, "shapes": max}
    deciding = np.min([planned_loop(truth, draws[0], waiting).deciding for _ in range(TURNS)], axis=0) * 1e3
    return {
        **{key: float(ways.get(key, fmean)([row[key] for row in found])) for key in found[0]},
        "decision_ms": float(np.median(deciding)),
        "decision_p99_ms": float(np.quantile(deciding, 0.99)),
        "late": planned_loop(truth, draws[0], waiting, patience.tolist()).late,
        "late_by_arrival": arrival_loop(truth, draws[0], waiting, size, patience.tolist()).late,
    }


@click.command(help=__doc__)
@click.option("--waiting", multiple=True, type=click.IntRange(1), default=WAITING, show_default=True)
@output.as_json_or_page(PAGE)
def main(waiting: tuple[int, ...], as_json: bool, out: Path | None) -> None:
    """Measures every device with every distribution, and prints the page."""
    facts = machine.facts()
    tables = {
        device: [
            max(table_error(truth, seed, cold=cold, noise=noise, stalls=stalls, late=late) for seed in range(5))
            for cold, noise, stalls, late in WAYS.values()
        ]
        for device, truth in TABLES.items()
    }
    plans = {
        (device, name, count): of_draws(truth, name, count)
        for device, truth in DEVICES.items()
        if device != "flat to 1,024 rows"  # at most 256 run: the same as the first
        for name in LENGTHS
        for count in waiting
    }
    starts = [
        [device, str(before), f"{waits[0][0]:.2f}", *(f"{p99 * 1e3:.0f}" for _, p99 in waits)]
        for device in STARTED
        for before in (1, BEFORE_READY, 8, 16, MOST_FIRST)
        for waits in [
            [first_seconds(DEVICES[device], drawn("lognormal"), before, rate=rate) for rate in (SLOW_RATE, RATE)]
        ]
    ]
    text = pages.page(
        facts,
        "Costs and plans of a device",
        "`python -m benchmarks.devices`: simulated devices, whose true costs are known. First, how many times a time "
        "of the table measured in a second and 60 runs is too long or too short at most, of five tables each; runs "
        "take up to some percent longer (the deviation is 5 %), and the first run of a shape four times as long. In "
        f"the further columns one of these is another one; a stall takes {STALL * 1e3:g} ms.",
        pages.table(
            ["device", *WAYS],
            [[device, *(f"{error:.2f}" for error in errors)] for device, errors in tables.items()],
        ),
        f"The first {FIRST_SECONDS:g} seconds of a model: how long those shapes take that run before it is ready, and "
        f"the 99th percentile of the waits, where {SLOW_RATE:g} or {RATE:g} sequences come a second. Others run at "
        f"rest, up to {MOST_FIRST}. No shape ran before, as few of these are among those whose costs are measured.",
        pages.table(
            ["device", "shapes before ready", "seconds", f"p99 ms, {SLOW_RATE:g}/s", f"p99 ms, {RATE:g}/s"], starts
        ),
        "Then plans with true costs, while as many sequences arrive as run, over batches in order of arrival at their "
        f"best size; at most {MOST_ROWS} rows. Plans run in the few widths of a device and in those that came often, "
        "the others in any. Where one batch takes all that wait, the rounding of its width is all that is lost: the "
        "next column has the same widths for both. The widths are those of a model without `width_multiple`; where "
        f"they are multiples, those in order of arrival are, too. Up to {MOST_ROWS} waiting a line has the means of "
        f"{DRAWS} draws, and the longest of their 99th percentiles. The time of a decision is of this machine: the "
        f"least of {TURNS} turns of the same plans, as other work on it lengthens it. Late: so many are not answered "
        "in time where each has a deadline, after a fifth of the mean wait of those batches to twice that. Shapes: so "
        "many ran, in the draw with the most.",
        pages.table(
            [
                "device",
                "lengths",
                "waiting",
                "sequences/s",
                "over arrival",
                "in the same widths",
                "p99 over arrival",
                "decision ms",
                "its p99",
                "late",
                "late by arrival",
                "shapes",
            ],
            [
                [
                    device,
                    name,
                    f"{count:,}",
                    f"{row['per_second']:,.0f}",
                    f"{row['over_arrival']:.2f}",
                    f"{row['over_same_shapes']:.2f}",
                    f"{row['p99_over_arrival']:.2f}",
                    f"{row['decision_ms']:.2f}",
                    f"{row['decision_p99_ms']:.2f}",
                    f"{row['late']:.0%}",
                    f"{row['late_by_arrival']:.0%}",
                    f"{row['shapes']:.0f}",
                ]
                for (device, name, count), row in plans.items()
            ],
        ),
    )
    figures: dict[str, Any] = {"tables": tables, "plans": [[*case, row] for case, row in plans.items()]}
    output.tell(text, figures, as_json=as_json, out=out)


if __name__ == "__main__":
    main()

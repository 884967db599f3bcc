"""Section `throughput`: sequences a second at four distributions of lengths, beside other ways to batch.

Measured in rounds in which all contenders take turns, so that other work on the machine affects all of them alike.
float32 runs at each distribution, the other precisions at the first. Without HTTP, on the same graph and device:

| contender | batches |
|---|---|
| `service` | the service's batcher, planner and session; see `in_process` |
| `overlapping` | the same, but a batch is not held back until the one before it is nearly done: two run at once |
| `unbatched` | one run a sequence |
| `arrival` | in order of arrival, padded to the longest; two run at once |
| `alone` | the same, one after the other |
| `torch` | torch with packed sequences, in order of arrival; see `packed` |

A contender that takes a number of rows is measured with several, and reported with its best.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, TypeVar

from benchmarks.gpu import packed
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.stage import DISTRIBUTIONS, Precision, Stage
from lengthwise.batching.buckets import DEVICE_ROWS, DEVICE_STEPS
from lengthwise.batching.limits import BatchLimits
from lengthwise.padding import Steps, pad

Contender = Callable[[Sequence[Steps], float], dict[str, float]]
"""Runs some sequences for some seconds; returns `sequences_per_second`, and of the service the average batch."""

LIMITS = {
    "service": BatchLimits(rows=DEVICE_ROWS, padded_steps=DEVICE_STEPS, by_table=True),
    "service, 256 rows": BatchLimits(rows=256, padded_steps=65_536),
    "service, 512 rows": BatchLimits(rows=512, padded_steps=131_072),
}
B = TypeVar("B")
FAMILIES = ("service", "overlapping", "unbatched", "arrival", "alone", "torch")
_LEAST_SECONDS = 40.0
"""For loading all contenders and running them in rounds."""


def measure(stage: Stage, figures: Figures) -> None:
    """Notes `best[distribution and precision][family]`: the median of the rounds and their range."""
    wanted: list[tuple[Precision, str]] = [("fp32", distribution) for distribution in DISTRIBUTIONS]
    wanted += [(precision, DISTRIBUTIONS[0]) for precision in stage.precisions() if precision != "fp32"]
    loaded: dict[Precision, dict[str, Contender]] = {}
    for precision, distribution in wanted:
        name = f"{distribution} {precision}"
        if stage.left < stage.pick(_LEAST_SECONDS, 0.0):
            figures.note(cut_short={name: "no time left"})
            continue
        stage.say(f"throughput, {name}")
        if precision not in loaded:
            loaded[precision] = contenders(stage, precision, figures)
        sequences = stage.sequences(distribution, stage.pick(6000, 60))
        rounds = in_rounds(loaded[precision], sequences, stage.pick(3, 1), stage.pick(0.7, 0.05), figures)
        figures.note(best={name: best(rounds)})


def contenders(stage: Stage, precision: Precision, figures: Figures) -> dict[str, Contender]:
    """All contenders that can be measured here; the others are noted under `failures` or `left_out`."""
    multiple = stage.manifest(precision).width_multiple
    found: dict[str, Contender] = {}
    for name, limits in [*LIMITS.items()][: stage.pick(3, 1)]:
        with figures.trying(f"{name} {precision}"):
            in_process = stage.service(precision, limits, figures)
            found[name] = partial(in_process.closed, in_flight=stage.pick(4096, 32))
            if name == "service":
                overlapping = replace(in_process, overlapping=True)
                found["overlapping"] = partial(overlapping.closed, in_flight=stage.pick(4096, 32))
    with figures.trying(f"unbatched and arrival {precision}"):
        session = stage.session(precision)

        def run(group: list[Steps]) -> None:
            session.run(pad(group, multiple=multiple))

        found["unbatched"] = by_arrival(run, 1, threads=2)
        for rows in stage.pick((4, 16, 64, 256), (4,)):
            found[f"arrival, {rows} rows"] = by_arrival(run, rows, threads=2)
        found["alone"] = by_arrival(run, stage.pick(256, 4), threads=1)
    if precision not in packed.precisions(stage):
        figures.note(left_out={f"torch {precision}": "torch is not installed, or has no such precision here"})
        return found
    with figures.trying(f"torch {precision}"):
        model = packed.Packed(stage, precision)
        for rows in stage.pick((64, 256, 1024), (8,)):
            # One thread: the device's work is one stream, and more gain nothing.
            found[f"torch, {rows} rows"] = by_arrival(model.logits, rows, threads=1)
    return found


def by_arrival(run: Callable[[list[Steps]], Any], rows: int, *, threads: int) -> Contender:
    """Batches of `rows` sequences in order of arrival, `threads` of them at once."""

    def work(group: list[Steps]) -> int:
        run(group)
        return len(group)

    def measured(sequences: Sequence[Steps], seconds: float) -> dict[str, float]:
        groups = [[*sequences[first : first + rows]] for first in range(0, len(sequences), rows)]
        return {"sequences_per_second": rate(work, groups, seconds, threads)}

    return measured


def rate(work: Callable[[B], int], batches: Sequence[B], seconds: float, threads: int = 1) -> float:
    """Sequences a second: each thread takes the next batch, in a circle, until the time is over.

    `work` runs a batch and returns its number of sequences; any part of the batches is like the whole.
    """
    numbers = itertools.count()
    start = time.perf_counter()

    def run(_thread: int) -> int:
        done = work(batches[next(numbers) % len(batches)])
        while time.perf_counter() - start < seconds:
            done += work(batches[next(numbers) % len(batches)])
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(run, range(threads)))
    return done / (time.perf_counter() - start)


def in_rounds(
    runs: Mapping[str, Contender], sequences: Sequence[Steps], rounds: int, seconds: float, figures: Figures
) -> dict[str, list[dict[str, float]]]:
    """All in turn, after a short run of each that does not count; one that fails is left out from then on."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    failed: set[str] = set()
    for number in range(rounds + 1):
        for name, run in runs.items():
            if name in failed:
                continue
            failed.add(name)
            with figures.trying(name):
                result = run(sequences, seconds if number else seconds / 3)
                failed.remove(name)
                if number:
                    seen[name].append(result)
    return {name: results for name, results in seen.items() if results}


def best(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """The best of each family, with the median of its rounds and their range."""
    found: dict[str, dict[str, Any]] = {}
    for name, results in rounds.items():
        family = name.partition(",")[0]
        rates = [each["sequences_per_second"] for each in results]
        if family not in found or median(rates) > found[family]["median"]:
            last = {key: value for key, value in results[-1].items() if key != "sequences_per_second"}
            found[family] = {"of": name, "median": median(rates), "low": min(rates), "high": max(rates), **last}
    return found

"""A mended convolutional model under load. `python -m benchmarks.mended_serving`.

The model is the Inception of examples/mending.py, which takes no lengths: it is mended, proved and published once.
Each server runs it on the first core; the load comes from another one, over 64 connections, with lognormal lengths. The
servers take turns. In order of arrival is what servers do that pad what came together to the longest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.bench import measure_load
from benchmarks.contenders import ARRIVAL, SERVICE, Contender
from benchmarks.workloads import CACHE, Work
from lengthwise.bench import remote
from lengthwise.bench.exposition import Samples
from lengthwise.bench.trial import LoadSpec, LoadTest, prepare
from lengthwise.bench.workload import Input, draw_lengths, make_sequences
from lengthwise.commands.command import Command

PAGE = pages.RESULTS / "mended_serving.md"
TARGET, FEATURES, LONGEST = "examples/mending.py:inception", 12, 512


def by_arrival(rows: int) -> Contender:
    """The service that plans in order of arrival, with at most so many rows in a batch."""
    module = tuple(str(rows) if word == "4" else word for word in ARRIVAL.module)
    return replace(ARRIVAL, name=f"arrival-{rows}", title=f"in order of arrival, up to {rows} rows", module=module)


CONTENDERS = (replace(SERVICE, title="planned by length"), by_arrival(4), by_arrival(16), by_arrival(64))


def workload(seed: int, count: int) -> Work:
    """Lengths of median 50 and sigma 0.7, and the mended model; it is published once and kept."""
    directory = CACHE.parent / "bench-mended" / "inception" / "1"  # alone in its repository: it is the default model
    if not directory.is_dir():
        options = ["--features", str(FEATURES), "--max-length", str(LONGEST), "--mend"]
        command = [sys.executable, "-m", "lengthwise", "export", TARGET, *options, "--out", str(directory)]
        subprocess.run(command, check=True)
    random = np.random.default_rng(seed)
    lengths = draw_lengths("lognormal:50,0.7", count, LONGEST, random)
    return Work("mended", "the mended Inception", directory, make_sequences(lengths, Input("values", FEATURES), random))


def steps(trial: LoadTest) -> tuple[float, float]:
    """The valid steps and the padding that a server has run so far."""
    _, page = remote.get(trial.target, "/metrics")
    by_kind = Samples.parse(page.decode()).by_label("lengthwise_steps_total", "kind")
    return by_kind.get("valid", 0.0), by_kind.get("padding", 0.0)


@click.command(cls=Command)
@click.option("--seconds", type=click.FloatRange(0.2), default=4.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of every server.")
@click.option("--connections", type=click.IntRange(1), default=64, show_default=True, help="Connections.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(seconds: float, rounds: int, connections: int, out: Path) -> None:
    """Measures a mended model planned by length beside the same one in order of arrival."""
    facts = machine.facts()
    work = workload(0, 2000)
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    load = LoadSpec(concurrency=connections, seconds=seconds, warmup_seconds=0.5)
    rates: dict[str, list[float]] = {each.name: [] for each in CONTENDERS}
    padding: dict[str, float] = {}
    with ExitStack() as stack:
        trials = {}
        for each in CONTENDERS:
            running = stack.enter_context(each.running(work, [server]))
            trials[each.name] = prepare(running.target, work.sequences, check=each is CONTENDERS[0]), running.pid
        for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
            for each in CONTENDERS:
                seen = measure_load(*trials[each.name], load)
                rates[each.name].append(seen["requests_per_second"])
        for each in CONTENDERS:
            valid, padded = steps(trials[each.name][0])
            padding[each.name] = padded / (valid + padded)
    first = rates[CONTENDERS[0].name]
    lines = []
    for each in CONTENDERS:
        ratios = [one / other for one, other in zip(first, rates[each.name], strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        lines.append((each.title, f"{median(rates[each.name]):,.0f}", f"{padding[each.name]:.1%}", spread))
    table = pages.table(
        ("the mended model", "requests/s", "padding of all steps", "planned by length is faster"), lines
    )
    said = (
        f"`python -m benchmarks.mended_serving`: {TARGET}, mended, {connections} connections, lognormal lengths "
        f"(median 50, sigma 0.7), one core; medians of {rounds} turns of {seconds:g} s, ratios within a turn, with "
        "their range."
    )
    pages.write(out, pages.page(facts, "A mended convolutional model, served", said, table))
    click.echo(table)


if __name__ == "__main__":
    main()

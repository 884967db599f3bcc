"""The service compared with itself: memory over time, fairness, a second core. `python -m benchmarks.itself`.

- **memory**: resident memory after many requests of mixed lengths, over that after the first tenth of them.
- **bypass**: the longest wait of any sequence over the mean wait, with nine short sequences to one long one, at 95 % of
  the server's capacity; the same for a server that plans by arrival, at 95 % of its own capacity. Poisson arrivals
  make the queue swing at such a load, and every request that comes into a long queue waits long. So requests also
  arrive evenly spaced (`constant`): those waits come from the plan alone. The longest wait is also compared with the
  mean wait of the thousand sequences answered around it.
- **runners**: requests a second with two runners on two cores over one on one. Where the load generator has no core of
  its own, the share that it took is subtracted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from rich.console import Console

from benchmarks import machine, pages
from benchmarks.contenders import ARRIVAL, SERVICE
from benchmarks.processes import resident_mib
from benchmarks.workloads import Work, lognormal
from lengthwise.bench import launch
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.load import drive
from lengthwise.bench.schedule import Open
from lengthwise.bench.trial import LoadSpec, prepare
from lengthwise.bench.workload import Arrivals, Input, arrival_moments, draw_lengths, make_sequences

PAGE = pages.RESULTS / "itself.md"
_QUEUE = re.compile(rb"queue;dur=([0-9.]+)")
_ARRIVALS: Final[tuple[Arrivals, ...]] = ("poisson", "constant")
_BYPASS_ROUNDS: Final = 5
"""Each with its own sequences and arrivals: the longest wait depends on one backlog, and so on chance."""
_LEAD_SECONDS: Final = 1.0
"""At half the rate, before waits count: opening a thousand connections takes time of its own."""


def memory(work: Work, requests: int, server_cores: Sequence[int]) -> dict[str, float]:
    """Resident memory in MiB after a tenth of the requests and after all of them, and its growth between."""
    with SERVICE.running(work, server_cores) as server:
        trial = prepare(server.target, work.sequences, check=False)
        first = requests // 10
        idle = resident_mib(server.pid)
        trial.run(LoadSpec(concurrency=64, seconds=3600, warmup_seconds=0, count=first))
        early = resident_mib(server.pid)
        trial.run(LoadSpec(concurrency=64, seconds=3600, warmup_seconds=0, count=requests - first))
        late = resident_mib(server.pid)
    return {"idle_mib": idle, "early_mib": early, "late_mib": late, "requests": requests, "growth": late / early - 1}


def bypass(work: Work, seconds: float, rounds: int, seed: int, server_cores: Sequence[int]) -> dict[str, Any]:
    """By server and by how requests arrive, of each round: the longest wait, the mean one, in ms, and their ratio."""
    found: dict[str, Any] = {}
    for number in range(rounds):
        random = np.random.default_rng(seed + number)
        sequences = make_sequences(draw_lengths("bimodal:20,200,0.1", 500, 1024, random), Input("values", 12), random)
        for contender in (SERVICE, ARRIVAL):
            for arrivals in _ARRIVALS:
                with contender.running(work, server_cores) as server:
                    trial = prepare(server.target, sequences, check=False)
                    capacity = trial.run(LoadSpec(concurrency=256, seconds=seconds / 2)).requests_per_second
                    rate = 0.95 * capacity
                    lead = np.arange(0, _LEAD_SECONDS, 2 / rate)
                    moments = arrival_moments(arrivals, rate, seconds, random) + _LEAD_SECONDS
                    waits = _waits(server.target, trial.requests, [*lead, *moments])[len(lead) :]
                longest, mean, place = float(waits.max()), float(waits.mean()), int(waits.argmax())
                around = float(waits[max(0, place - 500) : place + 500].mean())
                seen = {
                    "rate": rate,
                    "requests": len(waits),
                    "longest_ms": longest,
                    "mean_ms": mean,
                    "ratio": longest / mean,
                    "ratio_around": longest / around,
                }
                columns = found.setdefault(contender.name, {}).setdefault(arrivals, {key: [] for key in seen})
                for key, value in seen.items():
                    columns[key].append(value)
    for name, by_arrivals in found.items():
        for arrivals, columns in by_arrivals.items():
            found[name][arrivals] = columns | {"median_ratio": float(np.median(columns["ratio"]))}
    return found


def _waits(target: ServerAddress, requests: Sequence[bytes], moments: list[float]) -> np.ndarray:
    """Milliseconds in the queue of each request of an open loop, from the server's headers, in order of the answers."""
    waits: list[float] = []

    def note(_place: int, head: bytes) -> None:
        found = _QUEUE.search(head)
        if found is not None:
            waits.append(float(found[1]))

    drive(target, requests, Open(moments), connections=1024, note=note, limit_seconds=60 + 3 * moments[-1])
    return np.array(waits)


def runners(work: Work, seconds: float, rounds: int) -> dict[str, Any]:
    """Requests a second on one core and on two, in turns, and the gain."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise click.UsageError("a second runner wants a second core")
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count in found:
            port = launch.free_port()
            command = launch.serve_command(work.repository, port, {"runners": str(count), "log_level": "warning"})
            outside = cores[count:]
            os.sched_setaffinity(0, outside or cores)
            with launch.running(command, port, cores=cores[:count]) as server:
                seen = prepare(server.target, work.sequences, check=False).run(
                    LoadSpec(concurrency=64, seconds=seconds)
                )
            # The cores of the server, less the share that the client took.
            had = count if outside else count - seen.client_core_share
            found[count].append(seen.requests_per_second * count / had)
    os.sched_setaffinity(0, cores)
    gains = [two / one for one, two in zip(found[1], found[2], strict=True)]
    return {"one": found[1], "two": found[2], "gain": float(np.median(gains)), "gains": gains}


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of everything: to see that it runs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of sequences and arrivals.")
@click.option("--only", type=click.Choice(["memory", "bypass", "runners"]), multiple=True, help="[default: all]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True, help="Page.")
def main(quick: bool, seed: int, only: tuple[str, ...], out: Path) -> None:
    """Measures memory, fairness and a second core."""
    facts = machine.facts()
    work = lognormal(seed, 500)
    console = Console(stderr=True)
    server, *others = cores = sorted(os.sched_getaffinity(0))
    results: dict[str, Any] = {}
    measures = {
        "memory": lambda: memory(work, 10_000 if quick else 100_000, [server]),
        "bypass": lambda: bypass(work, 2 if quick else 15, 1 if quick else _BYPASS_ROUNDS, seed, [server]),
        "runners": lambda: runners(work, 2 if quick else 10, 1 if quick else 3),
    }
    for name in only or measures:
        os.sched_setaffinity(0, cores if name == "runners" or not others else others)
        with console.status(name):
            results[name] = measures[name]()
    text = page(facts, results, seed)
    pages.write(out, text)
    click.echo(text)


def page(facts: dict[str, Any], results: dict[str, Any], seed: int) -> str:
    """The figures as a page: medians of the rounds."""
    lines = []
    if seen := results.get("memory"):
        grown = f"{seen['early_mib']:.1f} to {seen['late_mib']:.1f}"
        lines.append(
            (f"memory, from a tenth of {seen['requests']:,} requests to all", f"{grown} MiB", f"{seen['growth']:+.1%}")
        )
    for server, by_arrivals in results.get("bypass", {}).items():
        for arrivals, seen in by_arrivals.items():
            waits = f"{np.median(seen['longest_ms']):.0f} over {np.median(seen['mean_ms']):.0f} ms"
            ratios = f"{seen['median_ratio']:.2f}; {np.median(seen['ratio_around']):.2f} of those around it"
            lines.append((f"longest over mean wait, {server}, {arrivals} arrivals", waits, ratios))
    if seen := results.get("runners"):
        rates = f"{np.median(seen['one']):,.0f} and {np.median(seen['two']):,.0f} requests/s"
        lines.append(("one runner on one core, two on two", rates, f"{seen['gain']:.2f} times"))
    how = f"`python -m benchmarks.itself --seed {seed}`: medians of the rounds."
    return pages.page(facts, "Memory, fairness, a second core", how, pages.table(("", "median", "ratio"), lines))


if __name__ == "__main__":
    main()

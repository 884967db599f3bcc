"""The service beside itself: memory over time, fairness, a second core. `python -m benchmarks.itself`.

- **memory**: resident memory after many requests of mixed lengths, over that after the first tenth of them.
- **bypass**: the longest wait of any sequence over the mean wait, where nine of ten are short and one is long, at 95 %
  of what the server can take, beside the same service planned by arrival, at 95 % of what that can. Who comes while the
  queue is long waits long in any order, and requests that arrive by themselves (`poisson`) make it swing at such a
  load; so they also arrive evenly spaced (`constant`), which leaves the waits that are the plan's own, and the longest
  wait is also held against the mean of the thousand sequences answered around it.
- **runners**: requests a second with two runners on two cores over one on one. Where the load generator has no core of
  its own left, the share that it took is subtracted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import orjson
from rich.console import Console

from benchmarks import machine
from benchmarks.bench import HERE
from benchmarks.contenders import ARRIVAL, SERVICE
from benchmarks.processes import resident_mib
from benchmarks.workloads import Work, lognormal
from lengthwise.bench import launch
from lengthwise.bench.connection import Target
from lengthwise.bench.load import drive
from lengthwise.bench.schedule import Open
from lengthwise.bench.trial import Load, prepare
from lengthwise.bench.workload import Arrivals, Input, arrival_moments, draw_lengths, make_sequences

_QUEUE = re.compile(rb"queue;dur=([0-9.]+)")
_ARRIVALS: Final[tuple[Arrivals, ...]] = ("poisson", "constant")
_BYPASS_ROUNDS: Final = 5
"""Each with sequences and arrivals of its own: the longest of all waits hangs on one backlog, and that on chance."""
_LEAD_SECONDS: Final = 1.0
"""At half the rate, before it counts: a thousand connections are opened first, and nobody's turn is what these cost."""


def memory(work: Work, requests: int, server_cores: Sequence[int]) -> dict[str, float]:
    """Resident memory in MiB after a tenth of the requests and after all of them, and its growth between."""
    with SERVICE.running(work, server_cores) as server:
        trial = prepare(server.target, work.sequences, check=False)
        first = requests // 10
        idle = resident_mib(server.pid)
        trial.run(Load(concurrency=64, seconds=3600, warmup_seconds=0, count=first))
        early = resident_mib(server.pid)
        trial.run(Load(concurrency=64, seconds=3600, warmup_seconds=0, count=requests - first))
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
                    capacity = trial.run(Load(concurrency=256, seconds=seconds / 2)).requests_per_second
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


def _waits(target: Target, requests: Sequence[bytes], moments: list[float]) -> np.ndarray:
    """Milliseconds in the queue of each request of an open loop, as the server says them, in order of the answers."""
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
                seen = prepare(server.target, work.sequences, check=False).run(Load(concurrency=64, seconds=seconds))
            # The server had so many cores less what the client took of them.
            had = count if outside else count - seen.client_core_share
            found[count].append(seen.requests_per_second * count / had)
    os.sched_setaffinity(0, cores)
    gains = [two / one for one, two in zip(found[1], found[2], strict=True)]
    return {"one": found[1], "two": found[2], "gain": float(np.median(gains)), "gains": gains}


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of everything: to see that it runs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of sequences and arrivals.")
@click.option("--only", type=click.Choice(["memory", "bypass", "runners"]), multiple=True, help="[default: all]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=HERE / "results" / "itself.json",
    help="[default: benchmarks/results/itself.json]",
)
def main(quick: bool, seed: int, only: tuple[str, ...], out: Path) -> None:
    """Measures the service beside itself."""
    facts = machine.facts()
    work = lognormal(seed, 500)
    console = Console(stderr=True)
    server, *others = cores = sorted(os.sched_getaffinity(0))
    results: dict[str, Any] = {"machine": facts, "seed": seed}
    measures = {
        "memory": lambda: memory(work, 10_000 if quick else 100_000, [server]),
        "bypass": lambda: bypass(work, 2 if quick else 15, 1 if quick else _BYPASS_ROUNDS, seed, [server]),
        "runners": lambda: runners(work, 2 if quick else 10, 1 if quick else 3),
    }
    for name in only or measures:
        os.sched_setaffinity(0, cores if name == "runners" or not others else others)
        with console.status(name):
            results[name] = measures[name]()
        for line in _lines(name, results[name]):
            click.echo(line)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _lines(name: str, found: dict[str, Any]) -> list[str]:
    """The figures in words, a line for each group of them."""
    groups = {key: value for key, value in found.items() if isinstance(value, dict)}
    if groups:
        return [line for key, value in groups.items() for line in _lines(f"{name}, {key}", value)]
    return [f"{name}: " + ", ".join(f"{key} {_said(value)}" for key, value in found.items())]


def _said(value: Any) -> str:
    return " ".join(f"{each:,.3g}" for each in value) if isinstance(value, list) else f"{value:,.4g}"


if __name__ == "__main__":
    main()

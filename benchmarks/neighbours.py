"""A flooded model beside a quiet one: `python -m benchmarks.neighbours`.

Two models of the same graph are served by one runner on one core. The quiet one gets Poisson arrivals of single
sequences at a small share of what the service can take: first alone, then while the other one is flooded, in turns. The
flood is a closed loop from a process of its own with as many connections as keep the other model's queue from ever
running empty. What counts is the quiet one's 99th percentile beside the flood over its 99th percentile alone.

On two cores the two clients share one. `late_ms` says how late the quiet requests went out: what that cost. `queue_ms`
is what the service itself says that they waited in its queue.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import orjson
from rich.console import Console

from benchmarks import machine
from benchmarks.workloads import WORKLOADS, Work
from lengthwise.bench import launch, remote
from lengthwise.bench.connection import Target
from lengthwise.bench.figures import Latency
from lengthwise.bench.load import drive
from lengthwise.bench.schedule import Open
from lengthwise.bench.trial import Load, json_requests, prepare
from lengthwise.bench.workload import arrival_moments
from lengthwise.runtime.manifest import MANIFEST_FILE

RESULTS = Path("benchmarks/results/neighbours.json")
MOST_RATIO = 3.0
_QUEUE = re.compile(rb"queue;dur=([0-9.]+)")


def repository(work: Work, folder: Path) -> None:
    """The workload's model twice, as `quiet` and as `loud`."""
    for name in ("quiet", "loud"):
        directory = folder / name / "1"
        shutil.copytree(work.directory, directory)
        file = directory / MANIFEST_FILE
        file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | {"name": name, "version": 1}))


def flood(target: Target, work: Work, connections: int) -> subprocess.Popen[bytes]:
    """A closed loop on the loud model, for as long as its process lives."""
    command = [sys.executable, "-m", "benchmarks.neighbours", "--flood", target.url, "--work", work.name]
    return subprocess.Popen([*command, "--connections", str(connections)])


def quiet(target: Target, work: Work, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """What the quiet model's callers see."""
    moments = arrival_moments("poisson", rate, seconds, np.random.default_rng(seed)).tolist()
    requests = json_requests(target, work.sequences, 1, {"model": "quiet"}, {})
    waits: list[float] = []

    def note(_place: int, head: bytes) -> None:
        found = _QUEUE.search(head)
        if found is not None:
            waits.append(float(found[1]) / 1e3)

    before = remote.metrics(target)
    seen = drive(target, requests, Open(moments), connections=64, note=note, limit_seconds=2 * seconds)
    after = remote.metrics(target)
    others = after.since(before).total("lengthwise_sequences_total", model="loud") if before and after else 0.0
    return {
        "requests": len(seen.status),
        "failed": int((seen.status != 200).sum()) + seen.unanswered + seen.broken + seen.unsent,
        "latency_ms": asdict(Latency.of(seen.latency)),
        "queue_ms": asdict(Latency.of(np.array(waits))),
        "late_ms": float(np.percentile((seen.sent - seen.due) * 1e3, 99)),
        "flood_per_second": others / seen.seconds,
    }


def measure(work: Work, share: float, connections: int, seconds: float, rounds: int, core: int) -> dict[str, Any]:
    """Alone and beside the flood, in turns."""
    found: dict[str, list[dict[str, Any]]] = {"alone": [], "beside": []}
    with tempfile.TemporaryDirectory() as name:
        repository(work, Path(name))
        port = launch.free_port()
        command = launch.serve_command(Path(name), port, {"runners": "1", "log_level": "error"})
        with launch.running(command, port, cores=[core]) as server:
            trial = prepare(server.target, work.sequences, fields={"model": "quiet"}, check=False)
            capacity = trial.run(Load(concurrency=64, seconds=max(2.0, seconds / 4))).requests_per_second
            rate = share * capacity
            for number in range(rounds):
                found["alone"].append(quiet(server.target, work, rate, seconds, number))
                noise = flood(server.target, work, connections)
                try:
                    time.sleep(1.0)  # it has begun; how much it was stands in its own figure
                    found["beside"].append(quiet(server.target, work, rate, seconds, number))
                finally:
                    noise.terminate()
                    noise.wait()
    ratios = [
        beside["latency_ms"]["p99"] / alone["latency_ms"]["p99"]
        for alone, beside in zip(found["alone"], found["beside"], strict=True)
    ]
    return {"capacity": capacity, "rate": rate, "rounds": found, "p99_ratios": ratios, "p99_ratio": median(ratios)}


@click.command()
@click.option("--quick", is_flag=True, help="One short round: to see that it runs.")
@click.option("--work", type=click.Choice(sorted(WORKLOADS)), default="japanese-vowels", show_default=True)
@click.option("--share", type=float, default=0.1, show_default=True, help="The quiet model's part of the capacity.")
@click.option("--connections", type=click.IntRange(1), default=64, show_default=True, help="Of the flood.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
@click.option("--flood", "flooded", hidden=True, help="URL: be the flood.")
def main(
    quick: bool,
    work: str,
    share: float,
    connections: int,
    seconds: float,
    rounds: int,
    out: Path,
    flooded: str | None,
) -> None:
    """Measures what a flooded model does to a quiet one."""
    made = WORKLOADS[work](0, 370)
    if flooded is not None:
        target = Target.parse(flooded)
        prepare(target, made.sequences, fields={"model": "loud"}, check=False).run(
            Load(concurrency=connections, seconds=3600, warmup_seconds=0)
        )
        return
    facts = machine.facts()
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    with Console(stderr=True).status("measuring"):
        figures = measure(made, share, connections, 3.0 if quick else seconds, 1 if quick else rounds, server)
    figures["good"] = figures["p99_ratio"] <= MOST_RATIO
    settings = {"work": work, "share": share, "connections": connections, "seconds": seconds}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(
        orjson.dumps(
            {"machine": facts, "settings": settings, **figures},
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )
    )
    for kind, rows in figures["rounds"].items():
        for row in rows:
            seen, queue = row["latency_ms"], row["queue_ms"]
            click.echo(
                f"{kind}: p50 {seen['p50']:.2f} ms, p99 {seen['p99']:.2f} ms, of that in the queue {queue['p50']:.2f} "
                f"and {queue['p99']:.2f}; {row['requests']} requests, {row['failed']} failed, "
                f"flood {row['flood_per_second']:.0f}/s, late {row['late_ms']:.2f} ms"
            )
    click.echo(f"p99 beside the flood over alone: {figures['p99_ratio']:.2f} (at most {MOST_RATIO:g})")
    sys.exit(not figures["good"])


if __name__ == "__main__":
    main()

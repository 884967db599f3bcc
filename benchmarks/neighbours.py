"""A flooded model beside a quiet one: `python -m benchmarks.neighbours`.

Two models of the same graph are served by one runner on one core. The quiet one gets Poisson arrivals of single
sequences at a small share of the service's capacity: first alone, then while the other one is flooded, in turns. The
flood is a closed loop from another process, with enough connections to keep the other model's queue filled. The result
is the quiet model's 99th percentile during the flood over its 99th percentile alone.

On two cores the two clients share one: `late_ms` is how late the quiet requests were sent for that. `queue_ms` is the
wait in the queue, from the service's own headers.
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

from benchmarks import machine, pages
from benchmarks.workloads import WORKLOADS, Work
from lengthwise.bench import launch, remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.figures import Latency
from lengthwise.bench.load import drive
from lengthwise.bench.schedule import Open
from lengthwise.bench.trial import LoadSpec, json_requests, prepare
from lengthwise.bench.workload import arrival_moments
from lengthwise.runtime.manifest import MANIFEST_FILE

PAGE = pages.RESULTS / "neighbours.md"
MOST_RATIO = 3.0
_QUEUE = re.compile(rb"queue;dur=([0-9.]+)")


def repository(work: Work, folder: Path) -> None:
    """The workload's model twice, as `quiet` and as `loud`."""
    for name in ("quiet", "loud"):
        directory = folder / name / "1"
        shutil.copytree(work.directory, directory)
        file = directory / MANIFEST_FILE
        file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | {"name": name, "version": 1}))


def flood(target: ServerAddress, work: Work, connections: int) -> subprocess.Popen[bytes]:
    """A process with a closed loop on the loud model."""
    command = [sys.executable, "-m", "benchmarks.neighbours", "--flood", target.url, "--work", work.name]
    return subprocess.Popen([*command, "--connections", str(connections)])


def quiet(target: ServerAddress, work: Work, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """The figures of the quiet model's requests."""
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
            capacity = trial.run(LoadSpec(concurrency=64, seconds=max(2.0, seconds / 4))).requests_per_second
            rate = share * capacity
            for number in range(rounds):
                found["alone"].append(quiet(server.target, work, rate, seconds, number))
                noise = flood(server.target, work, connections)
                try:
                    time.sleep(1.0)  # the flood has begun; `flood_per_second` is its rate
                    found["beside"].append(quiet(server.target, work, rate, seconds, number))
                finally:
                    noise.terminate()
                    noise.wait()
    ratios = [
        beside["latency_ms"]["p99"] / alone["latency_ms"]["p99"]
        for alone, beside in zip(found["alone"], found["beside"], strict=True)
    ]
    return {"capacity": capacity, "rate": rate, "rounds": found, "p99_ratios": ratios, "p99_ratio": median(ratios)}


def page(facts: dict[str, Any], figures: dict[str, Any]) -> str:
    """The figures as a page: medians of the rounds."""
    lines = []
    for kind, rows in figures["rounds"].items():
        parts = (("latency_ms", "p50"), ("latency_ms", "p99"), ("queue_ms", "p50"), ("queue_ms", "p99"))
        times = [median(row[part][percentile] for row in rows) for part, percentile in parts]
        times.append(median(row["late_ms"] for row in rows))
        flooded = median(row["flood_per_second"] for row in rows)
        failed = sum(row["failed"] for row in rows)
        title = "alone" if kind == "alone" else "during the flood"
        lines.append((title, *(f"{each:.2f}" for each in times), f"{flooded:,.0f}", f"{failed}"))
    heads = ("quiet model", "p50 ms", "p99 ms", "p50 in the queue", "p99 in the queue", "p99 sent late by")
    heads += ("requests/s of the flood", "failed")
    how = f"`python -m benchmarks.neighbours`: {figures['rate']:,.0f} requests/s to the quiet model; medians of rounds."
    ratio = f"p99 during the flood over alone: {figures['p99_ratio']:.2f} (at most {MOST_RATIO:g})."
    return pages.page(facts, "A quiet model beside a flooded one", how, pages.table(heads, lines), ratio)


@click.command()
@click.option("--quick", is_flag=True, help="One short round: to see that it runs.")
@click.option("--work", type=click.Choice(sorted(WORKLOADS)), default="japanese-vowels", show_default=True)
@click.option("--share", type=float, default=0.1, show_default=True, help="The quiet model's part of the capacity.")
@click.option("--connections", type=click.IntRange(1), default=64, show_default=True, help="Of the flood.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True)
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
    """Measures a quiet model while another one is flooded."""
    workload = WORKLOADS[work](0, 370)
    if flooded is not None:
        target = ServerAddress.parse(flooded)
        prepare(target, workload.sequences, fields={"model": "loud"}, check=False).run(
            LoadSpec(concurrency=connections, seconds=3600, warmup_seconds=0)
        )
        return
    facts = machine.facts()
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    with Console(stderr=True).status("measuring"):
        figures = measure(workload, share, connections, 3.0 if quick else seconds, 1 if quick else rounds, server)
    figures["good"] = figures["p99_ratio"] <= MOST_RATIO
    text = page(facts, figures)
    pages.write(out, text)
    click.echo(text)
    sys.exit(not figures["good"])


if __name__ == "__main__":
    main()

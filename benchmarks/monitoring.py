"""What the monitoring costs callers, and whether a recorded load can be repeated. `python -m benchmarks.monitoring`.

Two servers run the graph of the lognormal workload on the first core, one of them with records, answers computed again,
a shadow and drift. The load is open, at half of what the first can answer. The servers take turns; the p99 of each turn
is compared. Then a load is recorded whole and replayed to a server with the same options, and throughput and padding of
both are compared.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

import click
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages
from benchmarks.workloads import Work, lognormal
from lengthwise.bench import launch, remote, replay
from lengthwise.bench.figures import Figures
from lengthwise.bench.trial import LoadSpec, Workload, prepare
from lengthwise.bench.workload import Input
from lengthwise.command import Command
from lengthwise.data_profile import DataProfile
from lengthwise.runtime.manifest import MANIFEST_FILE

PAGE = pages.RESULTS / "monitoring.md"
REPLAYS: Final = 5
"""Pairs of a recording and its replay."""
NAME = "lognormal"
PLAIN = {"versions": f"{NAME}/1", "drift-share": "off"}
FEATURES = 12


def repository(folder: Path, work: Work) -> None:
    """Two versions of the workload's model whose manifests have a profile of the workload's sequences."""
    profile = DataProfile.of(work.sequences, None, labels=len(_manifest(work.directory)["labels"]))
    for version in (1, 2):
        directory = folder / NAME / str(version)
        shutil.copytree(work.directory, directory)
        changed = _manifest(directory) | {"version": version, "training": profile.model_dump()}
        (directory / MANIFEST_FILE).write_text(json.dumps(changed))


def _manifest(directory: Path) -> dict[str, object]:
    manifest: dict[str, object] = json.loads((directory / MANIFEST_FILE).read_text())
    return manifest


def monitored(records: Path) -> dict[str, str]:
    """The options of the server with all of the monitoring."""
    return {
        "versions": f"{NAME}/1,{NAME}/2",
        "record": str(records),
        "record-share": "0.01",
        "verify-share": "0.01",
        "shadow": f"{NAME}/2",
        "shadow-share": "0.05",
    }


def figures_of(text: str, *names: str) -> dict[str, float]:
    """The sums of metrics over their labels."""
    found = dict.fromkeys(names, 0.0)
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0].removeprefix("lengthwise_")
        if name in found and not line.startswith("#"):
            found[name] += float(line.rpartition(" ")[2])
    return found


@click.command(cls=Command)
@click.option("--seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Turns of both servers.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True, help="Page.")
def main(seconds: float, rounds: int, out: Path) -> None:
    """Measures p99 with all of the monitoring over without, and a replay beside its recording."""
    facts = machine.facts()
    work = lognormal(0, 2000)
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository(folder / "models", work)
        tests = []
        for options in (PLAIN, monitored(folder / "records")):
            port = launch.free_port()
            command = launch.serve_command(folder / "models", port, options)
            running = stack.enter_context(launch.running(command, port, cores=[server]))
            tests.append(prepare(running.target, work.sequences, fields={"model": NAME, "version": "1"}, check=False))
        capacity = tests[0].run(LoadSpec(concurrency=64, seconds=seconds)).requests_per_second
        load = LoadSpec(concurrency=256, seconds=seconds, rate=capacity / 2)
        p99: list[list[float]] = [[], []]
        for turn in track(range(rounds), "rounds", console=Console(stderr=True)):
            for place in (0, 1) if turn % 2 else (1, 0):
                seen = tests[place].run(replace(load, seed=turn))
                p99[place].append(seen.latency_ms.p99 if seen.latency_ms else float("nan"))
        counted = figures_of(
            remote.get(tests[1].target, "/metrics")[1].decode(),
            "verified_answers_total",
            "verify_mismatches_total",
            "shadow_sequences_total",
            "shadow_disagreements_total",
            "monitoring_dropped_calls_total",
        )
    ratios = [one / other for other, one in zip(*p99, strict=True)]
    pairs = [
        repeated(work, server, capacity / 2, seconds)
        for _ in track(range(REPLAYS), "replays", console=Console(stderr=True))
    ]
    table = pages.table(
        ("at half load", "median", "range"),
        (
            ("p99 without the monitoring, ms", f"{median(p99[0]):.1f}", f"{min(p99[0]):.1f}-{max(p99[0]):.1f}"),
            ("p99 with it, ms", f"{median(p99[1]):.1f}", f"{min(p99[1]):.1f}-{max(p99[1]):.1f}"),
            ("with it, over without", f"{median(ratios):.3f}", f"{min(ratios):.2f}-{max(ratios):.2f}"),
        ),
    )
    counts = pages.table(("counted meanwhile", ""), [(name, f"{value:,.0f}") for name, value in counted.items()])
    again = pages.table(
        ("medians", "recorded", "replayed", "ratio", "range"),
        (
            compared("requests/s", [[one.requests_per_second for one in pair] for pair in pairs], "{:,.0f}"),
            compared("padding share", [[one.padding_share or math.nan for one in pair] for pair in pairs], "{:.3f}"),
        ),
    )
    said = (
        f"`python -m benchmarks.monitoring`: one core, open load of {capacity / 2:,.0f} requests/s (half of what the "
        f"server answers over 64 connections), {rounds} turns of {seconds:g} s, {REPLAYS} replays. With: "
        "`--record-share 0.01 --verify-share 0.01 --shadow-share 0.05`, and drift of half of the calls."
    )
    pages.write(out, pages.page(facts, "What the monitoring costs", said, table, counts, "A load, replayed:", again))
    click.echo(f"{table}\n\n{counts}\n\n{again}")


def repeated(work: Work, core: int, rate: float, seconds: float) -> list[Figures]:
    """Records an open load whole, and replays it to a server that records as well: the figures of both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository(folder / "models", work)
        runs: list[Figures] = []
        for place in ("first", "again"):
            port = launch.free_port()
            options = PLAIN | {"record": str(folder / place), "record-share": "1"}
            command = launch.serve_command(folder / "models", port, options)
            with launch.running(command, port, cores=[core]) as running:
                service = launch.ServiceUnderLoad(running.target, NAME, "1")
                if not runs:
                    test = prepare(running.target, work.sequences, fields=service.fields, check=False)
                    load = LoadSpec(concurrency=256, seconds=seconds, rate=rate, warmup_seconds=0)
                else:
                    recorded = replay.read(folder / "first", Input("values", FEATURES), model=NAME)
                    test = Workload().replay_test(service, recorded)
                    moments = recorded.moments
                    load = LoadSpec(concurrency=256, seconds=moments[-1], moments=moments, warmup_seconds=0)
                runs.append(test.run(load))
    return runs


def compared(name: str, pairs: list[list[float]], form: str) -> tuple[str, ...]:
    """A row of the table of replays: the medians of both, and of their ratio."""
    ratios = [again / first for first, again in pairs]
    middles = [form.format(median(values)) for values in zip(*pairs, strict=True)]
    return (name, *middles, f"{median(ratios):.3f}", f"{min(ratios):.2f}-{max(ratios):.2f}")


if __name__ == "__main__":
    main()

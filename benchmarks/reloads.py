"""New versions under load: `python -m benchmarks.reloads`.

A version is published every half second and loaded by the repository call, two hundred times, while requests come in at
a fifth of the service's capacity on its one core; measuring the costs of two versions a second takes most of the rest.
Every tenth time a version whose golden sequences do not match is loaded first: it must be rejected, and no answer may
name it. Each version has its own labels, so an answer shows its version.

The run passes when no request failed, no answer names a rejected version or has another version's labels, and resident
memory does not grow from the first tenth of the reloads to the last.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from rich.console import Console

from benchmarks import machine, pages
from benchmarks.processes import resident_mib
from benchmarks.workloads import japanese_vowels
from lengthwise.bench import launch, remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.load import Measurement, drive
from lengthwise.bench.schedule import Open
from lengthwise.bench.trial import LoadSpec, json_requests, prepare
from lengthwise.bench.workload import arrival_moments
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest
from tests.support.model_directories import BUNDLED, place, tamper_with_golden

NAME = "vowels"
PAGE = pages.RESULTS / "reloads.md"
_CONNECTIONS = 256
_BAD_EACH = 10


@dataclass
class Publisher:
    """Publishes versions at a period, while the service answers.

    Attributes:
        folder: The repository.
        target: The service.
        pid: Its process.
        count: How many good versions.
        period_seconds: Between two of them.
        loads: `[count]`, the seconds that each load took.
        resident: `[count]`, the process's resident MiB after each.
        refused: The error text of each rejected version.
        unexpected: Calls with another status than expected.
    """

    folder: Path
    target: ServerAddress
    pid: int
    count: int
    period_seconds: float
    loads: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def run(self) -> None:
        """Publishes and loads every version."""
        started = time.monotonic()
        version = 1
        with httpx.Client(base_url=self.target.url, trust_env=False, timeout=60) as client:
            for number in range(self.count):
                if number % _BAD_EACH == _BAD_EACH // 2:
                    version += 1
                    tamper_with_golden(_published(self.folder, version))
                    answer = self._load(client, 400, version)
                    self.refused[version] = answer.json().get("error", "")
                    shutil.rmtree(self.folder / NAME / str(version))
                version += 1
                _published(self.folder, version)
                before = time.monotonic()
                self._load(client, 200, version)
                self.loads.append(time.monotonic() - before)
                self.resident.append(resident_mib(self.pid))
                for old in (self.folder / NAME).iterdir():
                    if int(old.name) < version:
                        shutil.rmtree(old)
                time.sleep(max(0.0, started + (number + 1) * self.period_seconds - time.monotonic()))
        self.seconds = time.monotonic() - started

    def _load(self, client: httpx.Client, expected: int, version: int) -> httpx.Response:
        answer = client.post(f"/v2/repository/models/{NAME}/load")
        if answer.status_code != expected:
            self.unexpected.append(f"version {version}: {answer.status_code} {answer.text[:200]}")
        return answer


@dataclass
class Answers:
    """How many answers each version gave, and the heads of wrong answers."""

    count: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def check(self, _place: int, body: bytes) -> bool:
        """Whether an answer's labels are those of the version that it names."""
        head, _, _ = body[:400].partition(b'"predictions"')
        version = int(head.partition(b'"version":"')[2].partition(b'"')[0] or 0)
        self.count[version] = self.count.get(version, 0) + 1
        right = b'"labels":["%b"' % _label(version).encode() in head
        if not right:
            self.wrong.append(head.decode(errors="replace"))
        return right


def _label(version: int) -> str:
    return f"1 of {version}"


def _published(folder: Path, version: int) -> Path:
    labels = Manifest.read(BUNDLED).labels
    return place(folder, NAME, version, labels=[_label(version), *labels[1:]])


def measure(sequences: list[Steps], count: int, period_seconds: float, server_cores: list[int]) -> dict[str, Any]:
    """The figures of `count` reloads, one a period."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _published(folder, 1)
        port = launch.free_port()
        options = {"runners": "1", "log_level": "error"}
        command = [*launch.serve_command(folder, port, options), "--admin-calls"]
        with launch.running(command, port, cores=server_cores) as server:
            capacity = (
                prepare(server.target, sequences, check=False)
                .run(LoadSpec(concurrency=64, seconds=2))
                .requests_per_second
            )
            seconds = count * period_seconds
            rate = capacity / 5
            moments = arrival_moments("poisson", rate, seconds, np.random.default_rng(0)).tolist()
            publisher = Publisher(folder, server.target, server.pid, count, period_seconds)
            thread = threading.Thread(target=publisher.run)
            answers = Answers()
            requests = json_requests(server.target, sequences, 1, {}, {})
            thread.start()
            seen = drive(
                server.target,
                requests,
                Open(moments),
                connections=_CONNECTIONS,
                check=answers.check,
                limit_seconds=2 * seconds,
            )
            thread.join()
            page = len(remote.get(server.target, "/metrics")[1])
    return _figures(publisher, seen, answers) | {"rate": rate, "metrics_page_bytes": page}


def _figures(publisher: Publisher, seen: Measurement, answers: Answers) -> dict[str, Any]:
    statuses, counts = np.unique(seen.status, return_counts=True)
    early = publisher.resident[len(publisher.resident) // 10]
    p50, p99, worst = np.percentile(seen.latency * 1e3, [50, 99, 100], method="inverted_cdf").tolist()
    return {
        "reloads": len(publisher.loads),
        "refused": len(publisher.refused),
        "reasons": sorted({reason.split(": ", 2)[-1] for reason in publisher.refused.values()}),
        "reload_seconds": publisher.seconds,
        "load_ms": {
            "median": float(np.median(publisher.loads) * 1e3),
            "longest": max(publisher.loads) * 1e3,
        },
        "unexpected": publisher.unexpected,
        "requests": len(seen.status),
        "answers": {str(status): int(number) for status, number in zip(statuses, counts, strict=True)},
        "failed": int((seen.status != 200).sum()) + seen.unsent + seen.unanswered + seen.broken,
        "unsent": seen.unsent,
        "unanswered": seen.unanswered,
        "broken": seen.broken,
        "wrong": answers.wrong,
        "versions_that_answered": len(answers.count),
        "answers_of_refused_versions": sum(answers.count.get(version, 0) for version in publisher.refused),
        "latency_ms": {"p50": p50, "p99": p99, "longest": worst},
        "early_mib": early,
        "late_mib": publisher.resident[-1],
        "most_mib": max(publisher.resident),
        "growth_mib": publisher.resident[-1] - early,
    }


def good(figures: dict[str, Any], most_growth_mib: float) -> bool:
    """Whether the run passes."""
    bad = ("failed", "wrong", "answers_of_refused_versions", "unexpected")
    return not any(figures[name] for name in bad) and figures["growth_mib"] <= most_growth_mib


def page(facts: dict[str, Any], figures: dict[str, Any]) -> str:
    """The figures as a page."""
    load, latency = figures["load_ms"], figures["latency_ms"]
    lines = [
        ("versions loaded", f"{figures['reloads']} in {figures['reload_seconds']:.0f} s"),
        ("versions rejected", f"{figures['refused']}"),
        ("time to load", f"{load['median']:.0f} ms, at most {load['longest']:.0f} ms"),
        ("requests", f"{figures['requests']:,} at {figures['rate']:,.0f}/s"),
        ("failed requests", f"{figures['failed']}"),
        ("answers with labels of another version", f"{len(figures['wrong'])}"),
        ("answers of rejected versions", f"{figures['answers_of_refused_versions']}"),
        ("calls with an unexpected status", f"{len(figures['unexpected'])}"),
        ("latency p50, p99, longest", f"{latency['p50']:.1f}, {latency['p99']:.1f}, {latency['longest']:.1f} ms"),
        ("resident memory, early to late", f"{figures['early_mib']:.1f} to {figures['late_mib']:.1f} MiB"),
        ("size of the metrics page", f"{figures['metrics_page_bytes']:,} bytes"),
        ("passed", "yes" if figures["good"] else "no"),
    ]
    examples = [*figures["unexpected"][:5], *figures["wrong"][:5]]
    parts = [pages.table(("", "value"), lines), *(f"    {each}" for each in examples)]
    return pages.page(facts, "New versions under load", "`python -m benchmarks.reloads`", *parts)


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the reloads: to see that it runs.")
@click.option("--reloads", type=click.IntRange(1), default=200, show_default=True)
@click.option("--period", type=float, default=0.5, show_default=True, help="Seconds between two of them.")
@click.option("--growth", type=float, default=16.0, show_default=True, help="Most MiB between the first and the last.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True)
def main(quick: bool, reloads: int, period: float, growth: float, out: Path) -> None:
    """Reloads a model under load."""
    facts = machine.facts()
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    with Console(stderr=True).status("reloading"):
        figures = measure(japanese_vowels(0, 100).sequences, reloads // 10 if quick else reloads, period, [server])
    figures["good"] = good(figures, growth)
    text = page(facts, figures)
    pages.write(out, text)
    click.echo(text)
    sys.exit(not figures["good"])


if __name__ == "__main__":
    main()

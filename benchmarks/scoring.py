"""Scoring a file compared with asking the service for the same sequences: `python -m benchmarks.scoring`.

One core each, in turns: the service, asked from another core with one sequence a request at several numbers of
connections; then `lengthwise score` on a file of the same sequences. The service's best is the highest of its rates at
one sequence a request; the rate with 64 sequences a request is reported too. Loading the model is not counted. Every
line of the file must equal the service's answer for that sequence, byte for byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx2
import orjson
from rich.console import Console

from benchmarks import machine, output, pages, processes
from benchmarks.workloads import WORKLOADS, Work
from lengthwise.bench import launch
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.trial import LoadSpec, prepare
from lengthwise.padding import Steps

LEAST_RATIO = 1.2
_BODIES = 64
_CONNECTIONS = (32, 64, 256)
_MANY = f"{_BODIES} sequences a request, 4 connections"


@dataclass(frozen=True)
class ScoringRound:
    """One turn of both."""

    served: dict[str, float]  # sequences a second of the service, by what it was asked
    scored: dict[str, Any]  # the summary of `lengthwise score`

    @property
    def ratio(self) -> float:
        """Sequences a second: scoring over the service's best."""
        best = max(speed for kind, speed in self.served.items() if kind != _MANY)
        return float(self.scored["sequences_per_second"]) / best


def served(target: ServerAddress, sequences: list[Steps], seconds: float) -> dict[str, float]:
    """Sequences a second of the service, by what it is asked."""
    found = {}
    for connections in _CONNECTIONS:
        trial = prepare(target, sequences, check=False)
        figures = trial.run(LoadSpec(concurrency=connections, seconds=seconds))
        found[f"{connections} connections"] = figures.requests_per_second
    trial = prepare(target, sequences, check=False, per_request=_BODIES)
    figures = trial.run(LoadSpec(concurrency=4, seconds=seconds))
    found[_MANY] = figures.requests_per_second * _BODIES
    return found


def scored(work: Work, file: Path, out: Path, core: int) -> dict[str, Any]:
    """The summary of scoring a file on one core."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "lengthwise", "score", str(file), str(out), "--model", str(work.directory)]
    done = subprocess.run(
        [*command, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, [core]),
    )
    return dict(orjson.loads(done.stdout))


def differing(target: ServerAddress, file: Path, out: Path, count: int) -> int:
    """How many of the first lines differ from the service's answer in a byte."""
    wrong = 0
    with file.open("rb") as records, out.open("rb") as lines, httpx2.Client(base_url=target.url) as client:
        for _, record, line in zip(range(count), records, lines, strict=False):
            fields = orjson.loads(record)
            sequence = {"id": fields["id"], "steps": fields["steps"]}
            answer = client.post("/predict", content=orjson.dumps({"sequences": [sequence]})).content
            wrong += b'"predictions":[%s]}' % line.rstrip(b"\n") not in answer
    return wrong


def write_records(work: Work, path: Path, count: int) -> None:
    """A file of `count` records: the workload's sequences, repeated."""
    with path.open("wb") as file:
        for place in range(count):
            steps = work.sequences[place % len(work.sequences)]
            record = {"id": f"r{place}", "steps": steps}
            file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))


def page(facts: dict[str, Any], work: Work, rounds: list[ScoringRound], records: int, wrong: int, compared: int) -> str:
    """The figures as a page."""
    speeds = {f"the service, {kind}": [turn.served[kind] for turn in rounds] for kind in rounds[0].served}
    speeds["`lengthwise score`"] = [float(turn.scored["sequences_per_second"]) for turn in rounds]
    rows = [
        (name, *(f"{speed:,.0f}" for speed in (min(found), max(found), median(found))))
        for name, found in speeds.items()
    ]
    last = rounds[-1].scored
    spent = sum(last["cpu_seconds"].values())
    shares = ", ".join(f"{part} {seconds / spent:.0%}" for part, seconds in last["cpu_seconds"].items())
    how = (
        f"`python -m benchmarks.scoring --work {work.name}`: {work.title}; {records:,} records, one core each, "
        "sequences a second."
    )
    findings = (
        f"Scoring over the service's best at one sequence a request: {median(turn.ratio for turn in rounds):.2f}. "
        f"Of {compared:,} lines compared with the service's answers, {wrong} differ in a byte. "
        f"Processor time of scoring: {shares}; padding {last['padding_share']:.1%}."
    )
    table = pages.table(("", "lowest", "highest", "median"), rows)
    return pages.page(facts, f"Scoring a file beside serving, {work.name}", how, table, findings)


@click.command()
@click.option("--quick", is_flag=True, help="One short round, to see that it runs.")
@click.option("--work", type=click.Choice(sorted(WORKLOADS)), default="japanese-vowels", show_default=True)
@click.option("--records", type=click.IntRange(1), default=40_000, show_default=True)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of each load on the service.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=output.PagePath(file_okay=False), default=pages.RESULTS, show_default=True)
def main(quick: bool, work: str, records: int, seconds: float, rounds: int, out: Path) -> None:
    """Measures scoring beside serving."""
    facts = machine.facts()
    workload = WORKLOADS[work](0, 370)
    if quick:
        records, seconds, rounds = min(records, 500), 0.3, 1
    core = processes.first_core()
    turns: list[ScoringRound] = []
    with tempfile.TemporaryDirectory() as name, Console(stderr=True).status("measuring"):
        file, lines = Path(name, "records.jsonl"), Path(name, "predictions.jsonl")
        write_records(workload, file, records)
        port = launch.free_port()
        command = launch.serve_command(workload.repository, port, {"runners": "1", "log_level": "error"})
        with launch.running(command, port, cores=[core]) as server:
            for _ in range(rounds):
                asked = served(server.target, workload.sequences, seconds)
                turns.append(ScoringRound(asked, scored(workload, file, lines, core)))
            compared = min(records, len(workload.sequences))
            wrong = differing(server.target, file, lines, compared)
    text = page(facts, workload, turns, records, wrong, compared)
    output.tell(text, out=out / f"scoring-{work}.md")
    sys.exit(wrong > 0 or median(turn.ratio for turn in turns) < LEAST_RATIO)


if __name__ == "__main__":
    main()

"""The service beside its peers, in one run: `python -m benchmarks.bench`.

For each workload all servers are started once, each pinned to the first core; the load comes from another. A round
loads each of them in turn at each number of connections, so that other work on the machine affects all of them alike.
Then each gets requests at half of the best peer's capacity. The result is a page of medians with plots; `--rounds-to`
keeps the figures of every round as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import click
import orjson
from rich.console import Console
from rich.progress import Progress

from benchmarks import machine, output, pages, report
from benchmarks.contenders import CONTENDERS, EMPTY, Contender
from benchmarks.limits import Batches, Graph
from benchmarks.processes import cpu_seconds, first_core
from benchmarks.workloads import WORKLOADS, Work
from lengthwise.bench.trial import LoadSpec, LoadTest, prepare

_HALF_LOAD_CONNECTIONS = 256
_MOST_SILENT_LOADS = 3
"""Loads without an answer after which a server is started anew."""


@dataclass(frozen=True)
class BenchPlan:
    """How much is measured."""

    connections: tuple[int, ...] = (1, 32, 64, 256)  # of the closed loops, ascending
    rounds: int = 3  # how often everything is measured
    seconds: float = 4.0  # of each closed loop
    half_load_seconds: float = 8.0  # of each open loop, whose 99th percentile needs many requests
    warmup_seconds: float = 0.5  # before each
    table_seconds: float = 10.0  # for measuring the cost table of the compute limit
    sequences: int = 2000  # different ones in a workload, at most
    seed: int = 0  # of sequences and arrivals


QUICK = BenchPlan((1, 64), 1, seconds=1.5, half_load_seconds=2.0, warmup_seconds=0.3, table_seconds=2.0, sequences=300)


def measure(work: Work, plan: BenchPlan, server_cores: Sequence[int], progress: Progress) -> report.WorkloadResult:
    """One workload: every contender, every number of connections, every round."""
    graph = Graph.of(work, table_seconds=plan.table_seconds / 2)
    best = {
        "onnxruntime": Graph.of(work, table_seconds=plan.table_seconds / 2, recurrent_kernels=False).best(),
        "own": graph.best(),
    }
    as_they_come = {str(count): graph.as_they_come(count) for count in plan.connections}
    compute: dict[str, list[tuple[float, float]]] = {kernels: [] for kernels in best}
    planned: dict[str, list[tuple[float, float]]] = {count: [] for count in as_they_come}
    everyone = (*CONTENDERS, EMPTY)
    loads = plan.rounds * (len(everyone) * len(plan.connections) + len(CONTENDERS))
    task = progress.add_task(work.name, total=loads)

    def show(what: str, *, done: int = 0) -> None:
        progress.update(task, description=f"{work.name}: {what}", advance=done, refresh=True)

    closed: dict[str, dict[str, list[Any]]] = {
        contender.name: {str(count): [] for count in plan.connections} for contender in everyone
    }
    half: dict[str, list[Any]] = {contender.name: [] for contender in CONTENDERS}
    with ExitStack() as stack:
        running: dict[str, RunningContender] = {}
        for contender in everyone:
            show(f"starting {contender.title}")
            running[contender.name] = stack.enter_context(RunningContender(contender, work, server_cores))
        for number in range(plan.rounds):
            show("the graph alone")
            for kernels, batches in best.items():
                compute[kernels].append(batches.seconds_per_sequence(server_cores))
            for name, batches in as_they_come.items():
                planned[name].append(batches.seconds_per_sequence(server_cores))
            for count in plan.connections:
                for contender in everyone:
                    show(f"{contender.title}, {count} connections")
                    load = LoadSpec(concurrency=count, seconds=plan.seconds, warmup_seconds=plan.warmup_seconds)
                    closed[contender.name][str(count)].append(running[contender.name].measure(load))
                    show(contender.title, done=1)
            if number == 0:
                rate = _best_peer_rate(closed) / 2
            for contender in CONTENDERS:
                show(f"{contender.title}, half load")
                load = LoadSpec(
                    concurrency=_HALF_LOAD_CONNECTIONS,
                    rate=rate,
                    seconds=plan.half_load_seconds,
                    warmup_seconds=plan.warmup_seconds,
                    seed=plan.seed + number,
                )
                half[contender.name].append(running[contender.name].measure(load))
                show(contender.title, done=1)
    result: report.WorkloadResult = {
        "title": work.title,
        "connections": list(plan.connections),
        "limit": {
            **{kernels: _limit(batches, compute[kernels]) for kernels, batches in best.items()},
            "as_they_come": {count: _limit(batches, planned[count]) for count, batches in as_they_come.items()},
        },
        "closed": closed,
        "half_load_rate": rate,
        "half_load": half,
    }
    return result | {"ratios": report.ratios(result)}


def _limit(batches: Batches, rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Wall time and processor time per sequence of each round, and the batches."""
    return {
        "seconds_per_sequence": [clock for clock, _ in rounds],
        "cpu_seconds_per_sequence": [cpu for _, cpu in rounds],
        "padding_share": batches.padding_share,
        "rows_per_batch": batches.rows_per_batch,
    }


class NoAnswer(click.ClickException):
    """A server answered nothing, although it was asked several times."""


class RunningContender:
    """A contender's server, which is started anew if it hangs: some do when a request was lost."""

    def __init__(self, contender: Contender, work: Work, cores: Sequence[int]) -> None:
        self._contender = contender
        self._work = work
        self._cores = cores
        self._server = ExitStack()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.__exit__(*error)  # which says what a server printed that has ended

    def _start(self) -> None:
        server = self._server.enter_context(self._contender.running(self._work, self._cores))
        # Only this service is batch-invariant: its answers are compared bit by bit.
        self._trial = prepare(server.target, self._work.sequences, check=not self._contender.is_peer)
        self._pid = server.pid

    def measure(self, load: LoadSpec) -> dict[str, Any]:
        """The figures of one load; see `measure_load`."""
        try:
            return measure_load(self._trial, self._pid, load)
        except NoAnswer as error:
            click.echo(f"{self._contender.name} is started anew: {error.message}", err=True)
            self._server.close()
            self._start()
        figures = measure_load(self._trial, self._pid, load)
        return figures | {"silent_loads": figures["silent_loads"] + _MOST_SILENT_LOADS}


def measure_load(trial: LoadTest, pid: int, load: LoadSpec) -> dict[str, Any]:
    """The figures of one load, with the processor time that the server took for it.

    With one connection, a server that lost a request answers nothing more: the load is repeated, and `silent_loads`
    counts the repetitions.
    """
    for silent in range(_MOST_SILENT_LOADS):
        if load.warmup_seconds:
            trial.run(replace(load, seconds=load.warmup_seconds, warmup_seconds=0))
        before = cpu_seconds(pid)
        seen = trial.run(replace(load, warmup_seconds=0)).to_json()
        if seen["requests_per_second"] > 0:
            return seen | {"server_cpu_seconds": cpu_seconds(pid) - before, "silent_loads": silent}
    raise NoAnswer(f"{trial.target} answered nothing, {_MOST_SILENT_LOADS} times {load.seconds:g} s: {load}")


def _best_peer_rate(closed: dict[str, dict[str, list[Any]]]) -> float:
    """The most that any peer answered a second."""
    return max(
        float(median(figures["requests_per_second"] for figures in rows))
        for contender in CONTENDERS
        if contender.is_peer
        for rows in closed[contender.name].values()
    )


@click.command()
@click.option("--quick", is_flag=True, help="One short round, under two minutes: to see that everything runs.")
@click.option("--workload", type=click.Choice(sorted(WORKLOADS)), multiple=True, help="Only this one. [default: all]")
@click.option("--rounds", type=click.IntRange(1), help="Rounds.  [default: 3]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of sequences and arrivals.")
@click.option(
    "--out",
    type=output.PagePath(file_okay=False),
    help=f"Folder for the page and plots.  [default: {pages.RESULTS}, with --quick runs]",
)
@click.option("--name", help="Name of the page.  [default: full or quick]")
@click.option("--rounds-to", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for all rounds.")
def main(
    quick: bool,
    workload: tuple[str, ...],
    rounds: int | None,
    seed: int,
    out: Path | None,
    name: str | None,
    rounds_to: Path | None,
) -> None:
    """Measures the service beside its peers."""
    given = {"seed": seed} | ({"rounds": rounds} if rounds else {})
    plan = BenchPlan(**(asdict(QUICK if quick else BenchPlan()) | given))
    out = out or (Path("runs") if quick else pages.RESULTS)
    pages.require_clean(out)
    facts = machine.facts()
    server = first_core()
    console = Console(stderr=True)
    with Progress(console=console, auto_refresh=False) as progress:
        results = {
            "machine": facts,
            "settings": asdict(plan),
            "workloads": {
                each: measure(WORKLOADS[each](seed, plan.sequences), plan, [server], progress)
                for each in workload or WORKLOADS
            },
        }
    name = name or ("quick" if quick else "full")
    if rounds_to is not None:
        rounds_to.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    text = report.page(results)
    pages.write(out / f"{name}.md", text)
    click.echo(text)
    for path in report.draw(results, out / name):
        console.print(f"drawn: {path}")


if __name__ == "__main__":
    main()

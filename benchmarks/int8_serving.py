"""The service at int8 beside itself at fp32, under load: `python -m benchmarks.int8_serving`.

For each model both services run with one runner on the first core, and the load comes from another. In each round they
take turns: 64 connections, then one. Ratios are of the same round, and the table has their medians. Every answer is
compared with the answer to the same sequence alone; `--answers 500000` goes on with 64 connections until so many
answers of each service were compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages, processes
from benchmarks.contenders import SERVICE
from benchmarks.workloads import MODELS, lognormal
from lengthwise.bench.figures import Figures
from lengthwise.bench.trial import LoadSpec, LoadTest, prepare
from lengthwise.runtime.manifest import Precision

PAGE = pages.RESULTS / "int8_serving.md"
_PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "int8")
_MANY: Final = 64
_HOURS: Final = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class Int8Round:
    """One round of one model."""

    many: tuple[Figures, Figures]  # the figures of 64 connections, at fp32 and at int8
    one: tuple[Figures, Figures]  # the same of one connection

    @property
    def throughput(self) -> float:
        """Answers a second of 64 connections, int8 over fp32."""
        exact, rounded = self.many
        return rounded.requests_per_second / exact.requests_per_second

    @property
    def latency(self) -> float:
        """The median latency of one connection, int8 over fp32."""
        return _p50(self.one[1]) / _p50(self.one[0])

    @property
    def figures(self) -> tuple[Figures, ...]:
        """All figures."""
        return (*self.many, *self.one)


@dataclass(frozen=True, slots=True)
class Int8Service:
    """What was measured of one model."""

    model: str  # one of `MODELS`
    rounds: Sequence[Int8Round]
    checked: Sequence[Figures]  # further loads, only to compare answers

    @property
    def answers(self) -> int:
        """Answers that were compared with those of the same sequences alone."""
        return sum(figures.answers.get(200, 0) for figures in self._all)

    @property
    def wrong(self) -> int:
        """Those that had other bits; requests without an answer count too."""
        return sum((figures.wrong or 0) + figures.unanswered + figures.broken for figures in self._all)

    @property
    def _all(self) -> list[Figures]:
        return [*(figures for each in self.rounds for figures in each.figures), *self.checked]


def _p50(figures: Figures) -> float:
    if figures.latency_ms is None:
        raise click.ClickException(f"{figures.load}: no answer")
    return figures.latency_ms.p50


def measure(
    model: str, *, rounds: int, seconds: float, answers: int, sequences: int, seed: int, cores: Sequence[int]
) -> Int8Service:
    """Measures both services of one of `MODELS`, on these cores."""
    with ExitStack() as stack:
        services = []
        for precision in _PRECISIONS:
            work = lognormal(seed, sequences, model=model, precision=precision)
            running = stack.enter_context(SERVICE.running(work, cores))
            services.append(prepare(running.target, work.sequences))
        found = [
            Int8Round(many=_loaded(services, _MANY, seconds), one=_loaded(services, 1, seconds))
            for _ in track(range(rounds), model, console=Console(stderr=True))
        ]
        loads = [
            each.run(LoadSpec(concurrency=_MANY, seconds=_HOURS, warmup_seconds=0, count=answers))
            for each in services
            if answers
        ]
    return Int8Service(model, found, loads)


def _loaded(services: Sequence[LoadTest], connections: int, seconds: float) -> tuple[Figures, Figures]:
    """The figures of each service in turn."""
    load = LoadSpec(concurrency=connections, seconds=seconds, warmup_seconds=min(0.5, seconds))
    exact, rounded = (each.run(load) for each in services)
    return exact, rounded


def cells(found: Int8Service) -> tuple[str, ...]:
    """A line of the table."""
    return (
        MODELS[found.model],
        *(f"{median(each.many[place].requests_per_second for each in found.rounds):,.0f}" for place in (0, 1)),
        f"{median(each.throughput for each in found.rounds):.2f}",
        *(f"{median(_p50(each.one[place]) for each in found.rounds):.2f}" for place in (0, 1)),
        f"{median(each.latency for each in found.rounds):.2f}",
        f"{found.wrong} of {found.answers:,}",
    )


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice([*MODELS]), help="Only this one. [default: all]")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds.")
@click.option("--seconds", type=click.FloatRange(0.1), default=4.0, show_default=True, help="Of each load.")
@click.option("--answers", type=click.IntRange(0), default=0, show_default=True, help="To compare after the rounds.")
@click.option("--sequences", type=click.IntRange(1), default=2000, show_default=True, help="Different ones.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sequences.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(
    models: tuple[str, ...], rounds: int, seconds: float, answers: int, sequences: int, seed: int, out: Path
) -> None:
    """Measures the service at int8 beside itself at fp32."""
    facts = machine.facts()
    server = processes.first_core()
    found = [
        measure(model, rounds=rounds, seconds=seconds, answers=answers, sequences=sequences, seed=seed, cores=[server])
        for model in models or MODELS
    ]
    heads = (
        "model",
        "fp32, 64 connections, a second",
        "int8",
        "int8 over fp32",
        "fp32, one connection, p50 ms",
        "int8",
        "int8 over fp32",
        "answers with other bits than alone",
    )
    how = (
        f"`python -m benchmarks.int8_serving`: lognormal lengths (median 50, sigma 0.7), one runner on one core, "
        f"medians of {rounds} rounds of {seconds:g} s."
    )
    text = pages.page(facts, "The service at int8", how, pages.table(heads, map(cells, found)))
    output.tell(text, out=out)
    if any(each.wrong for each in found):
        raise click.ClickException("answers under load differ from those of the same sequences alone")


if __name__ == "__main__":
    main()

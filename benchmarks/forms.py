"""The forms of `form_models` in the service's order of batches beside other orders. `python -m benchmarks.forms`.

The service's own order is compared with order of arrival by 16 and by 64 rows, and with the partition by length. Each
form is exported from torch once, with 128 and with 32 units. Over HTTP every server runs on the first core, the load
comes from another one, and the servers take turns. `--in-process` runs the same batches without servers, in processor
time, which other work on the machine disturbs little: as many sequences wait as there are connections, and each answer
brings the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, Final, cast
from unittest import mock

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages, planning, processes
from benchmarks.contenders import SERVICE, Contender
from benchmarks.form_models import FEATURES, FORMS
from benchmarks.variants import plan_by_arrival
from benchmarks.workloads import CACHE, Work, exported, japanese_vowels
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from lengthwise.batching.queues import ModelQueue, ModelQueues
from lengthwise.bench.workload import Input, draw_lengths, make_sequences
from lengthwise.commands.command import Command
from lengthwise.padding import Steps, pad
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import measure_cost
from lengthwise.runtime import answers
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.telemetry.metrics import ModelMetrics

PAGE = pages.RESULTS / "forms.md"
_TARGETS = "benchmarks/form_models.py"
_LONGEST: Final = 1024
_SEQUENCES: Final = 2000
_VOWELS: Final = "JapaneseVowels"
_LOGNORMAL: Final = "lognormal"

Turns = dict[str, list[tuple[float, float]]]
"""Answers a second and the 99th percentile in ms of each turn, by the names of the orders; the first is our own."""


def work(form: str, units: int, lengths: str) -> Work:
    """A form with so many units, and 12 features: lengths of median 50 and sigma 0.7, or the recordings of a set."""
    name = f"{form}-{units}"
    with mock.patch.dict(os.environ, UNITS=str(units)):
        directory = exported(
            CACHE.parent / "bench-forms" / name / name / "1",
            f"{_TARGETS}:{form}",
            *("--features", str(FEATURES), "--max-length", str(_LONGEST)),
        )
    if lengths == _VOWELS:
        return replace(japanese_vowels(0, _SEQUENCES), name=name, directory=directory)
    random = np.random.default_rng(0)
    drawn = draw_lengths("lognormal:50,0.7", _SEQUENCES, _LONGEST, random)
    return Work(name, name, directory, make_sequences(drawn, Input("values", FEATURES), random))


# Over HTTP

BY_LENGTH = replace(
    SERVICE, name="length", title="by length", module=("benchmarks.variants", "by-length", *SERVICE.module[1:])
)
CONTENDERS: Final[Sequence[Contender]] = (SERVICE, planning.by_arrival(16), planning.by_arrival(64), BY_LENGTH)


# In process


@dataclass(eq=False, slots=True)
class _Asked(WaitingSequence):
    """A sequence that was sent, and when."""

    steps: Steps = field(kw_only=True)
    sent: float = field(kw_only=True)  # processor seconds


Choose = Callable[[PendingSequences], list[WaitingSequence]]


class InProcess:
    """A form's session with its measured costs."""

    def __init__(self, of: Work) -> None:
        self._sequences, self._manifest = of.sequences, Manifest.read(of.directory)
        self._session = Session.load(of.directory, self._manifest)
        self.cost = measure_cost(self._session, self._manifest, BatchLimits(), stopping=Stopping())

    def orders(self) -> dict[str, Choose]:
        """What chooses the next batch, by the names of the orders over HTTP."""
        by_length = CostTable.from_json(self.cost.to_json() | {"padding_cost": 1.0}, clock=self.cost.clock)
        return {
            SERVICE.name: self._planned(self.cost),
            **{f"arrival-{rows}": self._by_arrival(rows) for rows in (16, 64)},
            BY_LENGTH.name: self._planned(by_length),
        }

    def _planned(self, cost: CostTable) -> Choose:
        queue = ModelQueue(self._manifest.key, lambda batch, _: [], cost, ModelMetrics(), BatchLimits())
        limits = queue.limits_within(float("inf"), ModelQueues().turn_seconds(queue))
        return lambda pool: plan(pool, cost, limits, 0.0)

    def _by_arrival(self, rows: int) -> Choose:
        limits = BatchLimits(rows=rows, padded_steps=65_536)
        return lambda pool: plan_by_arrival(pool, self.cost, limits, 0.0)

    def turn(self, choose: Choose, connections: int, seconds: float) -> tuple[float, float]:
        """Answers a processor second, and the 99th percentile of the waits in ms, of so many processor seconds."""
        pool, coming, latencies = PendingSequences(), cycle(self._sequences), list[float]()
        start = now = time.thread_time()
        missing = connections
        while now - start < seconds:
            for steps in islice(coming, missing):
                pool.add(_Asked(len(steps), steps=steps, sent=now))
            chosen = cast("list[_Asked]", choose(pool))
            batch = pad([each.steps for each in chosen], multiple=self._manifest.width_multiple)
            answers.score(self._session.run(batch), batch.lengths, self._manifest)
            now = time.thread_time()
            latencies += [now - each.sent for each in chosen]
            missing = len(chosen)
        return len(latencies) / (now - start), 1000 * float(np.quantile(latencies, 0.99))


def in_process(case: planning.Case, seconds: float, rounds: int) -> Turns:
    """The turns of each order, in processor time."""
    form = InProcess(case.work())
    orders = form.orders()
    turns: Turns = {name: [] for name in orders}
    for _ in track(range(rounds), case.title, console=Console(stderr=True)):
        for name, choose in orders.items():
            turns[name].append(form.turn(choose, case.connections, seconds))
    click.echo(f"{case.title}: a padding step costs {form.cost.padding_cost:.2f} of a valid one", err=True)
    return turns


# The page


def line(title: str, turns: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """A line of the table: our own order, its ratios to each other one within a turn, and to the best of them."""
    own, *others = turns.values()
    best = [
        (one[0] / max(rate for rate, _ in turn), one[1] / min(p99 for _, p99 in turn))
        for one, *turn in zip(own, *others, strict=True)
    ]
    return [
        *planning.line(title, turns),
        f"{median(rate for rate, _ in best):.2f}, {median(p99 for _, p99 in best):.2f}",
    ]


def cases(forms: Sequence[str], units: Sequence[int], connections: Sequence[int]) -> list[planning.Case]:
    """Each form with each number of units under each number of connections; and JapaneseVowels under 32."""
    loads = [(_LOGNORMAL, count) for count in connections] + [(_VOWELS, 32)]
    return [
        planning.Case(f"{form}, {size} units, {lengths}, {count}", partial(work, form, size, lengths), count)
        for form in forms
        for size in units
        for lengths, count in loads
    ]


@click.command(cls=Command)
@click.option("--forms", type=click.Choice([*FORMS]), multiple=True, help="Only this one. [default: all]")
@click.option("--units", type=click.IntRange(1), multiple=True, default=(128, 32), show_default=True)
@click.option("--connections", type=click.IntRange(1), multiple=True, default=(1, 8, 64, 256), show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=1.5, show_default=True, help="Of each turn.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns of every order.")
@click.option("--in-process", "without_servers", is_flag=True, help="In processor time, without servers.")
@click.option("--out", type=output.PagePath(dir_okay=False), help=f"Page to write, {PAGE} for one.")
def main(
    forms: Sequence[str],
    units: Sequence[int],
    connections: Sequence[int],
    seconds: float,
    rounds: int,
    without_servers: bool,
    out: Path | None,
) -> None:
    """Measures the service's order of batches beside others, on each form."""
    facts: dict[str, Any] = machine.facts()
    lines = []
    for case in cases(forms or [*FORMS], units, connections):
        if without_servers:
            turns = in_process(case, seconds, rounds)
        else:
            core = processes.first_core()
            turns = planning.measure(case, seconds=seconds, rounds=rounds, core=core, contenders=CONTENDERS)
        lines.append(line(case.title, turns))
        click.echo(" | ".join(lines[-1]), err=True)
    heads = ["form, units, lengths, connections", "requests/s", "p99 ms"]
    heads += [*(f"over {each.title}" for each in CONTENDERS[1:]), "over the best of them"]
    where = "in process, in processor seconds" if without_servers else "one core"
    text = (
        f"`python -m benchmarks.forms`: {where}; medians of {rounds} turns of {seconds:g} s. Behind each other order: "
        "the service's throughput over its, and the service's 99th percentile over its, within a turn."
    )
    output.tell(pages.page(facts, "Forms of recurrent models", text, pages.table(heads, lines)), out=out)


if __name__ == "__main__":
    main()

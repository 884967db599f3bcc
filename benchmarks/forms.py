"""The forms of `form_models` in the service's order of batches beside other orders. `python -m benchmarks.forms`.

The service's own order is compared with order of arrival by 16 and by 64 rows, and with the partition by length. Each
form is exported from torch once, with 128 and with 32 units. Over HTTP every server runs on the first core, the load
comes from another one, and the servers take turns. `--in-process` runs the same batches without servers, in processor
time, which other work on the machine disturbs little: as many sequences wait as there are connections, and each answer
brings the next one.
"""

from __future__ import annotations

import math
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

from benchmarks import machine, output, pages, planning, processes
from benchmarks.contenders import SERVICE
from benchmarks.form_models import FORMS
from benchmarks.limits import Graph
from benchmarks.variants import plan_by_arrival
from benchmarks.workloads import Work, japanese_vowels
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from lengthwise.batching.queues import ARRIVAL_TURN_SECONDS, TURN_SECONDS, ModelQueue
from lengthwise.commands.command import Command
from lengthwise.padding import Steps, pad
from lengthwise.telemetry.metrics import ModelMetrics

PAGE = pages.RESULTS / "forms.md"
BY_LENGTH = replace(
    SERVICE, name="length", title="by length", module=("benchmarks.variants", "by-length", *SERVICE.module[1:])
)
ORDERS: Final = (SERVICE, planning.by_arrival(16), planning.by_arrival(64), BY_LENGTH)

Choose = Callable[[PendingSequences], list[WaitingSequence]]
Turns = dict[str, list[tuple[float, float]]]
"""Answers a second and the 99th percentile in ms of each turn, by the names of the orders; the first is our own."""


def work(form: str, units: int, *, vowels: bool) -> Work:
    """A form with so many units: lengths of median 50 and sigma 0.7, or the recordings of JapaneseVowels."""
    with mock.patch.dict(os.environ, UNITS=str(units)):
        made = planning.of_module(f"{form}-{units}", f"benchmarks/form_models.py:{form}")
    return replace(made, sequences=japanese_vowels(0, len(made.sequences)).sequences) if vowels else made


@dataclass(eq=False, slots=True)
class _Asked(WaitingSequence):
    """A sequence that was sent, and when, in processor seconds."""

    steps: Steps = field(kw_only=True)
    sent: float = field(kw_only=True)


def _planned(cost: CostTable) -> Choose:
    """As a server plans without limits of the operator."""
    queue = ModelQueue("m/1", lambda batch, _: [None] * batch.rows, cost, ModelMetrics(), BatchLimits(by_table=True))
    turn_seconds = min(TURN_SECONDS / max(cost.padding_cost, 0.01), ARRIVAL_TURN_SECONDS)
    return lambda pool: plan(pool, cost, queue.limits_within(math.inf, turn_seconds), 0.0)


def _by_arrival(cost: CostTable, rows: int) -> Choose:
    return lambda pool: plan_by_arrival(pool, cost, BatchLimits(rows, 65_536), 0.0)


def in_process(case: planning.Case, *, seconds: float, rounds: int) -> Turns:
    """The turns of each order, in processor time."""
    graph = Graph.of(case.work(), table_seconds=1.0)
    orders = {
        SERVICE.name: _planned(graph.table),
        **{f"arrival-{rows}": _by_arrival(graph.table, rows) for rows in (16, 64)},
        BY_LENGTH.name: _planned(CostTable.from_json(graph.table.to_json() | {"padding_cost": 1.0})),
    }
    turns: Turns = {name: [] for name in orders}
    for name in rounds * [*orders]:
        turns[name].append(_turn(graph, orders[name], case.connections, seconds))
    click.echo(f"a padding step costs {graph.table.padding_cost:.2f} of a valid one", err=True)
    return turns


def _turn(graph: Graph, choose: Choose, connections: int, seconds: float) -> tuple[float, float]:
    """Answers a processor second, and the 99th percentile of the waits in ms, of so many processor seconds."""
    pool, coming, latencies, missing = PendingSequences(), cycle(graph.sequences), list[float](), connections
    start = now = time.thread_time()
    while now - start < seconds:
        for steps in islice(coming, missing):
            pool.add(_Asked(len(steps), steps=steps, sent=now))
        chosen = cast("list[_Asked]", choose(pool))
        graph.session.run(pad([each.steps for each in chosen], multiple=graph.manifest.width_multiple))
        now, missing = time.thread_time(), len(chosen)
        latencies += [now - each.sent for each in chosen]
    return len(latencies) / (now - start), 1000 * float(np.quantile(latencies, 0.99))


def line(title: str, turns: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """A line of the table: our own order, its ratios to each other one within a turn, and to the best of them."""
    rounds = [*zip(*(turns[order.name] for order in ORDERS), strict=True)]
    rates = median(own[0] / max(rate for rate, _ in others) for own, *others in rounds)
    tails = median(own[1] / min(tail for _, tail in others) for own, *others in rounds)
    return [*planning.line(title, turns), f"{rates:.2f}, {tails:.2f}"]


def cases(forms: Sequence[str], units: Sequence[int], connections: Sequence[int]) -> list[planning.Case]:
    """Each form with each number of units under each number of connections; and JapaneseVowels under 32."""
    loads = [("lognormal", count) for count in connections] + [("JapaneseVowels", 32)]
    return [
        planning.Case(f"{form}, {size}, {lengths}, {count}", partial(work, form, size, vowels=lengths[0] == "J"), count)
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
@click.option("--mosec", is_flag=True, help="Also over mosec, sorted by hand.")
@click.option("--in-process", "without_servers", is_flag=True, help="In processor time, without servers.")
@click.option("--out", type=output.PagePath(dir_okay=False), help=f"Page to write, or to add to: {PAGE} for one.")
def main(
    forms: Sequence[str],
    units: Sequence[int],
    connections: Sequence[int],
    seconds: float,
    rounds: int,
    mosec: bool,
    without_servers: bool,
    out: Path | None,
) -> None:
    """Measures the service's order of batches beside others, on each form."""
    facts: dict[str, Any] = machine.facts()
    if mosec and without_servers:
        raise click.UsageError("mosec is a server: measure it without --in-process")
    contenders = (*ORDERS, planning.SORTED_BY_HAND) if mosec else ORDERS
    over_http = partial(planning.measure, core=processes.first_core(), contenders=contenders)
    turns_of = in_process if without_servers else over_http
    lines = planning.earlier_lines(out, facts) if out else []
    for case in cases(forms or [*FORMS], units, connections):
        lines.append(line(case.title, turns_of(case, seconds=seconds, rounds=rounds)))
        click.echo(" | ".join(lines[-1]), err=True)
    heads = ["form, units, lengths, connections", "requests/s", "p99 ms"]
    heads += [*(f"over {each.title}" for each in contenders[1:]), "over the best order"]
    where = "in process, in processor seconds" if without_servers else "one core"
    text = (
        f"`python -m benchmarks.forms`: {where}; medians of {rounds} turns of {seconds:g} s. Behind each other order: "
        "the service's throughput over its, and the service's 99th percentile over its, within a turn."
    )
    output.tell(pages.page(facts, "Forms of recurrent models", text, pages.table(heads, lines)), out=out)


if __name__ == "__main__":
    main()

"""New steps with a state beside the whole history again: `python -m benchmarks.streaming`.

So many keys have sent so many steps. Each sends its next ten: with the state of its last answer, or with all steps
before them, as a caller must whose server takes no states. One service with one runner on the first core answers
both, in alternating turns; the load comes from another core. Ratios are of the same round, and the table has their
medians. The answers to the new steps are compared with those to the whole.

With `--ordinary` it prints what batches without states take with a model directory that streams, over the same model
without states: processor time in this process, in alternating turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
import orjson
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages, processes
from benchmarks.contenders import SERVICE
from benchmarks.workloads import CACHE, HERE, Work, exported
from lengthwise.bench.figures import Figures
from lengthwise.bench.launch import Running
from lengthwise.bench.load import ask_each
from lengthwise.bench.streams import answer_of
from lengthwise.bench.trial import LoadSpec, LoadTest, groups_of, json_requests
from lengthwise.bench.workload import draw_lengths
from lengthwise.padding import Steps, pad
from lengthwise.runtime.manifest import Manifest, Precision
from lengthwise.runtime.session import Session

PAGE = pages.RESULTS / "streaming.md"
FEATURES: Final = 12
NEW_STEPS: Final = 10
MANY, TOGETHER = 64, 50
"""Connections of the load, and sequences of a request that brings many keys."""


@dataclass(frozen=True, slots=True)
class Round:
    """The figures of one round."""

    new: Figures  # the next steps with a state, over many connections
    one: Figures  # the same over one connection
    together: Figures  # the same, of many keys in each request
    whole: Figures  # the whole history again
    new_at_half: Figures  # at half of the rate that the whole history reached
    whole_at_half: Figures


def service(precision: Precision, before: Path | None, cores: Sequence[int]) -> AbstractContextManager[Running]:
    """Runs a two-layer LSTM of 128 that streams; or with a checkout, what that exports, which takes no states."""
    contender, name, options = SERVICE, "streaming", ["--streaming"]
    if before is not None:
        python = str(before.resolve() / ".venv" / "bin" / "python")
        contender, name, options = replace(SERVICE, python=python), f"whole-{machine.described(before)}", []
    directory = CACHE.parent / f"{CACHE.name}-{name}-{precision}" / "streaming-lstm" / "1"
    spec = HERE / "specs" / "streaming-lstm.toml"
    exported(directory, spec, "--precision", precision, *options, python=contender.python)
    return contender.running(Work(name, name, directory, []), cores)


def bodies(items: Sequence[Any], together: int = 1) -> list[bytes]:
    """The bodies of requests that give and ask for states."""
    option = orjson.OPT_SERIALIZE_NUMPY
    return [
        orjson.dumps({"sequences": group, "outputs": ["state"]}, option=option) for group in groups_of(items, together)
    ]


def loads(target: Any, other: Any, histories: Sequence[Steps], new: Sequence[Steps]) -> tuple[float, list[LoadTest]]:
    """The requests of the three loads, and how far the answers to the new steps lie from those to the whole.

    The new steps go to the first of two services, the whole to the other.
    """
    headers = {"content-type": "application/json"}

    def requests(made: Sequence[bytes]) -> list[bytes]:
        return [target.request("/predict", body, headers) for body in made]

    states = [orjson.loads(body)["predictions"][0]["state"] for body in ask_each(target, requests(bodies(histories)))]
    items = [{"steps": steps, "state": state} for steps, state in zip(new, states, strict=True)]
    chunks = requests(bodies(items))
    whole = json_requests(other, [[np.concatenate(pair)] for pair in zip(histories, new, strict=True)])
    answers = [
        [answer_of(orjson.loads(body)["predictions"][0]) for body in ask_each(asked, made)]
        for asked, made in ((target, chunks), (other, whole))
    ]
    difference = float(np.abs(np.subtract(*answers)).max())
    together = LoadTest(target, requests(bodies(items, TOGETHER)), sequences_per_request=TOGETHER)
    return difference, [LoadTest(target, chunks), together, LoadTest(other, whole)]


def measure(
    precision: Precision,
    *,
    before: Path | None,
    keys: int,
    age: int,
    rounds: int,
    seconds: float,
    cores: Sequence[int],
) -> tuple[float, list[Round]]:
    """The largest difference of an answer from that to the whole, and the rounds."""
    random = np.random.default_rng(0)
    steps = random.standard_normal((keys, age + NEW_STEPS, FEATURES)).round(3).astype(np.float32)
    many = LoadSpec(concurrency=MANY, seconds=seconds, warmup_seconds=min(0.5, seconds))
    with (
        service(precision, None, cores) as streams,
        nullcontext() if before is None else service(precision, before, cores) as old,
    ):
        target, other = streams.target, (old or streams).target
        difference, (new, together, whole) = loads(target, other, [*steps[:, :age]], [*steps[:, age:]])
        found = []
        for _ in track(range(rounds), precision, console=Console(stderr=True)):
            new_many, whole_many = new.run(many), whole.run(many)
            half = replace(many, rate=whole_many.requests_per_second / 2)
            others = [new.run(replace(many, concurrency=1)), together.run(replace(many, concurrency=4))]
            found.append(Round(new_many, *others, whole_many, new.run(half), whole.run(half)))
    return difference, found


def cells(precision: str, difference: float, rounds: Sequence[Round]) -> tuple[str, ...]:
    """A line of the table."""

    def ratio(one: str, other: str) -> str:
        values = [
            getattr(each, one).sequences_per_second / getattr(each, other).sequences_per_second for each in rounds
        ]
        return f"{median(values):.1f}"

    latencies = [(each.new_at_half.latency_ms, each.whole_at_half.latency_ms) for each in rounds]
    tails = [new.p99 / whole.p99 for new, whole in latencies if new is not None and whole is not None]
    return (
        precision,
        *(f"{median(getattr(each, name).sequences_per_second for each in rounds):,.0f}" for name in ("whole", "new")),
        ratio("new", "whole"),
        f"{median(each.one.sequences_per_second for each in rounds):,.0f}",
        f"{median(each.together.sequences_per_second for each in rounds):,.0f}",
        ratio("together", "one"),
        f"{median(tails):.3f}" if tails else "-",
        f"{difference:.1e}",
    )


def ordinary(spec: str, rows: int, seconds: float) -> float:
    """The time of a batch of ordinary sequences with a model that streams, over that of the model without states."""
    random, calls = np.random.default_rng(0), []
    lengths = draw_lengths("lognormal:50,0.7", rows, 1024, random)
    steps = [random.standard_normal((length, FEATURES)).astype(np.float32) for length in lengths]
    for name, options in ((spec, ("--streaming",)), (f"{spec}-plain", ())):
        directory = CACHE.parent / f"{CACHE.name}-{name}" / name / "1"
        manifest = Manifest.read(exported(directory, HERE / "specs" / f"{spec}.toml", *options))
        session = Session.load(directory, manifest)
        calls.append(lambda session=session, blank=manifest.blank: session.run(pad(steps, blank=blank)))
    streams, plain = processes.fastest(calls, seconds)
    return streams / plain


@click.command()
@click.option("--ordinary", "only_ordinary", is_flag=True, help="Only print the figures of batches without states.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "int8"]), default=("fp32", "int8"))
@click.option("--keys", type=click.IntRange(1), default=1000, show_default=True, help="Sequences that do not end.")
@click.option("--age", type=click.IntRange(1), default=1000, show_default=True, help="Steps that each has sent.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds.")
@click.option("--seconds", type=click.FloatRange(0.1), default=4.0, show_default=True, help="Of each load.")
@click.option(
    "--before",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The checkout that takes all steps again. [default: this one]",
)
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(
    only_ordinary: bool,
    precisions: Sequence[Precision],
    keys: int,
    age: int,
    rounds: int,
    seconds: float,
    before: Path | None,
    out: Path,
) -> None:
    """Measures new steps with a state beside the whole history again."""
    if only_ordinary:
        for spec, rows in product(("streaming-lstm", "streaming-attention"), (1, 16, 64)):
            click.echo(f"{spec}, {rows} rows: {ordinary(spec, rows, seconds):.3f}")
        return
    facts = machine.facts()
    cores = [processes.first_core()]
    lines = [
        cells(each, *measure(each, before=before, keys=keys, age=age, rounds=rounds, seconds=seconds, cores=cores))
        for each in precisions
    ]
    heads = (
        "precision",
        f"all {age + NEW_STEPS:,} steps again, {MANY} connections, keys a second",
        f"{NEW_STEPS} steps and a state",
        "ratio",
        "one connection",
        f"{TOGETHER} keys a request",
        "ratio of these two",
        "p99 beside that of all steps, at half of its rate",
        "largest difference of an answer from that to the whole",
    )
    how = (
        f"`python -m benchmarks.streaming`: {keys:,} keys, a two-layer LSTM of 128, one runner on one core, medians of "
        f"{rounds} rounds of {seconds:g} s."
    )
    if before is not None:
        how += f" All steps again: to the service of {machine.described(before)}."
    output.tell(pages.page(facts, "New steps with a state", how, pages.table(heads, lines)), out=out)


if __name__ == "__main__":
    main()

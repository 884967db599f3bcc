"""Fixed kernels (`kind = "rocket"`): their transform beside aeon's, and served: `python -m benchmarks.fixed_kernels`.

The transform of one sequence is timed in processor time of one thread, in turns with aeon's MiniRocket (numba, compiled
before, one thread) with as many kernels; the fastest of the runs counts. Then three servers take turns, each on one
core, with JapaneseVowels: a rocket model, the same one without its kernels in C, and `preset = "rnn"`; the load comes
from another core. The two models are trained once and kept. `--answers 200000` then compares so many answers under
load, of the kernels and of onnxruntime's operators, with the kernels' answers to each sequence alone.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
from rich.console import Console
from rich.progress import track

import lengthwise_export
from benchmarks import accuracy, machine, output, pages
from benchmarks.bench import measure_load
from benchmarks.contenders import SAME_KERNELS, SERVICE
from benchmarks.processes import fastest, first_core
from benchmarks.workloads import CACHE, Work
from lengthwise.bench.trial import LoadSpec, LoadTest, prepare
from lengthwise.padding import Steps, pad
from lengthwise.runtime import fixed_kernels, recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import PLAIN_CPU
from lengthwise.runtime.session import Session
from lengthwise_export.architecture import rocket

PAGE = pages.RESULTS / "fixed_kernels.md"
DATA: Final = "JapaneseVowels"
_KERNELS: Final = 9996
_STEPS: Final = (30, 300, 1300)
_FEATURES: Final = (1, 12)
_HOURS: Final = 4 * 3600.0
_ROCKET, _WITHOUT, _RNN = 'kind = "rocket"', 'kind = "rocket", onnxruntime\'s operators', 'preset = "rnn"'


def transforms(seconds: float) -> list[tuple[str, ...]]:
    """A line for each number of features and steps: microseconds of aeon's transform and of this one, and the ratio."""
    import numba
    from aeon.transformations.collection.convolution_based import MiniRocket

    numba.set_num_threads(1)
    lines: list[tuple[str, ...]] = []
    for features in _FEATURES:
        for steps in _STEPS:
            values = np.random.default_rng(0).normal(size=(10, features, steps)).astype(np.float32)
            aeons = MiniRocket(n_kernels=_KERNELS, n_jobs=1, random_state=0).fit(values)
            sequences = [np.ascontiguousarray(each.T) for each in values]
            biases = _KERNELS // fixed_kernels.KERNELS
            plan = fixed_kernels.plan(rocket.fit_kernels(sequences, biases, reference_length=steps, seed=0), bits=17)
            own = partial(fixed_kernels.shares, plan, sequences[:1])
            one, other = (1e6 * each for each in fastest([partial(aeons.transform, values[:1]), own], seconds))
            lines.append((str(features), str(steps), f"{one:.0f}", f"{other:.0f}", f"{other / one:.2f}"))
    return lines


def trained(preset: str) -> Path:
    """The model directory of a preset; trained once and kept."""
    published = CACHE.parent / f"bench-fixed-{preset}" / DATA.lower() / "1"
    if not published.is_dir():
        records = accuracy.read(DATA).training
        run = lengthwise_export.train(preset, [each.steps for each in records], [str(each.label) for each in records])
        run.export(published)
    return published


def served(seconds: float, rounds: int, answers: int) -> tuple[list[tuple[str, ...]], str]:
    """A line for each server (the rates of 64 connections, and the latency of one), and what `same_bits` says."""
    directories = {_ROCKET: trained("rocket"), _WITHOUT: trained("rocket"), _RNN: trained("rnn")}
    sequences = [record.steps for record in accuracy.read(DATA).test]
    cores = os.sched_getaffinity(0)
    server = first_core()
    many = LoadSpec(concurrency=64, seconds=seconds, warmup_seconds=0.3)
    one = LoadSpec(concurrency=1, seconds=seconds, warmup_seconds=0.3)
    figures: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in directories}
    with ExitStack() as stack:
        trials = {}
        for place, (kind, directory) in enumerate(directories.items()):
            contender = SAME_KERNELS if kind == _WITHOUT else SERVICE
            running = stack.enter_context(
                contender.running(Work(f"fixed-{place}", kind, directory, sequences), [server])
            )
            trials[kind] = prepare(running.target, sequences, check=True), running.pid
        for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
            for kind, trial in trials.items():
                figures[kind].append(_figures(measure_load(*trial, many), measure_load(*trial, one)))
        equal = same_bits(trials[_ROCKET][0], trials[_WITHOUT][0], answers) if answers else ""
    os.sched_setaffinity(0, cores)
    found = {kind: [median(column) for column in zip(*rows, strict=True)] for kind, rows in figures.items()}
    rnn, without = found[_RNN], found[_WITHOUT]
    lines = []
    for kind, row in found.items():
        over = [f"{figure:,.0f} ({figure / whole:.2f})" for figure, whole in zip(row[:2], rnn[:2], strict=True)]
        times = [f"{figure:.2f} ({figure / whole:.2f})" for figure, whole in zip(row[2:], without[2:], strict=True)]
        lines.append((f"`{kind}`", *over, *times))
    return lines, " ".join([equal, every_set(directories[_ROCKET], sequences)]).strip()


def same_bits(own: LoadTest, plain: LoadTest, answers: int) -> str:
    """How many answers under load, of each server, have other bits than the kernels' answers to the sequences alone."""
    load = LoadSpec(concurrency=64, seconds=_HOURS, warmup_seconds=0, count=answers)
    parts = []
    for name, trial in (("the kernels", own), ("onnxruntime's operators", replace(plain, expected=own.expected))):
        found = trial.run(load)
        wrong = (found.wrong or 0) + answers - found.answers.get(200, 0)
        parts.append(f"{wrong} of {answers:,} answers of {name}")
    return f"{' and '.join(parts)}, under load, have other bits than the kernels' to the sequence alone."


def every_set(directory: Path, sequences: list[Steps]) -> str:
    """How many sequences alone get other bits with an instruction set than from onnxruntime's operators."""
    manifest, parts = Manifest.read(directory), []
    plain = Session.load(directory, manifest, devices=(PLAIN_CPU,))
    batches = [pad([steps], multiple=manifest.width_multiple) for steps in sequences]
    for name in reversed(fixed_kernels.INSTRUCTION_SETS):  # the best one stays
        recurrent_kernels.choose(name, "shares")
        own = Session.load(directory, manifest)
        other = sum(not np.array_equal(own.run(batch).logits, plain.run(batch).logits) for batch in batches)
        parts.append(f"{other} with {name}")
    return f"Of {len(batches)} sequences alone, {', '.join(parts)} have other bits than those of plain onnxruntime."


def _figures(many: dict[str, Any], one: dict[str, Any]) -> tuple[float, ...]:
    """Requests by the second, and by the second of the server's processor time; milliseconds: p50, and of that time."""
    many_rate, one_rate = (load["answers"]["200"] / load["server_cpu_seconds"] for load in (many, one))
    return many["requests_per_second"], many_rate, one["latency_ms"]["p50"], 1e3 / one_rate


@click.command()
@click.option("--seconds", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of every server.")
@click.option("--answers", type=click.IntRange(0), default=0, show_default=True, help="To compare after the rounds.")
def main(seconds: float, rounds: int, answers: int) -> None:
    """Measures fixed kernels beside aeon's and beside other models, and writes benchmarks/results/fixed_kernels.md."""
    pages.require_clean(PAGE)
    facts = machine.facts()
    own = ("requests/s", "requests a processor second", "p50 of one connection, ms", "processor ms a request of it")
    heads = ("features", "steps", "aeon, us", "Lengthwise, us", "ratio")
    how = f"`python -m benchmarks.fixed_kernels`: {_KERNELS:,} kernels, the transform of one sequence, in one thread."
    under_load = (
        f"{DATA}, one test recording a request, on one core; medians of {rounds} turns of {seconds:g} s. In brackets: "
        f"rates over those of `{_RNN}`, times over those of onnxruntime's operators."
    )
    alone = pages.table(heads, transforms(seconds))
    lines, equal = served(seconds, rounds, answers)
    text = pages.page(facts, "Fixed kernels", how, alone, under_load, pages.table(("model", *own), lines), equal)
    output.tell(text, out=PAGE)


if __name__ == "__main__":
    main()

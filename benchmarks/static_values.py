"""Eight static values beside a sequence, and repeated at each of its steps: `python -m benchmarks.static_values`.

Of the skewed workload's model and of the bundled one there are three each, which differ in what they read only: steps
of 12 features; these and eight static values, joined behind the pooling; steps of 20 features, of which eight are the
same at every step. Each is served on the first core, and the load comes from another one. They take turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.bench import measure_load
from benchmarks.contenders import SERVICE
from benchmarks.processes import first_core
from benchmarks.workloads import CACHE, HERE, WORKLOADS, Work, exported
from lengthwise.bench.trial import LoadSpec, prepare
from lengthwise.bench.workload import Sent, sent

PAGE = pages.RESULTS / "static_values.md"
COUNT: Final = 8
_SEQUENCES: Final = 2000
_FEATURES: Final = "features = 12"  # as in both specs
SPECS: Final[Mapping[str, Path]] = {
    "lognormal": HERE / "specs" / "lognormal.toml",
    "japanese-vowels": HERE.parent / "model_export" / "lengthwise_export" / "specs" / "japanese-vowels.toml",
}
"""The specs of the workloads' models."""


def works(name: str) -> Iterator[Work]:
    """A workload's three models, each with the same sequences and static values in the form that it reads."""
    plain = WORKLOADS[name](0, _SEQUENCES)
    static = np.random.default_rng(1).standard_normal((len(plain.sequences), COUNT)).astype(np.float32)
    both = [*zip(plain.sequences, static, strict=True)]
    repeated = [np.concatenate([steps, np.tile(values, (len(steps), 1))], axis=1) for steps, values in both]
    yield replace(plain, name="without")
    yield _work(name, "static", f"{_FEATURES}\nstatic = {COUNT}", [sent(steps, values) for steps, values in both])
    yield _work(name, "repeated", f"features = {12 + COUNT}", repeated)


def _work(workload: str, form: str, features: str, sequences: Sequence[Sent]) -> Work:
    """The model of a workload's spec with other features."""
    folder = CACHE.parent / f"bench-{form}-{workload}"
    folder.mkdir(parents=True, exist_ok=True)
    spec = Path(folder, f"{form}.toml")
    spec.write_text(SPECS[workload].read_text("utf-8").replace(_FEATURES, features), "utf-8")
    return Work(form, form, exported(folder / "models" / form / "1", spec), [*sequences])


def measured(name: str, connections: int, seconds: float, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Requests a second, and processor time of the server for one in us, of each turn of each model."""
    cores, server = os.sched_getaffinity(0), first_core()
    load = LoadSpec(connections, seconds=seconds, warmup_seconds=0.3)
    turns: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        trials = []
        for work in works(name):
            running = stack.enter_context(SERVICE.running(work, [server]))
            trials.append((work.name, prepare(running.target, work.sequences), running.pid))
        for number in track(range(rounds), name, console=Console(stderr=True)):
            for form, trial, pid in trials[number % 3 :] + trials[: number % 3]:
                seen = measure_load(trial, pid, load)
                cost = 1e6 * seen["server_cpu_seconds"] / seen["answers"]["200"]
                turns.setdefault(form, []).append((seen["requests_per_second"], cost))
    os.sched_setaffinity(0, cores)
    return turns


@click.command()
@click.option("--connections", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.2), default=1.5, show_default=True, help="Of each turn.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Turns of each model.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(connections: int, seconds: float, rounds: int, out: Path) -> None:
    """Measures static values beside sequences without them, and with them at each step."""
    facts, lines = machine.facts(), []
    for workload in SPECS:
        turns = measured(workload, connections, seconds, rounds)
        for form, figures in turns.items():
            ratios = []
            for other in turns.values():
                of_turns = sorted(theirs[1] / own[1] for own, theirs in zip(figures, other, strict=True))
                ratios.append(f"{median(of_turns):.2f} ({of_turns[0]:.2f} to {of_turns[-1]:.2f})")
            medians = (f"{median(column):,.0f}" for column in zip(*figures, strict=True))
            lines.append([workload, form, *medians, *ratios])
    over = (f"requests a processor second, over {form}" for form in turns)
    heads = ["workload", "static values", "requests/s", "processor, us a request", *over]
    text = (
        f"`python -m benchmarks.static_values`: {connections} connections, one core; medians of {rounds} turns of "
        f"{seconds:g} s, ratios within a turn with their range."
    )
    output.tell(pages.page(facts, "Static values beside a sequence", text, pages.table(heads, lines)), out=out)


if __name__ == "__main__":
    main()

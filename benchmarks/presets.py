"""Accuracy and throughput of each kind of model. `python -m benchmarks.presets` draws `docs/presets.png`.

Each kind is trained on JapaneseVowels as `lengthwise train` does, exported and served on the first core; the load comes
from another one, over 64 connections, with the test recordings. The servers take turns. The models are trained once and
kept, so the load can be measured alone, on a quiet machine.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import matplotlib as mpl
import torch
from rich.console import Console
from rich.progress import track

import lengthwise_export
from benchmarks import accuracy, machine, pages
from benchmarks.bench import measure_load
from benchmarks.contenders import SERVICE
from benchmarks.workloads import CACHE, Work
from lengthwise.bench.trial import LoadSpec, prepare
from lengthwise.commands.command import Command
from lengthwise_export.architecture.presets import PRESETS
from lengthwise_export.training import recipe, session
from lengthwise_export.training.options import RecipeOptions

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

PAGE = pages.RESULTS / "presets.md"
DATA: Final = "JapaneseVowels"
ROCKET: Final = 'kind = "rocket"'
KINDS: Final[dict[str, dict[str, Any]]] = {ROCKET: recipe.ROCKET_MODEL} | {
    f'preset = "{name}"': {"preset": name} for name in PRESETS
}
FOLDER = CACHE.parent / "bench-presets"
FIGURES_FILE = "figures.json"


def trained(kind: str) -> tuple[Path, dict[str, float]]:
    """The model directory of a kind, and its accuracy and seconds; trained once and kept."""
    name = next(iter(KINDS[kind].values()))
    folder = FOLDER / str(name)
    published = folder / "models" / DATA.lower() / "1"
    if not (published.is_dir() and (folder / FIGURES_FILE).is_file()):
        data = accuracy.read(DATA)
        began = time.process_time()
        plan = recipe.plan(data.spec(KINDS[kind]), data.training, {}, RecipeOptions())
        folder.mkdir(parents=True, exist_ok=True)
        if plan.spec.model.kind == "rocket":
            finished = session.train_rocket(plan, data.training, data.test, folder)
        else:
            finished = session.train_layers(
                plan, data.training, data.test, folder, resume=False, on_epoch=lambda _: None
            )
        figures = {"accuracy": finished.content["test"]["accuracy"], "seconds": time.process_time() - began}
        lengthwise_export.export(folder, published)
        (folder / FIGURES_FILE).write_text(json.dumps(figures) + "\n")
    return published, json.loads((folder / FIGURES_FILE).read_text())


def draw(figures: dict[str, dict[str, float]], out: Path) -> None:
    """A point for each kind: to the right it answers more requests, upwards it is right more often."""
    figure, panel = plt.subplots(figsize=(6.4, 3.6), constrained_layout=True)
    for kind, found in figures.items():
        panel.scatter(found["requests"], found["accuracy"], s=60)
        panel.annotate(
            f"{kind}\n{found['seconds']:.0f} s to train",
            (found["requests"], found["accuracy"]),
            textcoords="offset points",
            xytext=(8, -4),
            fontsize=8,
        )
    panel.set_xlim(0, 1.35 * max(found["requests"] for found in figures.values()))
    panel.margins(y=0.2)
    panel.set_xlabel("requests/s at 64 connections, one core")
    panel.set_ylabel("accuracy on test recordings")
    panel.set_title(f"{DATA}: kinds of models that train makes", fontsize=10)
    panel.grid(alpha=0.3)
    figure.savefig(out, dpi=120, metadata={"Software": None})
    plt.close(figure)


@click.command(cls=Command)
@click.option("--seconds", type=click.FloatRange(0.2), default=3.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of every server.")
@click.option("--only-train", is_flag=True, help="Train and export what is not kept yet, and measure nothing.")
@click.option("--out", default="docs/presets.png", show_default=True, type=click.Path(path_type=Path), help="Picture.")
def main(seconds: float, rounds: int, only_train: bool, out: Path) -> None:
    """Measures each kind of model under load, and writes benchmarks/results/presets.md and the picture."""
    torch.set_num_threads(1)
    made = {kind: trained(kind) for kind in KINDS}
    if only_train:
        return
    pages.require_clean(PAGE)
    facts = machine.facts()
    sequences = [record.steps for record in accuracy.read(DATA).test]
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    load = LoadSpec(concurrency=64, seconds=seconds, warmup_seconds=0.5)
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        trials = {}
        for place, (kind, (directory, _)) in enumerate(made.items()):
            work = Work(f"preset-{place}", kind, directory, sequences)
            running = stack.enter_context(SERVICE.running(work, [server]))
            trials[kind] = prepare(running.target, sequences, check=True), running.pid
        for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
            for kind in KINDS:
                rates[kind].append(measure_load(*trials[kind], load)["requests_per_second"])
    figures = {kind: found | {"requests": median(rates[kind])} for kind, (_, found) in made.items()}
    lines = [
        (
            f"`{kind}`",
            f"{found['accuracy']:.3f}",
            f"{found['requests']:,.0f} ({min(rates[kind]):,.0f}-{max(rates[kind]):,.0f})",
            f"{found['seconds']:.1f}",
        )
        for kind, found in figures.items()
    ]
    table = pages.table(("kind", "test accuracy", "requests/s", "seconds to train"), lines)
    said = (
        f"`python -m benchmarks.presets`: {DATA}, one training of each kind with seed 0 and processor time of it; "
        f"served on one core, 64 connections, one test recording a request; medians of {rounds} turns of {seconds:g} "
        "s, with their range."
    )
    pages.write(PAGE, pages.page(facts, "Kinds of models, served", said, table))
    draw(figures, out)
    click.echo(table)


if __name__ == "__main__":
    main()

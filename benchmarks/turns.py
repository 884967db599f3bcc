"""Two services under the same load, in alternating turns on all cores: `python -m benchmarks.turns --before PATH`.

They are two checkouts, or with `--option` one checkout with different options. Each turn starts one service with
its own `lengthwise bench`: where the load generators differ (`service/lengthwise/bench/load.py`), so do the figures.
Ratios are computed within a pair of turns; the page has their medians and their range. Wall time is measured, so the
machine should be idle.

The defaults compare latency and throughput of the skewed workload under several numbers of connections.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.planning import of_module
from benchmarks.workloads import CACHE, HERE, exported
from lengthwise.settings import PREFIX

PAGE = pages.RESULTS / "turns.md"
_FIGURES = ("sequences_per_second", "p50", "p95", "p99")


def turn(checkout: Path, model: Path, connections: int, seconds: float, options: Sequence[str]) -> dict[str, float]:
    """The figures of a service, with options `name=value`, that the `.venv` of a checkout runs and loads."""
    command = [str(checkout.resolve() / ".venv" / "bin" / "lengthwise"), "bench", str(model), "--json", "--no-check"]
    command += ["--concurrency", str(connections), "--duration-seconds", str(seconds)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for option in options:
        name, _, value = option.partition("=")
        environment[f"{PREFIX}{name.upper()}"] = value
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr[-2000:]}")
    (load,) = json.loads(done.stdout)["loads"]
    return {"sequences_per_second": load["sequences_per_second"], **load["latency_ms"]}


def pairs(
    before: Path, after: Path, model: Path, connections: int, seconds: float, rounds: int, options: Sequence[str]
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """The figures of both, once for each round; who begins changes from round to round."""
    found = []
    for number in track(range(rounds), f"{connections} connections", console=Console(stderr=True)):
        services = [(before, options), (after, ())]
        order = services if number % 2 == 0 else services[::-1]
        figures = [turn(checkout, model, connections, seconds, given) for checkout, given in order]
        found.append((figures[0], figures[1]) if number % 2 == 0 else (figures[1], figures[0]))
    return found


def line(connections: int, found: Sequence[tuple[dict[str, float], dict[str, float]]]) -> list[str]:
    """A line of the table: of each figure, before, after, and the ratio with its range."""
    cells = [str(connections)]
    for name in _FIGURES:
        ratios = sorted(after[name] / before[name] for before, after in found)
        cells.append(f"{median(one[name] for one, _ in found):.4g}")
        cells.append(f"{median(other[name] for _, other in found):.4g}")
        cells.append(f"{median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return cells


def page(facts: dict[str, Any], before: str, lines: Sequence[Sequence[str]]) -> str:
    """The figures as a page."""
    heads = ["connections"]
    for name in ("sequences/s", "p50 ms", "p95 ms", "p99 ms"):
        heads += [f"{name}, before", "after", "ratio (range)"]
    how = f"`python -m benchmarks.turns`: before is {before}. Lognormal lengths, binary requests, all cores; medians."
    return pages.page(facts, "Two services in turns", how, pages.table(heads, lines))


def model_of(before: Path, target: str | None) -> Path:
    """The model directory that both serve: a torch module, or the skewed workload's model.

    The checkout before exports it: a service reads the manifest of an older export, but not that of a newer one.
    """
    python = before.resolve() / ".venv" / "bin" / "python"
    name = f"turns-{machine.described(before)}-{'lognormal' if target is None else target.rpartition(':')[2]}"
    if target is not None:
        return of_module(name, target, python=python).directory
    return exported(CACHE.parent / f"bench-{name}" / name / "1", HERE / "specs" / "lognormal.toml", python=python)


@click.command()
@click.option(
    "--before", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Checkout."
)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="Of the service before, such as runners=1."
)
@click.option("--target", metavar="FILE:FACTORY", help="A torch module. [default: the skewed workload's model]")
@click.option("--connections", type=click.IntRange(1), multiple=True, default=(1, 64, 256), show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Of each turn.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Pairs of turns.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(
    before: Path,
    options: Sequence[str],
    target: str | None,
    connections: Sequence[int],
    seconds: float,
    rounds: int,
    out: Path,
) -> None:
    """Measures another checkout, or this one with other options, beside this one."""
    facts = machine.facts()
    model = model_of(before, target).resolve()
    lines = [line(each, pairs(before, Path(), model, each, seconds, rounds, options)) for each in connections]
    what = f"checkout {machine.described(before)}" + (f" with {', '.join(options)}" if options else "")
    text = page(facts, what, lines)
    output.tell(text, out=out)


if __name__ == "__main__":
    main()

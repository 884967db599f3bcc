"""Fuzzes every decoder, each with as many bodies as asked for: `python -m tests.fuzz`, or `make fuzz`.

Exit code 1 where a rule of `decoders` did not hold; each such body is shown.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

from benchmarks import machine, pages
from tests.fuzz.cases import MODELS, cases
from tests.fuzz.decoders import DECODERS, Report, fuzz
from tests.support.numpy_models import model, serving


@click.command()
@click.option("--bodies", type=click.IntRange(2), default=10_000, show_default=True, help="For each decoder.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--only", type=click.Choice([one.name for one in DECODERS]), multiple=True, help="[default: all]")
def main(bodies: int, seed: int, only: tuple[str, ...]) -> None:
    """Fuzzes the decoders."""
    facts = machine.facts()
    console = Console()
    reports = asyncio.run(_all(bodies, seed, only, Console(stderr=True)))
    console.print(page(facts, reports, seed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10), markup=False)
    for one in reports:
        for case, why in one.failures[:5]:
            console.print(f"{one.decoder}: {why}\n  {case!r}"[:2000], markup=False, style="red")
    sys.exit(not all(one.good for one in reports))


async def _all(bodies: int, seed: int, only: tuple[str, ...], console: Console) -> list[Report]:
    reports = []
    for decoder in DECODERS:
        if only and decoder.name not in only:
            continue
        with console.status(f"{decoder.name}: making {bodies} bodies") as status:
            sent = cases(decoder.built(), bodies, seed)
            status.update(f"{decoder.name}: sending them")
            async with serving(*map(model, MODELS), admin_calls=True) as service:
                reports.append(await fuzz(service, decoder, sent))
    return reports


def page(facts: dict[str, Any], reports: Sequence[Report], seed: int, peak_mib: int) -> str:
    """The figures as a page."""
    lines = [
        (
            one.decoder,
            f"{one.bodies:,}",
            f"{one.body_bytes / 1e6:.1f}",
            ", ".join(f"{status}: {count:,}" for status, count in sorted(one.answers.items())),
            f"{one.slowest_seconds * 1e3:.2f}",
            f"{one.growth_bytes / 1024:.0f}",
            f"{len(one.failures)}",
        )
        for one in reports
    ]
    heads = ("decoder", "bodies", "MB", "answers by status", "slowest, ms", "memory kept, KiB", "failures")
    how = f"`python -m tests.fuzz --seed {seed}`; peak memory {peak_mib} MiB."
    return pages.page(facts, "Fuzzed decoders", how, pages.table(heads, lines))


if __name__ == "__main__":
    main()

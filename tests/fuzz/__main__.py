"""Fuzzes every decoder, each with as many bodies as asked for: `python -m tests.fuzz`, or `make fuzz`.

Exit code 1 where a rule of `decoders` did not hold; each such body is shown.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from tests.fuzz.cases import MODELS, cases
from tests.fuzz.decoders import DECODERS, Report, fuzz
from tests.support.numpy_models import model, serving

RESULTS = Path("benchmarks/results/fuzz.json")


@click.command()
@click.option("--bodies", type=click.IntRange(2), default=10_000, show_default=True, help="For each decoder.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--only", type=click.Choice([one.name for one in DECODERS]), multiple=True, help="[default: all]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(bodies: int, seed: int, only: tuple[str, ...], out: Path) -> None:
    """Fuzzes the decoders."""
    facts = machine.facts()
    console = Console()
    reports = asyncio.run(_all(bodies, seed, only, Console(stderr=True)))
    table = Table("decoder", "bodies", "KiB", "answers", "slowest ms", "left KiB", "failures")
    for one in reports:
        answers = ", ".join(f"{status}: {count}" for status, count in sorted(one.answers.items()))
        ends = (f"{one.slowest_seconds * 1e3:.1f}", f"{one.growth_bytes / 1024:.1f}", f"{len(one.failures)}")
        table.add_row(one.decoder, f"{one.bodies}", f"{one.body_bytes >> 10}", answers, *ends)
    console.print(table)
    for one in reports:
        for case, why in one.failures[:5]:
            console.print(f"{one.decoder}: {why}\n  {case!r}"[:2000], markup=False, style="red")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = {"machine": facts, "seed": seed, "peak_mib": peak >> 10, "decoders": [_shown(one) for one in reports]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
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


def _shown(report: Report) -> dict[str, Any]:
    return {
        "decoder": report.decoder,
        "bodies": report.bodies,
        "body_bytes": report.body_bytes,
        "answers": dict(sorted(report.answers.items())),
        "slowest_seconds": round(report.slowest_seconds, 6),
        "growth_bytes": report.growth_bytes,
        "failures": [f"{why}: {case!r}"[:2000] for case, why in report.failures[:20]],
        "good": report.good,
    }


if __name__ == "__main__":
    main()

"""A first-time reader's way through a tutorial, timed step by step. `python -m benchmarks.newcomer`.

The blocks of the page run in an empty folder as a reader runs them: each command is a process of its own. What a reader
needs besides is not in the figures: reading, typing, and the installation before the first step.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import machine, pages
from lengthwise.command import Command
from tests.support import documents

PAGE = pages.RESULTS / "newcomer.md"
TUTORIALS = ("tutorial-torch", "tutorial-keras")
DOCS = Path(__file__).parents[1] / "docs"
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One block of a page.

    Attributes:
        page: The name of the page.
        step: The first line of the block.
        seconds: How long it took; for `lengthwise serve`, until the service was ready.
    """

    page: str
    step: str
    seconds: float


def measure(name: str) -> list[TimedStep]:
    """Runs a page, and times its blocks that run something."""
    steps = []
    with tempfile.TemporaryDirectory() as folder, documents.page_run(Path(folder), in_process=False) as run:
        for block in documents.blocks(DOCS / f"{name}.md"):
            if block.language in ("python", "sh"):
                begun = time.perf_counter()
                run.run(block)
                seconds = time.perf_counter() - begun
                first = " ".join(block.text.splitlines()[0].partition("  # ")[0].split())
                shown = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}..."
                steps.append(TimedStep(name, shown, seconds))
    return [step for step in steps if not step.step.startswith("# ")]


def page(facts: dict[str, Any], steps: Sequence[TimedStep]) -> str:
    """A line for each step, and the sum of each page."""
    lines = []
    for name in dict.fromkeys(step.page for step in steps):
        own = [step for step in steps if step.page == name]
        lines += [(f"docs/{name}.md", f"`{step.step}`", f"{step.seconds:.1f}") for step in own]
        lines.append((f"docs/{name}.md", "**all steps**", f"**{sum(step.seconds for step in own):.1f}**"))
    how = (
        "`python -m benchmarks.newcomer`: the commands of the tutorials in an empty folder, each in its own process. "
        "Not counted: `make install` before, reading and typing. The machine was shared with other work."
    )
    return pages.page(facts, "From a model to a service", how, pages.table(("page", "step", "seconds"), lines))


@click.command(cls=Command)
@click.option("--only", default="", help="Tutorials whose name contains this.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help=f"Page to write, {PAGE} for one.")
def main(only: str, as_json: bool, out: Path | None) -> None:
    """Times the steps from an own model to a service that answers."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    facts = machine.facts()
    steps = [step for name in TUTORIALS if only in name for step in measure(name)]
    text = page(facts, steps)
    if out is not None:
        pages.write(out, text)
    click.echo(json.dumps([asdict(step) for step in steps], indent=2) if as_json else text)


if __name__ == "__main__":
    main()

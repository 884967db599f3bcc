"""Modules of other libraries, mended or exported, and held against themselves. `python -m benchmarks.third_party`.

    module --export, mended where it takes the steps alone--> model directory --batches of raw values--> answers
    module --each sequence alone and unpadded----------------------------------------------------------> right answers

A refusal is good where it names what a person judged to be its true reason (`ThirdParty.refused`). Libraries that are
not installed are left out: `pip install --no-deps` of those in the table, and of what they ask for, beside torch.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

import lengthwise
from benchmarks import machine, output, pages
from benchmarks.third_party_models import FEATURES, THIRD_PARTY, ThirdParty
from lengthwise.commands.command import Command
from lengthwise.errors import LengthwiseError
from lengthwise.verification.random_sequences import AMPLIFIED, KINDS, raw, rounded_otherwise
from lengthwise_export import export

PAGE = pages.RESULTS / "third_party.md"
LONGEST_REASON: Final = 80
MAX_LENGTH: Final = 96
LENGTHS: Final = (1, 2, 3, 7, 16, 17, 40, MAX_LENGTH)
"""Lengths of the sequences of each kind; shorter ones than a model accepts are made longer."""
ALLOWED: Final = 1e-5
"""Largest difference of a probability."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a module."""

    library: str  # with its version
    module: str
    # `mended and true`, `sound and true`, `refused`; `wrong`: an answer differs from the module's own; `misleading`:
    # the refusal does not name its true reason, or it is no refusal in words
    outcome: str
    difference: float | None  # the largest difference of a probability from the module's own; None if it is refused
    ill_conditioned: tuple[str, ...]  # kinds of values at which a few ulps of the values explain a difference
    said: str  # the refusal, or what the export says of the mend
    seconds: float  # the time of the export


def judge(entry: ThirdParty, folder: Path) -> Judged:
    """Exports a module, and compares the answers of the service's runtime with its own."""
    begun = time.perf_counter()
    outcome, difference, ill = "refused", None, ()
    try:
        published = export(
            made(entry), folder / "model", mend=entry.takes == "steps", max_length=MAX_LENGTH, features=FEATURES
        )
    except LengthwiseError as error:
        said = str(error)
        outcome = "refused" if entry.refused is not None and entry.refused in said else "misleading"
    except Exception as error:  # anything else is a defect, and the other modules go on
        outcome, said = "misleading", f"{type(error).__name__}: {error}"
    else:
        said = "; ".join(map(str, published.notices))
        difference, ill = compared(entry, lengthwise.load(str(published.directory)), published.manifest.min_length)
        kept = "mended and true" if entry.takes == "steps" else "sound and true"
        outcome = kept if difference <= ALLOWED else "wrong"
    library = f"{entry.library} {metadata.version(entry.library)}"
    return Judged(library, entry.name, outcome, difference, ill, said, time.perf_counter() - begun)


def judged_at(place: int) -> Judged:
    """The judgement of one of `THIRD_PARTY`, in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return judge(THIRD_PARTY[place], Path(folder))


def made(entry: ThirdParty) -> nn.Module:
    """The module, with the same random weights each time."""
    torch.manual_seed(0)
    return entry.make()


def compared(entry: ThirdParty, model: Any, shortest: int) -> tuple[float, tuple[str, ...]]:
    """The largest difference of a probability, and the kinds of values at which the module is ill-conditioned."""
    module, random = made(entry), np.random.default_rng(7)
    worst, ill = 0.0, []
    for kind in ("ordinary values", *KINDS):
        shapes = [(max(length, shortest), FEATURES) for length in LENGTHS]
        sequences = [
            raw(kind, shape, random) if kind in KINDS else random.normal(size=shape).astype(np.float32)
            for shape in shapes
        ]
        for sequence, answer in zip(sequences, model.predict(sequences), strict=True):
            expected = alone(entry, module, sequence)
            if not np.isfinite(expected).all():  # the module itself has no answer
                continue
            apart = float(np.abs(expected - np.asarray(answer.probabilities)).max())
            if not apart <= ALLOWED and np.isfinite(apart):
                others = [alone(entry, module, other) for other in rounded_otherwise(sequence)]
                by_ulps = max(float(np.abs(other - expected).max()) for other in others)
                if apart <= AMPLIFIED * by_ulps:
                    ill.append(kind)
                    continue
            worst = max(worst, apart if np.isfinite(apart) else np.inf)
    return worst, tuple(dict.fromkeys(ill))


def alone(entry: ThirdParty, module: nn.Module, sequence: NDArray[np.float32]) -> NDArray[np.float64]:
    """The module's own probabilities for one sequence, without padding."""
    steps = torch.from_numpy(sequence)[None]
    second = {"steps": (), "lengths": (torch.tensor([len(sequence)]),), "mask": (torch.ones(1, len(sequence)).bool(),)}
    with torch.no_grad():
        logits = module(steps, *second[entry.takes])
    return np.asarray(logits[0].double().softmax(-1))


def page(facts: dict[str, Any], rows: Sequence[Judged]) -> str:
    """The counts, and the table of all modules."""
    counts = Counter(row.outcome for row in rows)
    how = (
        f"`python -m benchmarks.third_party`: {len(rows)} modules of {len({row.library for row in rows})} libraries, "
        "with random weights, between a dense layer and a mean over the steps. One that takes the steps alone is "
        f"mended, one with lengths or a mask exported. Then {len(LENGTHS)} sequences each of ordinary values and of "
        f"{len(KINDS)} kinds of raw ones ({', '.join(KINDS)}), of {LENGTHS[0]} to {LENGTHS[-1]} steps, run in "
        "batches, and each probability is compared with the module's own, alone and unpadded (at most "
        f"{ALLOWED:g} apart, or what a few ulps of the values explain)."
    )
    outcomes = ("mended and true", "sound and true", "refused", "wrong", "misleading")
    summary = "; ".join(f"{outcome}: {counts[outcome]}" for outcome in outcomes) + "."
    heads = ("library", "module", "outcome", "difference", "ill-conditioned at", "why it is refused")
    return pages.page(facts, "Modules of other libraries", how, summary, pages.table(heads, map(cells, rows)))


def cells(row: Judged) -> tuple[str, ...]:
    """One line of the table."""
    apart = "" if row.difference is None else f"{row.difference:.1e}"
    said = row.said.replace("|", "\\|") if row.difference is None else ""
    if len(said) > LONGEST_REASON:
        said = said[:LONGEST_REASON] + " ..."  # --json has all of it
    return row.library, row.module, row.outcome, apart, ", ".join(row.ill_conditioned), said


@click.command(cls=Command)
@click.option("--only", default="", help="Only the modules in whose library or name this word is.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Modules judged at the same time.")
@output.as_json_or_page(PAGE)
def main(only: str, jobs: int, as_json: bool, out: Path | None) -> None:
    """Mends or exports modules of other libraries, and compares each with itself."""
    facts = machine.facts()
    chosen = [
        place
        for place, entry in enumerate(THIRD_PARTY)
        if only in f"{entry.library} {entry.name}" and entry.is_installed
    ]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        judged = pool.map(judged_at, chosen)
        rows = list(track(judged, "modules judged", total=len(chosen), console=Console(stderr=True)))
    output.tell(page(facts, rows), [asdict(row) for row in rows], as_json=as_json, out=out)


if __name__ == "__main__":
    main()

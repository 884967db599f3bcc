"""Which operators lose bits in a batch, and what their rewrites keep and cost. `python -m benchmarks.steady_bits`.

Three tables: operators of `lengthwise_export.steady_bits`, each in a small graph; the sound models of the gallery; and
its models without lengths after `--mend`.
A sequence's bits are compared batched and unbatched, before and after an export. Times are taken in turns, one
run of each graph after the other; the table shows the median of their ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
from onnx import ModelProto
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.exported_models import ROWS, Model, beside_alone, models, one_quiet_thread
from benchmarks.mending import options_of
from lengthwise.commands.command import Command
from lengthwise.errors import LengthwiseError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import draw
from lengthwise_export.errors import ExportError
from lengthwise_export.exporting.candidate import from_mend
from lengthwise_export.mending.mend_target import mend_target
from lengthwise_export.options import ExportOptions
from lengthwise_export.steady_bits.rewriting import first_loss, largest_difference, with_steady_bits
from lengthwise_export.targets import targets
from tests.gallery.blind_index import BLIND
from tests.gallery.index import Exhibit
from tests.support import operator_forms

PAGE = pages.RESULTS / "steady_bits.md"
LONGEST: Final = 100
MAX_LENGTH: Final = 200
"""The max length that the models are verified at: some have a table of positions that is not much longer."""
TURNS: Final = 60
SHAPES: Final = ((1, 20), (16, 100))
"""Rows and steps of the batches that are timed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One graph before and after the rewrite."""

    name: str  # of the operator's form, or of the model
    sequences: int = 0  # how many were answered
    before: int = 0  # how many of them got the same bits batched and unbatched
    lost_at: str | None = None  # the first operator that loses bits
    rewritten: tuple[str, ...] = ()  # the operators that were rewritten, by type
    after: int = 0  # how many get the same bits after the rewrite
    moved: float = 0.0  # the largest difference of an answer before and after, in units of max(1, its largest value)
    times: tuple[float, ...] = ()  # the time after the rewrite as a share of the time before, for each of `SHAPES`
    refused: str | None = None  # why there is no graph


def compare(name: str, graph: ModelProto, manifest: Manifest, count: int, shortest: int = 1) -> Comparison:
    """Answers `count` sequences batched and unbatched, before and after the rewrite, and times both."""
    after, rewritten = with_steady_bits(graph, manifest)
    longest = min(LONGEST, manifest.max_length)
    lengths = np.random.default_rng(0).integers(shortest, longest + 1, size=count).tolist()
    sequences = draw(manifest, lengths, seed=1)
    sessions = [Session(each.SerializeToString(), manifest) for each in (graph, after)]
    same = [beside_alone(session, sequences)[2] for session in sessions]
    loss = None if same[0] == count else first_loss(graph, manifest)
    return Comparison(
        name,
        sequences=count,
        before=same[0],
        lost_at=None if loss is None else loss.kind,
        rewritten=tuple(dict.fromkeys(one.kind for one in rewritten)),
        after=same[1],
        moved=largest_difference(graph, after, manifest) if rewritten else 0.0,
        times=tuple(_share_of_time(sessions, manifest, *shape) for shape in SHAPES) if rewritten else (),
    )


def _share_of_time(sessions: Sequence[Session], manifest: Manifest, rows: int, steps: int) -> float:
    """The time of the second session's run as a share of the first's, in turns."""
    batch = pad(draw(manifest, [steps] * rows, seed=2))

    def timed(session: Session) -> float:
        start = time.perf_counter()
        session.run(batch)
        return time.perf_counter() - start

    for session in sessions:
        timed(session)
    turns = [[timed(session) for session in sessions] for _ in range(TURNS)]
    return median(after / before for before, after in turns)


def operators(only: str = "") -> Iterator[tuple[str, Callable[[int], Comparison]]]:
    """The operators' forms whose names contain a word, with what measures each."""
    for name, form in operator_forms.FORMS.items():
        if only in name:
            graph = form.graph
            yield name, lambda count, name=name, graph=graph: compare(name, graph, operator_forms.MANIFEST, count)


def gallery(only: str = "") -> Iterator[tuple[str, Callable[[int], Comparison]]]:
    """The gallery's sound models whose names contain a word, with what measures each."""
    for model in models(only):
        if not model.built_in:
            yield model.name, lambda count, model=model: _of_gallery(model, count)


def _of_gallery(model: Model, count: int) -> Comparison:
    try:
        graph = model.build()
    except ExportError as error:
        return Comparison(model.name, refused=str(error).split("\n")[0].rpartition("`: ")[2].split(". ")[0])
    manifest = model.manifest.model_copy(update={"max_length": MAX_LENGTH})
    return compare(model.name, graph, manifest, count, model.shortest)


def mended(only: str = "") -> Iterator[tuple[str, Callable[[int], Comparison]]]:
    """The gallery's models without lengths whose names contain a word, with what measures each after its mend."""
    for exhibit in BLIND:
        if only in str(exhibit):
            yield str(exhibit), lambda count, exhibit=exhibit: _mended(exhibit, count)


def _mended(exhibit: Exhibit, count: int) -> Comparison:
    given = exhibit.target if exhibit.is_torch else exhibit.make()
    target = targets.read(given, options_of(exhibit), blind=True)
    proved = mend_target(target, max_length=MAX_LENGTH)
    try:
        candidate = from_mend(proved, ExportOptions(max_length=MAX_LENGTH))
    except LengthwiseError as error:
        return Comparison(str(exhibit), refused=str(error))
    manifest = candidate.manifest
    return compare(str(exhibit), candidate.build(manifest), manifest, count, proved.fix.min_length)


def page(facts: dict[str, Any], tables: Mapping[str, Sequence[Comparison]]) -> str:
    """A table of operators, one of sound models and one of mended models, or some of them."""
    timed = " and ".join(f"{rows} x {steps}" for rows, steps in SHAPES)
    how = (
        f"`python -m benchmarks.steady_bits`: sequences of 1 to {LONGEST} steps that get the same bits in batches of "
        f"{ROWS} as unbatched, before and after an export; the largest difference of an answer before and "
        f"after, in units of max(1, its largest value); and the time after as a share of the time before, for {timed} "
        "steps."
    )
    last = ("the same bits", "rewritten", "then", "changed by", "time")
    parts = []
    for what, rows in tables.items():
        if what == "operators":
            table = pages.table(("operator", *last), [_cells(one, one.name) for one in rows])
        else:
            kept = [
                one.name for one in rows if one.refused is None and not one.rewritten and one.before == one.sequences
            ]
            lines = [_cells(one, one.name, one.lost_at or "") for one in rows if one.name not in kept]
            table = pages.table(("model", "bits are lost first at", *last), lines)
            table += f"\n\nAll bits are kept, without a rewrite, by {', '.join(kept)}." if kept else ""
        parts += [f"## {what.capitalize()}", table]
    return pages.page(facts, "The same bits in every batch", how, *parts)


def _cells(one: Comparison, *first: str) -> tuple[str, ...]:
    if one.refused is not None:
        return (*first[:1], f"no graph: {one.refused}", *[""] * 5)
    return (
        *first,
        _share(one.before, one.sequences),
        ", ".join(one.rewritten),
        _share(one.after, one.sequences) if one.rewritten else "",
        f"{one.moved:.2g}" if one.rewritten else "",
        ", ".join(f"{share:.2f}" for share in one.times),
    )


def _share(count: int, of: int) -> str:
    return "all" if count == of else f"{count:,} of {of:,}"


TABLES: Final = {"operators": operators, "sound models": gallery, "mended models": mended}
"""What each table measures."""


@click.command(cls=Command)
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Sequences a graph.")
@click.option("--only", default="", help="Operators and models whose name contains this.")
@click.option("--table", "tables_named", type=click.Choice([*TABLES]), multiple=True, help="[default: all]")
@output.as_json_or_page(PAGE)
def main(count: int, only: str, tables_named: tuple[str, ...], as_json: bool, out: Path | None) -> None:
    """Measures which operators and models lose bits in a batch, and what their rewrites keep and cost."""
    one_quiet_thread()
    facts = machine.facts()
    console = Console(stderr=True)
    tables = {
        what: [measured(count) for _, measured in track(list(chosen(only)), f"{what} measured", console=console)]
        for what, chosen in TABLES.items()
        if what in (tables_named or TABLES)
    }
    text = page(facts, tables)
    output.tell(text, {name: [asdict(one) for one in rows] for name, rows in tables.items()}, as_json=as_json, out=out)


if __name__ == "__main__":
    main()

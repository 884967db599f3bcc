"""Models without lengths, before and after their mend. `python -m benchmarks.mending`.

The models are those of the gallery that users have most, as they write them, with random weights. Before: how far an
answer moves with 10, 50 and 200 % of zeros behind the sequence. After: how far the mended graph is from the original
alone, over ragged sequences in batches with zeros and junk as padding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.padding import pad
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.mending.mend_target import ProvedMend, mend_target
from lengthwise_export.mending.proof import prove
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.options import OPSET, TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import Target
from tests.gallery.blind_index import TORCH_BLIND
from tests.gallery.index import Exhibit

PAGE = pages.RESULTS / "mending.md"
MODELS: Final = {
    "inception_time": "InceptionTime",
    "resnet_wang": "ResNet",
    "fcn_wang": "FCN",
    "lstm_fcn": "LSTM-FCN",
    "tcn_locuslab": "TCN",
    "xception_time": "XceptionTime",
    "tst_pooled": "pooled transformer",
    "squeeze_excite": "squeeze-and-excite",
    "bilstm_last_output": "BiLSTM, last output",
    "attention_unmasked": "attention without a mask",
    "bert_small": "small BERT",
}
SHARES: Final = (0.1, 0.5, 2.0)
MOVED_LENGTHS: Final = (10, 20, 30, 40)
"""Lengths of the sequences that are padded before the mend."""
TIMED_ROWS, TIMED_WIDTH = 16, 64
LONGEST: Final = 256


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one model. Differences are in units of max(1, an answer's largest value)."""

    model: str
    before: tuple[float, ...]  # how far an answer of the original moves, for each share of padding
    after: float | None = None  # the largest difference of the mended graph from the original alone
    sequences: int = 0  # the number of sequences of that comparison
    bits: bool = False  # whether the mended graph gives a sequence the same bits alone and in every batch
    operators: int = 0  # the number of operators that were changed
    # the mended graph's time for a batch without padding, as a multiple of the original graph's, less 1
    time_added: float | None = None
    seconds: float = 0.0  # the time of the mend, its proof and its check
    refused: str | None = None  # why it is not mended; None if it is


def options_of(exhibit: Exhibit) -> TargetOptions:
    """What a user says about this model."""
    return TargetOptions(
        features=exhibit.features,
        vocabulary=exhibit.vocabulary,
        output=None if exhibit.output is None else str(exhibit.output),
        time_first=exhibit.time_first,
        channels_first=exhibit.channels_first,
    )


def measure(exhibit: Exhibit, sequences: int) -> Figures:
    """Mends one model, and measures it before and after."""
    target = targets.read(exhibit.target, options_of(exhibit), blind=True)
    begun = time.perf_counter()
    proved = mend_target(target, max_length=LONGEST)
    seconds = time.perf_counter() - begun
    before = tuple(moved(target, share) for share in SHARES)
    if proved.target is None:
        operator = "" if proved.fix.operator is None else f"{proved.fix.operator}: "
        return Figures(MODELS[exhibit.name], before, seconds=seconds, refused=f"{operator}{proved.fix.reason}")
    fix = proved.fix
    assert proved.report is not None
    proof = prove(
        target.subject,
        proved.target.subject,
        max_length=proved.report.max_length or LONGEST,
        min_length=fix.min_length,
        sequences=sequences,
        seed=1,
    )
    return Figures(
        MODELS[exhibit.name],
        before,
        after=proof.difference,
        sequences=proof.sequences,
        bits=proof.bits,
        operators=len(fix.changes),
        time_added=time_added(proved, target),
        seconds=seconds,
        refused=proof.wrong,
    )


def moved(target: Target, share: float) -> float:
    """How far an answer moves with that much padding: the largest of several sequences."""
    sampler = Sampler(target.steps, seed=0)
    apart = []
    for length in MOVED_LENGTHS:
        steps = sampler.sequence(length)
        alone, padded = (
            target.subject.answer(pad([steps], width=width)).logits[0]
            for width in (length, length + round(length * share))
        )
        apart.append(relative_difference(alone, padded[:length] if padded.ndim == 2 else padded))
    return max(apart)


def time_added(proved: ProvedMend, target: Target) -> float:
    """The median over turns of the mended graph's time beside the original graph's, less 1."""
    assert proved.target is not None
    graph = target.build("model", OPSET)
    external = ExternalGraph(graph, target.steps, target.names, len(target.labels), target.per_step, blind=True)
    return beside(OnnxSubject(external), proved.target.subject) - 1


def beside(before: Subject, after: Subject, turns: int = 31) -> float:
    """The median ratio of two models' times for the same batch, measured in turns."""
    sampler = Sampler(before.steps, seed=0)
    batch = pad([sampler.sequence(TIMED_WIDTH) for _ in range(TIMED_ROWS)])
    ratios = []
    for turn in range(turns + 3):
        taken = {}
        for model in (before, after) if turn % 2 else (after, before):
            begun = time.perf_counter()
            model.answer(batch)
            taken[id(model)] = time.perf_counter() - begun
        ratios.append(taken[id(after)] / taken[id(before)])
    return float(np.median(ratios[3:]))


def page(facts: dict[str, Any], rows: Sequence[Figures]) -> str:
    """The table of all models."""
    how = (
        f"`python -m benchmarks.mending`: the largest difference of an answer, in units of max(1, its largest value). "
        f"Before: with zeros behind a sequence of {MOVED_LENGTHS[0]} to {MOVED_LENGTHS[-1]} steps, from the same "
        f"sequence alone. After: the mended graph in batches, from the original alone, over sequences of up to "
        f"{LONGEST} steps. Time added: for {TIMED_ROWS} rows of {TIMED_WIDTH} steps without padding, on one thread."
    )
    heads = ("model", *(f"padded by {share:.0%}" for share in SHARES), "mended", "sequences", "the same bits")
    return pages.page(facts, "Mending", how, pages.table((*heads, "operators changed", "time added"), map(cells, rows)))


def cells(row: Figures) -> tuple[str, ...]:
    """One line of the table."""
    before = tuple(f"{value:.2g}" for value in row.before)
    if row.after is None or row.time_added is None or row.refused is not None:
        return row.model, *before, f"not mended: {row.refused}", "", "", "", ""
    bits = "yes" if row.bits else "no"
    return (
        row.model,
        *before,
        f"{row.after:.1e}",
        f"{row.sequences:,}",
        bits,
        str(row.operators),
        f"{row.time_added:+.0%}",
    )


@click.command(cls=Command)
@click.option("--only", default="", help="Only the models whose name in the gallery contains this word.")
@click.option("--sequences", default=1000, show_default=True, type=click.IntRange(1), help="Sequences of a proof.")
@output.as_json_or_page(PAGE)
def main(only: str, sequences: int, as_json: bool, out: Path | None) -> None:
    """Mends models without lengths, and compares each with its original alone."""
    torch.set_num_threads(1)
    facts = machine.facts()
    by_name = {exhibit.name: exhibit for exhibit in TORCH_BLIND}
    chosen = [by_name[name] for name in MODELS if only in name]
    rows = [measure(exhibit, sequences) for exhibit in track(chosen, "models mended", console=Console(stderr=True))]
    output.tell(page(facts, rows), [asdict(row) for row in rows], as_json=as_json, out=out)


if __name__ == "__main__":
    main()

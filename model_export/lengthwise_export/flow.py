"""The flow of a check and of an export: from a target to a report or a model directory.

The command line and the Python interface both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lengthwise.decoding import dataset
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Precision
from lengthwise_export.checking.check import ProgressCallback
from lengthwise_export.checking.check import check as judge
from lengthwise_export.checking.verdict import Report
from lengthwise_export.errors import UncheckableError
from lengthwise_export.options import OPSET, TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import Target

if TYPE_CHECKING:  # what is imported here and below when it is needed brings torch and onnxruntime along
    from lengthwise_export.candidate import ScoreKind
    from lengthwise_export.pipeline import PublishedModel

Tell = Callable[[str], None]
"""Receives a line that begins with `warning: ` or `notice: `, or describes what was rewritten."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of an export, besides those that describe the target; see `lengthwise_export.export`."""

    multi_label: bool = False
    threshold: float | None = None
    scores: ScoreKind | None = None
    max_length: int | None = None
    opset: int = OPSET
    precision: Precision = "fp32"
    data: str | None = None
    tolerance: float | None = None
    rewrite: bool = False
    seed: int = 0


def check(
    target: targets.Given,
    options: TargetOptions,
    *,
    max_length: int,
    tolerance: float,
    seed: int,
    progress: ProgressCallback,
) -> tuple[Report, Target | None]:
    """Loads a target and checks it.

    Returns:
        The report, with the verdict `uncheckable` if the target cannot be checked; and the target, or None if it could
        not be loaded.

    Raises:
        ConfigurationError: The target is unknown or cannot be loaded, or an option contradicts it.
    """
    read = None
    try:
        read = targets.read(target, options)
        with one_torch_thread() if read.framework else nullcontext():
            report = judge(read.subject, max_length=max_length, tolerance=tolerance, seed=seed, progress=progress)
            if options.missing == "handled":
                from lengthwise_export import missing_values

                missing_values.require(read, max_length=report.max_length or max_length, seed=seed)
    except UncheckableError as error:
        report = Report("uncheckable", str(error))
    return report, read


def export(
    target: targets.Given, out: Path, options: TargetOptions, chosen: ExportOptions, tell: Tell
) -> PublishedModel:
    """Loads a target, builds its graph, verifies it and publishes it.

    Args:
        target: What to export.
        out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
        options: The options that describe the target.
        chosen: The options of the export.
        tell: Called with each warning, notice or remark as soon as it is known.

    Raises:
        LengthwiseError: As `targets.read`, `candidate.from_spec`, `candidate.from_target` and `pipeline.export` do.
    """
    with one_torch_thread():
        return _exported(target, out, options, chosen, tell)


def _exported(
    target: targets.Given, out: Path, options: TargetOptions, chosen: ExportOptions, tell: Tell
) -> PublishedModel:
    from lengthwise_export import candidate, pipeline
    from lengthwise_export.architecture import trained

    read = targets.read(target, options)
    for notice in read.notices:
        tell(f"warning: {notice}")
    records = None if chosen.data is None else _labelled(chosen.data, read.steps.kind, to=chosen.precision)
    if read.spec is not None:
        source = candidate.from_spec(
            read.spec,
            read.checkpoint,
            max_length=chosen.max_length,
            multi_label=chosen.multi_label,
            opset=chosen.opset,
            tolerance=chosen.tolerance,
        )
    else:
        source = candidate.from_target(
            read,
            max_length=chosen.max_length or candidate.MAX_LENGTH,
            multi_label=chosen.multi_label,
            scores=chosen.scores,
            missing=options.missing,
            opset=chosen.opset,
            tolerance=chosen.tolerance or 0.0,
            seed=chosen.seed,
        )
    if chosen.threshold is not None:
        source = candidate.with_threshold(source, chosen.threshold)
    for notice in source.notices:
        tell(f"notice: {notice}")
    weights = source.manifest.made.get("weights")
    if weights is not None:
        tell(f"warning: no --checkpoint: the weights are {weights}")
    if chosen.rewrite:
        source = candidate.with_rewrites(source, tell)
    published = pipeline.export(source, out, to=chosen.precision, data=records, seed=chosen.seed)
    for notice in published.notices:
        tell(f"notice: {notice}")
    if published.manifest.missing != source.manifest.missing:
        tell(f"warning: missing values are refused at {chosen.precision}: a quantised layer cannot take NaN")
    if published.sample is not None:
        expected = (
            None if read.spec is None or read.checkpoint is None else trained.read_record(read.checkpoint).expected
        )
        for notice in published.sample.notices(expected):
            tell(f"warning: {notice}")
    return published


def records_of(
    data: str, kind: dataset.StepKind, check: Callable[[dataset.Record], object] = lambda _record: None
) -> list[dataset.Record]:
    """The records of a file; each of them is passed to `check`.

    Raises:
        ConfigurationError: The file has no record, or a record cannot be read.
    """
    records = list(dataset.read(dataset.locate(data), kind, check))
    if not records:
        raise ConfigurationError(f"{data}: there is no record in it")
    return records


def _labelled(data: str, kind: dataset.StepKind, *, to: Precision) -> list[dataset.Record]:
    """The records of --data.

    Raises:
        ConfigurationError: The file has no record, or no record has a label and the precision is fp32.
    """
    records = records_of(data, kind)
    if to == "fp32" and all(record.label is None for record in records):
        raise ConfigurationError(
            f"{data}: no record has a label, so there is nothing to compare answers with; without labels, --data "
            "compares --precision fp16 or int8 with fp32"
        )
    return records


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Makes torch compute in one thread during the block, so that the order of sums is fixed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

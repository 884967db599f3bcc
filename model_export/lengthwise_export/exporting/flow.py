"""The flow of a check and of an export: from a target to a report or a model directory.

The command line and the Python interface both use it.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lengthwise.decoding import dataset
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Precision
from lengthwise_export.checking.check import ProgressCallback
from lengthwise_export.checking.check import check as judge
from lengthwise_export.checking.verdict import Report
from lengthwise_export.errors import UncheckableError
from lengthwise_export.mending.fix import FixProposal
from lengthwise_export.options import CheckOptions, ExportOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import Target

if TYPE_CHECKING:  # what is imported here and below when it is needed brings torch and onnxruntime along
    from lengthwise_export.exporting.candidate import Candidate
    from lengthwise_export.exporting.pipeline import PublishedModel

NOTHING_TO_MEND: Final = "nothing to mend: padding does not change an answer"

Tell = Callable[[str], None]
"""Receives a line that begins with `warning: ` or `notice: `, or describes what was rewritten."""


@dataclass(frozen=True, slots=True)
class CheckedTarget:
    """The result of a check.

    Attributes:
        report: The report; its verdict is `uncheckable` if the target cannot be checked.
        target: The target; None if it could not be loaded.
        fix: What a mend would change; None if that was not asked.
    """

    report: Report
    target: Target | None
    fix: FixProposal | None = None


def check(
    target: targets.Given,
    options: CheckOptions,
) -> CheckedTarget:
    """Loads a target and checks it.

    Args:
        target: What to check.
        options: The options. With `suggest` a target without lengths is loaded, too.

    Raises:
        ConfigurationError: The target is unknown or cannot be loaded, or an option contradicts it.
    """
    progress = options.progress or (lambda _: None)
    linecache.checkcache()  # a report shows lines, and in a notebook a file may have changed since
    read = None
    try:
        with one_torch_thread() if targets.may_be_torch(target) else nullcontext():
            read = targets.read(target, options, blind=options.suggest)
        with one_torch_thread() if read.framework else nullcontext():
            report = judge(
                read.subject,
                max_length=options.max_length,
                min_length=1 if read.manifest is None else read.manifest.min_length,
                tolerance=options.tolerance,
                seed=options.seed,
                progress=progress,
            )
            if options.missing == "handled" and not read.blind:
                from lengthwise_export.exporting import missing_values

                missing_values.require(
                    read,
                    min_length=report.min_length,
                    max_length=report.max_length or options.max_length,
                    seed=options.seed,
                )
    except UncheckableError as error:
        report = Report("uncheckable", str(error))
    if not options.suggest:
        return CheckedTarget(report, read)
    if read is None or (report.verdict == "uncheckable" and not read.blind):
        return CheckedTarget(report, read, FixProposal(False, report.reason))
    if not read.blind and report.verdict != "leak":
        return CheckedTarget(report, read, FixProposal(True, NOTHING_TO_MEND))
    with one_torch_thread() if read.framework else nullcontext():
        from lengthwise_export.mending.mend_target import mend_target

        proved = mend_target(
            read.alone or read,
            max_length=options.max_length,
            tolerance=options.tolerance,
            seed=options.seed,
            progress=progress,
        )
    return CheckedTarget(_without_lengths(report) if read.blind else report, read, proved.fix)


def _without_lengths(report: Report) -> Report:
    """The report on a target that takes no lengths: it cannot be called sound, whatever the trials say."""
    if report.verdict == "uncheckable":
        return report
    said = "it takes neither lengths nor a mask, so it cannot know where a sequence ends; run padded"
    return replace(report, verdict="uncheckable", reason=f"{said}, {report.reason}")


def export(
    target: targets.Given,
    out: Path,
    options: ExportOptions,
    tell: Tell,
) -> PublishedModel:
    """Loads a target, builds its graph, verifies it and publishes it.

    Args:
        target: What to export.
        out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
        options: The options.
        tell: Called with each warning, notice or remark as soon as it is known.

    Raises:
        LengthwiseError: As `targets.read`, `candidate.from_spec`, `candidate.from_target`,
            `mended_candidate.from_mend` and `pipeline.export` do.
    """
    with one_torch_thread():
        return _exported(target, out, options, tell, options.progress or (lambda _: None))


def _exported(
    target: targets.Given,
    out: Path,
    options: ExportOptions,
    tell: Tell,
    progress: ProgressCallback,
) -> PublishedModel:
    from lengthwise_export.architecture import trained
    from lengthwise_export.exporting import candidate, pipeline

    if options.must_keep_accuracy is not None and options.data is None:
        raise ConfigurationError("--must-keep-accuracy: the accuracy is measured on labelled sequences: pass --data")
    read = targets.read(target, options, blind=options.mend)
    for notice in read.notices:
        tell(f"warning: {notice}")
    records = (
        None if options.data is None else _labelled(os.fspath(options.data), read.steps.kind, to=options.precision)
    )
    if read.spec is not None:
        if read.spec.model.kind == "rocket" and options.precision != "fp32":
            raise ConfigurationError(
                f"--precision {options.precision}: a rocket model compares sums that are exact in float32 "
                "only: leave --precision out"
            )
        source = candidate.from_spec(
            read.spec,
            read.checkpoint,
            max_length=options.max_length,
            multi_label=options.multi_label,
            opset=options.opset,
            tolerance=options.tolerance,
        )
        if options.mend:
            tell(f"{NOTHING_TO_MEND}: the built-in architecture takes lengths")
    else:
        source = _of_users_model(read, options, tell, progress)
    if options.threshold is not None:
        source = candidate.with_threshold(source, options.threshold)
    for notice in source.notices:
        tell(f"notice: {notice}")
    weights = source.manifest.made.get("weights")
    if weights is not None:
        tell(f"warning: no --checkpoint: the weights are {weights}")
    if options.rewrite:
        source = candidate.with_rewrites(source, tell)
    progress("building, verifying and publishing the graph")
    published = pipeline.export(
        source,
        out,
        to=options.precision,
        data=records,
        must_keep_accuracy=options.must_keep_accuracy,
        seed=options.seed,
    )
    for notice in published.notices:
        tell(f"notice: {notice}")
    if published.manifest.missing != source.manifest.missing:
        tell(f"warning: missing values are refused at {options.precision}: a quantised layer cannot take NaN")
    if published.sample is not None:
        record = trained.TrainingRecord()
        if read.spec is not None and read.checkpoint is not None:
            record = trained.read_record(read.checkpoint)
        for notice in published.sample.notices(record.expected, record.expected_answers):
            tell(f"warning: {notice}")
    return published


def _of_users_model(read: Target, options: ExportOptions, tell: Tell, progress: ProgressCallback) -> Candidate:
    """The candidate of a user's model; mended if that is asked and padding reaches its answers."""
    from lengthwise_export.exporting import candidate

    longest, tolerance = options.max_length or candidate.MAX_LENGTH, options.tolerance or 0.0
    said: dict[str, Any] = {
        "max_length": longest,
        "multi_label": options.multi_label,
        "scores": options.scores,
        "missing": options.missing,
        "opset": options.opset,
        "tolerance": tolerance,
        "seed": options.seed,
    }
    if not options.mend or read.kind == "directory":
        return candidate.from_target(read, **said)
    if not read.blind:
        report = judge(read.subject, max_length=longest, tolerance=tolerance, seed=options.seed, progress=progress)
        if report.verdict != "leak":
            source = candidate.from_target(read, report=report, **said)
            tell(NOTHING_TO_MEND)
            return source
    from lengthwise_export.mending import mended_candidate
    from lengthwise_export.mending.fix_report import summary
    from lengthwise_export.mending.mend_target import mend_target

    proved = mend_target(
        read.alone or read,
        max_length=longest,
        opset=options.opset,
        tolerance=tolerance,
        seed=options.seed,
        progress=progress,
    )
    source = mended_candidate.from_mend(proved, **said)
    tell(summary(proved.fix))
    return source


def _labelled(data: str, kind: dataset.StepKind, *, to: Precision) -> list[dataset.Record]:
    """The records of --data.

    Raises:
        ConfigurationError: The file has no record, or no record has a label and the precision is fp32.
    """
    records = dataset.read_all(data, kind)
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

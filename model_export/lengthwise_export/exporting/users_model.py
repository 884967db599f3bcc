"""The candidate of a user's model: checked first, and mended if that is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise.padding import PaddedBatch, pad, step_mask
from lengthwise.runtime.manifest import Manifest, Task, digest
from lengthwise.verification.measurement import BatchLogits
from lengthwise.verification.random_sequences import ROUNDING
from lengthwise_export.checking.check import check as run_check
from lengthwise_export.checking.limits import runs
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.checking.verdict import Report, past_a_fill
from lengthwise_export.errors import ExportError, RunError, UnmendableError
from lengthwise_export.exporting import steps
from lengthwise_export.exporting.candidate import PLAIN, Candidate, Tell
from lengthwise_export.exporting.missing_values import contains_isnan
from lengthwise_export.options import OPSET, ExportOptions
from lengthwise_export.targets.target import ScoreKind, Target
from lengthwise_export.tracing.graph import without_exporter_metadata

if TYPE_CHECKING:
    from lengthwise_export.mending.mend_target import ProvedMend

MAX_LENGTH: Final = 1024
"""The longest accepted sequence if the user does not say it."""


def of_users_model(read: Target, options: ExportOptions, tell: Tell) -> Candidate:
    """The candidate of a user's model; mended, if that is asked and padding reaches its answers."""
    if not options.mend or read.kind == "directory":
        return from_target(read, options)
    longest = options.max_length or MAX_LENGTH
    if not read.blind:
        report = run_check(
            read.subject,
            max_length=longest,
            tolerance=options.tolerance or 0.0,
            seed=options.seed,
            progress=options.progress,
        )
        if report.verdict != "leak":
            source = from_target(read, options, report=report)
            tell(steps.NOTHING_TO_MEND)
            return source
    source = from_mend(steps.mended(read, options, longest), options)
    assert source.mend is not None
    tell(steps.summary(source.mend))
    return source


def from_target(
    target: Target, options: ExportOptions = PLAIN, *, min_length: int = 1, report: Report | None = None
) -> Candidate:
    """A user's torch module or ONNX file, after `check` found no leak in it.

    `options`: The options of the export. The longest sequence is reduced if the model raises at that length.
    """
    if target.kind == "directory":
        raise ConfigurationError(f"{target.text} is published already: serve it, or copy it")
    max_length, tolerance = options.max_length or MAX_LENGTH, options.tolerance or 0.0
    if options.missing == "handled" and target.steps.kind == "tokens":
        raise ConfigurationError("--missing handled: a sequence of token ids has no missing values")
    if report is None:
        report = run_check(
            target.subject, max_length=max_length, min_length=min_length, tolerance=tolerance, seed=options.seed
        )
    _require_sound(report, target)
    task = _task(target, multi_label=options.multi_label)
    least, longest = report.min_length, report.max_length or max_length
    sampler = Sampler(target.steps, options.seed)
    lengths = [min(least - 1 + length, max(longest, 5)) for length in (5, 3, 2, 1)]
    batch = pad([sampler.sequence(length) for length in lengths], width=min(least - 1 + 8, max(longest, 5)))
    answer = target.subject.answer(batch)
    names = target.names
    if names.attention is None and target.kind in ("module", "keras") and _is_attention(answer, batch):
        names = names.model_copy(update={"attention": "attention"})
    manifest = Manifest(
        name="model",
        version=1,
        input=target.steps,
        labels=target.labels,
        task=task,
        scores=options.scores or target.scores or _found_scores(answer, batch, task),
        min_length=least,
        max_length=longest,
        missing=options.missing or "refuse",
        graph=names,
        width_multiple=_width_multiple(target.subject, sampler, least, longest),
        made=made_from(target),
    )

    def build(named: Manifest) -> onnx.ModelProto:
        proto = target.build(named.name, options.opset)
        return without_exporter_metadata(proto) if target.kind in ("module", "keras") else proto

    def reference(batch: PaddedBatch) -> BatchLogits:
        return target.subject.answer(batch).logits

    notices = tuple(_notices(target, options, report, batch))

    def exact(batch: PaddedBatch) -> BatchLogits | None:
        answer = target.subject.answer_in_float64(batch)
        return None if answer is None else answer.logits

    if not target.framework:
        return Candidate(manifest, build, None, tolerance, notices)
    return Candidate(manifest, build, reference, tolerance, notices, exact=exact)


def _notices(target: Target, options: ExportOptions, report: Report, batch: PaddedBatch) -> Iterator[str]:
    if report.min_length > 1:
        yield f"sequences of fewer than {report.min_length} steps will be refused (min_length in the manifest)"
    if options.labels is None and target.labels == tuple(map(str, range(len(target.labels)))):
        yield f"the labels are {', '.join(target.labels)}: --labels gives the classes names"
    if options.missing is None and _may_take_nan(target, batch):
        yield _MAY_TAKE_NAN
    if (filled := past_a_fill(report)) is not None:
        yield filled


def from_mend(proved: ProvedMend, options: ExportOptions = PLAIN) -> Candidate:
    """A user's model after its mend. Its reference is the original, with each sequence alone and unpadded."""
    original, fix = proved.original, proved.fix
    if proved.target is None:
        if fix.operator is not None:
            raise UnmendableError(fix.operator, fix.reason, fix.location)
        if fix.proof is not None:
            raise VerificationError(f"{original.text}: {fix.reason}, so nothing was published")
        raise ExportError("mend", fix.reason)
    source = from_target(proved.target, options, report=proved.report)
    allowed = 0.0 if fix.proof is None else fix.proof.tolerance - ROUNDING
    made = made_from(original) | {"mended": proved.operators}
    return replace(
        source,
        manifest=source.manifest.model_copy(update={"made": made}),
        reference=proved.alone,
        exact=proved.exact,
        tolerance=max(source.tolerance or 0.0, allowed),
        notices=(*source.notices, *([fix.notice] if fix.notice is not None else [])),
        mend=fix,
        original=original.subject,
    )


def _require_sound(report: Report, target: Target) -> None:
    if report.verdict == "uncheckable":
        raise ExportError("check", report.reason)
    if report.verdict == "leak":
        begin = f" It begins at {report.leaks[0].operator}." if report.leaks else ""
        check = "lengthwise_export.check" if target.is_object else f"lengthwise check {target.text}"
        raise VerificationError(f"{target.text}: {report.reason}.{begin} `{check}` shows the cause and a fix")


def made_from(target: Target) -> dict[str, str | int | float | None]:
    """How a user's model was made, for the manifest."""
    made: dict[str, str | int | float | None] = {"target": Path(target.text).name, **target.made}
    if target.checkpoint is not None:
        made["checkpoint"] = digest(target.checkpoint)
    elif target.kind == "module" and not target.is_object:
        made["weights"] = "the factory's own"
    return made


def _is_attention(answer: ModelOutput, batch: PaddedBatch) -> bool:
    """Whether the output `attention` holds attention weights: 0 at padding, and 1 in sum."""
    weights = answer.attention
    if weights is None or weights.shape != (batch.rows, batch.width):
        return False
    valid = step_mask(batch.lengths, batch.width)
    sums = np.where(valid, weights, 0).sum(axis=1)
    return not weights[~valid].any() and bool(np.abs(sums - 1).max() <= ROUNDING)


def _width_multiple(subject: Subject, sampler: Sampler, shortest: int, longest: int) -> int:
    """4; or 1 if the model raises at the width to which its longest sequence would be rounded up."""
    rows = [sampler.sequence(longest), sampler.sequence(max(longest - 1, shortest))]
    return 4 if runs(subject, pad(rows, multiple=4)) else 1


def _task(target: Target, *, multi_label: bool) -> Task:
    """The task of a user's model."""
    if multi_label:
        if target.per_step:
            raise ConfigurationError(f"--multi-label: {target.text} answers each step with exactly one class")
        return "multi-label"
    if len(target.labels) == 1:
        fix = "give it at least two classes" if target.per_step else "if it is a yes/no label, pass --multi-label"
        raise ConfigurationError(f"{target.text} has one output, which would always be chosen: {fix}")
    return "per-step" if target.per_step else "single-label"


def _found_scores(answer: ModelOutput, batch: PaddedBatch, task: Task) -> ScoreKind:
    """`probabilities` if all outputs are between 0 and 1 and each row sums to 1, otherwise `logits`."""
    rows = answer.logits[step_mask(batch.lengths, batch.width)] if task == "per-step" else answer.logits
    if not (rows.min() >= 0 and rows.max() <= 1):
        return "logits"
    if task == "multi-label":
        raise ConfigurationError(
            "all outputs are between 0 and 1, so they may be probabilities or logits: pass --scores probabilities, or "
            "--scores logits"
        )
    within = np.abs(rows.sum(axis=1) - 1).max() <= 1e-4
    return "probabilities" if within and rows.shape[1] > 1 else "logits"


_MAY_TAKE_NAN: Final = (
    "missing values will be refused, but the model seems to handle NaN: if it should, pass --missing handled, and the "
    "export verifies it"
)


def _may_take_nan(target: Target, batch: PaddedBatch) -> bool:
    """Whether a model seems to handle NaN: its graph has an IsNaN node, or torch returns finite answers."""
    if batch.steps.ndim == 2:
        return False
    if not target.framework:
        return contains_isnan(target.build("", OPSET))
    steps = batch.steps.copy()
    steps[:, 0] = np.nan
    try:
        logits = target.subject.answer(PaddedBatch(steps, batch.lengths)).logits
    except RunError:
        return False
    valid = step_mask(batch.lengths, batch.width)
    return bool(np.isfinite(logits[valid] if logits.ndim == 3 else logits).all())

"""A model to be exported: how to build its graph, its manifest, and the reference to verify the graph against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
import onnx
import torch

from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise.padding import PaddedBatch, pad, step_mask
from lengthwise.runtime.manifest import Manifest, MissingPolicy, Task, digest
from lengthwise.verification.measurement import ROUNDING, BatchLogits, Reference
from lengthwise_export.architecture import loading, trained
from lengthwise_export.architecture.loading import BuiltInModel
from lengthwise_export.architecture.normalization import Normalize
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.checking.check import check as run_check
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.checking.uncheckable import runs
from lengthwise_export.checking.verdict import Report
from lengthwise_export.errors import ExportError, RunError
from lengthwise_export.exporting.accuracy import UNTRAINED
from lengthwise_export.exporting.missing_values import contains_isnan
from lengthwise_export.mending.fix import FixProposal
from lengthwise_export.options import OPSET
from lengthwise_export.steady_bits.rewriting import with_steady_bits
from lengthwise_export.targets.target import ScoreKind, Target
from lengthwise_export.tracing import graph

MAX_LENGTH = 1024
"""The longest accepted sequence if neither the user nor a spec says it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be exported.

    Attributes:
        manifest: Its manifest without name, version, promises and digests, which `export` adds.
        build: Builds the graph from the manifest with name and version.
        reference: The model in its own framework; None for an ONNX file.
        tolerance: Allowed difference between batched and unbatched answers, beyond rounding; None requires the same
            bits.
        notices: Messages to show to the user.
        mend: What a mend changed in the graph; None if the model was not mended.
        original: The model before its mend; None if it was not mended.
    """

    manifest: Manifest
    build: Callable[[Manifest], onnx.ModelProto]
    reference: Reference | None
    tolerance: float | None = None
    notices: tuple[str, ...] = ()
    mend: FixProposal | None = None
    original: Subject | None = None


def from_spec(
    spec: Spec,
    weights: Path | None,
    *,
    max_length: int | None = None,
    multi_label: bool = False,
    opset: int = OPSET,
    tolerance: float | None = None,
) -> Candidate:
    """A model of the built-in architecture.

    Args:
        spec: The architecture.
        weights: A checkpoint; None for untrained weights.
        max_length: The option `--max-length`; must equal that of the spec.
        multi_label: The option `--multi-label`; must agree with the task of the spec.
        opset: The opset of the graph.
        tolerance: See `Candidate`.

    Raises:
        CheckpointError: The weights do not belong to this spec.
        ConfigurationError: `max_length` or `multi_label` contradicts the spec.
    """
    if max_length not in (None, spec.input.max_length):
        raise ConfigurationError(f"--max-length {max_length} contradicts input.max_length = {spec.input.max_length}")
    if multi_label and spec.output.task != "multi-label":
        raise ConfigurationError(f"--multi-label contradicts output.task = '{spec.output.task}'")
    spec = spec.concrete() if weights is None else trained.settled(spec, weights)
    model, _ = loading.load(spec, weights)
    made: dict[str, str | int | float | None] = {"architecture": "built-in"}
    profile = None
    if weights is None:
        made["weights"] = UNTRAINED
    else:
        made["checkpoint"] = digest(weights)
        profile = trained.profile(weights)
        record = trained.read_record(weights)
        known = {"temperature": record.temperature, "trained": record.trained}
        made |= {name: value for name, value in known.items() if value is not None}
    mean, std = _statistics(model)

    def build(named: Manifest) -> onnx.ModelProto:
        return without_exporter_metadata(
            graph.build(model, named.input, name=named.name, labels=named.labels, opset=opset)
        )

    return Candidate(
        manifest=spec.manifest(name="model", version=1, mean=mean, std=std).model_copy(
            update={"made": made, "training": profile}
        ),
        build=build,
        reference=eager_reference(model),
        tolerance=tolerance,
    )


def from_target(
    target: Target,
    *,
    max_length: int,
    min_length: int = 1,
    multi_label: bool = False,
    scores: ScoreKind | None = None,
    missing: MissingPolicy | None = None,
    opset: int = OPSET,
    tolerance: float = 0.0,
    seed: int = 0,
    report: Report | None = None,
) -> Candidate:
    """A user's torch module or ONNX file, after `check` found no leak in it.

    Args:
        target: The model.
        max_length: The longest sequence to accept; reduced if the model raises at that length.
        min_length: The shortest sequence to accept; raised if the model raises for longer ones.
        multi_label: Whether each class is assigned on its own, so that a sequence may have any number of them.
        scores: Whether the output is logits or probabilities; None to infer it.
        missing: The policy for NaN at valid steps; None for `refuse`.
        opset: The opset of the graph, if one is built.
        tolerance: Allowed difference of an answer, beyond rounding.
        seed: Seed of the check's random sequences.
        report: The report of its check, if it was checked already.

    Raises:
        ConfigurationError: It is a model directory, or the options contradict it.
        VerificationError: The check found a leak.
        ExportError: It cannot be checked.
    """
    if target.kind == "directory":
        raise ConfigurationError(f"{target.text} is published already: serve it, or copy it")
    if missing == "handled" and target.steps.kind == "tokens":
        raise ConfigurationError("--missing handled: a sequence of token ids has no missing values")
    if report is None:
        report = run_check(target.subject, max_length=max_length, min_length=min_length, tolerance=tolerance, seed=seed)
    _require_sound(report, target)
    task = _task(target, multi_label=multi_label)
    least, longest = report.min_length, report.max_length or max_length
    sampler = Sampler(target.steps, seed)
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
        scores=scores or target.scores or _found_scores(answer, batch, task),
        min_length=least,
        max_length=longest,
        missing=missing or "refuse",
        graph=names,
        width_multiple=_width_multiple(target.subject, sampler, least, longest),
        made=made_from(target),
    )

    def build(named: Manifest) -> onnx.ModelProto:
        proto = target.build(named.name, opset)
        return without_exporter_metadata(proto) if target.kind in ("module", "keras") else proto

    def reference(batch: PaddedBatch) -> BatchLogits:
        return target.subject.answer(batch).logits

    notices = (_MAY_TAKE_NAN,) if missing is None and _may_take_nan(target, batch) else ()
    if least > 1:
        notices = (f"sequences of fewer than {least} steps will be refused (min_length in the manifest)", *notices)
    return Candidate(manifest, build, reference if target.framework else None, tolerance, notices)


def with_threshold(source: Candidate, threshold: float) -> Candidate:
    """The same model with another probability from which a class is assigned.

    Raises:
        ConfigurationError: It is not a multi-label model.
    """
    if source.manifest.task != "multi-label":
        raise ConfigurationError(f"--threshold is for multi-label models; this one is {source.manifest.task}")
    return replace(source, manifest=source.manifest.model_copy(update={"threshold": threshold}))


def with_rewrites(source: Candidate, say: Callable[[str], None]) -> Candidate:
    """The same model; its graph is rewritten when it is built, if that makes its bits independent of the batch.

    Args:
        source: A user's model.
        say: Called with what was rewritten, or why nothing was.
    """

    def build(named: Manifest) -> onnx.ModelProto:
        graph, _ = with_steady_bits(source.build(named), named, say)
        return graph

    return replace(source, build=build)


def eager_reference(model: BuiltInModel) -> Reference:
    """A reference that runs the model in torch, with packed sequences."""

    def answer(batch: PaddedBatch) -> BatchLogits:
        with torch.inference_mode():
            logits = model(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).logits
        return cast("BatchLogits", logits.numpy())

    return answer


def without_exporter_metadata(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the exporter's metadata of each node, such as lines of code with their paths.

    So a published graph reveals nothing about the machine that built it, and is the same on every machine.
    """
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.graph.metadata_props[:]
    return proto


def _statistics(model: BuiltInModel) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of each feature; None if the model does not normalise with them."""
    first = model.first
    if not isinstance(first, Normalize) or first.normalize not in ("training", "both"):
        return None, None
    return tuple(first.mean.tolist()), tuple(first.std.tolist())


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
    """`probabilities` if all outputs are between 0 and 1 and each row sums to 1, otherwise `logits`.

    Raises:
        ConfigurationError: It is a multi-label model and all outputs are between 0 and 1, so either is possible.
    """
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

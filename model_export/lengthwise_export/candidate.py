"""A model on its way into a model directory: how its graph is made, what its manifest says, what it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, cast

import numpy as np
import onnx
import torch

from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise.padding import PaddedBatch, pad, step_mask
from lengthwise.runtime.manifest import Manifest, MissingPolicy, Task, digest
from lengthwise.verification.promises import ROUNDING
from lengthwise.verification.proof import Logits, Reference
from lengthwise_export.architecture import trained
from lengthwise_export.architecture.layers import Standardize
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.checking.check import check as judge
from lengthwise_export.checking.recording import Answer, Subject
from lengthwise_export.checking.refusals import runs
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.checking.verdict import Report
from lengthwise_export.errors import ExportError, RunError
from lengthwise_export.missing import looks_for_nan
from lengthwise_export.options import OPSET
from lengthwise_export.sample import UNTRAINED
from lengthwise_export.targets.target import Target
from lengthwise_export.tracing import graph

MAX_LENGTH = 1024
"""Longest sequence that is promised for a model of which nobody says it."""

Scores = Literal["logits", "probabilities"]


@dataclass(frozen=True, slots=True)
class Source:
    """A model on its way, whatever it was made from.

    Attributes:
        manifest: All but name, version, promises and digests, which export finds out.
        build: Makes the graph; told the manifest with name and version.
        reference: The model in its own framework, or None where the graph is all there is.
        tolerance: What company may move an answer by, beyond rounding; None asks for the same bits.
        notices: What the caller may want to say as well.
    """

    manifest: Manifest
    build: Callable[[Manifest], onnx.ModelProto]
    reference: Reference | None
    tolerance: float | None = None
    notices: tuple[str, ...] = ()


def built_in(
    spec: Spec,
    weights: Path | None,
    *,
    max_length: int | None = None,
    multi_label: bool = False,
    opset: int = OPSET,
    tolerance: float | None = None,
) -> Source:
    """The built-in architecture, with trained weights or, without any, with those it begins with.

    Args:
        spec: What to build.
        weights: A checkpoint, or None.
        max_length: As the caller says it; the spec must say the same.
        multi_label: Likewise, whether each class is judged by itself.
        opset: Of the graph.
        tolerance: As in `Source`.

    Raises:
        CheckpointError: The weights are not those of this spec.
        ConfigurationError: `max_length` or `multi_label` contradicts the spec.
    """
    if max_length not in (None, spec.input.max_length):
        raise ConfigurationError(f"--max-length {max_length} contradicts input.max_length = {spec.input.max_length}")
    if multi_label and spec.output.task != "multi-label":
        raise ConfigurationError(f"--multi-label contradicts output.task = '{spec.output.task}'")
    torch.manual_seed(0)
    model = SequenceClassifier(spec).eval()
    made: dict[str, str | int | float | None] = {"architecture": "built-in"}
    if weights is None:
        made["weights"] = UNTRAINED
    else:
        trained.load(model, spec, weights)
        made["checkpoint"] = digest(weights)
    mean, std = _statistics(model, spec)

    def build(named: Manifest) -> onnx.ModelProto:
        return without_traces(graph.build(model, named.input, name=named.name, labels=named.labels, opset=opset))

    return Source(
        manifest=spec.manifest(name="model", version=1, mean=mean, std=std).model_copy(update={"made": made}),
        build=build,
        reference=eager(model),
        tolerance=tolerance,
    )


def brought(
    target: Target,
    *,
    max_length: int,
    multi_label: bool = False,
    scores: Scores | None = None,
    missing: MissingPolicy | None = None,
    opset: int = OPSET,
    tolerance: float = 0.0,
    seed: int = 0,
) -> Source:
    """A model of the user's, a torch module or a graph made elsewhere, once `check` finds nothing wrong with it.

    Args:
        target: The model.
        max_length: The longest sequence to promise; less where the model raises before.
        multi_label: Whether each class is judged by itself, so that any number may be assigned.
        scores: What its output is; None to find out.
        missing: What it does with NaN at valid steps; None refuses it.
        opset: Of the graph, where one is built.
        tolerance: What company may move an answer by, beyond rounding.
        seed: Decides the sequences that it is checked with.

    Raises:
        ConfigurationError: It is a model directory, or what is said of it does not fit.
        VerificationError: Padding or a neighbour reaches an answer.
        ExportError: It cannot be checked.
    """
    if target.kind == "directory":
        raise ConfigurationError(f"{target.text} is published already: serve it, or copy it")
    if missing == "handled" and target.steps.kind == "tokens":
        raise ConfigurationError("--missing handled: a sequence of token ids has no missing values")
    judged = judge(target.subject, max_length=max_length, tolerance=tolerance, seed=seed)
    _require_sound(judged, target)
    task = _task(target, multi_label=multi_label)
    longest = judged.max_length or max_length
    sampler = Sampler(target.steps, seed)
    batch = pad([sampler.sequence(length) for length in (5, 3, 2, 1)], width=min(8, max(longest, 5)))
    answer = target.subject.answer(batch)
    made: dict[str, str | int | float | None] = {"target": Path(target.text).name}
    if target.checkpoint is not None:
        made["checkpoint"] = digest(target.checkpoint)
    elif target.framework and not target.is_object:
        made["weights"] = "the factory's own"
    names = target.names
    if names.attention is None and target.kind == "module" and _is_attention(answer, batch):
        names = names.model_copy(update={"attention": "attention"})
    manifest = Manifest(
        name="model",
        version=1,
        input=target.steps,
        labels=target.labels,
        task=task,
        scores=scores or _found_scores(answer, batch, task),
        max_length=longest,
        missing=missing or "refuse",
        graph=names,
        width_multiple=_width_multiple(target.subject, sampler, longest),
        made=made,
    )

    def build(named: Manifest) -> onnx.ModelProto:
        proto = target.build(named.name, opset)
        return without_traces(proto) if target.kind == "module" else proto

    def reference(batch: PaddedBatch) -> Logits:
        return target.subject.answer(batch).logits

    notices = (_MAY_TAKE_NAN,) if missing is None and _may_take_nan(target, batch) else ()
    return Source(manifest, build, reference if target.framework else None, tolerance, notices)


def with_threshold(source: Source, threshold: float) -> Source:
    """The same model, assigning its classes from another probability on.

    Raises:
        ConfigurationError: It is no multi-label model.
    """
    if source.manifest.task != "multi-label":
        raise ConfigurationError(f"--threshold is for multi-label models; this one is {source.manifest.task}")
    return replace(source, manifest=source.manifest.model_copy(update={"threshold": threshold}))


def eager(model: SequenceClassifier) -> Reference:
    """The model as torch runs it, sequences packed."""

    def answer(batch: PaddedBatch) -> Logits:
        with torch.inference_mode():
            logits = model(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).logits
        return cast("Logits", logits.numpy())

    return answer


def without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what the exporter notes at each node: the code that it came from, with its paths.

    A published graph tells nothing of the machine that made it, and is the same bytes wherever it was made.
    """
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.graph.metadata_props[:]
    return proto


def _statistics(model: SequenceClassifier, spec: Spec) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of each feature, where the model normalises."""
    first = model.first
    if not isinstance(first, Standardize) or not spec.input.normalize:
        return None, None
    return tuple(first.mean.tolist()), tuple(first.std.tolist())


def _require_sound(judged: Report, target: Target) -> None:
    if judged.verdict == "uncheckable":
        raise ExportError("check", judged.reason)
    if judged.verdict == "leak":
        begin = f" It begins at {judged.leaks[0].operator}." if judged.leaks else ""
        check = "lengthwise_export.check" if target.is_object else f"lengthwise check {target.text}"
        raise VerificationError(f"{target.text}: {judged.reason}.{begin} `{check}` says why and how to mend it")


def _is_attention(answer: Answer, batch: PaddedBatch) -> bool:
    """Whether what a module calls attention is weights: nothing at padding, one in all."""
    weights = answer.attention
    if weights is None or weights.shape != (batch.rows, batch.width):
        return False
    valid = step_mask(batch.lengths, batch.width)
    sums = np.where(valid, weights, 0).sum(axis=1)
    return not weights[~valid].any() and bool(np.abs(sums - 1).max() <= ROUNDING)


def _width_multiple(subject: Subject, sampler: Sampler, longest: int) -> int:
    """4, or 1 for a model that raises at the width which its longest sequence would be rounded up to."""
    rows = [sampler.sequence(longest), sampler.sequence(max(longest - 1, 1))]
    return 4 if runs(subject, pad(rows, multiple=4)) else 1


def _task(target: Target, *, multi_label: bool) -> Task:
    """What the classes of a model of the user's are to a sequence."""
    if multi_label:
        if target.per_step:
            raise ConfigurationError(f"--multi-label: {target.text} answers each step, and so with one class a step")
        return "multi-label"
    if len(target.labels) == 1:
        mend = "give it two classes at least" if target.per_step else "if it stands for one label, say --multi-label"
        raise ConfigurationError(f"{target.text} has one output, which would always be chosen: {mend}")
    return "per-step" if target.per_step else "single-label"


def _found_scores(answer: Answer, batch: PaddedBatch, task: Task) -> Scores:
    """Probabilities where every row lies in 0 to 1 and sums to 1.

    Raises:
        ConfigurationError: The classes are judged each by itself, and the rows lie in 0 to 1, as logits may.
    """
    rows = answer.logits[step_mask(batch.lengths, batch.width)] if task == "per-step" else answer.logits
    if not (rows.min() >= 0 and rows.max() <= 1):
        return "logits"
    if task == "multi-label":
        raise ConfigurationError(
            "all outputs lie in 0 to 1, as probabilities do and logits may: say --scores probabilities, or logits"
        )
    within = np.abs(rows.sum(axis=1) - 1).max() <= 1e-4
    return "probabilities" if within and rows.shape[1] > 1 else "logits"


_MAY_TAKE_NAN: Final = (
    "missing values will be refused; the model seems to take NaN itself: if it is meant to, say --missing handled, and "
    "it is held to that"
)


def _may_take_nan(target: Target, batch: PaddedBatch) -> bool:
    """Whether a model seems to take NaN: its graph asks for it, or torch, which keeps NaN, gives finite answers."""
    if batch.steps.ndim == 2:
        return False
    if not target.framework:
        return looks_for_nan(target.build("", OPSET))
    steps = batch.steps.copy()
    steps[:, 0] = np.nan
    try:
        logits = target.subject.answer(PaddedBatch(steps, batch.lengths)).logits
    except RunError:
        return False
    valid = step_mask(batch.lengths, batch.width)
    return bool(np.isfinite(logits[valid] if logits.ndim == 3 else logits).all())

"""Makes the candidate of an export: how to build its graph, its manifest, and the reference that verifies the graph.

A model of the built-in architecture becomes a candidate without a check. A user's model is checked first for leaks, and
mended if the user asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from lengthwise.exporter_api.contract import ROUNDING, Manifest, PaddedBatch, Task, pad, step_mask
from lengthwise.exporter_api.verification import ExactReference, Reference, Session
from lengthwise_export.architecture.normalization import Normalize
from lengthwise_export.checking.baseline import at_valid_steps
from lengthwise_export.checking.check import check_subject
from lengthwise_export.checking.limits import runs
from lengthwise_export.checking.recording import ModelOutput
from lengthwise_export.checking.report import Report
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import ConfigurationError, ExportError, UnmendableError, VerificationError
from lengthwise_export.options import ExportOptions, Notice, Tell
from lengthwise_export.targets.target import DirectoryTarget, ScoreKind, SpecTarget, Target

if TYPE_CHECKING:
    from lengthwise_export.exporting.accuracy import Record
    from lengthwise_export.mending.fix import FixProposal
    from lengthwise_export.mending.mend_target import ProvedMend
    from lengthwise_export.mending.mended_accuracy import MendAccuracy


PLAIN: Final = ExportOptions()  # no option given


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be exported."""

    manifest: Manifest  # Its manifest without name, version, promises and digests, which `export` adds
    build: Callable[[Manifest], onnx.ModelProto]  # builds the graph; takes the manifest with the model's name
    reference: Reference | None  # The model in its own framework; None for an ONNX file
    # Allowed difference between batched and unbatched answers, beyond rounding; None requires the same bits
    tolerance: float | None = None
    notices: tuple[str, ...] = ()
    mend: FixProposal | None = None
    # Measures the accuracy before and after a mend; None if it was not mended
    mend_accuracy: Callable[[Session, Manifest, Sequence[Record]], MendAccuracy | None] | None = None
    exact: ExactReference | None = None  # The reference in float64; None if there is none


def from_spec_target(target: SpecTarget, options: ExportOptions = PLAIN) -> Candidate:
    """The candidate of a model of the built-in architecture.

    Raises:
        ConfigurationError: `min_length`, `max_length`, `multi_label` or `precision` contradicts the spec.
    """
    spec = target.spec
    for name in ("min_length", "max_length"):
        stated_length, spec_length = getattr(options, name), getattr(spec.input, name)
        if stated_length not in (None, spec_length):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigurationError(f"{flag} {stated_length} contradicts input.{name} = {spec_length}")
    if options.multi_label and spec.output.task != "multi-label":
        raise ConfigurationError(f"--multi-label contradicts output.task = '{spec.output.task}'")
    if options.streaming and spec.input.long != "reject":
        raise ConfigurationError(
            f"--streaming contradicts input.long = '{spec.input.long}': a chunk continues its sequence, so none is too "
            "long. Leave the key out"
        )
    if spec.model.kind == "rocket" and options.precision != "fp32":
        raise ConfigurationError(
            f"--precision {options.precision}: a rocket model compares sums that are exact in float32 only: leave "
            "--precision out"
        )
    # Statistics of the training split, for the manifest
    mean = std = None
    first_layer = target.subject.module.first
    if isinstance(first_layer, Normalize) and first_layer.normalize in ("training", "both"):
        mean, std = tuple(first_layer.mean.tolist()), tuple(first_layer.std.tolist())
    manifest = spec.manifest(name="model", version=1, mean=mean, std=std).model_copy(update={"made": target.origin()})
    return Candidate(manifest, _builder(target, options), target.reference, options.tolerance)


def _builder(target: Target, options: ExportOptions) -> Callable[[Manifest], onnx.ModelProto]:
    """The function `build` of a candidate: it builds the graph of the target, for the model's name in a manifest."""
    return lambda named_manifest: target.build(named_manifest.name, options.opset)


def with_threshold(candidate: Candidate, threshold: float) -> Candidate:
    """A copy of a multi-label candidate with this decision threshold of probabilities, instead of 0.5.

    Raises:
        ConfigurationError: It is not a multi-label model.
    """
    if candidate.manifest.task != "multi-label":
        raise ConfigurationError(f"--threshold is for multi-label models; this one is {candidate.manifest.task}")
    return replace(candidate, manifest=candidate.manifest.model_copy(update={"threshold": threshold}))


MAX_LENGTH: Final = 1024  # the longest accepted sequence if the user does not say it
NOTHING_TO_MEND: Final = "nothing to mend: padding does not change an answer"


def candidate_of(target: Target, options: ExportOptions, tell: Tell) -> Candidate:
    """The candidate of a target; `tell` gets a notice about the mend, if `options.mend` is set.

    A user's model is mended then, if it takes no lengths or a check finds a leak. A model of the built-in architecture
    never needs a mend.

    Raises:
        ConfigurationError: The target is a model directory, or an option contradicts it.
    """
    if isinstance(target, DirectoryTarget):
        raise ConfigurationError(f"{target.text} is published already: serve it, or copy it")
    if isinstance(target, SpecTarget):
        candidate = from_spec_target(target, options)
        if options.mend:
            tell(Notice(f"{NOTHING_TO_MEND}: the built-in architecture takes lengths"))
        return candidate
    if not options.mend:
        return from_target(target, options)
    from lengthwise_export.mending.mend_target import mend_target

    settings: dict[str, Any] = {"seed": options.seed, "progress": options.progress}
    settings |= {"tolerance": options.tolerance or 0.0, "max_length": options.max_length or MAX_LENGTH}
    report = None if target.blind else check_subject(target.subject, min_length=target.min_length, **settings)
    if report is not None and report.verdict != "leak":
        candidate = from_target(target, options, report=report)
        tell(Notice(NOTHING_TO_MEND))
        return candidate
    candidate = from_mend(mend_target(target.unmended, opset=options.opset, **settings), options)
    assert candidate.mend is not None
    tell(Notice(candidate.mend.summary()))
    return candidate


def from_target(target: Target, options: ExportOptions = PLAIN, *, report: Report | None = None) -> Candidate:
    """The candidate of a user's torch module or ONNX file, which must have no leak.

    Args:
        target: The user's model.
        options: The options of the export.
        report: The result of its check; None if it was not checked yet.

    Raises:
        ConfigurationError: An option contradicts the model.
    """  # noqa: DOC502 - what it calls raises it
    _require_fitting_options(target, options)
    max_length, tolerance, subject = options.max_length or MAX_LENGTH, options.tolerance or 0.0, target.subject
    if report is None:
        report = check_subject(
            subject,
            min_length=target.min_length,
            max_length=max_length,
            tolerance=tolerance,
            seed=options.seed,
            progress=options.begin,
        )
    _require_sound(report, target)
    # Run a small batch, to see what the outputs are: its sequences are among the shortest that the model takes
    task = "embedding" if options.embedding else _task(target, multi_label=options.multi_label)
    shortest, longest = report.min_length, report.max_length or max_length
    sampler = Sampler(target.steps, options.seed)
    lengths = [min(shortest - 1 + length, max(longest, 5)) for length in (5, 3, 2, 1)]
    batch = pad([sampler.sequence(length) for length in lengths], width=min(shortest - 1 + 8, max(longest, 5)))
    answer = subject.answer(batch)
    names = target.names
    if names.attention is None and _is_attention(answer, batch):
        names = names.model_copy(update={"attention": "attention"})
    # Whether it also runs at widths rounded up to a multiple of 4, which may exceed its longest length
    widest = pad([sampler.sequence(longest), sampler.sequence(max(longest - 1, shortest))], multiple=4)
    sequences = tuple(entry.model_copy(update={"max_length": longest}) for entry in target.steps.sequences)
    manifest = target.describe(
        input=target.steps.model_copy(update={"sequences": sequences}),
        task=task,
        scores=options.scores or target.scores or _score_kind_of(answer, batch, task),
        min_length=shortest,
        max_length=longest,
        missing=options.missing or "refuse",
        graph=names,
        width_multiple=4 if runs(subject, widest) else 1,
        made=target.origin(),
        **({"labels": (), "dimensions": len(target.labels)} if options.embedding else {}),
    )

    reference, exact = (target.reference, target.exact) if target.traced else (None, None)
    notices = tuple(_notices(target, options, report, batch))
    return Candidate(manifest, _builder(target, options), reference, tolerance, notices, exact=exact)


def _require_fitting_options(target: Target, options: ExportOptions) -> None:
    """Makes sure that the options fit each other, and what the target takes and answers.

    Raises:
        ConfigurationError: They do not.
    """
    if options.missing == "handled" and target.steps.kind == "tokens":
        raise ConfigurationError("--missing handled: a sequence of token ids has no missing values")
    of_classes = options.multi_label or options.labels is not None or options.data is not None
    if options.embedding and (target.per_step or of_classes):
        raise ConfigurationError(
            "--embedding is for one vector of each sequence: neither --labels, --multi-label nor --data fits, nor an "
            "answer for each step"
        )
    most_steps = target.steps.most_steps
    if most_steps is not None and (options.max_length or 0) > most_steps:
        raise ConfigurationError(f"--max-length {options.max_length} contradicts --width {most_steps} --fit pad")


def _notices(target: Target, options: ExportOptions, report: Report, batch: PaddedBatch) -> Iterator[str]:
    """Yields what the user should know about a target: short sequences, labels without names, NaN, a leak of scale."""
    if report.min_length > 1:
        yield f"sequences of fewer than {report.min_length} steps will be refused (min_length in the manifest)"
    if options.labels is None and not options.embedding and target.labels == tuple(map(str, range(len(target.labels)))):
        yield f"the labels are {', '.join(target.labels)}: --labels gives the classes names"
    if options.missing is None and target.steps.kind == "values" and target.may_take_nan(batch):
        yield _MAY_TAKE_NAN
    if any(outcome.change == "scale" for outcome in report.trials):
        yield report.leaks[0].cause.why


def from_mend(proved: ProvedMend, options: ExportOptions = PLAIN) -> Candidate:
    """The candidate of a user's model after its mend; the reference is the original, run unbatched and unpadded.

    Raises:
        UnmendableError: There is no mended target: an operator cannot be mended; the error names it.
        VerificationError: There is none: the proof of the mend does not hold.
        ExportError: There is none for another reason.
    """
    from lengthwise_export.mending import mended_accuracy

    original, fix = proved.original, proved.fix
    if proved.target is None:
        if fix.operator is not None:
            raise UnmendableError(fix.operator, fix.reason, fix.location)
        if fix.proof is not None:
            raise VerificationError(f"{original.text}: {fix.reason}, so nothing was published")
        raise ExportError("mend", fix.reason)
    candidate = from_target(proved.target, options, report=proved.report)
    # The tolerance of the proof includes what rounding may change, and that of a candidate does not.
    proved_tolerance = 0.0 if fix.proof is None else fix.proof.tolerance - ROUNDING
    provenance = original.origin() | {"mended": proved.operators}
    return replace(
        candidate,
        manifest=candidate.manifest.model_copy(update={"made": provenance}),
        reference=proved.logits_alone,
        exact=proved.exact,
        tolerance=max(candidate.tolerance or 0.0, proved_tolerance),
        notices=(*candidate.notices, *([fix.notice] if fix.notice is not None else [])),
        mend=fix,
        mend_accuracy=partial(mended_accuracy.measure, original.subject),
    )


def _require_sound(report: Report, target: Target) -> None:
    """Makes sure that a check found no leak; `target` is for messages.

    Raises:
        ExportError: The target cannot be checked.
        VerificationError: It has a leak; the message says where the leak begins.
    """
    if report.verdict == "uncheckable":
        raise ExportError("check", report.reason)
    if report.verdict == "leak":
        begin = f" It begins at {report.leaks[0].operator}." if report.leaks else ""
        why = f"{target.text}: {report.reason}.{begin}"
        raise VerificationError(
            f"{why} `{target.check_command}` shows the cause and a fix; --mend rewrites what can be mended"
        )


def _is_attention(answer: ModelOutput, batch: PaddedBatch) -> bool:
    """Whether the output `attention` holds attention weights: in each row 0 at padding, with the sum 1."""
    weights = answer.attention
    if weights is None or weights.shape != (batch.rows, batch.width):
        return False
    valid = step_mask(batch.lengths, batch.width)
    return not weights[~valid].any() and bool(np.abs(np.where(valid, weights, 0).sum(axis=1) - 1).max() <= ROUNDING)


def _task(target: Target, *, multi_label: bool) -> Task:
    """The task of a user's model, by its outputs and the option --multi-label.

    Raises:
        ConfigurationError: `multi_label` contradicts a per-step model, or the model has a single output, which would
            always be the answer.
    """
    if multi_label:
        if target.per_step:
            raise ConfigurationError(f"--multi-label: {target.text} answers each step with exactly one class")
        return "multi-label"
    if len(target.labels) == 1:
        fix = "give it at least two classes" if target.per_step else "if it is a yes/no label, pass --multi-label"
        raise ConfigurationError(f"{target.text} has one output, which would always be chosen: {fix}")
    return "per-step" if target.per_step else "single-label"


def _score_kind_of(answer: ModelOutput, batch: PaddedBatch, task: Task) -> ScoreKind:
    """Guesses what a model's outputs are: "probabilities" if all are in 0..1 and each row sums to 1, else "logits".

    The vector of a model without a head is what the output is, as logits are.

    Raises:
        ConfigurationError: All outputs of a multi-label model are between 0 and 1, so they may be either.
    """
    if task == "embedding":
        return "logits"
    rows = at_valid_steps(answer, batch)
    if not (rows.min() >= 0 and rows.max() <= 1):
        return "logits"
    if task == "multi-label":
        raise ConfigurationError(
            "all outputs are between 0 and 1, so they may be probabilities or logits: pass --scores probabilities, or "
            "--scores logits"
        )
    sums_to_one = np.abs(rows.sum(axis=1) - 1).max() <= 1e-4
    return "probabilities" if sums_to_one and rows.shape[1] > 1 else "logits"


_MAY_TAKE_NAN: Final = (
    "missing values will be refused, but the model seems to handle NaN: if it should, pass --missing handled, and the "
    "export verifies it"
)

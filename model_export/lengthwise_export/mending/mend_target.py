"""Mends a target and proves the mend: `check --suggest` shows the result, `export --mend` publishes it.

target --build--> graph --mend--> mended graph --prove--> equal to the original alone --check--> no leak

A *target* is what a command was given: a module of torch, a Keras file, an ONNX graph or a model directory. The
*original* is the target before the mend; *alone* is a batch of one row without padding.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx

from lengthwise.exporter_api.contract import ROUNDING, BatchLogits, GraphNames, PaddedBatch, pad
from lengthwise_export.checking.baseline import Steadiness
from lengthwise_export.checking.check import check_subject
from lengthwise_export.checking.limits import WidthLimits, run_error
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.report import Report
from lengthwise_export.checking.trace_onnx import widened
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import TAKE_LENGTHS, LengthwiseError, UncheckableError, UnmendableError, counted
from lengthwise_export.mending.engine import shown_operator
from lengthwise_export.mending.fix import FixProposal, padding_curve
from lengthwise_export.mending.mend import Mended, mend
from lengthwise_export.mending.proof import prove
from lengthwise_export.onnx_graphs.beside import alone
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.onnx_graphs.protos import NAME_IN_GRAPH, advice_for_keras
from lengthwise_export.options import OPSET, ProgressCallback
from lengthwise_export.targets.graph_targets import graph_fields
from lengthwise_export.targets.target import GraphTarget, Target
from lengthwise_export.tracing.graph import ties_in, without_exporter_metadata
from lengthwise_export.tracing.source_lines import CodeLocation, location_of_node, operator_name

LENGTHS = "lengths"  # the name of the input that a mend adds

_FIRST_STEP_LENGTH: Final = 16  # steps of the sequences of `_require_later_steps`
_FIRST_STEP_VARIANTS: Final = 4  # further sequences with the same first step, of which an answer has to differ


@dataclass(frozen=True, kw_only=True)
class MendedTarget(GraphTarget):
    """The mended graph of a target, as a target of its own."""

    original: Target  # The target before the mend

    def build(self, name: str, opset: int, *, origins: bool = False) -> onnx.ModelProto:
        """A copy of the mended graph with `name` in its metadata; the other arguments have no effect on it."""
        graph = deepcopy(self.graph)
        for entry in graph.metadata_props:
            if entry.key == NAME_IN_GRAPH:
                entry.value = name
        return without_exporter_metadata(graph) if self.original.traced else graph


@dataclass(frozen=True, slots=True)
class ProvedMend:
    """The mend of a target with its proof, or the reason why there is none."""

    fix: FixProposal  # What the mend changes, and its proof; or why there is no mend
    original: Target  # The target before the mend
    target: MendedTarget | None = None  # The mended target; None if it cannot be mended, or the proof does not hold
    report: Report | None = None  # The report of the check of the mended target; None if none ran
    # The original, changed to take for data the steps that it hides by their values; None if it hides none
    reference: Subject | None = None

    def logits_alone(self, batch: PaddedBatch) -> BatchLogits:
        """The original's logits for each row alone: the reference of the mended graph.

        They are `[rows, classes]`, or `[rows, width, classes]` of a per-step model, with zeros at the padding.
        """
        subject = self.reference or self.original.subject
        rows = [subject.answer(alone(batch, row)).logits[0] for row in range(batch.rows)]
        return widened(rows, batch.width) if self.original.per_step else np.stack(rows)

    def exact(self, batch: PaddedBatch) -> BatchLogits | None:
        """The original's logits in float64 for a batch of one row; None if it does not run in float64."""
        answer = self.original.subject.answer_in_float64(alone(batch, 0))
        return None if answer is None else answer.logits

    @property
    def operators(self) -> str:
        """How many operators the mend changes, such as `12 operators`."""
        return counted(len(self.fix.changes), "operator")


def mend_target(
    target: Target,
    *,
    max_length: int,
    opset: int = OPSET,
    tolerance: float = 0.0,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> ProvedMend:
    """Mends a target that leaks or takes no lengths, proves the mend, and checks the mended graph.

    Args:
        target: The target.
        max_length: The longest sequence, in steps. If the original accepts only shorter ones, its longest is taken.
        opset: The version of ONNX's operators in the graph that is built of a module.
        tolerance: The difference of answers that is allowed in addition to that by rounding.
        seed: The seed of the random sequences.
        progress: Is called with texts that say what is done.

    Returns:
        The mend; if the target cannot be mended or checked, its `fix` says why.
    """
    say = progress or (lambda _: None)
    origins: dict[str, onnx.NodeProto] = {}
    try:
        # What the original accepts, and whether it answers the same twice.
        say("the widths that the original accepts")
        limits = WidthLimits.of(target.subject, Sampler(target.steps, seed), max_length, target.min_length)
        shortest, longest = limits.sizes.shortest, limits.widest
        steadiness = Steadiness(target.subject, limits.sizes, ROUNDING + tolerance)
        steadiness.require()
        say("building the graph")
        graph = target.build("model", opset, origins=True)
        if target.traced:
            origins = {shown_operator(node): node for node in graph.graph.node}
        else:
            _require_later_steps(target, shortest, longest, seed, advice_for_keras(graph))
        say("mending the graph")
        mended = mend(graph, _names_with_lengths(target.names), target.steps, min_length=shortest, max_length=longest)
    except UnmendableError as error:
        return ProvedMend(FixProposal(False, error.reason, **_shown(error.operator, error.location, origins)), target)
    except LengthwiseError as error:
        # The check may have a better reason: if the original runs at one width only, for example, it says so, and the
        # error here is only that tracing failed.
        settings: dict[str, Any] = {"tolerance": tolerance, "seed": seed, "progress": say}
        report = check_subject(target.subject, min_length=target.min_length, max_length=max_length, **settings)
        return ProvedMend(FixProposal(False, report.reason if report.verdict == "uncheckable" else str(error)), target)
    # The changes with the names and lines of the user's code
    changes = (replace(change, **_shown(change.operator, change.location, origins)) for change in mended.changes)
    mended = replace(mended, changes=tuple(changes))
    lengths = (max(shortest, mended.min_length), min(longest, mended.max_length))
    proved = _proved(target, mended, lengths, tolerance=tolerance, seed=seed, say=say)
    try:
        steadiness.ask_again()
    except UncheckableError as error:
        return ProvedMend(FixProposal(False, str(error)), target)
    return proved


def _proved(
    target: Target, mended: Mended, lengths: tuple[int, int], *, tolerance: float, seed: int, say: ProgressCallback
) -> ProvedMend:
    """Proves a mend and checks the mended graph.

    Args:
        target: The original.
        mended: The mend.
        lengths: The shortest and the longest sequence, in steps.
        tolerance: The difference of answers that is allowed in addition to that by rounding.
        seed: The seed of the random sequences.
        say: Is called with texts that say what is done.

    Returns:
        The mend; without a mended target if the original raises for zeros only, the proof does not hold, or the check
        does not find the mended graph sound. It has a `reference` only if the original hides steps by their values.
    """
    shortest, longest = lengths
    same: dict[str, Any] = {name: getattr(target, name) for name in ("text", "labels", "is_object", "scores")}
    after = MendedTarget(
        **same, **_graph_fields_of(target, mended.graph, _names_with_lengths(target.names)), original=target
    )
    options: dict[str, Any] = {"max_length": longest, "tolerance": tolerance, "seed": seed, "progress": say}
    # A sequence of zeros only: the verification will run one, so a model that raises for it is refused here already
    zeros = pad([np.zeros_like(Sampler(target.steps, seed).sequence(shortest))], multiple=1)
    error = run_error(target.subject, zeros) if target.steps.kind == "values" and not mended.hiding else None
    if error is not None:
        what = f"the original raises for a sequence of {counted(shortest, 'step')} with zeros only"
        return ProvedMend(FixProposal(False, f"{what}. {TAKE_LENGTHS} ({error})", changes=mended.changes), target)
    # The proof, and the curve of one answer for the page
    proof = prove(target.subject, after.subject, min_length=shortest, hiding=mended.hiding, **options)
    accepted = {"max_length": longest, "min_length": proof.min_length}
    facts: dict[str, Any] = {
        "changes": mended.changes,
        "min_length": proof.min_length,
        "hiding": mended.hiding,
        "proof": proof,
        "curve": functools.partial(padding_curve, target.subject, after.subject, **accepted, seed=seed),
    }
    if not proof.holds:
        ties = ties_in(mended.graph)
        reason = f"the mend does not hold: {proof}" + ("" if ties is None else f". {ties}")
        return ProvedMend(FixProposal(False, reason, **facts), target)
    # The check
    report = check_subject(after.subject, min_length=proof.min_length, **options)
    if report.verdict != "sound":
        begin = f", beginning at {report.leaks[0].operator}" if report.leaks else ""
        reason = f"the check of the mended graph finds: {report.verdict}, {report.reason}{begin}"
        return ProvedMend(FixProposal(False, reason, verdict=report.verdict, **facts), target, report=report)
    reason = f"{counted(len(mended.changes), 'operator')} changed, and the proof holds"
    if not mended.changes:
        reason = "no operator has to be changed: the graph that is built from the code holds, as its proof says"
    fix = FixProposal(True, reason, verdict=report.verdict, **facts)
    if mended.without_hiding is None:
        return ProvedMend(fix, target, after, report)
    fields_without_hiding = _graph_fields_of(target, mended.without_hiding, target.names, blind=target.blind)
    return ProvedMend(fix, target, after, report, fields_without_hiding["subject"])


def _graph_fields_of(
    target: Target, graph: onnx.ModelProto, names: GraphNames, *, blind: bool = False
) -> dict[str, Any]:
    """Keyword arguments for a `GraphTarget`: the fields whose values follow from its graph.

    Args:
        target: The target, which says what a step and an answer are.
        graph: The graph.
        names: The names of its inputs and outputs.
        blind: Whether it takes no lengths.
    """
    return graph_fields(ExternalGraph(graph, target.steps, names, len(target.labels), target.per_step, blind=blind))


def _shown(operator: str, location: object, origins: Mapping[str, onnx.NodeProto]) -> dict[str, Any]:
    """What is shown for an operator that a mend names: the fields `operator` and `location` of a change or a proposal.

    For a node of a traced graph the name is that of the user's module; else it is `operator`. The location is None for
    a line that is not known.

    Args:
        operator: As `shown_operator` names it.
        location: Its line, if the mend knows it.
        origins: The nodes of a traced graph, by `shown_operator`; empty for another graph.
    """
    known = location if isinstance(location, CodeLocation) else None
    node = origins.get(operator)
    if node is None:
        return {"operator": operator, "location": known}
    return {"operator": operator_name(node), "location": known or location_of_node(node)}


def _require_later_steps(target: Target, shortest: int, longest: int, seed: int, advice: str) -> None:
    """Makes sure that the original's answer depends on more than the first step of a sequence.

    It runs several sequences alone, which have only their first step in common.

    Args:
        target: The original.
        shortest: The shortest sequence that it accepts, in steps.
        longest: The longest one.
        seed: The seed of the random sequences.
        advice: The end of the error's message.

    Raises:
        UncheckableError: All sequences get the same answer.
    """
    sampler = Sampler(target.steps, seed)
    steps = sampler.sequence(max(shortest, min(longest, _FIRST_STEP_LENGTH)))
    variants = [sampler.sequence(len(steps)) for _ in range(_FIRST_STEP_VARIANTS)]
    for variant in variants:
        variant[0] = steps[0]
    first, *further = (target.subject.answer(pad([sequence], multiple=1)).logits for sequence in (steps, *variants))
    if len(steps) > 1 and all(np.array_equal(first, logits, equal_nan=True) for logits in further):
        reason = "the answer depends on the first step alone, however long the sequence is"
        raise UncheckableError(f"{reason}: an export that was traced with one step does that{advice}")


def _names_with_lengths(names: GraphNames) -> GraphNames:
    """The names of the inputs and outputs, with `LENGTHS` for the lengths if the graph does not take them."""
    return names if names.lengths is not None else names.model_copy(update={"lengths": LENGTHS})

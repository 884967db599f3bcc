"""Verifies a candidate: its graph is built, measured, converted to another precision, and tried on labelled data.

Every case runs through the padding and the session that will serve. A graph of another precision is converted from the
verified float32 graph and verified against it. A model is *ill-conditioned* for a sequence if rounding of its values
alone moves the answer more than usual; `amplified` of a case says by how much (`verification.measurement`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from lengthwise.exporter_api.contract import ROUNDING, BatchLogits, Manifest, PaddedBatch, Precision, RowInput
from lengthwise.exporter_api.graphs import onnx_graph
from lengthwise.exporter_api.verification import (
    BatchVariations,
    Case,
    ExactReference,
    Reference,
    Session,
    check_rows,
    measure_cases,
    promises,
)
from lengthwise_export.errors import TAKE_LENGTHS, RunError, VerificationError
from lengthwise_export.exporting import accuracy, missing_values
from lengthwise_export.exporting.candidate import Candidate
from lengthwise_export.onnx_graphs import precision
from lengthwise_export.options import ExportOptions
from lengthwise_export.tracing import graph as traced

if TYPE_CHECKING:
    from lengthwise_export.exporting.accuracy import Record
    from lengthwise_export.mending.mended_accuracy import MendAccuracy


@dataclass(frozen=True, slots=True)
class VerifiedGraph:
    """A graph that passed the verification."""

    graph: onnx.ModelProto
    manifest: Manifest
    cases: Sequence[Case]
    labels: accuracy.LabelChanges | None = None  # how a lower precision changes the answers to the data
    sample: accuracy.DataAccuracy | None = None  # the accuracy on the data; None without labels
    notices: tuple[str, ...] = ()  # for the user
    mend_accuracy: MendAccuracy | None = None  # the accuracy before and after a mend

    def session(self, threads: int = 1) -> Session:
        """Opens a session that runs the graph."""
        return Session(self.graph.SerializeToString(), self.manifest, threads=threads)


def verify(
    candidate: Candidate, manifest: Manifest, options: ExportOptions, data: Sequence[Record] | None
) -> VerifiedGraph:
    """Builds and verifies the graph of a candidate, and converts it to the precision of the options.

    Args:
        candidate: The candidate.
        manifest: Its manifest, with name and version.
        options: The options of the export.
        data: The records of --data; None without it.

    Raises:
        VerificationError: A case does not hold, or the accuracy is below `must_keep_accuracy`; nothing may be
            published.
    """
    # Build and verify in float32
    options.begin("building the graph")
    graph = candidate.build(manifest)
    options.begin("verifying the graph")
    # Advice for the user, if the model sorts values that may be equal: torch leaves their order open
    advice_on_ties = traced.ties_in(graph)
    traced.forget_ties(graph)
    settings: dict[str, Any] = {"tolerance": candidate.tolerance, "seed": options.seed}
    try:
        verified = verify_graph(graph, manifest, candidate.reference, exact=candidate.exact, **settings)
        verified = _with_same_bits(verified, candidate, manifest, options)
        if options.streaming:
            verified = _streaming(verified, candidate, options)
    except VerificationError as error:
        raise error if advice_on_ties is None else VerificationError(f"{error}. {advice_on_ties}") from error
    notices = verified.notices if advice_on_ties is None else (advice_on_ties, *verified.notices)
    # Measure the accuracy of the mended graph and of the original
    mend_accuracy = None
    if data is not None and candidate.mend_accuracy is not None:
        mend_accuracy = candidate.mend_accuracy(verified.session(), manifest, data)
    # Convert to the precision, and measure the accuracy of what is published
    if options.precision != "fp32":
        options.begin(f"converting to {options.precision}, and verifying that")
        rows = None if data is None else [accuracy.row_of(record, manifest) for record in data]
        sequences = None if rows is None else [row for row in rows if not isinstance(row, str)]
        verified = at_precision(verified, options.precision, sequences, **settings)
        notices += verified.notices
    if data is not None:
        verified = _with_figures(verified, data)
    if options.streaming:
        options.begin("proving that it streams")
        verified = _proved_to_stream(verified, candidate, options)
    verified = replace(verified, mend_accuracy=mend_accuracy, notices=notices)
    bound, sample = options.must_keep_accuracy, verified.sample
    if bound is not None and (sample is None or sample.accuracy < bound):
        measured = mend_accuracy or sample or "the data has no labels"
        raise VerificationError(
            f"{manifest.key}: --must-keep-accuracy {bound:g} does not hold, so nothing was published: {measured}"
        )
    return verified


def _with_same_bits(
    verified: VerifiedGraph, candidate: Candidate, manifest: Manifest, options: ExportOptions
) -> VerifiedGraph:
    """Rewrites a graph whose bits depend on the batch with operators of steady bits, and verifies it again.

    Returned unchanged: a graph whose bits are the same in all batches already, or may differ by the options; an ONNX
    file; and a graph for which no operator is to be replaced.
    """
    is_external = candidate.reference is None  # a graph that was made elsewhere keeps its bytes
    may_differ = options.tolerance is not None or options.precision != "fp32"
    if is_external or may_differ or promises.promise(verified.cases).bits:
        return verified
    from lengthwise_export.steady_bits.rewriting import with_steady_bits

    lines: list[str] = []
    steady, rewritten = with_steady_bits(verified.graph, manifest, lines.append)
    if not rewritten:
        return verified
    verified_steady = verify_graph(
        steady, manifest, candidate.reference, tolerance=candidate.tolerance, seed=options.seed, exact=candidate.exact
    )
    return replace(verified_steady, notices=(*verified.notices, *lines))


def _streaming(verified: VerifiedGraph, candidate: Candidate, options: ExportOptions) -> VerifiedGraph:
    """Makes a verified graph take and give states, and verifies the result as what answers whole sequences, too.

    Raises:
        VerificationError: An operator cannot stream, or a case does not hold.
    """  # noqa: DOC502 - what it calls raises it
    from lengthwise_export.streaming.stream import stream

    graph, streaming = stream(verified.graph, verified.manifest)
    if options.max_steps is not None:
        streaming = streaming.model_copy(update={"max_steps": options.max_steps})
    manifest = Manifest.model_validate({**verified.manifest.model_dump(), "streaming": streaming})
    tolerance = candidate.tolerance or 0.0  # sums of states may round in another order
    again = verify_graph(
        graph, manifest, candidate.reference, tolerance=tolerance, seed=options.seed, exact=candidate.exact
    )
    return replace(again, notices=verified.notices)


def _proved_to_stream(verified: VerifiedGraph, candidate: Candidate, options: ExportOptions) -> VerifiedGraph:
    """Proves that the answers after chunks are those to the whole, and notes in the manifest what can be promised.

    Raises:
        VerificationError: They are not.
    """  # noqa: DOC502 - the proof raises it
    from lengthwise_export.streaming.proof import prove

    manifest, notices = verified.manifest, [*verified.notices]
    assert manifest.streaming is not None
    reference = candidate.reference if options.precision == "fp32" else None
    promise = prove(verified.graph, manifest, reference, seed=options.seed, notify=notices.append)
    streaming = manifest.streaming.model_copy(update={"promise": promise})
    return replace(verified, manifest=manifest.model_copy(update={"streaming": streaming}), notices=tuple(notices))


def verify_graph(
    graph: onnx.ModelProto,
    manifest: Manifest,
    reference: Reference | None,
    *,
    tolerance: float | None,
    seed: int,
    origin: str = "the model itself",
    most_from_reference: float = ROUNDING,
    exact: ExactReference | None = None,
) -> VerifiedGraph:
    """Verifies a graph: runs all cases, and makes sure that each holds.

    Args:
        graph: The graph.
        manifest: Its manifest.
        reference: What its answers are compared with; None compares its batched and unbatched answers only.
        tolerance: The allowed difference between batched and unbatched answers, beyond rounding; None requires the
            same bits.
        seed: The seed of random sequences.
        origin: What the reference is, for messages.
        most_from_reference: The allowed difference from the reference, in units of max(1, |logit|).
        exact: The reference in float64; None if there is none.

    Raises:
        VerificationError: A case does not hold; the message names the worst.
    """
    data = graph.SerializeToString()
    # For raw values, a recurrent layer may get no rows; where that crashes the process, no case could report it
    check_rows(onnx_graph.read(data), Session(data, manifest).kernels, manifest)
    cases = measure_cases(
        lambda threads: Session(data, manifest, threads=threads),
        manifest,
        None if reference is None else partial(_asked, reference, manifest),
        seed=seed,
        origin=origin,
        exact=exact,
    )
    if manifest.missing == "handled" and not missing_values.is_compared(manifest.made):
        cases += _missing_value_cases(data, manifest, seed)
    if bad := promises.failures(cases, tolerance=tolerance, most_from_reference=most_from_reference):
        worst = max(bad, key=lambda case: case.relative)
        raise VerificationError(
            f"{manifest.key}: {len(bad)} of {len(cases)} cases do not hold, so nothing was published; "
            f"the worst: {worst.name}, {worst.difference:.3g}"
            + (f"; it is ill-conditioned there: rounding moves it by {worst.amplified:.2g}" if worst.amplified else "")
        )
    notices = tuple(
        f"the model is ill-conditioned at some {case.name.partition(',')[0]}: rounding moves its own answer by up to "
        f"{case.amplified:.2g} of the largest score, and its graph moves it by {case.difference:.2g}"
        for case in cases
        if case.varied == "reference" and case.amplified
    )
    return VerifiedGraph(graph, manifest, cases, notices=notices)


def _asked(reference: Reference, manifest: Manifest, batch: PaddedBatch) -> BatchLogits:
    """The answers of the model itself to a batch.

    Raises:
        VerificationError: It raises for the batch, as one whose mask is taken from the values may for zeros.
    """
    try:
        return reference(batch)
    except RunError as error:
        zeros = [length for steps, length in zip(batch.steps, batch.lengths, strict=True) if not steps[:length].any()]
        what = (
            f"a sequence of {zeros[0]} steps with zeros only"
            if zeros
            else f"sequences of {batch.lengths.tolist()} steps"
        )
        raise VerificationError(
            f"{manifest.key}: the model itself raises for {what}. {TAKE_LENGTHS} ({error})"
        ) from error


def _missing_value_cases(data: bytes, manifest: Manifest, seed: int) -> list[Case]:
    """Runs the cases that verify `missing: "handled"`, and returns them.

    Raises:
        VerificationError: The model does not handle missing values.
    """
    # With "refuse" the graph runs in our own recurrent kernels, which keep NaN, if they are installed. With "handled",
    # it runs as it will be served: those cases are returned
    for policy in ("refuse", "handled"):
        session = Session(data, manifest.model_copy(update={"missing": policy}))
        cases = missing_values.cases(
            partial(_logits, session),
            manifest.input,
            seed=seed,
            provider=session.provider,
            min_length=manifest.min_length,
            max_length=manifest.max_length,
        )
        if (why := missing_values.failure(cases)) is not None:
            raise VerificationError(
                f"{manifest.key}: --missing handled does not hold: {why}; without this option, missing values are "
                "refused"
            )
    return cases


def _logits(session: Session, batch: PaddedBatch) -> BatchLogits:
    """Runs a session as a `Reference`: only its logits."""
    return session.run(batch).logits


def at_precision(
    verified: VerifiedGraph, to: Precision, data: Iterable[RowInput] | None, *, tolerance: float | None, seed: int
) -> VerifiedGraph:
    """Converts a verified float32 graph to another precision, and verifies the result against it.

    `from_fp32` of the new manifest is the largest difference from float32. With `data`, `labels` of the result says how
    many labels the precision changes.
    """
    float32_session, most_from_float32 = verified.session(), promises.MAX_DIFFERENCE[to]
    reference, origin = partial(_logits, float32_session), "the float32 graph"
    manifest = precision.manifest_at(verified.manifest, to)
    converted = verify_graph(
        precision.convert(verified.graph, to),
        manifest,
        reference,
        tolerance=tolerance,
        seed=seed,
        origin=origin,
        most_from_reference=most_from_float32,
    )
    from_float32 = max(case.difference for case in converted.cases if case.varied == "reference")
    session = converted.session()
    changes = None if data is None else accuracy.changed_labels(float32_session, session, manifest, data)
    # For each kind of raw values, such as a constant: its name, the batch, and the case
    at_raw_values = list(BatchVariations(session, manifest, seed).at_raw_values(reference, origin, most_from_float32))
    return replace(
        converted,
        manifest=manifest.model_copy(update={"from_fp32": from_float32}),
        cases=[*converted.cases, *(case for _, _, case in at_raw_values)],
        labels=changes,
        notices=(
            *precision.describe(verified.graph, to),
            *(notice for kind, _, case in at_raw_values for notice in _notices_at_raw_values(kind, case, to)),
            *(_overflows(verified, converted, at_raw_values) if to == "fp16" else ()),
        ),
    )


def _notices_at_raw_values(kind: str, case: Case, to: Precision) -> Iterator[str]:
    """Yields a notice if the answers to a kind of raw values differ from those of float32, or are ill-conditioned."""
    rounding = f"rounding alone moves its answer by {case.amplified:.2g} of the largest score"
    if not math.isfinite(case.difference):
        yield f"at {to}, an answer to {kind} is not finite, and that of float32 is"
    elif case.relative > promises.MAX_DIFFERENCE[to]:
        yield (
            f"at {to}, answers to {kind} differ from those of float32 by {case.relative:.2g} of the largest score"
            + (f"; float32 is ill-conditioned there: {rounding}" if case.amplified else "")
        )
    elif case.amplified:
        yield f"float32 is ill-conditioned at {kind}: {rounding}, and {to} moves it by {case.difference:.2g}"


def _overflows(
    float32: VerifiedGraph, float16: VerifiedGraph, at_raw_values: Iterable[tuple[str, PaddedBatch, Case]]
) -> Iterator[str]:
    """Yields a notice for each kind of raw values that overflows float16 inside the graph, on a device.

    The cases do not show it, as a CPU computes most of the graph in float32. So the operators of both graphs are
    recorded, and the notice names the first one whose output is infinite in float16, and in float32 finite but larger
    than float16 can hold.

    Args:
        float32: The graph before the conversion.
        float16: The graph after it.
        at_raw_values: The kinds of raw values, each with a batch of such sequences and its case.
    """
    from lengthwise_export.checking.trace_onnx import OnnxSubject
    from lengthwise_export.onnx_graphs.external_graph import ExternalGraph

    manifest = float32.manifest
    description = (manifest.input, manifest.graph, manifest.classes, manifest.task == "per-step")
    subjects = [OnnxSubject(ExternalGraph(verified.graph, *description)) for verified in (float32, float16)]
    for kind, batch, _ in at_raw_values:
        in_float32, in_float16 = (subject.record(batch).operations for subject in subjects)
        largest = {
            operation.operator: max(
                (float(np.abs(value).max(initial=0)) for _, value in operation.outputs), default=0.0
            )
            for operation in in_float32
            if all(value.dtype == np.float32 for _, value in operation.outputs)
        }
        for operation in in_float16:
            name = operation.operator
            overflows = any(value.dtype == np.float16 and np.isinf(value).any() for _, value in operation.outputs)
            if overflows and precision.LARGEST_HALF < largest.get(name, 0.0) < math.inf:
                yield (
                    f"at fp16, {kind} overflow at {name}, on a device that computes in float16: up to "
                    f"{largest[name]:.2g} in float32, and float16 ends at {precision.LARGEST_HALF:g}"
                )
                break


def _with_figures(verified: VerifiedGraph, data: Sequence[Record]) -> VerifiedGraph:
    """Adds the accuracy on the data to the result and to its manifest."""
    manifest = verified.manifest
    measured = accuracy.measure(verified.session(), manifest, data)
    if measured is not None:
        file = Path(data[0].source_line).name.rpartition(":")[0]
        figures = {"data": file, "data_answers": measured.answers, "data_accuracy": measured.accuracy}
        manifest = manifest.model_copy(update={"made": manifest.made | figures})
    return replace(verified, manifest=manifest, sample=measured)

"""Exports a model into a model directory. Read this file first.

    target -> torch module -> graph -> stage -> verify [-> another precision -> verify] -> publish

The function `export` is this sequence. Its input is a `Candidate`: a manifest and a function that builds the graph. Its
output is a version of a model that a service can load, with the cases of its verification. If a case fails, nothing is
published. A graph of another precision is converted from the verified float32 graph and verified against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import onnx

from lengthwise import files
from lengthwise.decoding.dataset import Record
from lengthwise.errors import ModelError, VerificationError
from lengthwise.padding import PaddedBatch, Steps
from lengthwise.repository import judging
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import (
    CONTRACT,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
    Precision,
    digest,
)
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.session import RUNTIME_VERSION, Session
from lengthwise.verification import golden, measurement, promises
from lengthwise.verification.measurement import BatchLogits, Case, Reference
from lengthwise.verification.random_sequences import draw, lengths_for
from lengthwise_export.architecture.training_profile import profile_of_served
from lengthwise_export.exporting import accuracy, example_recordings, missing_values, publish
from lengthwise_export.exporting.accuracy import DataAccuracy
from lengthwise_export.exporting.candidate import Candidate
from lengthwise_export.mending import mended_accuracy
from lengthwise_export.mending.fix import FixProposal
from lengthwise_export.mending.mended_accuracy import MendAccuracy
from lengthwise_export.onnx_graphs import labels, precision
from lengthwise_export.onnx_graphs.cpu_nodes import host_nodes
from lengthwise_export.tracing import order_statistics

GOLDEN_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)


@dataclass(frozen=True, slots=True, repr=False)
class PublishedModel:
    """A published model directory and its verification.

    Attributes:
        directory: The model directory.
        manifest: Its manifest.
        cases: The cases of the verification.
        nodes: The number of nodes of the graph.
        labels: How many labels of `data` the precision changed; None without data, or at fp32.
        sample: The accuracy on `data`; None without labels.
        notices: Messages to show to the user.
        mend: What a mend changed; None if the model was not mended.
        mend_accuracy: The accuracy on `data` before and after the mend; None without a mend or without labels.
    """

    directory: Path
    manifest: Manifest
    cases: Sequence[Case]
    nodes: int
    labels: labels.LabelChanges | None = None
    sample: DataAccuracy | None = None
    notices: tuple[str, ...] = ()
    mend: FixProposal | None = None
    mend_accuracy: MendAccuracy | None = None

    @property
    def version(self) -> int:
        """Its version, from 1."""
        return self.manifest.version

    def __repr__(self) -> str:
        """`<lengthwise_export.PublishedModel vowels/1: models/vowels/1, 212 cases hold>`."""
        return f"<lengthwise_export.PublishedModel {self.manifest.key}: {self.directory}, {len(self.cases)} cases hold>"


@dataclass(frozen=True, slots=True)
class VerifiedGraph:
    """A graph that passed the verification.

    Attributes:
        graph: The graph.
        manifest: Its manifest.
        cases: The cases of the verification.
        labels: See `PublishedModel`.
        sample: See `PublishedModel`.
        notices: See `PublishedModel`.
    """

    graph: onnx.ModelProto
    manifest: Manifest
    cases: Sequence[Case]
    labels: labels.LabelChanges | None = None
    sample: DataAccuracy | None = None
    notices: tuple[str, ...] = ()

    def session(self, threads: int = 1) -> Session:
        """A session of the graph."""
        return Session(self.graph.SerializeToString(), self.manifest, threads=threads)


def export(
    source: Candidate,
    out: Path,
    *,
    to: Precision = "fp32",
    data: Sequence[Record] | None = None,
    must_keep_accuracy: float | None = None,
    seed: int = 0,
) -> PublishedModel:
    """Builds, verifies and publishes a model.

    Args:
        source: The model.
        out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
        to: The precision of the published graph.
        data: Labelled sequences. The answers are compared with the labels, and another precision with fp32.
        must_keep_accuracy: The lowest accuracy on the data with which a graph is published; None for any.
        seed: Seed of the random sequences of the verification.

    Raises:
        PublishError: The version exists, or its folder cannot be written.
        ExportError: The graph cannot be built, or not at that precision.
        VerificationError: A case failed, the data contradicts the order of the labels, or the accuracy is too low.
            Nothing was published.
        ConfigurationError: The sequences or labels of the data do not fit the model.
        ModelError: A service would reject the model for another reason.
    """
    place = publish.destination(out)
    manifest = source.manifest.model_copy(update={"name": place.name, "version": place.version})
    graph = source.build(manifest)
    ties = order_statistics.ties_in(graph)
    order_statistics.forget_ties(graph)
    with publish.staging_folder(place) as stage:
        try:
            verified = verify_graph(graph, manifest, source.reference, tolerance=source.tolerance, seed=seed)
        except VerificationError as error:
            raise error if ties is None else VerificationError(f"{error}. {ties}") from error
        before_and_after = None
        if data is not None and source.original is not None:
            before_and_after = mended_accuracy.measure(source.original, verified.session(), manifest, data)
        if to != "fp32":
            sequences = None if data is None else [record.steps for record in data]
            verified = at_precision(verified, to, sequences, tolerance=source.tolerance, seed=seed)
        if data is not None:
            verified = _with_accuracy(_with_profile(verified, data), data)
        if must_keep_accuracy is not None:
            _require_accuracy(verified, must_keep_accuracy, before_and_after)
        examples = example_recordings.chosen(data or (), manifest)
        finished = _write(stage, verified, source.mend, examples, seed=seed)
        notices = (
            *([] if ties is None else [ties]),
            *verified.notices,
            *_ill_conditioned(finished),
            *_load_as_a_service_would(stage, finished),
        )
        if examples:
            kept = f"{len(examples)} recordings of the data stand in {EXAMPLES_FILE}, for the console"
            notices = (*notices, f"{kept}; remove the file if others must not see them")
    return PublishedModel(
        place.directory,
        finished,
        verified.cases,
        len(verified.graph.graph.node),
        verified.labels,
        verified.sample,
        notices,
        source.mend,
        before_and_after,
    )


def verify_graph(
    graph: onnx.ModelProto,
    manifest: Manifest,
    reference: Reference | None,
    *,
    tolerance: float | None,
    seed: int,
    made_from: str = "the model itself",
    apart: float = measurement.ROUNDING,
) -> VerifiedGraph:
    """Verifies a graph.

    Args:
        graph: The graph.
        manifest: Its manifest.
        reference: The model that the graph was built from; None if there is none.
        tolerance: Allowed difference between batched and unbatched answers, beyond rounding; None requires the same
            bits.
        seed: Seed of the random sequences.
        made_from: A description of the reference, for case names.
        apart: Allowed difference from the reference, in units of max(1, |logit|).

    Ensures: every case holds.

    Raises:
        VerificationError: A case failed; the message names the worst.
        ModelError: What a caller sends could end the process.
    """
    data = graph.SerializeToString()
    # Raw values may leave a recurrent layer without rows, and where that ends the process no case could say so.
    judging.check_rows(onnx_graph.read(data), Session(data, manifest).kernels, manifest)
    cases = measurement.measure_cases(
        lambda threads: Session(data, manifest, threads=threads), manifest, reference, seed=seed, made_from=made_from
    )
    if manifest.missing == "handled":
        cases += _missing_value_cases(data, manifest, seed)
    bad = promises.failures(cases, tolerance=tolerance, most=apart)
    if bad:
        worst = max(bad, key=lambda case: case.relative)
        raise VerificationError(
            f"{manifest.key}: {len(bad)} of {len(cases)} cases do not hold, so nothing was published; "
            f"the worst: {worst.name}, {worst.difference:.3g}"
        )
    return VerifiedGraph(graph, manifest, cases)


def _missing_value_cases(data: bytes, manifest: Manifest, seed: int) -> list[Case]:
    """The cases that verify `missing: "handled"`.

    Raises:
        VerificationError: The model does not handle missing values.
    """
    # With "refuse" the graph runs in our own recurrent kernels, which keep NaN, if they are installed.
    for policy in ("refuse", "handled"):
        session = Session(data, manifest.model_copy(update={"missing": policy}))

        def run(batch: PaddedBatch, session: Session = session) -> BatchLogits:
            return session.run(batch).logits

        cases = list(
            missing_values.cases(
                run,
                manifest.input,
                min_length=manifest.min_length,
                max_length=manifest.max_length,
                seed=seed,
                provider=session.provider,
            )
        )
        why = missing_values.failure(cases)
        if why is not None:
            raise VerificationError(
                f"{manifest.key}: --missing handled does not hold: {why}; without this option, missing values are "
                "refused"
            )
    return cases


def at_precision(
    verified: VerifiedGraph, to: Precision, data: Iterable[Steps] | None, *, tolerance: float | None, seed: int
) -> VerifiedGraph:
    """The same model at another precision, verified against its float32 graph.

    Requires: a verified float32 graph. Ensures: every case holds, and the manifest has the difference of the two.
    """
    exact = verified.session()
    manifest = precision.manifest_at(verified.manifest, to)
    converted = verify_graph(
        precision.convert(verified.graph, to),
        manifest,
        lambda batch: exact.run(batch).logits,
        tolerance=tolerance,
        seed=seed,
        made_from="the float32 graph",
        apart=promises.MAX_DIFFERENCE[to],
    )
    apart = max(case.difference for case in converted.cases if case.varied == "reference")
    changes = None if data is None else labels.compare(exact, verified.manifest, converted.session(), manifest, data)
    return replace(
        converted,
        manifest=manifest.model_copy(update={"from_fp32": apart}),
        labels=changes,
        notices=precision.described(verified.graph, to),
    )


def _with_profile(verified: VerifiedGraph, data: Sequence[Record]) -> VerifiedGraph:
    """The same graph with the profile of the data in its manifest, unless that has the profile of its training."""
    manifest = verified.manifest
    if manifest.training is not None or not data:
        return verified
    classes_of = partial(accuracy.answered_classes, verified.session(), manifest)
    profile = profile_of_served(data, manifest, classes_of)
    return (
        verified if profile is None else replace(verified, manifest=manifest.model_copy(update={"training": profile}))
    )


def _with_accuracy(verified: VerifiedGraph, data: Sequence[Record]) -> VerifiedGraph:
    """The same graph with its accuracy on the data, which is also added to the manifest."""
    measured = accuracy.measure(verified.session(), verified.manifest, data)
    if measured is None:
        return verified
    file = Path(data[0].place).name.rpartition(":")[0]
    figures = {"data": file, "data_answers": measured.answers, "data_accuracy": measured.accuracy}
    made = verified.manifest.made | figures
    return replace(verified, manifest=verified.manifest.model_copy(update={"made": made}), sample=measured)


def _require_accuracy(verified: VerifiedGraph, least: float, before_and_after: MendAccuracy | None) -> None:
    """Checks the accuracy on the data.

    Raises:
        VerificationError: It is too low.
    """
    sample = verified.sample
    if sample is None or sample.accuracy < least:
        said = sample if before_and_after is None else before_and_after
        raise VerificationError(
            f"{verified.manifest.key}: --must-keep-accuracy {least:g} does not hold, so nothing was published: "
            + ("the data has no labels" if said is None else str(said))
        )


def _write(
    stage: Path, verified: VerifiedGraph, mend: FixProposal | None, examples: Sequence[Record], *, seed: int
) -> Manifest:
    """Writes a complete model directory into the staging folder.

    Requires: a verified graph. Ensures: all its files exist.
    """
    manifest = verified.manifest
    files.write(stage / GRAPH_FILE, verified.graph.SerializeToString())
    session = Session.load(stage, manifest)
    lengths = lengths_for(manifest, GOLDEN_LENGTHS)
    expected = golden.answers(session, draw(manifest, lengths, seed + 10), manifest)
    expected.write(stage / GOLDEN_FILE)
    # Every case holds, or the export had failed before. The service requires `holds` in each case.
    verification = {
        "contract": CONTRACT,
        "seed": seed,
        "precision": manifest.precision,
        "from_fp32": manifest.from_fp32,
        "data": None if verified.labels is None else asdict(verified.labels),
        "sample": None if verified.sample is None else verified.sample.as_json(),
        "cases": [{**case.as_json(), "holds": True} for case in verified.cases],
    }
    if mend is not None:
        verification["mend"] = mend.as_record()
    files.write(stage / VERIFICATION_FILE, json.dumps(verification, indent=2, allow_nan=False) + "\n")
    names = [GRAPH_FILE, VERIFICATION_FILE, GOLDEN_FILE]
    if examples:
        files.write(stage / EXAMPLES_FILE, example_recordings.as_lines(examples))
        names.append(EXAMPLES_FILE)
    # On another processor, float32 rounds as it does here; a lower precision may differ by its own rounding.
    promise = promises.promise(
        verified.cases,
        golden.compare(session, expected, manifest),
        golden=promises.HEADROOM * (manifest.from_fp32 or 0.0),
    )
    versions = {**{name: metadata.version(name) for name in ("torch", "onnx")}, "onnxruntime": RUNTIME_VERSION}
    versions[promises.KERNELS] = session.kernels
    versions["exported"] = datetime.now(UTC).date().isoformat()
    finished = manifest.model_copy(
        update={
            "host_nodes": host_nodes(verified.graph, manifest.graph.lengths),
            "promises": (promise,),
            "digests": {name: digest(stage / name) for name in names},
            "made": {**manifest.made, **versions},
        }
    )
    files.write(stage / MANIFEST_FILE, finished.to_json())
    return finished


def _ill_conditioned(manifest: Manifest) -> Iterator[str]:
    """A notice about sequences for which the promised tolerance is larger than rounding."""
    for promise in manifest.promises:
        if promise.amplified:
            yield (
                "the model is ill-conditioned for some raw values (a constant far from 0, for example): a few ulps of "
                f"such a sequence move its answer by {promise.amplified:.2g}, and batched it may differ by "
                f"{promise.tolerance:.2g} (the manifest's tolerance)"
            )


def _load_as_a_service_would(stage: Path, manifest: Manifest) -> Iterator[str]:
    """Loads the staged directory as a service does, and yields notices about other installations.

    Requires: a complete model directory. Ensures: a service can read and serve it.

    Raises:
        ModelError: A service would reject it.
    """
    reread = Manifest.read(stage)
    if reread != manifest:
        raise VerificationError(f"{manifest.key}: the manifest reads back differently")
    reread.check_digests(stage)
    session = Session.load(stage, reread)
    golden.check(session, golden.Golden.read(stage / GOLDEN_FILE, reread), reread)
    graph = onnx_graph.read((stage / GRAPH_FILE).read_bytes())
    judging.check_rows(graph, session.kernels, reread)
    try:
        judging.run_odd_values(session, reread)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise VerificationError(f"{manifest.key}: it fails for sequences of one repeated value: {error}") from error
    try:
        judging.check_rows(graph, recurrent_kernels.ONNXRUNTIME, reread)
    except ModelError as error:
        yield f"a service without the recurrent kernels of this project will refuse it: {error}"

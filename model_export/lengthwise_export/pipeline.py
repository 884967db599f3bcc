"""The way of a model into a model directory. Read this file first.

    target -> torch module -> graph -> stage -> verify [-> another precision -> verify] -> publish

`export` is that line. What comes in is a `Source`, which knows how to build its graph and what its manifest says. What
goes out is a version of a model that a service can load, and the cases that prove it. Nothing is published whose proof
does not hold. A graph of another precision is made of the proved float32 graph, and held against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import onnx

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ModelError, VerificationError
from lengthwise.padding import PaddedBatch, Steps
from lengthwise.repository import judging
from lengthwise.runtime import onnx_graph, recurrent_kernels
from lengthwise.runtime.manifest import (
    CONTRACT,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
    Precision,
    digest,
)
from lengthwise.runtime.session import RUNTIME_VERSION, Session
from lengthwise.verification import golden, promises, proof
from lengthwise.verification.proof import Case, Logits, Reference
from lengthwise.verification.random_sequences import draw
from lengthwise_export import missing, package, sample
from lengthwise_export.candidate import Source
from lengthwise_export.onnx_graphs import labels, precision
from lengthwise_export.onnx_graphs.cpu_nodes import host_nodes
from lengthwise_export.sample import Sample

GOLDEN_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)


@dataclass(frozen=True, slots=True, repr=False)
class PublishedModel:
    """A model directory, and its proof.

    Attributes:
        directory: Where it stands.
        manifest: What it says.
        cases: Of its proof.
        nodes: Of its graph.
        labels: What the precision did to the labels of the data that was given.
        sample: What it answers to the data that was given, where that has labels.
        notices: What whoever serves it should know.
    """

    directory: Path
    manifest: Manifest
    cases: Sequence[Case]
    nodes: int
    labels: labels.Changes | None = None
    sample: Sample | None = None
    notices: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Its version, from 1."""
        return self.manifest.version

    def __repr__(self) -> str:
        """`<lengthwise_export.PublishedModel vowels/1: models/vowels/1, 212 cases hold>`."""
        return f"<lengthwise_export.PublishedModel {self.manifest.key}: {self.directory}, {len(self.cases)} cases hold>"


@dataclass(frozen=True, slots=True)
class Proved:
    """A graph whose proof holds.

    Attributes:
        graph: The graph.
        manifest: What it wants.
        cases: Of its proof.
        labels: As in `PublishedModel`.
        sample: Likewise.
    """

    graph: onnx.ModelProto
    manifest: Manifest
    cases: Sequence[Case]
    labels: labels.Changes | None = None
    sample: Sample | None = None

    def session(self, threads: int = 1) -> Session:
        """The graph, ready to run."""
        return Session(self.graph.SerializeToString(), self.manifest, threads=threads)


def export(
    source: Source, out: Path, *, to: Precision = "fp32", data: Sequence[Record] | None = None, seed: int = 0
) -> PublishedModel:
    """Builds, verifies and publishes.

    Args:
        source: The model.
        out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
        to: The precision of what is published.
        data: Sequences whose labels the answers are held against, and on which another precision is compared.
        seed: Decides the sequences of the proof.

    Raises:
        PublishError: The version exists, or the place cannot be written.
        ExportError: No sound graph can be made of the model, or none of that precision.
        VerificationError: A case of the proof does not hold, or the data contradicts the order of the labels; nothing
            was published.
        ConfigurationError: The data does not fit the model: its sequences, or their labels.
        ModelError: A service would refuse it all the same.
    """
    place = package.place(out)
    manifest = source.manifest.model_copy(update={"name": place.name, "version": place.version})
    graph = source.build(manifest)
    with package.staged(place) as stage:
        proved = prove(graph, manifest, source.reference, tolerance=source.tolerance, seed=seed)
        if to != "fp32":
            sequences = None if data is None else [record.steps for record in data]
            proved = at_precision(proved, to, sequences, tolerance=source.tolerance, seed=seed)
        if data is not None:
            proved = _held_against(proved, data)
        finished = _write(stage, proved, seed=seed)
        notices = tuple(_load_as_a_service_would(stage, finished))
    return PublishedModel(
        place.directory, finished, proved.cases, len(proved.graph.graph.node), proved.labels, proved.sample, notices
    )


def prove(
    graph: onnx.ModelProto,
    manifest: Manifest,
    reference: Reference | None,
    *,
    tolerance: float | None,
    seed: int,
    made_from: str = "the model itself",
    apart: float = promises.ROUNDING,
) -> Proved:
    """Verifies a graph.

    Args:
        graph: The graph.
        manifest: What it wants.
        reference: What it was made from, or None.
        tolerance: What company may move an answer by, beyond rounding; None asks for the same bits.
        seed: Decides the sequences.
        made_from: What the reference is, for people.
        apart: How far from it the graph may lie, times max(1, |logit|).

    Ensures: every case holds.

    Raises:
        VerificationError: One does not; names the worst.
    """
    data = graph.SerializeToString()
    cases = proof.verify(
        lambda threads: Session(data, manifest, threads=threads), manifest, reference, seed=seed, made_from=made_from
    )
    if manifest.missing == "handled":
        cases += _takes_missing_values(data, manifest, seed)
    bad = promises.failures(cases, tolerance=tolerance, apart=apart)
    if bad:
        worst = max(bad, key=lambda case: case.relative)
        raise VerificationError(
            f"{manifest.key}: {len(bad)} of {len(cases)} cases do not hold, so nothing was published; "
            f"the worst: {worst.name}, {worst.difference:.3g}"
        )
    return Proved(graph, manifest, cases)


def _takes_missing_values(data: bytes, manifest: Manifest, seed: int) -> list[Case]:
    """The cases that hold a model to `missing: "handled"`.

    Raises:
        VerificationError: It makes no sense of missing values.
    """
    # As a model that refuses NaN it runs in the kernels that make no number of it, where an installation has them.
    for policy in ("refuse", "handled"):
        session = Session(data, manifest.model_copy(update={"missing": policy}))

        def run(batch: PaddedBatch, session: Session = session) -> Logits:
            return session.run(batch).logits

        longest, provider = manifest.max_length, session.provider
        found = list(missing.cases(run, manifest.input, max_length=longest, seed=seed, provider=provider))
        why = missing.why_not(found)
        if why is not None:
            raise VerificationError(
                f"{manifest.key}: --missing handled does not hold: {why}; leave it out, and missing values are refused"
            )
    return found


def at_precision(
    proved: Proved, to: Precision, data: Iterable[Steps] | None, *, tolerance: float | None, seed: int
) -> Proved:
    """The same model at another precision, held against its float32 graph.

    Requires: a proved float32 graph. Ensures: every case holds, and the manifest says how far the two lie apart.
    """
    exact = proved.session()
    manifest = precision.described(proved.manifest, to)
    found = prove(
        precision.converted(proved.graph, to),
        manifest,
        lambda batch: exact.run(batch).logits,
        tolerance=tolerance,
        seed=seed,
        made_from="the float32 graph",
        apart=promises.APART[to],
    )
    apart = max(case.difference for case in found.cases if case.varied == "reference")
    changes = None if data is None else labels.compare(exact, proved.manifest, found.session(), manifest, data)
    return Proved(found.graph, manifest.model_copy(update={"from_fp32": apart}), found.cases, changes)


def _held_against(proved: Proved, data: Sequence[Record]) -> Proved:
    """The same graph once its answers were compared with the data's labels, and its manifest with the figures."""
    found = sample.measure(proved.session(), proved.manifest, data)
    if found is None:
        return proved
    file = Path(data[0].place).name.rpartition(":")[0]
    figures = {"data": file, "data_answers": found.answers, "data_accuracy": found.accuracy}
    made = proved.manifest.made | figures
    return replace(proved, manifest=proved.manifest.model_copy(update={"made": made}), sample=found)


def _write(stage: Path, proved: Proved, *, seed: int) -> Manifest:
    """Writes a whole model directory.

    Requires: a proved graph. Ensures: its files are in the stage.
    """
    manifest = proved.manifest
    (stage / GRAPH_FILE).write_bytes(proved.graph.SerializeToString())
    session = Session.load(stage, manifest)
    lengths = [length for length in GOLDEN_LENGTHS if length <= manifest.max_length]
    expected = golden.answers(session, draw(manifest, lengths, seed + 10), manifest)
    expected.write(stage / GOLDEN_FILE)
    # Only a proof of which every case holds gets here; the service looks for it in each.
    told = {
        "contract": CONTRACT,
        "seed": seed,
        "precision": manifest.precision,
        "from_fp32": manifest.from_fp32,
        "data": None if proved.labels is None else asdict(proved.labels),
        "sample": None if proved.sample is None else proved.sample.as_json(),
        "cases": [{**case.as_json(), "holds": True} for case in proved.cases],
    }
    (stage / VERIFICATION_FILE).write_text(json.dumps(told, indent=2, allow_nan=False) + "\n")
    # Another processor rounds as this one does in float32; at a precision that rounds more, by as much as that.
    promise = promises.promise(
        proved.cases,
        golden.compare(session, expected, manifest),
        golden=promises.HEADROOM * (manifest.from_fp32 or 0.0),
    )
    versions = {**{name: metadata.version(name) for name in ("torch", "onnx")}, "onnxruntime": RUNTIME_VERSION}
    versions[promises.KERNELS] = session.kernels
    finished = manifest.model_copy(
        update={
            "host_nodes": host_nodes(proved.graph, manifest.graph.lengths),
            "promises": (promise,),
            "digests": {name: digest(stage / name) for name in (GRAPH_FILE, VERIFICATION_FILE, GOLDEN_FILE)},
            "made": {**manifest.made, **versions},
        }
    )
    (stage / MANIFEST_FILE).write_text(finished.to_json())
    return finished


def _load_as_a_service_would(stage: Path, manifest: Manifest) -> Iterator[str]:
    """Reads the staged directory back, and gives what to tell of services elsewhere.

    Requires: a whole model directory. Ensures: a service that reads it finds what was meant, and serves it.

    Raises:
        ModelError: A service would refuse it.
    """
    found = Manifest.read(stage)
    if found != manifest:
        raise VerificationError(f"{manifest.key}: the manifest reads back as another one")
    found.check_digests(stage)
    session = Session.load(stage, found)
    golden.check(session, golden.Golden.read(stage / GOLDEN_FILE, found), found)
    graph = onnx_graph.read((stage / GRAPH_FILE).read_bytes())
    judging.check_rows(graph, session.kernels, found)
    try:
        judging.run_odd_values(session, found)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise VerificationError(f"{manifest.key}: sequences of one value make it fail: {error}") from error
    try:
        judging.check_rows(graph, recurrent_kernels.ONNXRUNTIME, found)
    except ModelError as error:
        yield f"a service without the recurrent kernels of this project will refuse it: {error}"

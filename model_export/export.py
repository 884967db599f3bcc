"""The way of a model into a model directory. Read this file first.

    target -> torch module -> graph -> stage -> verify -> publish

`export` is that line. What comes in is a `Source`: a module with what its manifest says. What goes out is a version of
a model that a service can load, and the cases that prove it. Nothing is published whose proof does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import onnx
import torch

from model_export import checkpoint, graph, package, verify
from model_export.layers import Standardize
from model_export.model import SequenceClassifier
from model_export.spec import Spec
from model_export.verify import Case, Reference
from service import golden
from service.errors import VerificationError
from service.manifest import (
    CONTRACT,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
    digest,
)
from service.padding import PaddedBatch
from service.session import Session

GOLDEN_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)


@dataclass(frozen=True, slots=True)
class Source:
    """A model on its way, whatever it was made from.

    Attributes:
        manifest: All but version, promises and digests, which export finds out.
        build: Makes the graph; told the model's name.
        reference: The model in its own framework, or None where the graph is all there is.
        tolerance: What company may move an answer by; 0 asks for the same bits.
    """

    manifest: Manifest
    build: Callable[[Manifest], onnx.ModelProto]
    reference: Reference | None
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Published:
    """A model directory, and its proof."""

    directory: Path
    manifest: Manifest
    cases: Sequence[Case]
    nodes: int


def export(source: Source, out: Path, *, seed: int = 0) -> Published:
    """Builds, verifies and publishes.

    Args:
        source: The model.
        out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
        seed: Decides the sequences of the proof.

    Raises:
        PublishError: The version exists, or the place cannot be written.
        ExportError: No sound graph can be made of the model.
        VerificationError: A case of the proof does not hold; nothing was published.
    """
    place = package.place(out)
    manifest = source.manifest.model_copy(update={"name": place.name, "version": place.version})
    proto = source.build(manifest)
    with package.staged(place) as stage:
        (stage / GRAPH_FILE).write_bytes(proto.SerializeToString())
        cases = prove(stage, manifest, source, seed=seed)
        finished = _write(stage, manifest, cases, seed=seed)
        _load_as_a_service_would(stage, finished)
    return Published(place.directory, finished, cases, len(proto.graph.node))


def built_in(spec: Spec, weights: Path | None, *, opset: int = graph.OPSET, tolerance: float = 0.0) -> Source:
    """The built-in architecture, with trained weights or, without any, with those it begins with.

    Raises:
        CheckpointError: The weights are not those of this spec.
    """
    torch.manual_seed(0)
    model = SequenceClassifier(spec).eval()
    made: dict[str, str | int | float | None] = {}
    if weights is not None:
        checkpoint.load(model, weights)
        made["checkpoint"] = digest(weights)
    mean, std = _statistics(model, spec)
    manifest = spec.manifest(name="model", version=1, mean=mean, std=std)

    def build(named: Manifest) -> onnx.ModelProto:
        return graph.build(model, named.input, name=named.name, labels=named.labels, opset=opset)

    return Source(
        manifest=manifest.model_copy(update={"made": {"architecture": "built-in", **made}}),
        build=build,
        reference=eager(model),
        tolerance=tolerance,
    )


def eager(model: SequenceClassifier) -> Reference:
    """The model as torch runs it, sequences packed."""

    def answer(batch: PaddedBatch) -> verify.Logits:
        with torch.inference_mode():
            logits = model(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).logits
        return cast("verify.Logits", logits.numpy())

    return answer


def prove(stage: Path, manifest: Manifest, source: Source, *, seed: int) -> list[Case]:
    """Verifies the staged graph.

    Requires: the graph in the stage. Ensures: every case holds.

    Raises:
        VerificationError: One does not; names the worst.
    """

    def open_session(threads: int) -> Session:
        return Session.load(stage, manifest, threads=threads)

    cases = verify.verify(open_session, manifest, source.reference, seed=seed)
    bad = verify.failures(cases, tolerance=source.tolerance)
    if bad:
        worst = max(bad, key=lambda case: case.difference)
        raise VerificationError(
            f"{manifest.key}: {len(bad)} of {len(cases)} cases do not hold, so nothing was published; "
            f"the worst: {worst.name}, {worst.difference:.3g}"
        )
    return cases


def _write(stage: Path, manifest: Manifest, cases: Sequence[Case], *, seed: int) -> Manifest:
    """Writes what stands beside the graph.

    Requires: a proved graph in the stage. Ensures: a whole model directory, and its manifest.
    """
    session = Session.load(stage, manifest)
    lengths = [length for length in GOLDEN_LENGTHS if length <= manifest.max_length]
    members = verify.sequences(manifest, lengths, seed + 10)
    golden.answers(session, members, manifest).write(stage / GOLDEN_FILE)
    # Only a proof of which every case holds gets here; the service looks for it in each.
    proof = {"contract": CONTRACT, "seed": seed, "cases": [{**case.as_json(), "holds": True} for case in cases]}
    (stage / VERIFICATION_FILE).write_text(json.dumps(proof, indent=2, allow_nan=False) + "\n")
    versions = {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime")}
    finished = manifest.model_copy(
        update={
            "promises": (verify.promise(cases),),
            "digests": {name: digest(stage / name) for name in (GRAPH_FILE, VERIFICATION_FILE, GOLDEN_FILE)},
            "made": {**manifest.made, **versions},
        }
    )
    (stage / MANIFEST_FILE).write_text(finished.to_json())
    return finished


def _load_as_a_service_would(stage: Path, manifest: Manifest) -> None:
    """Reads the staged directory back.

    Requires: a whole model directory. Ensures: a service that reads it finds what was meant.
    """
    found = Manifest.read(stage)
    if found != manifest:
        raise VerificationError(f"{manifest.key}: the manifest reads back as another one")
    found.check_digests(stage)
    session = Session.load(stage, found)
    golden.check(session, golden.Golden.read(stage / GOLDEN_FILE, found), found)


def _statistics(model: SequenceClassifier, spec: Spec) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of each feature, where the model normalises."""
    first = model.first
    if not isinstance(first, Standardize) or not spec.input.normalize:
        return None, None
    return tuple(first.mean.tolist()), tuple(first.std.tolist())

"""The way of a model into a model directory. Read this file first.

    target -> torch module -> graph -> stage -> verify -> publish

`export` is that line. What comes in is a `Source`, which knows how to build its graph and what its manifest says. What
goes out is a version of a model that a service can load, and the cases that prove it. Nothing is published whose proof
does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from model_export import package, verify
from model_export.sequences import draw
from model_export.source import Source
from model_export.verify import Case
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
from service.session import Session

GOLDEN_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)


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
        worst = max(bad, key=lambda case: case.relative)
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
    members = draw(manifest, lengths, seed + 10)
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

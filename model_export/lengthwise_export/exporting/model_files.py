"""Writes the files of a model directory, and loads them as a service does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lengthwise import files
from lengthwise.decoding.dataset import Record
from lengthwise.errors import ModelError, VerificationError
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
    digest,
)
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.opening import RUNTIME_VERSION
from lengthwise.runtime.session import Session
from lengthwise.verification import golden, promises
from lengthwise.verification.random_sequences import draw, lengths_for
from lengthwise_export.exporting import example_recordings
from lengthwise_export.exporting.verify import VerifiedGraph
from lengthwise_export.onnx_graphs.cpu_nodes import host_nodes

if TYPE_CHECKING:
    from lengthwise_export.mending.fix import FixProposal

GOLDEN_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)


def write(
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


def load_as_a_service_would(stage: Path, manifest: Manifest) -> Iterator[str]:
    """Loads the staged directory as a service does, and yields notices about other installations.

    Requires: a complete model directory. Ensures: a service can read and serve it.

    Raises:
        ModelError: A service would reject it.
    """
    yield from _ill_conditioned(manifest)
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


def _ill_conditioned(manifest: Manifest) -> Iterator[str]:
    """A notice about sequences for which the promised tolerance is larger than rounding."""
    for promise in manifest.promises:
        if promise.amplified:
            yield (
                "the model is ill-conditioned for some raw values (a constant far from 0, for example): a few ulps of "
                f"such a sequence move its answer by {promise.amplified:.2g}, and batched it may differ by "
                f"{promise.tolerance:.2g} (the manifest's tolerance)"
            )

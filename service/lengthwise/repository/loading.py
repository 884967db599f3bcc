"""Opens a model directory: its files are read once, judged, and what was read is what runs.

The files are compared with their digests as they are read. They are judged by `judging`, in a process of its own where
a service loads them (`judge_process`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from lengthwise.batching import buckets
from lengthwise.batching.buckets import BucketedCosts, Buckets
from lengthwise.batching.cost import CostTable
from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ModelError
from lengthwise.files import bundled_models
from lengthwise.repository import judging, kept_costs
from lengthwise.repository.contents import Look
from lengthwise.repository.judging import Judge, ModelFiles
from lengthwise.repository.model import Model
from lengthwise.runtime.manifest import GOLDEN_FILE, MANIFEST_FILE, MOST_BYTES, VERIFICATION_FILE, Manifest
from lengthwise.runtime.provider import CPU_DEVICE, Device
from lengthwise.runtime.session import Session
from lengthwise.stopping import Stopping
from lengthwise.verification import kept_promises, promises

MOST_NESTED: Final = 32
"""How deep folders in a model directory are looked into."""
WARM_UP: Final = 25
"""How much longer than measuring the warm-up of a device may take: 10 s at the start, 4 s beside others that serve."""

log = logging.getLogger("lengthwise.repository")

_ABOUT_THE_GRAPH = frozenset({MANIFEST_FILE, VERIFICATION_FILE, GOLDEN_FILE, kept_costs.FILE, kept_promises.FILE})


def load(
    directory: Path,
    limits: BatchLimits,
    *,
    budget_seconds: float = 1.0,
    devices: Sequence[Device] = (CPU_DEVICE,),
    judge: Judge = judging.judge,
    most_bytes: int = MOST_BYTES,
    stopping: Stopping | None = None,
) -> Model:
    """One model directory, proved and measured.

    Its files are read once: what was held against its digests is what is judged, and what is opened.

    Args:
        directory: Holds the model.
        limits: What one batch may be; bounds what is measured.
        budget_seconds: Time to spend on measuring; on devices more, see `WARM_UP`.
        devices: Where it runs.
        judge: Judges it, in this process or in another.
        most_bytes: Of its files.
        stopping: Whether to end early.

    Raises:
        ModelError: It must not be served; says why.
        Stopped: It was stopped.
    """
    files = ModelFiles.read(directory, most_bytes=most_bytes)
    manifest = files.manifest
    judged = judge(files, limits, budget_seconds, devices, stopping or Stopping())
    session = judged.session or files.open(devices)
    if session.kernels != judged.kernels:
        raise ModelError(
            f"{manifest.key}: it was proved with the recurrent kernels of {judged.kernels}, and those of "
            f"{session.kernels} would serve it"
        )
    if judged.cases and not directory.is_relative_to(bundled_models()):  # what is installed stays as it is
        promises.keep(directory, session, manifest, judged.promise, judged.cases)
    try:
        cost = CostTable.from_json(dict(judged.costs), clock=session.clock)
        shapes = None
        if session.bound:
            shapes = _warmed(
                session, cost, manifest, limits.at_most(manifest.max_batch_rows), seconds=WARM_UP * budget_seconds
            )
            cost = BucketedCosts(cost, shapes)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{manifest.key}: the graph cannot be run here: {error}") from error
    return Model(manifest, session, cost, graph_bytes(look(directory)), judged.promise, shapes, judged.steady)


def _warmed(session: Session, cost: CostTable, manifest: Manifest, limits: BatchLimits, *, seconds: float) -> Buckets:
    """The shapes that batches will have on a device, each seen by it once as far as the time goes."""
    chosen = buckets.choose(cost, limits, max_length=manifest.max_length, multiple=manifest.width_multiple)
    shapes = chosen.shapes()
    ran = session.warm_up(shapes, seconds=seconds)
    log.info(
        "%s: %d widths and %d numbers of rows on %s; %d of %d shapes run before the first request, the largest first",
        manifest.key,
        len(chosen.widths),
        len(chosen.rows),
        session.provider,
        ran,
        len(shapes),
    )
    return chosen


def look(directory: Path) -> Look:
    """How a model directory looks from outside; empty where it is gone."""
    seen = []
    for folder, inside, names in os.walk(directory):
        if folder.count(os.sep) - str(directory).count(os.sep) >= MOST_NESTED:
            inside.clear()
        for name in names:
            path = Path(folder, name)
            with suppress(OSError):  # it went away meanwhile, or is a link to nowhere: `load` says so if it matters
                found = path.stat()
                seen.append((str(path.relative_to(directory)), found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(sorted(seen))


def graph_bytes(seen: Look) -> int:
    """Bytes of the graph's files among those of a model directory: all but those that describe and prove it."""
    return sum(size for name, size, *_ in seen if name not in _ABOUT_THE_GRAPH)

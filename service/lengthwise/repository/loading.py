"""Loads a model directory: reads its files once, verifies what was read (`verifier`), and runs exactly that."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from lengthwise.batching import buckets
from lengthwise.batching.buckets import BatchShape, BucketedCosts, Buckets
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.errors import NotVerified, as_model_errors
from lengthwise.files import bundled_models
from lengthwise.padding import PaddedBatch
from lengthwise.repository import stored_measurements, verifier
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import Verification, VerificationTask, Verifier
from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import (
    EXAMPLES_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    MOST_BYTES,
    VERIFICATION_FILE,
    Manifest,
    Promise,
)
from lengthwise.runtime.provider import CPU_DEVICE, Device
from lengthwise.runtime.recurrent_kernels import ONNXRUNTIME
from lengthwise.runtime.session import OutputName, Session
from lengthwise.verification import promises
from lengthwise.verification.golden import Golden
from lengthwise.versions import Key

MOST_NESTED: Final = 32  # files in folders of a model directory are listed down to so many levels
_MOST_LENGTHS: Final = 64  # an export writes a handful of recordings, but anybody may write the file
WARM_UP: Final = 2  # the warm-up of a device takes at most so many times `budget_seconds`

log = logging.getLogger("lengthwise.repository")

# Of each file of a model directory: name, size, mtime, ctime. If it is unchanged, the version is not verified again.
DirectoryState = tuple[tuple[str, int, int, int], ...]

# Files that do not count as bytes of the graph
_NOT_GRAPH = {MANIFEST_FILE, VERIFICATION_FILE, GOLDEN_FILE, EXAMPLES_FILE, *verifier.STORED_FILES}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A verified model, which can run."""

    manifest: Manifest
    session: Session
    cost: CostTable  # of its batches
    graph_bytes: int = 0  # counts against `--max-model-bytes`
    promise: Promise | None = None  # of batch invariance here; None if nothing was verified
    buckets: Buckets | None = None  # the shapes of its batches; None for any
    steady: bool = True  # whether the time of a run follows from the shape of its batch
    golden: Golden | None = None
    examples: bytes | None = None  # a few labelled recordings, as JSON Lines
    usual_lengths: Sequence[int] = ()  # of these recordings, ascending
    cold: Sequence[BatchShape] = ()  # shapes of a device that have not run: see `ModelQueue.cold`

    @property
    def key(self) -> Key:
        """The name and version of the model."""
        return Key(self.manifest.name, self.manifest.version)

    def answer(
        self, batch: PaddedBatch, attention: bool, on_clipped: Callable[[int], None] | None = None
    ) -> list[Answer | None]:
        """Runs a batch; returns one answer for each sequence, None for a sequence whose logits are not finite.

        Args:
            batch: The batch. Its fillers, rows that only fill up a shape of a device, get no answer.
            attention: Whether answers have attention weights.
            on_clipped: Called with the number of values that were clipped, if the graph has the output `clipped`.
        """
        names: tuple[OutputName, ...] = ("logits", "attention") if attention else ("logits",)
        if on_clipped is not None:
            names = (*names, "clipped")
        if batch.wants_states:
            names = (*names, "states")
        outputs, lengths = self.session.run(batch, names), batch.lengths
        if on_clipped is not None and outputs.clipped is not None:
            on_clipped(int(outputs.clipped[: batch.rows - batch.fillers].sum()))
        if batch.fillers:
            outputs, lengths = outputs.first(batch.rows - batch.fillers), lengths[: -batch.fillers]
        return answers.score(outputs, lengths, self.manifest)


def load(
    directory: Path,
    limits: BatchLimits,
    *,
    budget_seconds: float = 1.0,
    devices: Sequence[Device] = (CPU_DEVICE,),
    verify: Verifier = verifier.verify,
    most_bytes: int = MOST_BYTES,
    stopping: Stopping | None = None,
) -> LoadedModel:
    """Loads a model directory: reads, verifies and opens it, and stores what was measured beside the model.

    Args:
        directory: The model directory.
        limits: The limits of a batch.
        budget_seconds: How long measuring the costs may take, unless they are stored already.
        devices: The devices that run the model.
        verify: Verifies the model, here or in another process.
        most_bytes: The largest size of all files together.
        stopping: Stops the work early; None: nothing does.

    Raises:
        ModelError: The model must not be served, or cannot be run here; the message says why.
        NotVerified: It would be served by other kernels than those that were verified, or memory is short now.
    """  # noqa: DOC502 - what it calls raises the first one
    # 1. Read, verify with the kernels that will serve, and measure; maybe in another process (`verifier.verify`)
    task = VerificationTask.read(directory, limits, budget_seconds, devices, most_bytes)
    started = time.monotonic()
    verification = verify(task, stopping or Stopping())
    seconds = time.monotonic() - started
    # 2. Open a session with the kernels that were verified
    session = verification.session or task.open(plain=verification.kernels == ONNXRUNTIME)
    if session.kernels != verification.kernels:
        raise NotVerified(  # as where there was too little memory for the kernels: a later scan tries it again
            f"{task.manifest.key}: it was verified with the recurrent kernels of {verification.kernels}, and those of "
            f"{session.kernels} would serve it"
        )
    # 3. Store the results for the next load
    if not directory.is_relative_to(bundled_models()):  # an installation is not changed
        _store(directory, task.manifest, session, verification, seconds)
    # 4. On a device, choose the shapes of batches, and run the first of them
    usual_lengths = _lengths(task.examples)
    with as_model_errors(f"{task.manifest.key}: the graph cannot be run here"):
        cost = CostTable.from_json(dict(verification.costs), clock=session.clock)
        shapes, cold = _warm_up(session, cost, task, usual_lengths) if session.bound else (None, [])
    return LoadedModel(
        task.manifest,
        session,
        cost if shapes is None else BucketedCosts(cost, shapes),
        graph_bytes(directory_state(directory)),
        verification.promise,
        shapes,
        verification.steady,
        Golden.of(task.golden, task.manifest),
        task.examples,
        usual_lengths,
        cold,
    )


def _store(directory: Path, manifest: Manifest, session: Session, verification: Verification, seconds: float) -> None:
    """Stores what a verification of so many `seconds` measured in the model directory, if it can be written."""
    try:
        if verification.cases:
            conditions = promises.conditions(manifest, session)
            promises.store(directory, conditions, verification.promise, verification.cases)
        if verification.choice is not None:
            stored_measurements.write(directory / stored_measurements.KERNELS_FILE, **verification.choice)
        if verification.measured is not None:
            stored_measurements.write(
                directory / stored_measurements.COSTS_FILE, verification.measured, table=verification.costs
            )
    except OSError as error:
        log.info(
            "%s cannot be written (%s): every start verifies and measures it again, which took %.1f s; one start "
            "that may write there keeps the results",
            directory,
            error.strerror,
            seconds,
        )


def _lengths(examples: bytes | None) -> list[int]:
    """The lengths of the first recordings in `examples.jsonl`, ascending.

    None of them if the file is missing or has another form.
    """
    try:
        return sorted(len(orjson.loads(line)["steps"]) for line in (examples or b"").splitlines()[:_MOST_LENGTHS])
    except (ValueError, KeyError, TypeError):
        return []


def _warm_up(
    session: Session, cost: CostTable, task: VerificationTask, usual_lengths: Sequence[int]
) -> tuple[Buckets, list[BatchShape]]:
    """Chooses the shapes of batches on a device, and runs the first ones for about `WARM_UP * budget_seconds` at most.

    The first ones have the widths of `usual_lengths`, if there are any.

    Returns:
        The chosen buckets, and the shapes that have not run.
    """
    manifest, limits = task.manifest, task.limits
    limits = buckets.lowered(cost, limits) if limits.by_table else limits
    chosen = buckets.choose(
        cost, limits, max_length=manifest.longest, min_length=manifest.min_length, multiple=manifest.width_multiple
    )
    shapes = chosen.shapes()
    first = chosen.first_shapes(usual_lengths)
    # The largest, and the one with most rows, before the others: then no buffer grows for a later one.
    first = [*dict.fromkeys((first[0], max(first), *first))][: buckets.BEFORE_READY]
    ran = session.warm_up(first, seconds=WARM_UP * task.budget_seconds)
    message = "%s on %s: batches have up to %d rows and %d steps; %d of %d shapes ran, others run at rest"
    log.info(message, manifest.key, session.provider, limits.rows, limits.padded_steps, ran, len(shapes))
    return chosen, [shape for shape in shapes if shape not in first[:ran]]


def directory_state(directory: Path) -> DirectoryState:
    """Lists the files of a model directory with their sizes and times; none if the directory does not exist."""
    state = []
    for folder, subfolders, names in os.walk(directory):
        if folder.count(os.sep) - str(directory).count(os.sep) >= MOST_NESTED:
            subfolders.clear()  # so `os.walk` goes no deeper
        for name in names:
            path = Path(folder, name)
            with suppress(OSError):  # removed meanwhile, or a broken link; `load` reports it if it matters
                status = path.stat()
                state.append((str(path.relative_to(directory)), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(sorted(state))


def graph_bytes(state: DirectoryState) -> int:
    """How many bytes the graph and its weights have, by the state of a model directory: files of any other name too.

    A mounted ConfigMap has its files in a folder `..TIME`, and links to them, which count.
    """
    return sum(size for name, size, *_ in state if name not in _NOT_GRAPH and not name.startswith(".."))

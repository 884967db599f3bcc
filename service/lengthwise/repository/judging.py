"""One model, judged: is it to be served here, under which promise, and at what cost.

    graph and weights ──> session ──> rows, golden sequences, proof ──> odd values ──> costs

Everything is made of bytes that were read once and held against their digests (`ModelFiles`), so what is judged is what
will be opened. `judge` runs in the process that calls it. `judge_process` has it run in a process of its own,
which may hang, grow or end without harm to the one that serves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise import files
from lengthwise.batching.cost import CostTable, measure
from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ModelError, VerificationError
from lengthwise.padding import Steps, batches, pad, rounded_width
from lengthwise.repository import kept_costs
from lengthwise.runtime import answers, data_dependence, onnx_graph, recurrent_kernels
from lengthwise.runtime.manifest import GOLDEN_FILE, GRAPH_FILE, MOST_BYTES, VERIFICATION_FILE, Manifest, Promise
from lengthwise.runtime.onnx_graph import Graph
from lengthwise.runtime.provider import Device
from lengthwise.runtime.session import Session
from lengthwise.stopping import Stopped, Stopping
from lengthwise.verification import kept_promises, promises
from lengthwise.verification.golden import Golden

ODD_VALUES: Final = (0.0, 1.0, -1.0, 1e3, -1e3)
"""Sequences of one value again and again, which no proof and no recording has: a graph that looks at values to choose
what it computes does something else with these."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model directory holds, read once.

    Attributes:
        manifest: What it wants and answers.
        graph: The graph's bytes.
        weights: Contents of the files that the graph takes weights from, by its names of them.
        verification: The recorded proof.
        golden: The golden sequences.
        costs: A kept cost table, where there is one.
        promises: Kept promises, where there are some.
    """

    manifest: Manifest
    graph: bytes
    weights: Mapping[str, bytes]
    verification: bytes
    golden: bytes
    costs: bytes | None = None
    promises: bytes | None = None

    @classmethod
    def read(cls, directory: Path, *, most_bytes: int = MOST_BYTES) -> ModelFiles:
        """Reads a model directory.

        Args:
            directory: Holds the model.
            most_bytes: Of all files that have digests.

        Raises:
            ModelError: It must not be served; says why.
        """
        manifest = Manifest.read(directory)
        if (manifest.name, str(manifest.version)) != (directory.parent.name, directory.name):
            raise ModelError(
                f"the manifest is of {manifest.key}, the folder says {directory.parent.name}/{directory.name}: give "
                "the folder its name back, or export under the other name"
            )
        contents = manifest.checked(directory, most_bytes=most_bytes)
        if VERIFICATION_FILE not in contents or GOLDEN_FILE not in contents:
            raise VerificationError(
                f"{manifest.key}: the manifest has no digest of {VERIFICATION_FILE} or {GOLDEN_FILE}"
            )
        own = {GRAPH_FILE, VERIFICATION_FILE, GOLDEN_FILE}
        return cls(
            manifest,
            contents[GRAPH_FILE],
            {name: content for name, content in contents.items() if name not in own},
            contents[VERIFICATION_FILE],
            contents[GOLDEN_FILE],
            files.read_if_any(directory / kept_costs.FILE, kept_costs.MOST_BYTES),
            files.read_if_any(directory / kept_promises.FILE, kept_promises.MOST_BYTES),
        )

    def open(self, devices: Sequence[Device]) -> Session:
        """The session of the graph."""
        return Session(self.graph, self.manifest, weights=self.weights, devices=devices)


@dataclass(frozen=True, slots=True)
class Judged:
    """A model that is good.

    Attributes:
        promise: What holds of a sequence alone and in company.
        cases: The proof of the promise where it is a new one, as `Case.as_json` writes it.
        costs: The cost table, as `CostTable.to_json` writes it.
        steady: Whether the time of a run follows from the shape of its batch.
        kernels: Whose kernels ran its recurrent layers.
        session: The session that it was judged with; None where that was in another process.
    """

    promise: Promise
    cases: Sequence[Mapping[str, Any]]
    costs: Mapping[str, Any]
    steady: bool
    kernels: str
    session: Session | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All but the session."""
        return {
            "promise": self.promise.model_dump(),
            "cases": list(self.cases),
            "costs": self.costs,
            "steady": self.steady,
            "kernels": self.kernels,
        }

    @classmethod
    def from_json(cls, told: Any) -> Judged:
        """What `to_json` wrote."""
        return cls(
            Promise.model_validate(told["promise"]),
            tuple(told["cases"]),
            dict(told["costs"]),
            bool(told["steady"]),
            str(told["kernels"]),
        )


Judge = Callable[[ModelFiles, BatchLimits, float, Sequence[Device], Stopping], Judged]
"""`judge`, in this process or in another: with the same arguments, and raising the same."""


def judge(
    files: ModelFiles,
    limits: BatchLimits,
    budget_seconds: float,
    devices: Sequence[Device],
    stopping: Stopping,
) -> Judged:
    """Judges a model in this process.

    Args:
        files: What was read of it.
        limits: What one batch may be; bounds what is measured.
        budget_seconds: Time to spend on measuring.
        devices: Where it runs.
        stopping: Whether to end early.

    Raises:
        ModelError: It must not be served; says why.
        Stopped: It was stopped.
    """
    manifest = files.manifest
    _check_verification(files.verification, manifest)
    session = files.open(devices)
    graph = _read(files)
    check_rows(graph, session.kernels, manifest)
    expected = Golden.of(files.golden, manifest)
    try:
        stopping.check()
        promise, cases = promises.held(session, expected, manifest, files.promises, tf32=devices[0].tf32)
        stopping.check()
        run_odd_values(session, manifest)
        limits = limits.at_most(manifest.max_batch_rows)
        under = kept_costs.conditions(manifest, session, limits)
        cost = kept_costs.of(files.costs, under, clock=session.clock) or measure_cost(
            session, manifest, limits, budget_seconds=budget_seconds, stopping=stopping
        )
    except (ModelError, Stopped):
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{manifest.key}: the graph cannot be run here: {error}") from error
    told = [case.as_json() for case in cases]
    steady = data_dependence.has_steady_time(graph)
    return Judged(promise, told, cost.to_json(), steady, session.kernels, session)


def measure_cost(
    session: Session,
    manifest: Manifest,
    limits: BatchLimits,
    *,
    budget_seconds: float = 1.0,
    stopping: Stopping | None = None,
) -> CostTable:
    """The cost table of a session, measured with sequences of zeros: padding, run and scoring.

    Raises:
        Stopped: It was stopped.
    """
    multiple = manifest.width_multiple

    def run(rows: int, width: int) -> None:
        if stopping is not None:
            stopping.check()
        batch = pad([_constant(manifest, 0.0, min(width, manifest.max_length))] * rows, multiple=multiple)
        answers.score(session.run(batch), batch.lengths, manifest)

    return measure(
        run,
        max_rows=limits.rows,
        max_width=rounded_width(manifest.max_length, multiple),
        max_padded_steps=limits.padded_steps,
        multiple=multiple,
        budget_seconds=budget_seconds,
        clock=session.clock,
    )


def _check_verification(verification: bytes, manifest: Manifest) -> None:
    """Looks through the recorded proof: it must hold.

    Raises:
        VerificationError: It does not.
    """
    try:
        recorded: Any = json.loads(verification)
        failed = [str(case["name"]) for case in recorded["cases"] if case["holds"] is not True]
        count = len(recorded["cases"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(f"{manifest.key}: {VERIFICATION_FILE} cannot be read: {error!r}") from error
    if failed or not count:
        what = f"its cases failed: {', '.join(failed[:5])}" if failed else "it has no case"
        raise VerificationError(f"{manifest.key}: the recorded proof does not hold: {what}")


def _read(files: ModelFiles) -> Graph:
    """The graph's nodes, of a graph that onnxruntime has loaded."""
    try:
        return onnx_graph.read(files.graph)
    except ValueError as error:
        raise ModelError(f"{files.manifest.key}: {GRAPH_FILE} cannot be read as ONNX: {error}") from error


def check_rows(graph: Graph, kernels: str, manifest: Manifest) -> None:
    """Refuses a graph in which a caller's values may leave one of onnxruntime's recurrent layers without a row.

    Args:
        graph: The graph.
        kernels: Whose kernels run its recurrent layers, as `Session.kernels` says it.
        manifest: Says what the graph's inputs are.

    Raises:
        ModelError: It is one.
    """
    ending = data_dependence.ENDS_WITHOUT_ROWS_AT_INT8
    if kernels == recurrent_kernels.ONNXRUNTIME:
        ending |= data_dependence.ENDS_WITHOUT_ROWS
    names = manifest.graph
    others = [name for name in (names.lengths, names.mask) if name is not None]
    operator = data_dependence.recurrent_without_rows(graph, names.sequences, others, ending)
    if operator is not None:
        raise ModelError(f"{manifest.key}: {data_dependence.why_refused(operator)}")


def run_odd_values(session: Session, manifest: Manifest) -> None:
    """Runs sequences of one value, alone and together: whatever they answer, they must come through."""
    length = min(5, manifest.max_length)
    sequences = [_constant(manifest, value, length) for value in ODD_VALUES]
    sequences += [_constant(manifest, 0.0, 1), _constant(manifest, 0.0, manifest.max_length)]
    for members in (*([steps] for steps in sequences), sequences[:-1]):
        for batch in batches(members, multiple=manifest.width_multiple, most_rows=manifest.max_batch_rows):
            session.run(batch, ("logits", "attention"))


def _constant(manifest: Manifest, value: float, length: int) -> Steps:
    """A sequence of one value; of tokens, the first id or the last."""
    if manifest.input.vocabulary is not None:
        return np.full(length, 0 if value <= 0 else manifest.input.vocabulary - 1, dtype=np.int64)
    return np.full((length, manifest.input.features or 1), value, dtype=np.float32)

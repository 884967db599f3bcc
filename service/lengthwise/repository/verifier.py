"""Verifies one model: whether it may be served here, under which promise, and with which predicted costs.

    read ──> choose kernels ──> verify: golden sequences, promise, odd values ──> measure costs

Everything uses bytes that were read once and compared with their digests (`VerificationTask`), so what is verified is
what will run. `verify` runs in the calling process, `verification_process` in another, which may hang, crash or run out
of memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lengthwise import files
from lengthwise.batching.cost import CostTable
from lengthwise.batching.cost_measurement import MOST_RUNS, measure
from lengthwise.batching.limits import BatchLimits
from lengthwise.errors import ModelError, NotVerified, VerificationError, as_model_errors
from lengthwise.padding import STATIC, RowInput, Sample, Steps, batches, pad, rounded_width
from lengthwise.repository import kernel_choice, stored_measurements
from lengthwise.repository.stopping import Stopped, Stopping
from lengthwise.runtime import answers, recurrent_kernels
from lengthwise.runtime.manifest import EXAMPLES_FILE, GOLDEN_FILE, GRAPH_FILE, VERIFICATION_FILE, Manifest, Promise
from lengthwise.runtime.onnx import data_dependence, onnx_graph
from lengthwise.runtime.onnx.onnx_graph import Graph
from lengthwise.runtime.provider import Device
from lengthwise.runtime.session import Session
from lengthwise.verification import promises
from lengthwise.verification.golden import Golden
from lengthwise.verification.measurement import Case

# Written by a load beside the model, in the order of the last fields of `VerificationTask`
STORED_FILES: Final = (stored_measurements.COSTS_FILE, promises.FILE, stored_measurements.KERNELS_FILE)
# On a processor, costs are measured for so many seconds, or the time of so many runs of the longest sequence if that is
# more, within the budget: `python -m benchmarks.processor_costs`
_FAST_SECONDS, _LONGEST_RUNS = 0.3, 2.5
ODD_VALUES: Final = (0.0, 1.0, -1.0, 1e3, -1e3)  # control flow that depends on values may crash with them


@dataclass(frozen=True, slots=True)
class VerificationTask:
    """What is verified: the content of a model directory, read once (None for a missing file), and how it will run."""

    limits: BatchLimits  # of its batches
    budget_seconds: float  # to measure its costs
    devices: tuple[Device, ...]
    manifest: Manifest
    graph: bytes  # `model.onnx`
    weights: Mapping[str, bytes]  # by the graph's names of the files
    verification: bytes  # `verification.json`
    golden: bytes  # `golden.npz`
    examples: bytes | None = None  # `examples.jsonl`
    costs: bytes | None = None  # `costs.json`
    promises: bytes | None = None  # `promises.json`
    kernels: bytes | None = None  # `kernels.json`

    @classmethod
    def read(
        cls, directory: Path, limits: BatchLimits, budget_seconds: float, devices: Sequence[Device], most_bytes: int
    ) -> VerificationTask:
        """Reads a model directory.

        Args:
            directory: The model directory.
            limits: The limits of a batch; the manifest's `max_batch_rows` lowers them.
            budget_seconds: The time to measure the costs.
            devices: The devices that will run the model.
            most_bytes: The largest size of all files with digests together.

        Raises:
            ModelError: The manifest is of another name or version. Every other error here is a subclass.
            VerificationError: The manifest has no digest of the verification or of the golden sequences.
        """
        manifest = Manifest.read(directory)
        if (manifest.name, str(manifest.version)) != (directory.parent.name, directory.name):
            raise ModelError(
                f"the manifest is of {manifest.key}, the folder says {directory.parent.name}/{directory.name}: give "
                "the folder its name back, or export under the other name"
            )
        contents = manifest.read_files(directory, most_bytes=most_bytes)
        if VERIFICATION_FILE not in contents or GOLDEN_FILE not in contents:
            raise VerificationError(
                f"{manifest.key}: the manifest has no digest of {VERIFICATION_FILE} or {GOLDEN_FILE}"
            )
        not_weights = {GRAPH_FILE, VERIFICATION_FILE, GOLDEN_FILE, EXAMPLES_FILE}
        return cls(
            limits.at_most(manifest.max_batch_rows),
            budget_seconds,
            tuple(devices),
            manifest,
            contents[GRAPH_FILE],
            {name: content for name, content in contents.items() if name not in not_weights},
            contents[VERIFICATION_FILE],
            contents[GOLDEN_FILE],
            contents.get(EXAMPLES_FILE),
            *(files.read_if_any(directory / name, promises.MOST_BYTES) for name in STORED_FILES),
        )

    def open(self, *, plain: bool = False) -> Session:
        """Opens a session of the graph on its devices; a `plain` one has onnxruntime's kernels."""
        devices = [replace(device, recurrent_kernels=False) for device in self.devices] if plain else self.devices
        return Session(self.graph, self.manifest, weights=self.weights, devices=devices)


class Verification(BaseModel):
    """The result for a model that may be served; all except the session may be sent or stored as JSON."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    promise: Promise
    cases: tuple[dict[str, Any], ...] = ()  # of a new promise, as `Case.as_json`
    costs: dict[str, Any]  # as `CostTable.to_json`
    # Under which conditions the costs were measured now (`cost_conditions`); None if they were read from `costs.json`
    measured: dict[str, str | int] | None = None
    steady: bool  # whether the time of a run follows from the shape of its batch
    kernels: str  # of its recurrent layers, as `Session.kernels`
    choice: dict[str, Any] | None = None  # for `kernels.json`; None if the kernels were not timed
    session: Session | None = Field(default=None, exclude=True)  # that was verified; None if in another process

    @classmethod
    def from_json(cls, verdict: dict[str, Any]) -> Verification:
        """Reads the verdict of another process: returns the verification of an accepted model, or raises the refusal.

        Args:
            verdict: `{"accepted": ...}`, as `model_dump` makes it, or `{"refused": reason, "kind": error's class}`.

        Raises:
            VerificationError: The model was refused, and its verification is the reason.
            NotVerified: It could not be verified now, as where a device has too little memory left for it.
            ModelError: The model was refused for another reason.
        """  # noqa: DOC502 - one of the three is chosen
        if "accepted" in verdict:
            return cls.model_validate(verdict["accepted"])
        kinds = {kind.__name__: kind for kind in (VerificationError, NotVerified)}
        raise kinds.get(str(verdict.get("kind")), ModelError)(str(verdict["refused"]))


Verifier = Callable[[VerificationTask, Stopping], Verification]  # `verify`, `VerificationProcess`, `SharedVerifier`


def verify(task: VerificationTask, stopping: Stopping) -> Verification:
    """Verifies a model in this process and measures its costs, in the four steps of the module.

    Raises:
        ModelError: The model must not be served; the message says why.
        Stopped: The work was stopped.
        MemoryError: There is not enough memory for it.
    """  # noqa: DOC502 - what it calls raises them
    manifest = task.manifest
    # 1. Read what the exporter recorded, and the graph
    _check_recorded_cases(task.verification, manifest)
    session = task.open()
    try:
        graph = onnx_graph.read(task.graph)
    except ValueError as error:
        raise ModelError(f"{manifest.key}: {GRAPH_FILE} cannot be read as ONNX: {error}") from error
    with as_model_errors(f"{manifest.key}: the graph cannot be run here", ModelError, Stopped, MemoryError):
        # 2. Choose the kernels that serve: their bits are those that are verified
        session, choice = choose_kernels(session, task, graph)
        check_rows(graph, session.kernels, manifest)
        # 3. Verify the answers
        promise, cases = check_answers(session, task, stopping)
        longest_seconds = run_odd_values(session, manifest)
        # 4. Measure the costs
        cost, conditions = _find_cost(session, task, stopping, longest_seconds)
    return Verification(
        promise=promise,
        cases=tuple(case.as_json() for case in cases),
        costs=cost.to_json(),
        measured=conditions,
        steady=data_dependence.has_steady_time(graph),
        kernels=session.kernels,
        choice=choice,
        session=session,
    )


def choose_kernels(session: Session, task: VerificationTask, graph: Graph) -> tuple[Session, dict[str, Any] | None]:
    """Chooses the kernels that serve a model: on a timed CPU the faster ones, else those that `session` has.

    Lengthwise's serve in any case where onnxruntime's must not: at int8 these would dequantise the weights, which gives
    other numbers and another promise; and they may crash without rows.

    Returns:
        The session with the chosen kernels; and what to store in `kernels.json`, or None if there is nothing new.
    """
    if not task.devices[0].timed or session.kernels == recurrent_kernels.ONNXRUNTIME or session.integer:
        return session, None
    try:
        check_rows(graph, recurrent_kernels.ONNXRUNTIME, task.manifest)
    except ModelError:
        return session, None
    return kernel_choice.choose(session, lambda: task.open(plain=True), task.manifest, task.kernels)


def check_answers(session: Session, task: VerificationTask, stopping: Stopping) -> tuple[Promise, list[Case]]:
    """Checks the golden sequences, and determines the promise: see `promises.promise_here`.

    Returns:
        The promise; and the measured cases, to be stored with it: none unless the model was verified again.

    Raises:
        VerificationError: The answers are not those that were verified.
        Stopped: The work was stopped.
    """  # noqa: DOC502 - what it calls raises them
    expected = Golden.of(task.golden, task.manifest)
    stopping.check()
    verified = promises.promise_here(session, expected, task.manifest, task.promises, tf32=task.devices[0].tf32)
    stopping.check()
    return verified


def _find_cost(
    session: Session, task: VerificationTask, stopping: Stopping, longest_seconds: float
) -> tuple[CostTable, dict[str, str | int] | None]:
    """Returns the stored cost table if it is valid here and right, else a measured one with its conditions.

    The conditions are None for the stored one, which need not be stored again. `longest_seconds`: the longest run of
    one sequence.
    """
    budget_seconds = measuring_seconds(session, longest_seconds, task.budget_seconds)
    conditions = stored_measurements.cost_conditions(task.manifest, session, task.limits)
    stored = stored_measurements.read(
        task.costs, conditions, lambda content: CostTable.from_json(content["table"]), stored_measurements.COSTS_FILE
    )
    cost = measure_cost(
        session, task.manifest, task.limits, budget_seconds=budget_seconds, stopping=stopping, stored=stored
    )
    return cost, None if cost is stored else conditions


def measuring_seconds(session: Session, longest_seconds: float, budget_seconds: float) -> float:
    """How much of the budget measuring takes. On a processor, the table of a fast model is no better with all of it."""
    needed_seconds = max(_FAST_SECONDS, _LONGEST_RUNS * longest_seconds)
    return budget_seconds if session.bound else min(budget_seconds, needed_seconds)


def measure_cost(
    session: Session,
    manifest: Manifest,
    limits: BatchLimits,
    *,
    stopping: Stopping,
    budget_seconds: float = 1.0,
    stored: CostTable | None = None,
) -> CostTable:
    """Measures the cost table of a session with sequences of zeros: the seconds of padding, run and scoring.

    It takes about `budget_seconds`, or returns the `stored` table after a few runs that show that it is right. If
    `stopping` is set meanwhile, it raises `Stopped`.
    """
    multiple, longest = manifest.width_multiple, constant_sequence(manifest, 0.0, manifest.longest)
    several = manifest.input.sequences

    def sequence(length: int) -> RowInput:
        """A sequence of zeros; of several each is as long, or as long as it may be."""
        return constant_sequence(manifest, 0.0, length) if several else longest[:length]

    def run_lengths(lengths: Sequence[int]) -> None:
        """Runs a batch of these lengths.

        Raises:
            MemoryError: A device may have too little memory for so many rows: `measure` then tries no larger shape.
        """
        stopping.check()
        batch = pad([sequence(length) for length in lengths], multiple=multiple, blank=manifest.blank)
        try:
            answers.score(session.run(batch), batch.lengths, manifest)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            if session.bound and batch.rows > 1:
                raise MemoryError(str(error)) from error
            raise

    return measure(
        lambda rows, width: run_lengths([width] * rows),
        max_rows=limits.rows,
        max_width=rounded_width(manifest.longest, multiple),
        max_padded_steps=limits.padded_steps,
        min_width=rounded_width(manifest.min_length, multiple),
        multiple=multiple,
        budget_seconds=budget_seconds,
        most_runs=MOST_RUNS if session.bound else None,
        clock=session.clock,
        run_lengths=run_lengths,
        stored=stored,
    )


def _check_recorded_cases(verification: bytes, manifest: Manifest) -> None:
    """Checks that every case in `verification.json` holds, and that there is one.

    Raises:
        VerificationError: A case does not hold, or the file cannot be read.
    """
    try:
        recorded: Any = json.loads(verification)
        failed = [str(case["name"]) for case in recorded["cases"] if case["holds"] is not True]
        count = len(recorded["cases"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(f"{manifest.key}: {VERIFICATION_FILE} cannot be read: {error!r}") from error
    if failed or not count:
        reason = f"its cases failed: {', '.join(failed[:5])}" if failed else "it has no case"
        raise VerificationError(f"{manifest.key}: the recorded verification does not hold: {reason}")


def check_rows(graph: Graph, kernels: str, manifest: Manifest) -> None:
    """Checks that no client can cause onnxruntime's recurrent layers to get no rows, which would crash the process.

    Args:
        graph: The graph.
        kernels: The kernels that run it, as `Session.kernels`; Lengthwise's do not crash.
        manifest: The manifest of the model.

    Raises:
        ModelError: A client can.
    """
    # The operators that crash without rows
    crashing = data_dependence.ENDS_WITHOUT_ROWS_AT_INT8
    if kernels == recurrent_kernels.ONNXRUNTIME or not recurrent_kernels.INSTRUCTION_SETS:
        crashing |= data_dependence.ENDS_WITHOUT_ROWS
    names = manifest.graph
    # The states that count steps are as the lengths are: a width may depend on them
    states = {} if manifest.streaming is None else {state.name: state.counts for state in manifest.streaming.states}
    lengths = [*names.length_inputs, *(name for name, counts in states.items() if counts)]
    contents = [name for name, counts in states.items() if not counts]
    operator = data_dependence.recurrent_without_rows(graph, names.sequences, lengths, crashing, contents)
    if operator is not None:
        raise ModelError(f"{manifest.key}: {data_dependence.why_refused(operator)}")


def run_odd_values(session: Session, manifest: Manifest) -> float:
    """Runs constant sequences, to test that nothing crashes; the answers are not compared.

    Each runs unbatched. Then all run together, except the longest, with which they might need too much memory.

    Returns:
        The seconds of the longest run.
    """
    length = max(min(5, manifest.max_length), manifest.min_length)
    sequences = [constant_sequence(manifest, value, length) for value in ODD_VALUES]
    sequences += [constant_sequence(manifest, 0.0, steps) for steps in (manifest.min_length, manifest.longest)]
    longest_seconds = 0.0
    sizes: Any = {"multiple": manifest.width_multiple, "most_rows": manifest.max_batch_rows}
    for together in (*([sequence] for sequence in sequences), sequences[:-1]):
        for batch in batches(together, **sizes, blank=manifest.blank):
            start = session.clock()
            session.run(batch, ("logits", "attention"))
            longest_seconds = max(longest_seconds, session.clock() - start)
    return longest_seconds


def constant_sequence(manifest: Manifest, value: float, length: int) -> RowInput:
    """Makes a sequence with one value at every step.

    For a token model it has one id: the first if the value is 0 or below, else the last. Of several sequences, each is
    as long, or as long as it may be; static values that are no category have the value, too.
    """
    steps = _constant_steps(manifest, value, min(length, manifest.max_length))
    if manifest.blank is None:
        return steps
    beside, static = dict(manifest.blank.beside), manifest.input.static
    if static is not None:
        numbers = [0.0 if name in static.categories else value for name in static.value_names]
        beside[STATIC] = np.array(numbers, dtype=np.float32)
    others = {
        name: _constant_steps(further, value, min(length, further.max_length))
        for name, further in manifest.further.items()
    }
    return Sample(steps, beside, others)


def _constant_steps(manifest: Manifest, value: float, length: int) -> Steps:
    """The steps of a sequence with one value at every step: see `constant_sequence`."""
    if manifest.input.vocabulary is not None:
        return np.full(length, 0 if value <= 0 else manifest.input.vocabulary - 1, dtype=np.int64)
    return np.full((length, manifest.input.features or 1), value, dtype=np.float32)

"""Finds the operator at which a leak begins: the first whose output differs between two runs.

Both runs hold the same sequences, so their answers should be equal. The outputs of all operators are compared in the
order of execution, at valid steps, or as a whole if they have no axis of steps. The search uses only the recordings of
the runs, so it is the same for torch and ONNX.

`before` is the run of the baseline, `after` that of the trial. A third run of a *larger batch* (more rows, longer
sequences, a larger width) shows which axes of a tensor depend on the batch; an operation has one shape for each output
there, None if the larger run lacks the operation.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise_export.checking import axes, trials
from lengthwise_export.checking.baseline import Baseline, relative_difference
from lengthwise_export.checking.causes import BY_PLACE, ArgumentNames, explain, explain_nan
from lengthwise_export.checking.recording import ModelOutput, Operation, Recording, Subject, with_joined_loops
from lengthwise_export.checking.rule import Cause, rules
from lengthwise_export.checking.trials import Change, CheckTrial, Geometry, Pairing, geometry
from lengthwise_export.errors import RunError
from lengthwise_export.tracing.source_lines import CodeLocation

_MORE_ROWS, _LONGER = 2, 3  # Rows, and steps of each sequence, that the larger batch has more than the baseline
_WIDER = (41, 7)  # Steps by which it is wider: more than the chunks of most models; else what fits small tables

_OF_ROWS: Final = ("neighbours", "order")  # Changes of other rows that leave all padding as it is
_FILLS: Final = ("masked_fill", "masked_fill_", "where", "Where")  # What they fill with is infinite on purpose
_AMPLIFIED: Final = 100  # So many times smaller than the tolerance may the difference in a weight be that changes a sum
_HIDDEN: Final = 10  # So many times smaller than the tolerance may a difference be of a leak that is known already
_MAX_PICTURED: Final = 400  # at most this many operators are shown in the picture of a leak


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial in which an answer changed."""

    base: PaddedBatch  # The batch with which that of the trial is compared: nearly always the baseline
    trial: CheckTrial
    row: int  # An index into `trial.rows`: the pair of rows whose answers differ most
    is_ordinary: bool = True  # Whether rows of ordinary values show the change
    # If the answer is finite in the batch of the trial, and not in `base`: what makes it so; otherwise empty
    nan_with: str = ""

    def backwards(self) -> FailedTrial:
        """The same with both batches exchanged, for an answer that is finite in the baseline, and not in the trial."""
        rows = tuple((row_after, row) for row, row_after in self.trial.rows)
        trial = replace(self.trial, batch=self.base, rows=rows)
        return replace(self, base=self.trial.batch, trial=trial, nan_with=self.trial.name)

    def with_batch_of_nan(self, baseline: Baseline, answer: ModelOutput, rows: tuple[int, int]) -> FailedTrial:
        """The failed trial, so that the report names the batch in which a sequence has no finite answer.

        1. The answers are both finite, or neither is: the failed trial as it is.
        2. Finite in the baseline only, so the trial made it NaN: baseline and trial are exchanged (`backwards`).
        3. Finite in the trial only: as it is; `nan_with` is the text that says so in the report.

        `answer` is that of the trial, `rows` are the rows of the sequence in the baseline and in the trial.
        """
        is_finite_before, is_finite_after = baseline.is_finite(rows[0]), baseline.is_finite_in(answer, *rows)
        if is_finite_before == is_finite_after:
            return self
        if is_finite_before:
            return self.backwards()
        return replace(self, nan_with=f"padding, and is finite {self.trial.name}")


@dataclass(frozen=True, slots=True)
class OperatorSpread:
    """One operator in the picture of a leak."""

    operator: str
    along: tuple[float, ...]  # The difference of its output at each step; one number if the output has no axis of steps
    location: CodeLocation | None = None


@dataclass(frozen=True, slots=True)
class Leak:
    """The beginning of a leak."""

    operator: str  # The first operator whose output changes at a valid step, or as a whole if it has no axis of steps
    kind: str  # Its torch function or ONNX operator type
    location: CodeLocation | None  # The line of code that calls it; None for ONNX
    cause: Cause  # The likely cause, and code that fixes it
    cause_at: str | None  # Where padding stopped being 0, if that is another operator
    difference: float  # The difference of the operator's output, in units of max(1, its largest value)
    trial: str  # The name of the trial that shows the leak
    # The picture: the operators in order of execution, for the row whose answer changed most
    spread: tuple[OperatorSpread, ...] = field(default=(), repr=False)
    length: int = 0  # The length of that row
    layer: str = ""  # Of a Keras model, the layer that the operator is in; else empty

    @property
    def code(self) -> str:
        """The rule of its cause, such as `LW201`."""
        return self.cause.code


def find_leaks(subject: Subject, failed: Sequence[FailedTrial], tolerance: float) -> list[Leak]:
    """The leaks in order of execution: one for each kind of change (of padding, width, rows ...) with failed trials.

    An operator that was found for one kind of change is not reported again for another.

    Args:
        subject: The model.
        failed: The trials in which an answer changed.
        tolerance: The allowed difference of an answer.
    """
    leaks: list[tuple[int, Leak]] = []  # with the index of the operation
    # The identities of their operators, and what showed each
    located: dict[tuple[str, str, CodeLocation | None], Change] = {}
    # Trials that need no search if a leak is located: an unbatched sequence has no other rows and another width, which
    # the other trials have shown.
    covered_changes: set[Change] = {"block", "batch"}
    recorded: PaddedBatch | None = None  # The batch of `before`: most trials have the same baseline
    # What takes another row takes its padding, too: so changes that leave the padding as it is come first. With padding
    # in front, or in a packed row, other steps are at the same places of a loop, so there the padding comes first.
    layout = subject.layout
    for change in sorted(trials.CHANGES, key=lambda change: layout.is_right_padded and change not in _OF_ROWS):
        if located and change in covered_changes:
            continue
        # 1. Record a failed trial that runs again; first those with ordinary values, because raw values may make all
        #    attention weights 0 or 1, and so hide where the leak begins.
        of_change = [failed_trial for failed_trial in failed if failed_trial.trial.change == change]
        for failed_trial in sorted(of_change, key=lambda failed_trial: not failed_trial.is_ordinary):
            with contextlib.suppress(RunError):
                after = _record(subject, failed_trial.trial.batch)
                break
        else:  # no trial failed with this change, or none runs again
            continue
        base, trial = failed_trial.base, failed_trial.trial
        if base is not recorded:
            recorded, before = base, _record(subject, base)
            larger, shapes = _shapes_in_a_larger_batch(subject, base, before)
        # 2. Pair the operations of both runs.
        pairs = [
            OperationPair(operation, same, shapes.get(id(operation)) or (None,) * len(operation.outputs))
            for operation, same in aligned(before.operations, after.operations)
        ]
        base_geometry = geometry(base, layout)
        pairing = Pairing(
            base_geometry,
            geometry(trial.batch, layout),
            trial.rows,
            known_sizes=subject.sizes,
            larger=larger,
            chunks=_chunk_sizes(pairs, base_geometry, larger),
            has_equal_steps=not layout.is_right_padded and trials.has_equal_steps(base, trial.batch),
        )
        # 3. Compare their outputs. In batches of equal sizes rounding is equal, so a small difference is real, and
        #    later layers may amplify it.
        min_difference = tolerance / _AMPLIFIED if pairing.before == pairing.after else tolerance
        # If nothing differs, try again without assuming sorted rows: the model may sort them and never sort back.
        differing = _differing_operations(pairs, pairing, min_difference, before) or _differing_operations(
            pairs, replace(pairing, may_be_sorted=False), min_difference, before
        )
        # 4. In two cases another operation is to blame: one that gives NaN, and one that runs for some batches only.
        may_be_branch = not located and (not differing or change == "batch")
        if failed_trial.nan_with and (nan := _first_with_nan(pairs, subject.names, pairing)) is not None:
            differing = [(nan, math.inf)]
        elif may_be_branch and (branch := _only_in_one_run(before, after)) is not None:
            with_cause = replace(branch, cause_of=lambda _: rules()["LW109"].cause())
            differing = [(with_cause, _answer_difference(subject, failed_trial))]
        if not differing:
            continue
        # 5. Blame the first that differs. Sizes of the batch, such as the width, may change with it; a leak begins at
        #    their use.
        sizes = {base.rows, pairing.before.width, pairing.before.longest} if change == "width" else set()
        users_of_sizes = [entry for entry in differing if not _is_batch_size(sizes, entry[0])]
        operation, difference = (users_of_sizes or differing)[0]
        # 6. Skip what a leak explains that another kind of change has shown.
        at = next((index for index, pair in enumerate(pairs) if pair.before.identity == operation.identity), len(pairs))
        if _is_explained(operation, at, located, pairs, pairing, tolerance / _HIDDEN):
            continue
        operation = _where_it_begins(operation, (before, after), pairs, pairing, min_difference)
        located[operation.identity] = change
        if change == "order":  # other lengths change the sorted order too
            covered_changes.add("lengths")
        leak = Leak(
            operator=operation.operator,
            kind=operation.kind,
            location=operation.location,
            cause=_cause(operation, change, subject.names, pairing, pairs),
            cause_at=_where_padding_became_nonzero(operation, before.operations, pairing),
            difference=difference,
            trial=failed_trial.nan_with or trial.name,
            spread=tuple(_spreads(pairs[:_MAX_PICTURED], pairing, failed_trial.row)),
            length=int(base.lengths[trial.rows[failed_trial.row][0]]),
            layer=operation.layer,
        )
        leaks.append((at, leak))
    return [leak for _, leak in sorted(leaks, key=lambda entry: entry[0])]


def _is_explained(
    operation: Operation,
    at: int,
    located: Mapping[tuple[str, str, CodeLocation | None], Change],
    pairs: Sequence[OperationPair],
    pairing: Pairing,
    tolerance: float,
) -> bool:
    """Whether leaks at the `located` operators explain that an operation, the first one, differs: one does as well.

    One that comes behind it, which is at the index `at`, does not if it takes other rows, or if the operation gives the
    positions in rows that are padded in front: these are the same for all rows; a flip moves sequences.
    """
    layout, rows = pairing.before.layout, pairing.before.rows
    is_position = not (layout.is_right_padded or layout.packed) and all(
        value.shape[:1] != (rows,) or bool((value == value[:1]).all()) for _, value in operation.outputs
    )
    return operation.identity in located or any(
        pair.before.identity in located
        and (index < at or not (is_position or (layout.is_right_padded and located[pair.before.identity] in _OF_ROWS)))
        and (pair.difference(pairing) or 0.0) > tolerance
        for index, pair in enumerate(pairs)
    )


def _record(subject: Subject, batch: PaddedBatch) -> Recording:
    """Records a run of a batch. In other layouts than right padding, the calls of a loop are joined to one operation.

    There a turn of a loop over the steps is not the same step of every row.
    """
    recording, layout = subject.record(batch), subject.layout
    return recording if layout.is_right_padded else with_joined_loops(recording, geometry(batch, layout))


def _cause(
    operation: Operation, change: Change, names: ArgumentNames, pairing: Pairing, pairs: Sequence[OperationPair]
) -> Cause:
    """Why an operation differs between the runs, and a fix."""
    if operation.cause_of is not None:
        return operation.cause_of(change)
    layout = pairing.before.layout
    pair = next((pair for pair in pairs if pair.before is operation), None)
    if pair is not None and BY_PLACE.fullmatch(operation.kind) and pair.is_nan_in_one_run(pairing):
        return rules()["LW805"].cause()
    if not layout.is_right_padded and pair is not None and pair.counts_positions:
        return rules()["LW706" if layout.packed else "LW602"].cause({"valid": names.valid})
    return explain(operation, change, names, pairing.before, [pair.before for pair in pairs])


def _answer_difference(subject: Subject, failed: FailedTrial) -> float:
    """The difference of the answer that changed most in a failed trial, at the steps that both answers have."""
    row, row_after = failed.trial.rows[failed.row]
    before, after = subject.answer(failed.base).logits[row], subject.answer(failed.trial.batch).logits[row_after]
    steps = min(len(before), len(after))
    return relative_difference(before[:steps], after[:steps])


def runs_other_code_alone(subject: Subject, steps: Steps) -> bool:
    """Whether the model runs other operations for one sequence alone than for the same sequence twice.

    False if it raises for one of the two batches.
    """
    try:
        recorded_alone, recorded_twice = (subject.record(pad([steps] * rows, multiple=1)) for rows in (1, 2))
    except RunError:
        return False
    return _only_in_one_run(recorded_twice, recorded_alone) is not None


def _only_in_one_run(before: Recording, after: Recording) -> Operation | None:
    """The first operation that only `after` has, or else the first that only `before` has; None if there is none."""
    for reference, run in ((before, after), (after, before)):
        identities = {operation.identity for operation in reference.operations}
        only_here = next((operation for operation in run.operations if operation.identity not in identities), None)
        if only_here is not None:
            return only_here
    return None


def _where_it_begins(
    first: Operation,
    runs: tuple[Recording, Recording],
    pairs: Sequence[OperationPair],
    pairing: Pairing,
    tolerance: float,
) -> Operation:
    """The operation at which a difference begins, of which `first` is the first operation that differs.

    1. In other layouts than right padding, the source of a slice is blamed, if it differs too.
    2. If the runs took different branches of the code, and the values that come from the branches differ, the branch
       is blamed: the first operation that only one run has.
    3. Otherwise it is `first`.
    """
    if not pairing.before.layout.is_right_padded:
        first = _source_of_slice(first, pairs, pairing, tolerance)
    pair = next((pair for pair in pairs if pair.before is first), None)
    branch = _only_in_one_run(*runs)
    if pair is None or branch is None:
        return first
    # The operations that made the inputs of `first`, in each run
    producers_before, producers_after = (
        [producer for producer in run.operations if producer.output_keys & operation.input_keys and producer.outputs]
        for run, operation in zip(runs, (pair.before, pair.after), strict=True)
    )
    # The differences of their first outputs, of all pairs in which at least one is of a branch that only one run took
    in_before, in_after = ({operation.identity for operation in run.operations} for run in runs)
    differences = [
        axes.difference(producer.outputs[0][1], producer_after.outputs[0][1], pairing)
        for producer in producers_before
        for producer_after in producers_after
        if producer.identity not in in_after or producer_after.identity not in in_before
    ]
    # Branches that give equal values, such as padding to whole chunks, are not the cause. An infinite difference is of
    # tensors with other shapes: they are other inputs of `first`, such as a mask that only one branch has.
    comparable = [difference for difference in differences if difference is not None and difference < math.inf]
    return branch if comparable and min(comparable) > tolerance else first


@dataclass(frozen=True, slots=True)
class OperationPair:
    """An operation in both runs, with the shapes of its outputs in the larger batch."""

    before: Operation
    after: Operation
    larger_shapes: tuple[tuple[int, ...] | None, ...]  # One for each output; None if not known

    @property
    def counts_positions(self) -> bool:
        """Whether it counts positions from the start of the row, as `arange` does.

        Then the outputs of both runs are equal where their axes have the same indices.
        """
        for (_, value), (_, value_after) in zip(self.before.outputs, self.after.outputs, strict=False):
            if value.ndim != value_after.ndim:
                return False
            shared = tuple(map(slice, np.minimum(value.shape, value_after.shape)))
            if not np.array_equal(value[shared], value_after[shared]):
                return False
        return bool(self.before.outputs)

    def difference(self, pairing: Pairing, *, of_any_reading: bool = False) -> float | None:
        """The largest `axes.difference` of its outputs at valid steps; None if none of them can be compared."""
        if len(self.before.outputs) != len(self.after.outputs):
            return None
        differences = [
            axes.difference(value, value_after, pairing, larger_shape, of_any_reading=of_any_reading)
            for (_, value), (_, value_after), larger_shape in zip(
                self.before.outputs, self.after.outputs, self.larger_shapes, strict=True
            )
        ]
        return max((difference for difference in differences if difference is not None), default=None)

    def is_nan_in_one_run(self, pairing: Pairing) -> bool:
        """Whether it is NaN at a valid step in one run only."""
        return self.difference(pairing) == math.inf and (has_nan(self.before) or has_nan(self.after))


def _first_with_nan(pairs: Sequence[OperationPair], names: ArgumentNames, pairing: Pairing) -> Operation | None:
    """The operation at which the NaN of an answer begins in the first run only, with its cause; None if there is none.

    It is found backwards from the last one: NaN that a mask removes again is not to blame. An infinity at a valid step
    becomes NaN later, unless a mask fills with it.
    """
    first, keys = None, frozenset[int]()
    for pair in reversed(pairs):
        has_become = has_nan(pair.before) and not has_nan(pair.after)
        is_infinite = not _is_finite(pair.before) and _is_finite(pair.after) and pair.difference(pairing) == math.inf
        is_infinite = is_infinite and pair.before.kind not in _FILLS
        if (has_become or is_infinite) and (first is None or pair.before.output_keys & keys):
            first, keys = pair, keys | pair.before.input_keys
        elif not pair.before.outputs and pair.before.output_keys & keys:  # packed rows are not compared
            keys |= pair.before.input_keys
    if first is None:
        return None
    nan, at_valid_steps = first.before, first.is_nan_in_one_run(pairing)
    return replace(nan, cause_of=lambda _: explain_nan(nan, names, pairing.before, at_valid_steps=at_valid_steps))


def _is_finite(operation: Operation) -> bool:
    return all(value.dtype.kind != "f" or bool(np.isfinite(value).all()) for _, value in operation.outputs)


def has_nan(operation: Operation) -> bool:
    """Whether an output of an operation has a NaN."""
    return any(value.dtype.kind == "f" and bool(np.isnan(value).any()) for _, value in operation.outputs)


def _shapes_in_a_larger_batch(
    subject: Subject, base: PaddedBatch, before: Recording
) -> tuple[Geometry | None, dict[int, tuple[tuple[int, ...] | None, ...]]]:
    """The larger batch, and for each operation of `before` the shapes of its outputs there, by the operation's id.

    None and an empty dictionary if the model raises for larger batches. An operation with another number of outputs
    there is left out.
    """
    rows = [row[: length + _LONGER] for row, length in zip(base.steps, base.lengths, strict=True)]
    for extra_width in _WIDER:
        larger = pad([*rows[:1] * (_MORE_ROWS + 1), *rows[1:]], width=base.width + extra_width)
        try:
            recording = _record(subject, larger)
            break
        except RunError:
            continue
    else:
        return None, {}
    shapes: dict[int, tuple[tuple[int, ...] | None, ...]] = {
        id(operation): tuple(value.shape for _, value in larger_operation.outputs)
        for operation, larger_operation in aligned(before.operations, recording.operations)
        if len(operation.outputs) == len(larger_operation.outputs)
    }
    return geometry(larger, subject.layout), shapes


def _chunk_sizes(pairs: Sequence[OperationPair], before: Geometry, larger: Geometry | None) -> frozenset[int]:
    """The sizes, in steps, of chunks into which the model cuts sequences, as far as the larger batch shows them.

    `before` is the batch of the first run. Without a larger batch, there are none.
    """
    if larger is None:
        return frozenset()
    batches = (before, larger)
    # The shapes of each tensor in both batches
    tensors = [
        (value.shape, larger_shape)
        for pair in pairs
        for (_, value), larger_shape in zip(pair.before.outputs, pair.larger_shapes, strict=True)
        if larger_shape is not None and len(larger_shape) == value.ndim
    ]
    of_one_tensor = {size for shapes in tensors for size in axes.chunks_in(shapes, batches)}
    return frozenset(of_one_tensor.union(axes.chunks_between(tensors, batches)))


def _differing_operations(
    pairs: Sequence[OperationPair], pairing: Pairing, tolerance: float, before: Recording
) -> list[tuple[Operation, float]]:
    """The operations that differ by more than `tolerance`, in order of execution, with their differences.

    The difference of an operation *reaches* an answer if a chain of operations leads from it to the answer, and none of
    the chain is known to be equal in both runs. Only those that reach one are returned. Others may rightly differ:

    - A Fourier transform over twice the width and its inverse differ, and what is cut from them is equal again.
    - Sizes and indices differ between batches.
    - Rotary angles depend on where a sequence starts in its row, and relative attention cancels that again.

    If none reaches an answer, all are returned without sizes and indices.

    Args:
        pairs: The operations of both runs.
        pairing: The batches of both runs.
        tolerance: The difference from which on an operation differs.
        before: The first run.
    """
    differences = {id(pair.before): (pair, pair.difference(pairing)) for pair in pairs}

    def may_differ(operation: Operation) -> bool:
        """Whether a difference may pass through an operation: it is not known to be equal in both runs."""
        pair, difference = differences.get(id(operation), (None, None))
        if difference is not None and difference <= tolerance:
            return False
        # The start of a sequence in its row is rightly another number in each batch; a count over the row is not.
        is_index = pair is not None and bool(operation.outputs) and _is_size_or_index(operation)
        return pairing.before.layout.is_right_padded or not is_index or (pair is not None and pair.counts_positions)

    reaching = {id(operation) for operation in _reaching_answers(before, may_differ)}
    differing = [
        (pair.before, difference)
        for pair, difference in differences.values()
        if difference is not None
        and difference > tolerance
        and (id(pair.before) in reaching or not _is_size_or_index(pair.before))
    ]
    return [entry for entry in differing if id(entry[0]) in reaching] or differing


def _reaching_answers(run: Recording, may_differ: Callable[[Operation], bool]) -> Iterator[Operation]:
    """Yields the operations from which a chain of operations that `may_differ` leads to an answer, the last one first.

    A tensor that a call reads was written by the calls that gave just this view of the memory; if none is known, by
    those that gave any view of it. A call that writes in place changes all views.
    """
    written = {view for operation in run.operations for view in operation.output_views}
    reaching: set[tuple[int, ...]] = {(key,) for key in run.answers}
    for operation in reversed(run.operations):
        memory = {(key,) for key in operation.output_keys}
        is_in_place = operation.kind.endswith("_") and operation.input_views & operation.output_views
        is_read = reaching & (memory | operation.output_views) or (
            is_in_place and memory & {view[:1] for view in reaching}
        )
        if is_read and may_differ(operation):
            inputs = operation.input_views or {(key,) for key in operation.input_keys}
            reaching |= {view if view in written else view[:1] for view in inputs}
            yield operation


_SLICES: Final = frozenset({"__getitem__", "narrow", "slice", "Slice"})
"""Kinds of operators that take a part of their input."""


def _source_of_slice(
    differing: Operation, pairs: Sequence[OperationPair], pairing: Pairing, tolerance: float
) -> Operation:
    """`differing`; or, if it is a slice of an output that may differ too, the operation that made that output.

    A convolution that pads on both sides returns more steps than it gets. Which of them belong to the sequences is
    known only where they are sliced.
    """
    if differing.kind not in _SLICES:
        return differing
    end = next(index for index, pair in enumerate(pairs) if pair.before is differing)
    source = next((pair for pair in reversed(pairs[:end]) if pair.before.output_keys & differing.input_keys), None)
    difference = None if source is None else source.difference(pairing, of_any_reading=True)
    return differing if source is None or difference is None or difference <= tolerance else source.before


def _is_batch_size(sizes: set[int], operation: Operation) -> bool:
    """Whether an operation outputs only sizes of the batch: indices or single numbers, without an axis of such a size.

    False if `sizes` is empty.
    """
    shapes = {size for _, value in operation.outputs for size in value.shape}
    return bool(sizes) and _is_size_or_index(operation) and not sizes & shapes


def _is_size_or_index(operation: Operation) -> bool:
    """Whether all outputs of an operation are integers or single numbers."""
    return all(value.dtype.kind in "iu" or value.ndim == 0 for _, value in operation.outputs)


def aligned(before: Sequence[Operation], after: Sequence[Operation]) -> list[tuple[Operation, Operation]]:
    """The pairs of equal operations that both runs have, in order: the longest matching blocks of their identities.

    One run may have more, as a loop over the steps runs more often in a wider batch.
    """
    identities_before, identities_after = (
        [operation.identity for operation in before],
        [operation.identity for operation in after],
    )
    if identities_before == identities_after:
        return list(zip(before, after, strict=True))
    blocks = difflib.SequenceMatcher(None, identities_before, identities_after, autojunk=False).get_matching_blocks()
    return [(before[block.a + index], after[block.b + index]) for block in blocks for index in range(block.size)]


def _where_padding_became_nonzero(leaking: Operation, operations: Sequence[Operation], pairing: Pairing) -> str | None:
    """Where values at padding, which were 0, became others before a leak: a mask must come after this operator.

    Args:
        leaking: The operation at which the leak begins.
        operations: Those of the first run.
        pairing: The batches of both runs.

    Returns:
        The line of the last such operator, or its name if it has no line; None if there is none, or the padding that
        enters the leaking operation is 0.
    """
    end = next((index for index, operation in enumerate(operations) if operation is leaking), 0)
    # 1. Whether the padding of a tensor is 0, by its key; the last operation that wrote the tensor counts
    is_zero = {
        key: not padding.any()
        for operation in operations[:end]
        for key, value in operation.outputs
        if (padding := axes.values_at_padding(value, pairing.before)) is not None
    }
    # 2. Upstream from the leak, through everything that its inputs are made of
    needed_keys = set(leaking.input_keys)
    for operation in reversed(operations[:end]):
        output_keys = {key for key, _ in operation.outputs if key in needed_keys}
        if not output_keys:
            continue
        needed_keys |= operation.input_keys
        paddings = [
            axes.values_at_padding(value, pairing.before) for key, value in operation.outputs if key in output_keys
        ]
        are_zero = [not values.any() for values in paddings if values is not None]  # empty for outputs without padding
        if are_zero and all(are_zero):
            return None  # the padding is still 0 here, so no operator before it is to blame
        # A key of an input that is also one of an output is written in place: its value before is not known.
        if are_zero and any(is_zero.get(key, False) for key in operation.input_keys - output_keys):
            return operation.operator if operation.location is None else str(operation.location)
    return None


def _spreads(pairs: Sequence[OperationPair], pairing: Pairing, row: int) -> Iterator[OperatorSpread]:
    """Yields the lines of the picture: for each operator the differences of its first output along one row.

    `row` is an index into `pairing.rows`. Operators without an output are left out.
    """
    for pair in pairs:
        if not pair.before.outputs or len(pair.before.outputs) != len(pair.after.outputs):
            continue
        (_, value), (_, value_after), larger_shape = (
            pair.before.outputs[0],
            pair.after.outputs[0],
            pair.larger_shapes[0],
        )
        differences = axes.differences_along_steps(value, value_after, pairing, row, larger_shape)
        if differences is None:
            differences = [axes.difference(value, value_after, pairing, larger_shape) or 0.0]
        yield OperatorSpread(pair.before.operator, tuple(differences), pair.before.location)

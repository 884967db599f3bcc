"""Finds the operator at which a leak begins: the first whose output differs between two runs.

Both runs hold the same sequences, so their answers should be equal. The outputs of all operators are compared in the
order of execution, at valid steps, or as a whole if they have no axis of steps. The search uses only the recordings of
the runs, so it is the same for torch and ONNX.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise_export.checking import axes, trials
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.checking.causes import ArgumentNames, explain, explain_nan
from lengthwise_export.checking.loops import with_joined_loops
from lengthwise_export.checking.recording import Operation, Recording, Subject
from lengthwise_export.checking.rule import Cause, rules
from lengthwise_export.checking.trials import Change, CheckTrial, Geometry, Pairing, geometry
from lengthwise_export.errors import RunError
from lengthwise_export.tracing.source_lines import CodeLocation

_MORE_ROWS, _LONGER = 2, 3  # Extra rows, and extra steps per sequence, of a larger batch that tells axes apart
_WIDER = (41, 7)  # Extra width of it: more than the chunks of most models; or what fits small tables

_AMPLIFIED: Final = 100  # A difference that padding makes in a weight may be so much larger in the sum that it is in
_HIDDEN: Final = 10  # As many times less than the tolerance, and more than rounding: a leak that is known already
_MOST_PICTURED: Final = 400  # at most this many operators are shown in the picture of a leak


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial in which an answer changed."""

    base: PaddedBatch
    trial: CheckTrial
    row: int  # An index into `trial.rows`: the pair of rows whose answers differ most
    is_ordinary: bool = True  # Whether rows of ordinary values show it
    # With what the answer is not finite in the batch `base`, if it is finite in that of the trial; else empty
    nan_with: str = ""

    def backwards(self) -> FailedTrial:
        """The same from the batch of the trial, in which the answer is not finite, to that of the baseline."""
        rows = tuple((other, row) for row, other in self.trial.rows)
        trial = replace(self.trial, batch=self.base, rows=rows)
        return replace(self, base=self.trial.batch, trial=trial, nan_with=self.trial.name)


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


def find_leaks(subject: Subject, failed: Sequence[FailedTrial], tolerance: float) -> Iterator[Leak]:
    """Yields the leak behind each kind of change (of padding, width, rows ...) in which trials failed.

    An operator that was found for one kind is not reported again for another.
    """
    located: set[tuple[str, str, CodeLocation | None]] = set()
    # An unbatched sequence has no other rows and another width, which the trials before have covered.
    explained: set[Change] = {"block", "batch"}
    recorded: PaddedBatch | None = None  # Most trials have the same baseline
    for change in trials.CHANGES:
        if located and change in explained:
            continue
        # Trials with ordinary values first: with raw values, attention weights may all be 0 or 1, and hide where.
        of_change = sorted((one for one in failed if one.trial.change == change), key=lambda one: not one.is_ordinary)
        for chosen in of_change:
            with contextlib.suppress(RunError):
                after = _record(subject, chosen.trial.batch)
                break
        else:
            continue
        base, trial = chosen.base, chosen.trial
        if base is not recorded:
            recorded, before = base, _record(subject, base)
            larger, shapes = _shapes_in_a_larger_batch(subject, base, before)
        runs = (geometry(base, subject.layout), geometry(trial.batch, subject.layout))
        pairing = Pairing(*runs, trial.rows, subject.sizes, larger)
        if not subject.layout.is_usual:
            pairing = replace(pairing, has_equal_steps=trials.has_equal_steps(base, trial.batch))
        pairs = [
            _Pair(mine, other, shapes.get(id(mine)) or (None,) * len(mine.outputs))
            for mine, other in aligned(before.operations, after.operations)
        ]
        pairing = replace(pairing, chunks=_chunks(pairs, pairing))
        # In batches of equal sizes rounding is equal, so a small difference is real, and later layers may amplify it.
        least = tolerance / _AMPLIFIED if pairing.before == pairing.after else tolerance
        # If nothing differs, try again without assuming sorted rows: the model may sort them and never sort back.
        differing = _differing_operations(pairs, pairing, least, before.answers) or _differing_operations(
            pairs, replace(pairing, may_be_sorted=False), least, before.answers
        )
        if (
            chosen.nan_with
            and (nan := next((one.before for one in pairs if _has_nan(one.before) and not _has_nan(one.after)), None))
            is not None
        ):
            cause = explain_nan(nan, subject.names, pairing.before)
            differing = [(replace(nan, cause_of=functools.partial(_always, cause)), math.inf)]
        elif (
            not located
            and (not differing or change == "batch")  # nothing else changes an answer
            and (branch := _only_in_one_run(before, after)) is not None
        ):
            cause = rules()["LW109"].cause()
            differing = [(replace(branch, cause_of=functools.partial(_always, cause)), _answer_moves(subject, chosen))]
        if not differing or any(one.before.identity in located and one.moves(pairing, tolerance) for one in pairs):
            continue
        # Sizes of the batch, such as the width, may change with it; a leak begins at their use.
        sizes = {base.rows, pairing.before.width, pairing.before.longest} if change == "width" else set()
        first, difference = next((one for one in differing if not _is_made_of(sizes, one[0])), differing[0])
        first = _where_it_begins(first, (before, after), pairs, pairing, least)
        located.add(first.identity)
        if change == "order":  # other lengths change the sorted order too
            explained.add("lengths")
        yield Leak(
            operator=first.operator,
            kind=first.kind,
            location=first.location,
            cause=_cause(first, change, subject.names, pairing, pairs),
            cause_at=_origin(first, before.operations, pairing),
            difference=difference,
            trial=chosen.nan_with or trial.name,
            spread=tuple(_spread(pairs[:_MOST_PICTURED], pairing, chosen.row)),
            length=int(base.lengths[trial.rows[chosen.row][0]]),
            layer=first.layer,
        )


def _record(subject: Subject, batch: PaddedBatch) -> Recording:
    """A run of a batch; where a turn of a loop is no step of every row, all turns of a loop are one operation."""
    recording, layout = subject.record(batch), subject.layout
    return recording if layout.is_usual else with_joined_loops(recording, geometry(batch, layout))


def _cause(first: Operation, change: Change, names: ArgumentNames, pairing: Pairing, pairs: Sequence[_Pair]) -> Cause:
    """Why an operation differs, and what to do."""
    if first.cause_of is not None:
        return first.cause_of(change)
    layout = pairing.before.layout
    pair = next((pair for pair in pairs if pair.before is first), None)
    if not layout.is_usual and pair is not None and pair.is_counted:
        return rules()["LW706" if layout.packed else "LW602"].cause({"valid": names.valid})
    return explain(first, change, names, pairing.before)


def _answer_moves(subject: Subject, failed: FailedTrial) -> float:
    """The difference of the answer that changed most."""
    row, other = failed.trial.rows[failed.row]
    before, after = subject.answer(failed.base).logits[row], subject.answer(failed.trial.batch).logits[other]
    steps = min(len(before), len(after))
    return relative_difference(before[:steps], after[:steps])


def runs_other_code_alone(subject: Subject, steps: Steps) -> bool:
    """Whether the model runs other operations for a batch of one sequence than for a batch that has it twice."""
    try:
        alone, twice = (subject.record(pad([steps] * rows, multiple=1)) for rows in (1, 2))
    except RunError:
        return False
    return _only_in_one_run(twice, alone) is not None


def _only_in_one_run(before: Recording, after: Recording) -> Operation | None:
    """The first operation of `after` that is not in `before`, or else the first of `before` that is not in `after`."""
    for reference, run in ((before, after), (after, before)):
        known = {operation.identity for operation in reference.operations}
        extra = next((operation for operation in run.operations if operation.identity not in known), None)
        if extra is not None:
            return extra
    return None


def _where_it_begins(
    first: Operation,
    runs: tuple[Recording, Recording],
    pairs: Sequence[_Pair],
    pairing: Pairing,
    tolerance: float,
) -> Operation:
    """The operation at which a difference begins, of which `first` is the first operation that differs.

    1. In other layouts than right padding, the source of a slice is blamed, if it differs too (`_source_of_slice`).
    2. If the runs took different branches of the code, and the values that come from the branches differ, the branch
       is blamed: the first operation that only one run has.
    3. Otherwise it is `first`.
    """
    if not pairing.before.layout.is_usual:
        first = _source_of_slice(first, pairs, pairing, tolerance)
    pair = next((one for one in pairs if one.before is first), None)
    branch = _only_in_one_run(*runs)
    if pair is None or branch is None:
        return first
    known = [{operation.identity for operation in run.operations} for run in runs]
    producers_before, producers_after = (
        [one for one in run.operations if one.output_keys & operation.input_keys and one.outputs]
        for run, operation in zip(runs, (pair.before, pair.after), strict=True)
    )
    differences = [
        axes.difference(one.outputs[0][1], other.outputs[0][1], pairing)
        for one in producers_before
        for other in producers_after
        if one.identity not in known[1] or other.identity not in known[0]
    ]
    # Branches that give equal values, such as padding to whole chunks, are not the cause. An infinite difference is of
    # tensors with other shapes: they are other inputs of `first`, such as a mask that only one branch has.
    comparable = [difference for difference in differences if difference is not None and difference < math.inf]
    return branch if comparable and min(comparable) > tolerance else first


@dataclass(frozen=True, slots=True)
class _Pair:
    """An operation in both runs, with the shapes of its outputs in the larger batch."""

    before: Operation
    after: Operation
    larger: tuple[tuple[int, ...] | None, ...]

    def moves(self, pairing: Pairing, tolerance: float) -> bool:
        """Whether it may be the cause of a difference of more than `tolerance`."""
        return (self.difference(pairing) or 0.0) > tolerance / _HIDDEN

    @property
    def is_counted(self) -> bool:
        """Whether its outputs count positions from the start of the row, as `arange` does: both runs agree there."""
        for (_, mine), (_, its) in zip(self.before.outputs, self.after.outputs, strict=False):
            if mine.ndim != its.ndim:
                return False
            shared = tuple(map(slice, np.minimum(mine.shape, its.shape)))
            if not np.array_equal(mine[shared], its[shared]):
                return False
        return bool(self.before.outputs)

    def difference(self, pairing: Pairing, *, of_any_reading: bool = False) -> float | None:
        """The largest difference of its outputs at valid steps; None if they cannot be compared."""
        if len(self.before.outputs) != len(self.after.outputs):
            return None
        differences = [
            axes.difference(mine, other, pairing, larger, of_any_reading=of_any_reading)
            for (_, mine), (_, other), larger in zip(self.before.outputs, self.after.outputs, self.larger, strict=True)
        ]
        return max((difference for difference in differences if difference is not None), default=None)


def _always(cause: Cause, _: Change) -> Cause:
    return cause


def _has_nan(operation: Operation) -> bool:
    return any(value.dtype.kind == "f" and bool(np.isnan(value).any()) for _, value in operation.outputs)


def _shapes_in_a_larger_batch(
    subject: Subject, base: PaddedBatch, before: Recording
) -> tuple[Geometry | None, dict[int, tuple[tuple[int, ...] | None, ...]]]:
    """The shapes of all outputs in a batch with more rows, longer sequences and a larger width, by operation."""
    rows = [row[: length + _LONGER] for row, length in zip(base.steps, base.lengths, strict=True)]
    for wider in _WIDER:
        larger = pad([*rows[:1] * (_MORE_ROWS + 1), *rows[1:]], width=base.width + wider)
        try:
            recording = _record(subject, larger)
            break
        except RunError:
            continue
    else:
        return None, {}
    shapes: dict[int, tuple[tuple[int, ...] | None, ...]] = {
        id(mine): tuple(value.shape for _, value in other.outputs)
        for mine, other in aligned(before.operations, recording.operations)
        if len(mine.outputs) == len(other.outputs)
    }
    return geometry(larger, subject.layout), shapes


def _chunks(pairs: Sequence[_Pair], pairing: Pairing) -> frozenset[int]:
    """The chunk sizes that the model cuts sequences into, as far as the larger batch shows them."""
    if pairing.larger is None:
        return frozenset()
    batches = (pairing.before, pairing.larger)
    tensors = [
        (mine.shape, larger)
        for pair in pairs
        for (_, mine), larger in zip(pair.before.outputs, pair.larger, strict=True)
        if larger is not None and len(larger) == mine.ndim
    ]
    side_by_side = {size for shapes in tensors for size in axes.chunks_in(shapes, batches)}
    return frozenset(side_by_side.union(axes.chunks_between(tensors, batches)))


def _differing_operations(
    pairs: Sequence[_Pair], pairing: Pairing, tolerance: float, answers: frozenset[int]
) -> list[tuple[Operation, float]]:
    """The operations that differ, in order of execution, with their differences.

    Sizes and indices may rightly differ between batches: they count only if they influence an answer that differs.
    """
    differences = [pair.difference(pairing) for pair in pairs]
    needed, is_usual = set(answers), pairing.before.layout.is_usual
    reaches_answer = [False] * len(pairs)
    for index in range(len(pairs) - 1, -1, -1):
        operation, difference = pairs[index].before, differences[index]
        # The start of a sequence in its row is rightly another number in each batch; a count over the row is not.
        is_index = bool(operation.outputs) and _is_size_or_index(operation)
        if not is_usual and is_index and not pairs[index].is_counted:
            continue
        if operation.output_keys & needed and (difference is None or difference > tolerance):
            needed |= operation.input_keys
            reaches_answer[index] = True
    differing = [
        (pair.before, difference, reaches)
        for pair, difference, reaches in zip(pairs, differences, reaches_answer, strict=True)
        if difference is not None and difference > tolerance and (reaches or not _is_size_or_index(pair.before))
    ]
    # Rotary angles differ with the start of a sequence in its row, and relative attention cancels that again: in such
    # layouts, operations whose difference reaches no answer do not count.
    only_reaching = [] if is_usual else [one for one in differing if one[2]]
    return [(operation, difference) for operation, difference, _ in only_reaching or differing]


_PARTS: Final = frozenset({"__getitem__", "narrow", "slice", "Slice"})


def _source_of_slice(differing: Operation, pairs: Sequence[_Pair], pairing: Pairing, tolerance: float) -> Operation:
    """`differing`; or, if it is a slice of an output that may differ too, the operation that made that output.

    A convolution that pads on both sides returns more steps than it gets. Which of them belong to the sequences is
    known only where they are sliced.
    """
    if differing.kind not in _PARTS:
        return differing
    end = next(index for index, pair in enumerate(pairs) if pair.before is differing)
    source = next((pair for pair in reversed(pairs[:end]) if pair.before.output_keys & differing.input_keys), None)
    difference = None if source is None else source.difference(pairing, of_any_reading=True)
    return differing if source is None or difference is None or difference <= tolerance else source.before


def _is_made_of(sizes: set[int], operation: Operation) -> bool:
    """Whether it only outputs sizes of the batch, and there are any."""
    shapes = {size for _, value in operation.outputs for size in value.shape}
    return bool(sizes) and _is_size_or_index(operation) and not sizes & shapes


def _is_size_or_index(operation: Operation) -> bool:
    return all(value.dtype.kind in "iu" or value.ndim == 0 for _, value in operation.outputs)


def aligned(before: Sequence[Operation], after: Sequence[Operation]) -> list[tuple[Operation, Operation]]:
    """The operations that both runs share, in order. A loop over the steps runs more often in a wider batch."""
    mine, its = [operation.identity for operation in before], [operation.identity for operation in after]
    if mine == its:
        return list(zip(before, after, strict=True))
    blocks = difflib.SequenceMatcher(None, mine, its, autojunk=False).get_matching_blocks()
    return [(before[block.a + index], after[block.b + index]) for block in blocks for index in range(block.size)]


def _origin(leaking: Operation, operations: Sequence[Operation], pairing: Pairing) -> str | None:
    """The last operator before the leak that turned zero padding into other values: the mask must come after it."""
    needed = set(leaking.input_keys)
    end = next((index for index, operation in enumerate(operations) if operation is leaking), 0)
    zero_before = {
        key: not padding.any()
        for operation in operations[:end]
        for key, value in operation.outputs
        if (padding := axes.values_at_padding(value, pairing.before)) is not None
    }
    for operation in reversed(operations[:end]):
        keys = {key for key, value in operation.outputs if key in needed}
        if not keys:
            continue
        needed |= operation.input_keys
        paddings = [axes.values_at_padding(value, pairing.before) for key, value in operation.outputs if key in keys]
        outputs_are_zero = [not values.any() for values in paddings if values is not None]
        if outputs_are_zero and all(outputs_are_zero):
            return None  # the padding is still 0 here, so no operator before it is to blame
        input_was_zero = any(zero_before.get(key, False) for key in operation.input_keys - keys)
        if outputs_are_zero and not all(outputs_are_zero) and input_was_zero:
            return operation.operator if operation.location is None else str(operation.location)
    return None


def _spread(pairs: Sequence[_Pair], pairing: Pairing, row: int) -> Iterator[OperatorSpread]:
    """The lines of the picture: one for the first output of each operator."""
    for pair in pairs:
        if not pair.before.outputs or len(pair.before.outputs) != len(pair.after.outputs):
            continue
        (_, mine), (_, other), larger = pair.before.outputs[0], pair.after.outputs[0], pair.larger[0]
        along = axes.differences_along_steps(mine, other, pairing, row, larger)
        if along is None:
            along = [axes.difference(mine, other, pairing, larger) or 0.0]
        yield OperatorSpread(pair.before.operator, tuple(along), pair.before.location)

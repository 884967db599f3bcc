"""Two recorded runs that hold the same sequences, compared operation by operation.

`before` is the run of the baseline, `after` that of a trial; their answers should be equal. The outputs of all
operations are compared in the order of execution, at valid steps, or as a whole if they have no axis of steps. Only the
recordings are used, so the comparison is the same for torch and ONNX.

A third run of a *larger batch* (more rows, longer sequences, a larger width) shows which axes of a tensor depend on the
batch; an operation has one shape for each output there, None if the larger run lacks the operation.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lengthwise_export.checking import axes, trials
from lengthwise_export.checking.causes import BY_PLACE, explain, explain_nan
from lengthwise_export.checking.recording import ArgumentNames, Operation, Recording, Subject, with_joined_loops
from lengthwise_export.checking.rule import Cause, rules
from lengthwise_export.checking.trials import Change, CheckTrial, Geometry, Pairing, geometry
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import Array, PaddedBatch, Steps, pad
from lengthwise_export.tracing.source_lines import CodeLocation

_MORE_ROWS, _LONGER = 2, 3  # Rows, and steps of each sequence, that the larger batch has more than the baseline
_WIDER: Final = (41, 7)  # Steps by which it is wider: more than the chunks of most models; else what fits small tables

_FILLS: Final = ("masked_fill", "masked_fill_", "where", "Where")  # They may fill with infinity on purpose
_SLICES: Final = frozenset({"__getitem__", "narrow", "slice", "Slice"})  # Kinds that take a part of their input
_REORDERING: Final = frozenset({"flip", "fliplr", "roll", "ReverseSequence"})
_AMPLIFIED: Final = 100  # A weight that differs by this many times less than the tolerance may change a sum
_MAX_PICTURED: Final = 400  # at most this many operators are shown in the picture of a leak

TensorShape = tuple[int, ...]


def recorded(subject: Subject, batch: PaddedBatch) -> Recording:
    """Records a run of a batch. In other layouts than right padding, the calls of a loop are joined to one operation.

    In those layouts, a turn of a loop over the steps is not the same step of every row.

    Raises:
        RunError: The model raises.
    """  # noqa: DOC502 - what it calls raises it
    recording, layout = subject.record(batch), subject.layout
    return recording if layout.is_right_padded else with_joined_loops(recording, geometry(batch, layout))


def runs_other_code_alone(subject: Subject, steps: Steps) -> bool:
    """Whether the model runs other operations for one sequence alone than for the same sequence twice.

    False if it raises for one of the two batches.
    """
    try:
        recorded_alone, recorded_twice = (subject.record(pad([steps] * rows, multiple=1)) for rows in (1, 2))
    except RunError:
        return False
    return only_in_one_run(recorded_twice, recorded_alone) is not None


def only_in_one_run(before: Recording, after: Recording) -> Operation | None:
    """The first operation that only `after` has, or else the first that only `before` has; None if there is none."""
    for reference, run in ((before, after), (after, before)):
        identities = {operation.identity for operation in reference.operations}
        only_here = next((operation for operation in run.operations if operation.identity not in identities), None)
        if only_here is not None:
            return only_here
    return None


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


@dataclass(frozen=True, slots=True)
class OperatorSpread:
    """One operator in the picture of a leak."""

    operator: str
    along: tuple[float, ...]  # The difference of its output at each step; one number if the output has no axis of steps
    location: CodeLocation | None = None


@dataclass(frozen=True, slots=True)
class OperationPair:
    """An operation in both runs, with the shapes of its outputs in the larger batch."""

    before: Operation
    after: Operation
    larger_shapes: tuple[TensorShape | None, ...]  # One for each output; None if not known

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
        return self.difference(pairing) == math.inf and (self.before.has_nan or self.after.has_nan)

    def becomes_not_finite(self, pairing: Pairing) -> bool:
        """Whether it has a NaN in the first run only, or infinity at a valid step that no mask fills in on purpose."""
        if self.before.has_nan and not self.after.has_nan:
            return True
        is_infinite = not self.before.is_finite and self.after.is_finite and self.before.kind not in _FILLS
        return is_infinite and self.difference(pairing) == math.inf


@dataclass(frozen=True, slots=True)
class FirstRun:
    """The recorded run of a batch with which the batches of trials are compared, and the larger batch of it."""

    subject: Subject
    batch: PaddedBatch
    recording: Recording
    larger: Geometry | None = None  # None if the model raises for larger batches
    # The shapes of the outputs of an operation in the larger batch, by the id of the operation. An operation that has
    # another number of outputs there is left out.
    larger_shapes: Mapping[int, tuple[TensorShape | None, ...]] | None = None

    @classmethod
    def of(cls, subject: Subject, batch: PaddedBatch) -> FirstRun:
        """Records the run of a batch, and that of the larger batch.

        Raises:
            RunError: The model raises for the batch.
        """  # noqa: DOC502 - what it calls raises it
        first = cls(subject, batch, recorded(subject, batch))
        rows = [row[: length + _LONGER] for row, length in zip(batch.steps, batch.lengths, strict=True)]
        for extra_width in _WIDER:
            larger = pad([*rows[:1] * (_MORE_ROWS + 1), *rows[1:]], width=batch.width + extra_width)
            with suppress(RunError):
                shapes: dict[int, tuple[TensorShape | None, ...]] = {
                    id(operation): tuple(value.shape for _, value in larger_operation.outputs)
                    for operation, larger_operation in aligned(
                        first.recording.operations, recorded(subject, larger).operations
                    )
                    if len(operation.outputs) == len(larger_operation.outputs)
                }
                return replace(first, larger=geometry(larger, subject.layout), larger_shapes=shapes)
        return first

    def compared(self, trial: CheckTrial, after: Recording, tolerance: float) -> ComparedRuns:
        """This run, compared with that of a trial; `tolerance` is the allowed difference of an answer."""
        layout, shapes = self.subject.layout, self.larger_shapes or {}
        pairs = [
            OperationPair(operation, same, shapes.get(id(operation)) or (None,) * len(operation.outputs))
            for operation, same in aligned(self.recording.operations, after.operations)
        ]
        pairing = Pairing(
            geometry(self.batch, layout),
            geometry(trial.batch, layout),
            trial.rows,
            known_sizes=self.subject.sizes,
            larger=self.larger,
            chunks=self._chunk_sizes(pairs),
            has_equal_steps=not layout.is_right_padded and trials.has_equal_steps(self.batch, trial.batch),
        )
        return ComparedRuns(self.recording, after, pairs, pairing, tolerance)

    def _chunk_sizes(self, pairs: Sequence[OperationPair]) -> frozenset[int]:
        """The sizes, in steps, of chunks into which the model cuts sequences, as far as the larger batch shows them.

        Without a larger batch, there are none.
        """
        if self.larger is None:
            return frozenset()
        batches = (geometry(self.batch, self.subject.layout), self.larger)
        # The shapes of each tensor in both batches
        tensors = [
            (value.shape, larger_shape)
            for pair in pairs
            for (_, value), larger_shape in zip(pair.before.outputs, pair.larger_shapes, strict=True)
            if larger_shape is not None and len(larger_shape) == value.ndim
        ]
        of_one_tensor = {size for shapes in tensors for size in axes.chunks_in(shapes, batches)}
        return frozenset(of_one_tensor.union(axes.chunks_between(tensors, batches)))


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """The runs of two batches with the same sequences: `before`, the first run, and `after`, that of a trial."""

    before: Recording
    after: Recording
    pairs: Sequence[OperationPair]  # In order of execution
    pairing: Pairing
    tolerance: float  # The allowed difference of an answer

    @property
    def min_difference(self) -> float:
        """The difference from which on an operation differs.

        In batches of equal sizes rounding is equal, so a small difference is real, and later layers may amplify it.
        """
        return self.tolerance / _AMPLIFIED if self.pairing.before == self.pairing.after else self.tolerance

    def pair_of(self, operation: Operation) -> OperationPair | None:
        """The pair of an operation of the first run; None if the other run lacks it."""
        return next((pair for pair in self.pairs if pair.before is operation), None)

    def index_of(self, operation: Operation) -> int:
        """The index of the pair of an operation of the first run; their number if there is none.

        One line may call an operator several times, as `h / 2 / h.std()` does: each call has an index of its own.
        """
        call = (operation.identity, operation.occurrence)
        calls = ((pair.before.identity, pair.before.occurrence) for pair in self.pairs)
        return next((index for index, other in enumerate(calls) if other == call), len(self.pairs))

    def differing_operations(self) -> list[tuple[Operation, float]]:
        """The operations that differ by more than `min_difference`, in order of execution, with their differences.

        The difference of an operation *reaches* an answer if a chain of operations leads from it to the answer, and
        none of the chain is known to be equal in both runs. Only those that reach one are returned. Others may rightly
        differ:

        - A Fourier transform over twice the width and its inverse differ, and what is cut from them is equal again.
        - Sizes and indices differ between batches.
        - Rotary angles depend on where a sequence starts in its row, and relative attention cancels that again.

        If none reaches an answer, all are returned without sizes and indices. If none differs at all, they are compared
        again without assuming that rows are sorted: the model may sort them and never sort back.
        """
        return self._differing_operations(self.pairing) or self._differing_operations(
            replace(self.pairing, may_be_sorted=False)
        )

    def _differing_operations(self, pairing: Pairing) -> list[tuple[Operation, float]]:
        """`differing_operations`, with one assumption on the order of rows."""
        differences = {id(pair.before): (pair, pair.difference(pairing)) for pair in self.pairs}

        def may_differ(operation: Operation) -> bool:
            """Whether a difference may pass through an operation: it is not known to be equal in both runs."""
            pair, difference = differences.get(id(operation), (None, None))
            if difference is not None and difference <= self.min_difference:
                return False
            # The start of a sequence in its row is rightly another number in each batch; a count over the row is not.
            is_index = pair is not None and bool(operation.outputs) and operation.gives_sizes
            return pairing.before.layout.is_right_padded or not is_index or (pair is not None and pair.counts_positions)

        reaching = {id(operation) for operation in _reaching_answers(self.before, may_differ)}
        differing = [
            (pair.before, difference)
            for pair, difference in differences.values()
            if difference is not None
            and difference > self.min_difference
            and (id(pair.before) in reaching or not pair.before.gives_sizes)
        ]
        return [entry for entry in differing if id(entry[0]) in reaching] or differing

    def first_with_nan(self, names: ArgumentNames) -> Operation | None:
        """The operation at which the NaN of an answer begins in the first run only, with its cause.

        It is found backwards from the last one: NaN that a mask removes again is not to blame. An infinity at a valid
        step becomes NaN later, unless a mask fills with it. None if there is no such operation.
        """
        first, keys = None, frozenset[int]()
        for pair in reversed(self.pairs):
            if pair.becomes_not_finite(self.pairing) and (first is None or pair.before.output_keys & keys):
                first, keys = pair, keys | pair.before.input_keys
            elif not pair.before.outputs and pair.before.output_keys & keys:  # packed rows are not compared
                keys |= pair.before.input_keys
        if first is None:
            return None
        nan, at_valid_steps = first.before, first.is_nan_in_one_run(self.pairing)
        return replace(
            nan, cause_of=lambda _: explain_nan(nan, names, self.pairing.before, at_valid_steps=at_valid_steps)
        )

    def beginning_of(self, first: Operation) -> Operation:
        """The operation at which a difference begins, of which `first` is the first operation that differs.

        1. In other layouts than right padding, the source of a slice is blamed, if it differs too.
        2. If the runs took different branches of the code, and the values that come from the branches differ, the
           branch is blamed: the first operation that only one run has.
        3. Otherwise it is `first`.
        """
        if not self.pairing.before.layout.is_right_padded:
            first = self._source_of_slice(first)
        pair, branch = self.pair_of(first), only_in_one_run(self.before, self.after)
        if pair is None or branch is None:
            return first
        # Branches that give equal values, such as padding to whole chunks, are not the cause. An infinite difference is
        # of tensors with other shapes: they are other inputs of `first`, such as a mask that only one branch has.
        comparable = [difference for difference in self._differences_of_branches(pair) if difference < math.inf]
        return branch if comparable and min(comparable) > self.min_difference else first

    def _differences_of_branches(self, pair: OperationPair) -> Iterator[float]:
        """Yields the differences between the inputs of an operation, where one is of a branch that only one run took.

        An input stands for the first output of the operation that made it.
        """
        runs = (self.before, self.after)
        producers_before, producers_after = (
            [made for made in run.operations if made.output_keys & operation.input_keys and made.outputs]
            for run, operation in zip(runs, (pair.before, pair.after), strict=True)
        )
        in_before, in_after = ({operation.identity for operation in run.operations} for run in runs)
        for producer in producers_before:
            for producer_after in producers_after:
                if producer.identity not in in_after or producer_after.identity not in in_before:
                    value, value_after = producer.outputs[0][1], producer_after.outputs[0][1]
                    if (difference := axes.difference(value, value_after, self.pairing)) is not None:
                        yield difference

    def _source_of_slice(self, differing: Operation) -> Operation:
        """`differing`; or, if it slices an output that may differ too, the operation that made that output.

        A convolution that pads on both sides returns more steps than it gets. Which of them belong to the sequences is
        known only where they are sliced.
        """
        if differing.kind not in _SLICES or self.pair_of(differing) is None:
            return differing
        earlier = [*itertools.takewhile(lambda pair: pair.before is not differing, self.pairs)]
        source = next((pair for pair in reversed(earlier) if pair.before.output_keys & differing.input_keys), None)
        difference = None if source is None else source.difference(self.pairing, of_any_reading=True)
        return differing if source is None or difference is None or difference <= self.min_difference else source.before

    def cause_of(self, operation: Operation, change: Change, names: ArgumentNames) -> Cause:
        """Why an operation differs between the runs, and a fix."""
        if operation.cause_of is not None:
            return operation.cause_of(change)
        layout, pair = self.pairing.before.layout, self.pair_of(operation)
        if pair is not None and BY_PLACE.fullmatch(operation.kind) and pair.is_nan_in_one_run(self.pairing):
            return rules()["LW805"].cause()
        # Steps that are 0 at the padding in front, and reversed, begin alike in both runs: they are no positions.
        counts = pair is not None and pair.counts_positions and operation.kind not in _REORDERING
        if not layout.is_right_padded and counts:
            return rules()["LW706" if layout.packed else "LW602"].cause({"valid": names.valid})
        return explain(operation, change, names, self.pairing.before, [pair.before for pair in self.pairs])

    def where_padding_became_nonzero(self, leaking: Operation) -> str | None:
        """Where values at padding, which were 0, became others before a leak: a mask must come after this operator.

        Returns:
            The line of the last such operator, or its name if it has no line; None if there is none, or the padding
            that enters the leaking operation is 0.
        """
        earlier, batch = _earlier(self.before, leaking), self.pairing.before
        # Whether the padding of a tensor is 0, by its key; the last operation that wrote the tensor counts
        is_zero = {key: not padding.any() for key, padding in _paddings(earlier, batch).items()}
        for operation, output_keys in _upstream(earlier, leaking):
            paddings = [axes.values_at_padding(value, batch) for key, value in operation.outputs if key in output_keys]
            are_zero = [not values.any() for values in paddings if values is not None]  # empty: outputs without padding
            if are_zero and all(are_zero):
                return None  # the padding is still 0 here, so no operator before it is to blame
            # A key of an input that is also one of an output is written in place: its value before is not known.
            if are_zero and any(is_zero.get(key, False) for key in operation.input_keys - output_keys):
                return operation.line_or_name
        return None

    def mask_that_failed(self, leaking: Operation) -> str | None:
        """Where padding that is not finite was multiplied by a mask that is 0 there, in the run of the trial.

        Returns:
            The line of the last such operator before a leak, or its name if it has no line; None if there is none.
        """
        pair = self.pair_of(leaking)
        if pair is None:
            return None
        earlier = _earlier(self.after, pair.after)
        paddings = _paddings(earlier, self.pairing.after)
        for operation, _ in _upstream(earlier, pair.after):
            inputs = [paddings[key] for key in operation.input_keys & paddings.keys()]
            is_masked = any(not padding.any() for padding in inputs)
            if is_masked and any(not np.isfinite(padding).all() for padding in inputs):
                return operation.line_or_name
        return None

    def spreads(self, row: int) -> Iterator[OperatorSpread]:
        """Yields the lines of the picture: for each operator the differences of its first output along one row.

        `row` is an index into `pairing.rows`. Operators without an output are left out.
        """
        for pair in self.pairs[:_MAX_PICTURED]:
            if not pair.before.outputs or len(pair.before.outputs) != len(pair.after.outputs):
                continue
            (_, value), (_, value_after), shape = pair.before.outputs[0], pair.after.outputs[0], pair.larger_shapes[0]
            differences = axes.differences_along_steps(value, value_after, self.pairing, row, shape)
            if differences is None:
                differences = [axes.difference(value, value_after, self.pairing, shape) or 0.0]
            yield OperatorSpread(pair.before.operator, tuple(differences), pair.before.location)


def _earlier(run: Recording, operation: Operation) -> Sequence[Operation]:
    """The operations of a run before `operation`; empty if the run lacks that."""
    end = next((index for index, other in enumerate(run.operations) if other is operation), 0)
    return run.operations[:end]


def _paddings(operations: Sequence[Operation], batch: Geometry) -> dict[int, Array]:
    """The values at padding of the tensors that operations gave, by their keys; those without padding are left out."""
    return {
        key: padding
        for operation in operations
        for key, value in operation.outputs
        if (padding := axes.values_at_padding(value, batch)) is not None
    }


def _upstream(earlier: Sequence[Operation], operation: Operation) -> Iterator[tuple[Operation, set[int]]]:
    """Yields the earlier operations that compute the inputs of `operation`, the last first.

    Each comes with the keys of those of its outputs that are used for them.
    """
    needed_keys = set(operation.input_keys)
    for other in reversed(earlier):
        if output_keys := {key for key, _ in other.outputs if key in needed_keys}:
            needed_keys |= other.input_keys
            yield other, output_keys


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

"""Finds the operator at which a leak begins: the first whose output differs between two runs.

Both runs hold the same sequences, so their answers should be equal; `compared_runs.py` compares them. A leak is looked
for once for each kind of change that a trial makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from lengthwise_export.checking import trials
from lengthwise_export.checking.baseline import Baseline, relative_difference
from lengthwise_export.checking.compared_runs import (
    ComparedRuns,
    FirstRun,
    OperatorSpread,
    only_in_one_run,
    recorded,
)
from lengthwise_export.checking.recording import Identity, ModelOutput, Operation, Subject
from lengthwise_export.checking.rule import Cause, rules
from lengthwise_export.checking.trials import Change, CheckTrial
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import PaddedBatch
from lengthwise_export.tracing.source_lines import CodeLocation

_OF_ROWS: Final = ("neighbours", "order")  # Changes of other rows that leave all padding as it is
_NAN_TIMES_ZERO: Final = "LW801"  # NaN that a product with a mask does not remove
_HIDDEN: Final = 10  # A known leak explains others if its difference is above the tolerance divided by this


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial in which an answer changed."""

    base: PaddedBatch  # The batch with which that of the trial is compared: nearly always the baseline
    trial: CheckTrial
    row: int  # An index into `trial.rows`: the pair of rows whose answers differ most
    is_ordinary: bool = True  # Whether rows of ordinary values show the change
    # If the answer is finite in the batch of the trial, and not in `base`: what makes it so; otherwise empty
    nan_with: str = ""

    @classmethod
    def of(
        cls,
        baseline: Baseline,
        trial: CheckTrial,
        answer: ModelOutput,
        differences: Mapping[tuple[int, int], float],
        tolerance: float,
    ) -> FailedTrial:
        """A trial in which an answer changed, with its pair of rows that differs most.

        If rows of ordinary values fail, only those are used to find the operator: raw values may hide it.

        Args:
            baseline: The sequences and their first answers.
            trial: The trial.
            answer: The answer to it.
            differences: The difference of each answer, by the pair of its rows; at least one is above the tolerance.
            tolerance: The allowed difference of an answer.
        """
        failed_pairs = [pair for pair in trial.rows if not differences[pair] <= tolerance]  # NaN fails, too
        ordinary_pairs = [pair for pair in trial.rows if baseline.kind(pair[0]) is None]
        is_ordinary = bool(set(ordinary_pairs) & set(failed_pairs))
        rows = tuple(ordinary_pairs if is_ordinary else failed_pairs)
        worst = max(rows, key=lambda pair: differences[pair])
        failed = cls(baseline.batch, replace(trial, rows=rows), rows.index(worst), is_ordinary)
        return failed if trial.change == "poison" else failed.with_batch_of_nan(baseline, answer, worst)

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
class Leak:
    """The beginning of a leak."""

    operator: str  # The first operator whose output changes at a valid step, or as a whole if it has no axis of steps
    kind: str  # Its torch function or ONNX operator type
    location: CodeLocation | None  # The line of code that calls it; None for ONNX
    cause: Cause  # The likely cause, and code that fixes it
    # Where padding stopped being 0, if that is another operator; of LW801, where a product with a mask made it NaN
    cause_at: str | None
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

    @property
    def since(self) -> str:
        """What happened to padding at `cause_at`, without the place; empty if there is none, or the leak's own line."""
        if self.cause_at is None or self.cause_at == str(self.location):
            return ""
        return "NaN got past the mask" if self.code == _NAN_TIMES_ZERO else "padding stopped being 0"


def find_leaks(subject: Subject, failed: Sequence[FailedTrial], tolerance: float) -> list[Leak]:
    """The leaks in order of execution: one for each kind of change (of padding, width, rows ...) with failed trials.

    An operator that was found for one kind of change is not reported again for another.

    Args:
        subject: The model.
        failed: The trials in which an answer changed.
        tolerance: The allowed difference of an answer.
    """
    search = _LeakSearch(subject, tolerance)
    # What takes another row takes its padding, too: so changes that leave the padding as it is come first. With padding
    # in front, or in a packed row, other steps are at the same places of a loop, so there the padding comes first.
    is_right_padded = subject.layout.is_right_padded
    for change in sorted(trials.CHANGES, key=lambda change: is_right_padded and change not in _OF_ROWS):
        # First those with ordinary values, because raw values may make all attention weights 0 or 1, and so hide where
        # the leak begins.
        of_change = [failed_trial for failed_trial in failed if failed_trial.trial.change == change]
        search.search(change, sorted(of_change, key=lambda failed_trial: not failed_trial.is_ordinary))
    return [leak for _, leak in sorted(search.leaks, key=lambda entry: entry[0])]


@dataclass(slots=True)
class _LeakSearch:
    """The leaks that were found so far, and what need not be looked for any more."""

    subject: Subject
    tolerance: float  # The allowed difference of an answer
    leaks: list[tuple[int, Leak]] = field(default_factory=list)  # With the index of the operation
    located: dict[Identity, Change] = field(default_factory=dict)  # By the leaking operation: what showed it
    # Trials that need no search if a leak is located: an unbatched sequence has no other rows and another width, which
    # the other trials have shown.
    covered_changes: set[Change] = field(default_factory=lambda: {"block", "batch"})
    first_run: FirstRun | None = None  # The last that was recorded: most trials have the same baseline

    def search(self, change: Change, failed: Sequence[FailedTrial]) -> None:
        """Adds the leak that trials with one kind of change show; none if a leak that is known explains them.

        Of the failed trials, the first for which the model does not raise again is used.
        """
        if self.located and change in self.covered_changes:
            return
        for failed_trial in failed:
            with suppress(RunError):
                after = recorded(self.subject, failed_trial.trial.batch)
                break
        else:  # no trial failed with this change, or none runs again
            return
        if self.first_run is None or failed_trial.base is not self.first_run.batch:
            self.first_run = FirstRun.of(self.subject, failed_trial.base)
        runs = self.first_run.compared(failed_trial.trial, after, self.tolerance)
        first = self._first_differing(failed_trial, runs)
        if first is None or self._is_explained(first[0], runs):
            return
        operation, difference = runs.beginning_of(first[0]), first[1]
        self.located[operation.identity] = change
        if change == "order":  # other lengths change the sorted order too
            self.covered_changes.add("lengths")
        self.leaks.append((runs.index_of(first[0]), self._leak(operation, difference, failed_trial, runs)))

    def _first_differing(self, failed: FailedTrial, runs: ComparedRuns) -> tuple[Operation, float] | None:
        """The first operation that differs between the runs of a failed trial, with its difference; None without one.

        In two cases another operation is to blame: one that gives NaN, and one that runs for some batches only.
        """
        change, differing = failed.trial.change, runs.differing_operations()
        if failed.nan_with and (nan := runs.first_with_nan(self.subject.names)) is not None:
            return nan, math.inf
        may_be_branch = not self.located and (not differing or change == "batch")
        if may_be_branch and (branch := only_in_one_run(runs.before, runs.after)) is not None:
            return replace(branch, cause_of=lambda _: rules()["LW109"].cause()), self._answer_difference(failed)
        # Sizes of the batch, such as the width, may change with it; a leak begins at their use.
        batch = runs.pairing.before
        sizes = {batch.rows, batch.width, batch.longest} if change == "width" else set[int]()
        users_of_sizes = [entry for entry in differing if not _is_batch_size(sizes, entry[0])]
        return next(iter(users_of_sizes or differing), None)

    def _answer_difference(self, failed: FailedTrial) -> float:
        """The difference of the answer that changed most in a failed trial, at the steps that both answers have."""
        row, row_after = failed.trial.rows[failed.row]
        before = self.subject.answer(failed.base).logits[row]
        after = self.subject.answer(failed.trial.batch).logits[row_after]
        steps = min(len(before), len(after))
        return relative_difference(before[:steps], after[:steps])

    def _is_explained(self, operation: Operation, runs: ComparedRuns) -> bool:
        """Whether a located leak explains that `operation`, the first one that differs, does: it differs, too.

        A leak that comes after the operation explains nothing in two cases: it takes other rows; or the operation gives
        positions in rows that are padded in front, which are the same for all rows, while a flip moves sequences.
        """
        layout, rows = runs.pairing.before.layout, runs.pairing.before.rows
        is_position = not (layout.is_right_padded or layout.packed) and all(
            value.shape[:1] != (rows,) or bool((value == value[:1]).all()) for _, value in operation.outputs
        )
        at = runs.index_of(operation)

        def may_explain(index: int, known: Identity) -> bool:
            """Whether what is wrong with a known leak, at this index, may make the operation differ."""
            takes_rows = layout.is_right_padded and self.located[known] in _OF_ROWS
            return index < at or not (is_position or takes_rows)

        return operation.identity in self.located or any(
            pair.before.identity in self.located
            and may_explain(index, pair.before.identity)
            and (pair.difference(runs.pairing) or 0.0) > self.tolerance / _HIDDEN
            for index, pair in enumerate(runs.pairs)
        )

    def _leak(self, operation: Operation, difference: float, failed: FailedTrial, runs: ComparedRuns) -> Leak:
        """The leak that begins at an operation, with its cause and its picture."""
        row, _ = failed.trial.rows[failed.row]
        cause = runs.cause_of(operation, failed.trial.change, self.subject.names)
        find = runs.mask_that_failed if cause.code == _NAN_TIMES_ZERO else runs.where_padding_became_nonzero
        return Leak(
            operator=operation.operator,
            kind=operation.kind,
            location=operation.location,
            cause=cause,
            cause_at=find(operation),
            difference=difference,
            trial=failed.nan_with or failed.trial.name,
            spread=tuple(runs.spreads(failed.row)),
            length=int(failed.base.lengths[row]),
            layer=operation.layer,
        )


def _is_batch_size(sizes: set[int], operation: Operation) -> bool:
    """Whether an operation outputs only sizes of the batch: indices or single numbers, without an axis of such a size.

    False if `sizes` is empty.
    """
    shapes = {size for _, value in operation.outputs for size in value.shape}
    return bool(sizes) and operation.gives_sizes and not sizes & shapes

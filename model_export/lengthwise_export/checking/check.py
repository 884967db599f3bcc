"""Judges whether padding, or a neighbour, reaches an answer: what `check` does, for models of every source.

    subject --trials--> answers that should be equal --compare--> verdict
                                      |
                             those that are not --record both runs--> the first operator that differs

A sequence is answered in a first batch. Then the padding, the width, the neighbours or the order of the rows change,
and its answer must not. Where it does, `leaks` finds the operator at which it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, pad, step_mask
from lengthwise_export.checking.axes import Geometry
from lengthwise_export.checking.baseline import Baseline
from lengthwise_export.checking.leaks import FailedTrial, find_leaks
from lengthwise_export.checking.limits import WidthLimits
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.trials import (
    BatchSizes,
    CheckTrial,
    Sampler,
    base_sequences,
    fewer_rows,
    geometry,
    lone_trials,
    odd_batches,
    padding_changed,
    trials,
)
from lengthwise_export.checking.uncheckable import refuse_other_contracts, runs, why_it_raises, why_it_raises_for
from lengthwise_export.checking.verdict import ROUNDING, CheckedSizes, Report, TrialResult, Verdict, as_ranges
from lengthwise_export.errors import RunError, UncheckableError

_MOST_ALONE: Final = 48
"""Lengths that are tried alone."""

_MOST_NAMED: Final = 5
"""Trials that the reason names."""

_JUMP: Final = 1e-3
"""A model whose answer the last bits of the input move by more does not amplify rounding, it jumps."""

ProgressCallback = Callable[[str], None]


def check(
    subject: Subject,
    *,
    max_length: int = 1024,
    tolerance: float = 0.0,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Report:
    """Judges a model.

    Args:
        subject: The model, from any source.
        max_length: The longest sequence to try, once.
        tolerance: What an answer may move by, beyond rounding.
        seed: Decides the sequences.
        progress: Told what is tried.

    Returns:
        The report; a model that cannot be judged has the verdict `uncheckable`.
    """
    try:
        return _Check(subject, max_length, ROUNDING + tolerance, seed, progress or (lambda _: None)).report()
    except UncheckableError as error:
        return Report("uncheckable", str(error))


class _Check:
    """One check: what every trial showed, and what should be known besides."""

    def __init__(
        self, subject: Subject, max_length: int, tolerance: float, seed: int, progress: ProgressCallback
    ) -> None:
        self.subject = subject
        self.max_length = max_length
        self.tolerance = tolerance
        self.progress = progress
        self.sampler = Sampler(subject.steps, seed)
        self.outcomes: list[TrialResult] = []
        self.notes: list[str] = []
        self.moved: list[FailedTrial] = []
        self.ran: list[Geometry] = []

    def report(self) -> Report:
        """Runs everything and judges."""
        self.progress(f"a sequence of {self.max_length} steps")
        limits = WidthLimits.of(self.subject, self.sampler, self.max_length)
        widest, sizes = limits.widest, limits.sizes
        self.notes += [] if limits.note is None else [limits.note]
        first = self._first(sizes)
        for trial in trials(first.sequences, sizes, self.sampler):
            self._try(first, trial)
        self._try_alone(sizes)
        self._try(first, _beside(first, self.sampler.sequence(widest)))
        self._try_odd_batches(first, sizes, widest)
        finite = [moved for moved in self.moved if moved.trial.change != "poison"]
        if finite:
            moved_trials = [moved.trial for moved in finite]
            refuse_other_contracts(self.subject, first, moved_trials, sizes, self.sampler, self.tolerance)
            self._note_other_readings(first, finite)
        else:
            self._require_that_it_could_show(first)
        self._note_a_fast_path(first)
        self.progress("where it begins")
        leaks = tuple(find_leaks(self.subject, finite or self.moved, self.tolerance))
        names = _first_of([moved.trial.name for moved in finite or self.moved])
        verdict: Verdict
        if finite:
            verdict, reason = "leak", f"the answer to a sequence changes with: {names}"
        elif self.moved:
            verdict, reason = "warning", f"only what is not finite, or overflows, reaches an answer: {names}"
        else:
            ran = [outcome for outcome in self.outcomes if outcome.difference is not None]
            raised = len(self.outcomes) - len(ran)
            verdict, reason = "sound", f"no answer changed in {len(ran)} trials"
            reason += f"; {raised} raised, at lengths that the model does not take" if raised else ""
        return Report(
            verdict,
            reason,
            leaks,
            tuple(self.outcomes),
            tuple(self.notes),
            widest,
            self.tolerance,
            CheckedSizes.of(self.ran),
        )

    def _answer(self, batch: PaddedBatch) -> ModelOutput:
        """Answers one of the batches that are compared."""
        answer = self.subject.answer(batch)
        self.ran.append(geometry(batch))
        return answer

    def _require_that_it_could_show(self, first: Baseline) -> None:
        """Refuses to call sound what could not have leaked: nothing was varied, or no answer follows its sequence.

        Raises:
            UncheckableError: So it is.
        """
        ran = CheckedSizes.of(self.ran)
        if len(ran.rows) < 2 or len(ran.widths) < 2 or len(ran.lengths) < min(2, self.max_length):
            raise UncheckableError(
                f"nothing could be varied: {as_ranges(ran.rows)} rows, widths of {as_ranges(ran.widths)} and sequences "
                f"of {as_ranges(ran.lengths)} steps are all that ran"
            )
        others = Sampler(self.subject.steps, seed=len(first.sequences) + 1)
        replaced = pad([others.sequence(len(steps)) for steps in first.sequences], width=first.batch.width)
        moved = first.largest_difference(self.subject.answer(replaced))
        if moved <= self.tolerance:
            raise UncheckableError(
                f"the answers do not depend on the sequences: others of the same lengths move them by {moved:.2g}, and "
                f"up to {self.tolerance:.2g} is let be, so that a leak could not be seen. A last layer of zeros, a "
                "forgotten input, or a --tolerance that is too large"
            )

    def _note_other_readings(self, first: Baseline, finite: Sequence[FailedTrial]) -> None:
        """Says so where the model does not leak when it is called in another way.

        Raises:
            UncheckableError: That way is one in which no model is served.
        """
        for other in self.subject.alternatives():
            try:
                again = Baseline(first.sequences, first.batch, other.subject.answer(first.batch))
                answers = [other.subject.answer(moved.trial.batch) for moved in finite if moved.base is first.batch]
                last = other.subject.answer(first.with_last_steps_changed(self.subject.steps.vocabulary))
                trials_of = [moved.trial for moved in finite if moved.base is first.batch]
                is_sound = all(
                    again.moved_by(answer, row, place) <= self.tolerance
                    for trial, answer in zip(trials_of, answers, strict=True)
                    for row, place in trial.rows
                )
                # A reading under which a model looks at less than the whole sequence cannot be the right one.
                is_sound = is_sound and all(
                    again.moved_by(last, row, row) > self.tolerance for row in range(first.batch.rows)
                )
            except (RunError, IndexError):  # answers of another shape have no such rows
                continue
            if is_sound and answers and other.is_option:
                self.notes.append(f"none of these trials moves an answer {other.runs}")
            elif is_sound and answers and "share" in other.runs:
                raise UncheckableError(f"the model is sound only {other.runs}")

    def _first(self, sizes: BatchSizes) -> Baseline:
        self.progress("the first batch, twice")
        sequences = base_sequences(self.sampler, sizes)
        batch = pad(sequences, width=sizes.width)
        try:
            first = Baseline(sequences, batch, self._answer(batch))
        except RunError as error:
            self.progress("sizes at which the model runs")
            raise why_it_raises(self.subject, sequences, sizes.width, error) from error
        shape = first.answer.logits.shape
        if shape[:-1] not in ((batch.rows,), (batch.rows, batch.width)):
            raise UncheckableError(
                f"the output is {list(shape)} for {batch.rows} rows and a width of {batch.width}, and no "
                "[rows, classes] or [rows, width, classes]: name the one that is the answer with --output"
            )
        if not np.isfinite(_at_valid_steps(first.answer.logits, batch)).all():
            raise UncheckableError(
                "the answers to finite sequences are not finite: train the model, or give its weights"
            )
        wider = pad(sequences, width=sizes.wider)
        if runs(self.subject, wider) and self.subject.answer(wider).logits.shape[-1] != first.answer.logits.shape[-1]:
            raise UncheckableError(
                "the output is as long as the batch is wide, and no [rows, classes] or [rows, width, classes]: "
                "name the one that is the answer with --output"
            )
        if first.largest_difference(self.subject.answer(batch)) > self.tolerance:
            raise UncheckableError(
                "the same batch does not get the same answer twice: something random is on in evaluation mode "
                "(F.dropout without training=self.training)"
            )
        self._allow_for_rounding(first)
        return first

    def _allow_for_rounding(self, first: Baseline) -> None:
        """Raises the tolerance for a model that amplifies rounding.

        Sums in another order round otherwise, and what that can do to an answer the last bits of the input show.
        """
        if self.subject.steps.kind == "tokens":
            return
        moved = first.largest_difference(self.subject.answer(first.with_one_ulp_added()))
        if self.tolerance < 10 * moved < _JUMP:
            self.tolerance = 10 * moved
            self.notes.append(
                f"the last bits of the input move an answer by {moved:.2g}: less than 10 times that is let be"
            )

    def _try_alone(self, sizes: BatchSizes) -> None:
        """Every length from 1 on: alone, against all of them in one batch."""
        lengths = np.unique(np.linspace(1, sizes.width, min(sizes.width, _MOST_ALONE)).round().astype(int))[::-1]
        sequences = [self.sampler.sequence(length) for length in lengths.tolist()]
        batch = pad(sequences, width=sizes.wider)
        together = Baseline(sequences, batch, self._answer(batch))
        rows = [
            np.isfinite(row[: len(steps)] if row.ndim == 2 else row).all()
            for row, steps in zip(together.answer.logits, sequences, strict=True)
        ]
        if not all(rows):
            bad = sorted(len(steps) for steps, finite in zip(sequences, rows, strict=True) if not finite)
            raise UncheckableError(f"the answers to finite sequences of {as_ranges(bad)} steps are not finite")
        raised = {
            len(sequence): error
            for sequence, trial in zip(sequences, lone_trials(sequences), strict=True)
            if (error := self._try(together, trial, may_raise=True)) is not None
        }
        if len(raised) == len(sequences) and not any(moved.trial.change != "poison" for moved in self.moved):
            raise UncheckableError(
                f"the model raises for a batch of one row, of every length: {raised[min(raised)]} (a squeeze without "
                "a dim, as a rule, takes the rows' axis away too)"
            )
        if raised:
            lengths_said = ", ".join(map(str, sorted(raised)))
            self.notes.append(f"alone at {lengths_said} steps the model raises: {raised[min(raised)]}")

    def _try_odd_batches(self, first: Baseline, sizes: BatchSizes, widest: int) -> None:
        """Numbers of rows, lengths and widths that a model may have a path of its own for, each with padding."""
        for trial in fewer_rows(first.batch):
            self._try(first, trial)
        for name, sequences, batch in odd_batches(sizes, widest, self.sampler):
            try:
                base = Baseline(sequences, batch, self._answer(batch))
            except RunError as error:
                if batch.rows == 1:  # noted where it is alone
                    continue
                raise UncheckableError(f"the model raises for a batch {name}: {error}") from error
            if not np.isfinite(_at_valid_steps(base.answer.logits, batch)).all():
                raise UncheckableError(f"the answers to finite sequences are not finite in a batch {name}")
            for trial in padding_changed(name, sequences, batch, self.sampler):
                self._try(base, trial)

    def _try(self, first: Baseline, trial: CheckTrial, *, may_raise: bool = False) -> RunError | None:
        """Runs a trial and judges it; gives what it raised, where it may."""
        self.progress(trial.name)
        try:
            answer = self._answer(trial.batch)
        except RunError as error:
            self.outcomes.append(TrialResult(trial.name, trial.change, None, passed=may_raise, raised=str(error)))
            if trial.change in ("padding", "neighbours", "poison"):
                # The shape is that of the first batch, which it answers: what it reads is the padding, or a neighbour.
                self.moved.append(FailedTrial(first.batch, trial, 0))
            elif not may_raise:
                raise why_it_raises_for(first, trial, error) from error
            return error
        self._judge(first, trial, answer)
        return None

    def _note_a_fast_path(self, first: Baseline) -> None:
        """Says so where the framework's own fast path does not show what was found on the plain one."""
        moved = next((moved for moved in self.moved if moved.base is first.batch), None)
        if moved is None:
            return
        try:
            shipped = Baseline(first.sequences, first.batch, self.subject.answer_as_shipped(first.batch))
            after = self.subject.answer_as_shipped(moved.trial.batch)
        except RunError:
            return
        if max(shipped.moved_by(after, row, other) for row, other in moved.trial.rows) <= self.tolerance:
            self.notes.append(
                f"the framework's fast path computes no padding and does not show it ({moved.trial.name}); training, "
                "other settings and an exported graph take the plain path"
            )

    def _judge(self, first: Baseline, trial: CheckTrial, answer: ModelOutput) -> None:
        moved = [first.moved_by(answer, row, other) for row, other in trial.rows]
        passed = max(moved) <= self.tolerance
        self.outcomes.append(TrialResult(trial.name, trial.change, max(moved), passed))
        if not passed:
            self.moved.append(FailedTrial(first.batch, trial, int(np.argmax(moved))))


def _beside(first: Baseline, long: Steps) -> CheckTrial:
    """One of the first sequences beside the longest that there may be."""
    row = len(first.sequences) // 2
    return CheckTrial(
        f"beside a sequence of {len(long)} steps", "company", pad([long, first.sequences[row]], multiple=1), ((row, 1),)
    )


def _at_valid_steps(logits: NDArray[np.float32], batch: PaddedBatch) -> NDArray[np.float32]:
    """Logits without those at padding, where there is one for each step."""
    return logits[step_mask(batch.lengths, batch.width)] if logits.ndim == 3 else logits


def _first_of(names: list[str]) -> str:
    more = f"; and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return "; ".join(names[:_MOST_NAMED]) + more

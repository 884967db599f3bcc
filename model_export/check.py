"""Judges whether padding, or a neighbour, reaches an answer: what `check` does, for models of every source.

    subject --trials--> answers that should be equal --compare--> verdict
                                      |
                             those that are not --record both runs--> the first operator that differs

A sequence is answered in a first batch. Then the padding, the width, the neighbours or the order of the rows change,
and its answer must not. Where it does, `leaks` finds the operator at which it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from model_export import axes
from model_export.errors import RunError, UncheckableError
from model_export.leaks import Leak, Moved, locate
from model_export.recording import Answer, Subject
from model_export.trials import Sampler, Trial, base_sequences, lone_trials, sizes_apart_from, trials
from service.padding import PaddedBatch, Steps, pad

Verdict = Literal["sound", "leak", "warning", "uncheckable"]

ROUNDING: Final = 1e-5
"""What sums in another order may differ by, relative to the largest value where that is above 1."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial showed.

    Attributes:
        name: The trial's.
        difference: The largest, in units of max(1, largest value); None where the model raised.
        passed: Whether that is within the tolerance.
        raised: What the model said when it raised.
    """

    name: str
    difference: float | None
    passed: bool
    raised: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a check.

    Attributes:
        verdict: `leak` for a difference that finite values, width or neighbours show; `warning` where only NaN, Inf or
            1e30 in the padding does.
        reason: A sentence.
        leaks: Where they begin.
        trials: Everything that was tried.
        notes: What else should be known: lengths at which the model raises, how wide it can go.
        max_length: The widest batch that ran, of those that were to.
    """

    verdict: Verdict
    reason: str
    leaks: tuple[Leak, ...] = ()
    trials: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()
    max_length: int | None = None

    def exit_code(self, *, strict: bool = False) -> int:
        """0: nothing leaks; 1: something does (under `strict`, a warning too); 2: it could not be checked."""
        if self.verdict == "uncheckable":
            return 2
        return int(self.verdict == "leak" or (strict and self.verdict == "warning"))


def check(
    subject: Subject, *, max_length: int = 1024, tolerance: float = 0.0, seed: int = 0, progress: Progress | None = None
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


@dataclass(frozen=True, slots=True)
class _First:
    """Sequences, the batch that they were answered in first, and its answer."""

    sequences: Sequence[Steps]
    batch: PaddedBatch
    answer: Answer


class _Check:
    """One check: what every trial showed, and what should be known besides."""

    def __init__(self, subject: Subject, max_length: int, tolerance: float, seed: int, progress: Progress) -> None:
        self.subject = subject
        self.max_length = max_length
        self.tolerance = tolerance
        self.progress = progress
        self.sizes = sizes_apart_from(subject.sizes, longest_allowed=max_length)
        self.sampler = Sampler(subject.steps, seed)
        self.outcomes: list[Outcome] = []
        self.notes: list[str] = []
        self.moved: list[Moved] = []

    def report(self) -> Report:
        """Runs everything and judges."""
        first = self._first()
        for trial in trials(first.sequences, self.sizes, self.sampler):
            self._try(first, trial)
        self._try_alone()
        widest = self._try_longest(first)
        finite = [moved for moved in self.moved if moved.trial.change != "poison"]
        if finite:
            self._refuse_other_contracts(first, [moved.trial for moved in finite])
        self.progress("where it begins")
        leaks = tuple(locate(self.subject, finite or self.moved, self.tolerance))
        names = ", ".join(moved.trial.name for moved in (finite or self.moved)[:5])
        verdict: Verdict
        if finite:
            verdict, reason = "leak", f"the answer to a sequence changes with: {names}"
        elif self.moved:
            verdict, reason = "warning", f"only what is not finite, or overflows, reaches an answer: {names}"
        else:
            verdict, reason = "sound", f"no answer changed in {len(self.outcomes)} trials"
        return Report(verdict, reason, leaks, tuple(self.outcomes), tuple(self.notes), widest)

    def _first(self) -> _First:
        self.progress("the first batch, twice")
        sequences = base_sequences(self.sampler, self.sizes)
        batch = pad(sequences, width=self.sizes.width)
        try:
            first = _First(sequences, batch, self.subject.answer(batch))
        except RunError as error:
            raise self._why_it_raises(sequences, error) from error
        if not np.isfinite(first.answer.logits).all():
            raise UncheckableError(
                "the answers to finite sequences are not finite: train the model, or give its weights"
            )
        again = self.subject.answer(batch)
        if max(_moved_by(first, again, row, row) for row in range(batch.rows)) > self.tolerance:
            raise UncheckableError(
                "the same batch does not get the same answer twice: something random is on in evaluation mode "
                "(F.dropout without training=self.training)"
            )
        return first

    def _try_alone(self) -> None:
        """Every length from 1 on: alone, against all of them in one batch."""
        sequences = [self.sampler.sequence(length) for length in range(self.sizes.width, 0, -1)]
        batch = pad(sequences, width=self.sizes.wider)
        together = _First(sequences, batch, self.subject.answer(batch))
        raised = [self._try(together, trial, may_raise=True) for trial in lone_trials(sequences)]
        if all(raised) and not any(moved.trial.change != "poison" for moved in self.moved):
            raise UncheckableError(
                f"the model raises for a batch of one row, of every length: {raised[0]} (a squeeze without a dim, as a "
                "rule, takes the rows' axis away too)"
            )

    def _try(self, first: _First, trial: Trial, *, may_raise: bool = False) -> RunError | None:
        """Runs a trial; gives what it raised, where it may."""
        self.progress(trial.name)
        try:
            answer = self.subject.answer(trial.batch)
        except RunError as error:
            self.outcomes.append(Outcome(trial.name, None, passed=may_raise, raised=str(error)))
            if trial.change in ("padding", "neighbours", "poison"):
                # The shape is that of the first batch, which it answers: what it reads is the padding, or a neighbour.
                self.moved.append(Moved(first.batch, trial, 0))
            elif not may_raise:
                raise _why_it_raises_for(first, trial, error) from error
            else:
                self.notes.append(f"{trial.name}: the model raises: {error}")
            return error
        self._judge(first, trial, answer)
        return None

    def _judge(self, first: _First, trial: Trial, answer: Answer) -> None:
        moved = [_moved_by(first, answer, row, other) for row, other in trial.rows]
        passed = max(moved) <= self.tolerance
        self.outcomes.append(Outcome(trial.name, max(moved), passed))
        if not passed:
            self.moved.append(Moved(first.batch, trial, int(np.argmax(moved))))

    def _try_longest(self, first: _First) -> int:
        """One sequence of the longest length, with a short one beside it; how wide the model can go."""
        if self.max_length <= self.sizes.wider:
            return self.max_length
        self.progress(f"a sequence of {self.max_length} steps")
        length = self.max_length
        try:
            answer = self.subject.answer(self._beside(first, length).batch)
        except RunError as error:
            length = self._widest(first)
            self.notes.append(f"the model raises past a width of {length}: {error}")
            answer = self.subject.answer(self._beside(first, length).batch)
        self._judge(first, self._beside(first, length), answer)
        return length

    def _beside(self, first: _First, length: int) -> Trial:
        """A sequence of the first batch beside one of that length."""
        row = len(first.sequences) // 2
        long = Sampler(self.subject.steps, length).sequence(length)
        batch = pad([long, first.sequences[row]], multiple=1)
        return Trial(f"beside a sequence of {length} steps", "company", batch, ((row, 1),))

    def _widest(self, first: _First) -> int:
        """The largest width at which the model still answers, by halving."""
        good, bad = self.sizes.wider, self.max_length
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._runs(self._beside(first, middle).batch):
                good = middle
            else:
                bad = middle
        return good

    def _why_it_raises(self, sequences: Sequence[Steps], error: RunError) -> UncheckableError:
        """Why not even the first batch runs: a frozen axis, or whatever the model says."""
        self.progress("sizes at which the model runs")
        for axis, batches in (
            ("rows", ((size, [sequences[0]] * size, self.sizes.width) for size in range(1, 65))),
            ("width", ((size, [steps[:size] for steps in sequences], size) for size in range(1, 129))),
        ):
            good = [size for size, rows, width in batches if self._runs(pad(rows, width=width))]
            if len(good) == 1:
                return UncheckableError(
                    f"the model takes batches of one size only: {axis} is frozen at {good[0]} ({error}); make it from "
                    "the tensor's own shape"
                )
        return UncheckableError(f"the model raises for a batch of {self.sizes.rows} rows: {error}")

    def _runs(self, batch: PaddedBatch) -> bool:
        try:
            self.subject.answer(batch)
        except RunError:
            return False
        return True

    def _apart_at_the_end(self, expected: NDArray[np.float32], answer: NDArray[np.float32]) -> bool:
        """Whether an answer to a row moved from the one alone; of answers a step, the last are the sequence's."""
        return axes.gap(expected, answer[-len(expected) :] if expected.ndim == 2 else answer) > self.tolerance

    def _refuse_other_contracts(self, first: _First, finite: Sequence[Trial]) -> None:
        """Refuses what is no leak but another contract: rows that must be sorted, or sequences at the row's end."""
        if all(trial.change == "order" for trial in finite) and not self._are_rows_exchanged(first, finite[0]):
            raise UncheckableError(
                "the model demands an order of the rows (sorted by length, the longest first): it answers otherwise "
                "when the first row is not the longest"
            )
        # Steps of zeros behind a sequence are no sequence to a model that looks for it at the end.
        if any(trial.change in ("width", "company") for trial in finite) and self._is_right_at_the_end(first):
            raise UncheckableError(
                "the model wants left padding (each sequence at the end of its row); Lengthwise pads behind a "
                "sequence: take positions and masks from the start of the row"
            )

    def _are_rows_exchanged(self, first: _First, trial: Trial) -> bool:
        """Whether every answer of a batch in another order is right, but another row's."""
        answers = self.subject.answer(trial.batch).logits
        return all(min(axes.gap(mine, other) for other in answers) <= self.tolerance for mine in first.answer.logits)

    def _is_right_at_the_end(self, first: _First) -> bool:
        """Whether sequences at the end of their rows get the answers that they get alone, because of their lengths."""
        try:
            alone = [self.subject.answer(pad([steps], multiple=1)).logits[0] for steps in first.sequences]
            for width in (self.sizes.width, self.sizes.wider):
                steps = self.sampler.fill((first.batch.rows, width), 3.0)
                for row, sequence in zip(steps, first.sequences, strict=True):
                    row[width - len(sequence) :] = sequence
                answers = self.subject.answer_left(PaddedBatch(steps, first.batch.lengths)).logits
                if any(self._apart_at_the_end(*both) for both in zip(alone, answers, strict=True)):
                    return False
                # A model that reads backwards and knows no lengths is right as well, and does not even notice this.
                longer = np.minimum(first.batch.lengths + 2, width).astype(np.int32)
                noticed = self.subject.answer_left(PaddedBatch(steps, longer)).logits
                if not any(self._apart_at_the_end(*both) for both in zip(alone, noticed, strict=True)):
                    return False
        except RunError:
            return False
        return True


def _moved_by(first: _First, after: Answer, row: int, other: int) -> float:
    """How far a row's first answer and that of another batch's row lie apart, at valid steps."""
    length, before, apart = len(first.sequences[row]), first.answer, [0.0]
    for one, two in ((before.logits, after.logits), (before.attention, after.attention)):
        if one is None or two is None:
            continue
        if one.ndim != two.ndim or other >= len(two):
            return float("inf")
        per_step = one is before.attention or one.ndim == 3
        mine, its = (one[row][:length], two[other][:length]) if per_step else (one[row], two[other])
        apart.append(axes.gap(mine, its) if mine.shape == its.shape else float("inf"))
    return max(apart)


def _why_it_raises_for(first: _First, trial: Trial, error: RunError) -> UncheckableError:
    """Why the first batch runs and this one does not."""
    if trial.batch.width != first.batch.width:
        return UncheckableError(
            f"the model answers at a width of {first.batch.width} and raises at {trial.batch.width}: its width is "
            f"frozen ({error})"
        )
    if trial.change == "order":
        return UncheckableError(
            f"the model demands an order of the rows (sorted by length, the longest first): {error}; "
            "pack_padded_sequence takes any order with enforce_sorted=False"
        )
    return UncheckableError(f"{trial.name}: the model raises: {error}")

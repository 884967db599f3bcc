"""Judges whether padding, or a neighbour, reaches an answer: what `check` does, for models of every source.

    subject --trials--> answers that should be equal --compare--> verdict
                                      |
                             those that are not --record both runs--> the first operator that differs

A sequence is answered in a first batch. Then the padding, the width, the neighbours or the order of the rows change,
and its answer must not. Where it does, `leaks` finds the operator at which it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from model_export import axes
from model_export.errors import RunError, UncheckableError
from model_export.leaks import Leak, Moved, locate
from model_export.recording import Answer, Subject
from model_export.trials import Sampler, Trial, base_sequences, lone_trials, sizes_apart_from, trials
from service.padding import PaddedBatch, pad

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


class _Check:
    """One check: the first batch, its answers, and what every trial showed."""

    def __init__(self, subject: Subject, max_length: int, tolerance: float, seed: int, progress: Progress) -> None:
        self.subject = subject
        self.max_length = max_length
        self.tolerance = tolerance
        self.progress = progress
        self.sizes = sizes_apart_from(subject.sizes, longest_allowed=max_length)
        self.sampler = Sampler(subject.steps, seed)
        self.sequences = base_sequences(self.sampler, self.sizes)
        self.outcomes: list[Outcome] = []
        self.notes: list[str] = []
        self.moved: list[Moved] = []

    def report(self) -> Report:
        """Runs everything and judges."""
        self.base = pad(self.sequences, width=self.sizes.width)
        self.expected = self._first_answer()
        for trial in trials(self.sequences, self.sizes, self.sampler):
            self._try(trial)
        for trial in lone_trials(self.sequences):
            self._try(trial, may_raise=True)
        widest = self._try_longest()
        finite = [moved for moved in self.moved if moved.trial.change != "poison"]
        if finite:
            self._refuse_other_contracts([moved.trial for moved in finite])
        self.progress("where it begins")
        leaks = tuple(locate(self.subject, self.base, finite or self.moved, self.tolerance))
        names = ", ".join(moved.trial.name for moved in (finite or self.moved)[:5])
        verdict: Verdict
        if finite:
            verdict, reason = "leak", f"the answer to a sequence changes with: {names}"
        elif self.moved:
            verdict, reason = "warning", f"only what is not finite, or overflows, reaches an answer: {names}"
        else:
            verdict, reason = "sound", f"no answer changed in {len(self.outcomes)} trials"
        return Report(verdict, reason, leaks, tuple(self.outcomes), tuple(self.notes), widest)

    def _first_answer(self) -> Answer:
        self.progress("the first batch, twice")
        try:
            first = self.subject.answer(self.base)
        except RunError as error:
            raise self._why_it_raises(error) from error
        if not np.isfinite(first.logits).all():
            raise UncheckableError(
                "the answers to finite sequences are not finite: train the model, or give its weights"
            )
        rows = tuple((row, row) for row in range(self.base.rows))
        if self._moved_by(first, self.subject.answer(self.base), rows) > self.tolerance:
            raise UncheckableError(
                "the same batch does not get the same answer twice: something random is on in evaluation mode "
                "(F.dropout without training=self.training)"
            )
        return first

    def _try(self, trial: Trial, *, may_raise: bool = False) -> None:
        self.progress(trial.name)
        try:
            answer = self.subject.answer(trial.batch)
        except RunError as error:
            self.outcomes.append(Outcome(trial.name, None, passed=may_raise, raised=str(error)))
            if trial.change in ("padding", "neighbours", "poison"):
                # The shape is that of the first batch, which it answers: what it reads is the padding, or a neighbour.
                self.moved.append(Moved(trial, 0))
            elif not may_raise:
                raise self._why_it_raises_for(trial, error) from error
            else:
                self.notes.append(f"{trial.name}: the model raises: {error}")
            return
        self._judge(trial, answer)

    def _judge(self, trial: Trial, answer: Answer) -> None:
        moved = [self._moved_by(self.expected, answer, [rows]) for rows in trial.rows]
        passed = max(moved) <= self.tolerance
        self.outcomes.append(Outcome(trial.name, max(moved), passed))
        if not passed:
            self.moved.append(Moved(trial, int(np.argmax(moved))))

    def _moved_by(self, before: Answer, after: Answer, rows: Iterable[tuple[int, int]]) -> float:
        """How far the answers to the shared sequences lie apart, at valid steps."""
        apart = [0.0]
        for row, other in rows:
            length = len(self.sequences[row])
            for one, two in ((before.logits, after.logits), (before.attention, after.attention)):
                if one is None or two is None:
                    continue
                if one.ndim != two.ndim or other >= len(two):
                    return float("inf")
                per_step = one is before.attention or one.ndim == 3
                first, second = (one[row][:length], two[other][:length]) if per_step else (one[row], two[other])
                apart.append(axes.gap(first, second) if first.shape == second.shape else float("inf"))
        return max(apart)

    def _try_longest(self) -> int | None:
        """One sequence of the longest length, with a short one beside it; how wide the model can go."""
        if self.max_length <= self.sizes.wider:
            return self.max_length
        self.progress(f"a sequence of {self.max_length} steps")
        length = self.max_length
        try:
            answer = self.subject.answer(self._beside(length).batch)
        except RunError as error:
            length = self._widest()
            self.notes.append(f"the model raises past a width of {length}: {error}")
            answer = self.subject.answer(self._beside(length).batch)
        self._judge(self._beside(length), answer)
        return length

    def _beside(self, length: int) -> Trial:
        """A sequence of the first batch beside one of that length."""
        row = len(self.sequences) // 2
        long = Sampler(self.subject.steps, length).sequence(length)
        batch = pad([long, self.sequences[row]], multiple=1)
        return Trial(f"beside a sequence of {length} steps", "company", batch, ((row, 1),))

    def _widest(self) -> int:
        """The largest width at which the model still answers, by halving."""
        good, bad = self.sizes.wider, self.max_length
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._runs(self._beside(middle).batch):
                good = middle
            else:
                bad = middle
        return good

    def _why_it_raises(self, error: RunError) -> UncheckableError:
        """Why not even the first batch runs: a frozen axis, or whatever the model says."""
        self.progress("sizes at which the model runs")
        for axis, batches in (
            ("rows", ((size, [self.sequences[0]] * size, self.sizes.width) for size in range(1, 65))),
            ("width", ((size, [steps[:size] for steps in self.sequences], size) for size in range(1, 129))),
        ):
            good = [size for size, sequences, width in batches if self._runs(pad(sequences, width=width))]
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

    def _why_it_raises_for(self, trial: Trial, error: RunError) -> UncheckableError:
        if trial.batch.width != self.base.width:
            return UncheckableError(
                f"the model answers at a width of {self.base.width} and raises at {trial.batch.width}: its width is "
                f"frozen ({error})"
            )
        if trial.change == "order":
            return UncheckableError(
                f"the model demands an order of the rows (sorted by length, the longest first): {error}; "
                "pack_padded_sequence takes any order with enforce_sorted=False"
            )
        return UncheckableError(f"{trial.name}: the model raises: {error}")

    def _refuse_other_contracts(self, finite: Sequence[Trial]) -> None:
        """Refuses what is no leak but another contract: rows that must be sorted, or sequences at the row's end."""
        if all(trial.change == "order" for trial in finite) and not self._are_rows_exchanged(finite[0]):
            raise UncheckableError(
                "the model demands an order of the rows (sorted by length, the longest first): it answers otherwise "
                "when the first row is not the longest"
            )
        # Steps of zeros behind a sequence are no sequence to a model that looks for it at the end.
        if any(trial.change in ("width", "company") for trial in finite) and self._is_right_at_the_end():
            raise UncheckableError(
                "the model wants left padding (each sequence at the end of its row); Lengthwise pads behind a "
                "sequence: take positions and masks from the start of the row"
            )

    def _are_rows_exchanged(self, trial: Trial) -> bool:
        """Whether every answer of a batch in another order is right, but another row's."""
        answers = self.subject.answer(trial.batch).logits
        return all(min(axes.gap(mine, other) for other in answers) <= self.tolerance for mine in self.expected.logits)

    def _is_right_at_the_end(self) -> bool:
        """Whether sequences at the end of their rows get the answers that they get alone, because of their lengths."""
        try:
            alone = [self.subject.answer(pad([steps], multiple=1)).logits[0] for steps in self.sequences]
            for width in (self.sizes.width, self.sizes.wider):
                steps = self.sampler.fill((self.base.rows, width), 3.0)
                for row, sequence in zip(steps, self.sequences, strict=True):
                    row[width - len(sequence) :] = sequence
                answers = self.subject.answer_left(PaddedBatch(steps, self.base.lengths)).logits
                if any(self._apart_at_the_end(*both) for both in zip(alone, answers, strict=True)):
                    return False
                # A model that reads backwards and knows no lengths is right as well, and does not even notice this.
                longer = np.minimum(self.base.lengths + 2, width).astype(np.int32)
                noticed = self.subject.answer_left(PaddedBatch(steps, longer)).logits
                if not any(self._apart_at_the_end(*both) for both in zip(alone, noticed, strict=True)):
                    return False
        except RunError:
            return False
        return True

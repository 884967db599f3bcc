"""Judges whether padding, or a neighbour, reaches an answer: what `check` does, for models of every source.

    subject --trials--> answers that should be equal --compare--> verdict
                                      |
                             those that are not --record both runs--> the first operator that differs

A sequence is answered in a first batch. Then the padding, the width, the neighbours or the order of the rows change,
and its answer must not. Where it does, `leaks` finds the operator at which it begins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from model_export.answered import First
from model_export.axes import Geometry
from model_export.errors import RunError, UncheckableError
from model_export.leaks import Leak, Moved, locate
from model_export.recording import Answer, Subject
from model_export.refusals import lengths_may_not_differ, refuse_other_contracts, runs, why_it_raises, why_it_raises_for
from model_export.trials import (
    Change,
    Sampler,
    Sizes,
    Trial,
    base_sequences,
    geometry,
    lone_trials,
    sizes_apart_from,
    trials,
)
from service.padding import PaddedBatch, Steps, pad, rounded_width, step_mask

Verdict = Literal["sound", "leak", "warning", "uncheckable"]

ROUNDING: Final = 1e-5
"""What sums in another order may differ by, relative to the largest value where that is above 1."""

_WIDTHS: Final = (11, 23, 47, 97, 193, 389, 769, 7, 5, 3, 2, 1)
"""Widths to try a model with, until one runs: most take the first; what pools often wants more, small tables less."""

_MOST_ALONE: Final = 48
"""Lengths that are tried alone."""

_MOST_NAMED: Final = 5
"""Trials that the reason names."""

_SMALLEST_TABLE: Final = 4
"""A weight of fewer entries is no table of positions: that many classes or features many models have."""

_JUMP: Final = 1e-3
"""A model whose answer the last bits of the input move by more does not amplify rounding, it jumps."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial showed.

    Attributes:
        name: The trial's.
        change: What kind of change it is.
        difference: The largest, in units of max(1, largest value); None where the model raised.
        passed: Whether that is within the tolerance.
        raised: What the model said when it raised.
    """

    name: str
    change: Change
    difference: float | None
    passed: bool
    raised: str | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """The batches that really ran, and whose answers were compared: each number of rows, width and length once."""

    rows: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, batches: Iterable[Geometry]) -> Ran:
        """What these batches come to."""
        seen = list(batches)
        return cls(
            rows=tuple(sorted({batch.rows for batch in seen})),
            widths=tuple(sorted({batch.width for batch in seen})),
            lengths=tuple(sorted({length for batch in seen for length in batch.lengths})),
        )


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
        tolerance: How far an answer may move; what lies below is rounding.
        ran: The batches that the trials ran.
    """

    verdict: Verdict
    reason: str
    leaks: tuple[Leak, ...] = ()
    trials: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()
    max_length: int | None = None
    tolerance: float = ROUNDING
    ran: Ran = Ran()

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
    """One check: what every trial showed, and what should be known besides."""

    def __init__(self, subject: Subject, max_length: int, tolerance: float, seed: int, progress: Progress) -> None:
        self.subject = subject
        self.max_length = max_length
        self.tolerance = tolerance
        self.progress = progress
        self.sampler = Sampler(subject.steps, seed)
        self.outcomes: list[Outcome] = []
        self.notes: list[str] = []
        self.moved: list[Moved] = []
        self.ran: list[Geometry] = []

    def report(self) -> Report:
        """Runs everything and judges."""
        narrowest, widest = self._span()
        sizes = self._sizes(narrowest, widest)
        first = self._first(sizes)
        for trial in trials(first.sequences, sizes, self.sampler):
            self._try(first, trial)
        self._try_alone(sizes)
        self._try(first, _beside(first, self.sampler.sequence(widest)))
        finite = [moved for moved in self.moved if moved.trial.change != "poison"]
        if finite:
            moved_trials = [moved.trial for moved in finite]
            refuse_other_contracts(self.subject, first, moved_trials, sizes, self.sampler, self.tolerance)
            self._note_other_readings(first, finite)
        else:
            self._require_that_it_could_show(first)
        self._note_a_fast_path(first)
        self.progress("where it begins")
        leaks = tuple(locate(self.subject, finite or self.moved, self.tolerance))
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
            Ran.of(self.ran),
        )

    def _span(self) -> tuple[int, int]:
        """The narrowest batch that the model is sure to take, and the widest up to the longest that was asked for.

        Raises:
            UncheckableError: It raises before the widths that the trials take, and no table of positions says why.
        """
        self.progress(f"a sequence of {self.max_length} steps")
        tried = (width for width in _WIDTHS if width <= self.max_length)
        good = next((width for width in tried if self._raised_at(width) is None), None)
        if good is None:
            return 1, self.max_length
        narrowest, bad = 1 if good <= _WIDTHS[0] else good, self.max_length
        error = None if good == bad else self._raised_at(bad)
        if error is None:
            return narrowest, self.max_length
        while bad - good > 1:
            middle = (good + bad) // 2
            raised = self._raised_at(middle)
            if raised is None:
                good = middle
            else:
                bad, error = middle, raised
        wanted = sizes_apart_from(self.subject.sizes, shortest=narrowest, longest_allowed=self.max_length)
        if good < wanted.wider and not _is_table_of(good, self.subject.sizes, error):
            alike = pad([self.sampler.sequence(bad)] * 2, width=bad)
            if runs(self.subject, alike):
                raise lengths_may_not_differ(2, error)
            raise UncheckableError(
                f"the model raises past a width of {good}, so that the trials of up to {wanted.wider} steps cannot be "
                f"run: {error}. If {good} is its longest sequence, say --max-length {good}"
            )
        self.notes.append(f"the model raises past a width of {good}: {error}")
        return narrowest, good

    def _sizes(self, narrowest: int, widest: int) -> Sizes:
        """The sizes of the trials' batches; a few steps of padding even where the longest sequence is very short."""
        sizes = sizes_apart_from(self.subject.sizes, shortest=narrowest, longest_allowed=widest)
        rounded = rounded_width(sizes.longest + 1)
        if sizes.width > sizes.longest or self._raised_at(rounded) is not None:
            return sizes
        return replace(sizes, width=sizes.longest + 1, wider=max(sizes.wider, rounded))

    def _raised_at(self, width: int) -> RunError | None:
        """What the model raises for a batch of two rows of a width; None where it takes it."""
        longest = min(width, self.max_length)
        rows = [self.sampler.sequence(longest), self.sampler.sequence(max(longest - 1, 1))]
        try:
            self.subject.answer(pad(rows, width=width))
        except RunError as error:
            return error
        return None

    def _answer(self, batch: PaddedBatch) -> Answer:
        """Answers one of the batches that are compared."""
        answer = self.subject.answer(batch)
        self.ran.append(geometry(batch))
        return answer

    def _require_that_it_could_show(self, first: First) -> None:
        """Refuses to call sound what could not have leaked: nothing was varied, or no answer follows its sequence.

        Raises:
            UncheckableError: So it is.
        """
        ran = Ran.of(self.ran)
        if len(ran.rows) < 2 or len(ran.widths) < 2 or len(ran.lengths) < min(2, self.max_length):
            raise UncheckableError(
                f"nothing could be varied: {said(ran.rows)} rows, widths of {said(ran.widths)} and sequences of "
                f"{said(ran.lengths)} steps are all that ran"
            )
        others = Sampler(self.subject.steps, seed=len(first.sequences) + 1)
        replaced = pad([others.sequence(len(steps)) for steps in first.sequences], width=first.batch.width)
        moved = first.moved_by_again(self.subject.answer(replaced))
        if moved <= self.tolerance:
            raise UncheckableError(
                f"the answers do not depend on the sequences: others of the same lengths move them by {moved:.2g}, and "
                f"up to {self.tolerance:.2g} is let be, so that a leak could not be seen. A last layer of zeros, a "
                "forgotten input, or a --tolerance that is too large"
            )

    def _note_other_readings(self, first: First, finite: Sequence[Moved]) -> None:
        """Says so where the model does not leak when it is called in another way.

        Raises:
            UncheckableError: That way is one in which no model is served.
        """
        for other in self.subject.others():
            try:
                again = First(first.sequences, first.batch, other.subject.answer(first.batch))
                answers = [other.subject.answer(moved.trial.batch) for moved in finite if moved.base is first.batch]
                last = other.subject.answer(first.with_last_steps_moved(self.subject.steps.vocabulary))
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

    def _first(self, sizes: Sizes) -> First:
        self.progress("the first batch, twice")
        sequences = base_sequences(self.sampler, sizes)
        batch = pad(sequences, width=sizes.width)
        try:
            first = First(sequences, batch, self._answer(batch))
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
        if first.moved_by_again(self.subject.answer(batch)) > self.tolerance:
            raise UncheckableError(
                "the same batch does not get the same answer twice: something random is on in evaluation mode "
                "(F.dropout without training=self.training)"
            )
        self._allow_for_rounding(first)
        return first

    def _allow_for_rounding(self, first: First) -> None:
        """Raises the tolerance for a model that amplifies rounding.

        Sums in another order round otherwise, and what that can do to an answer the last bits of the input show.
        """
        if self.subject.steps.kind == "tokens":
            return
        moved = first.moved_by_again(self.subject.answer(first.with_last_bits_moved()))
        if self.tolerance < 10 * moved < _JUMP:
            self.tolerance = 10 * moved
            self.notes.append(
                f"the last bits of the input move an answer by {moved:.2g}: less than 10 times that is let be"
            )

    def _try_alone(self, sizes: Sizes) -> None:
        """Every length from 1 on: alone, against all of them in one batch."""
        lengths = np.unique(np.linspace(1, sizes.width, min(sizes.width, _MOST_ALONE)).round().astype(int))[::-1]
        sequences = [self.sampler.sequence(length) for length in lengths.tolist()]
        batch = pad(sequences, width=sizes.wider)
        together = First(sequences, batch, self._answer(batch))
        rows = [
            np.isfinite(row[: len(steps)] if row.ndim == 2 else row).all()
            for row, steps in zip(together.answer.logits, sequences, strict=True)
        ]
        if not all(rows):
            bad = sorted(len(steps) for steps, finite in zip(sequences, rows, strict=True) if not finite)
            raise UncheckableError(f"the answers to finite sequences of {said(bad)} steps are not finite")
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

    def _try(self, first: First, trial: Trial, *, may_raise: bool = False) -> RunError | None:
        """Runs a trial and judges it; gives what it raised, where it may."""
        self.progress(trial.name)
        try:
            answer = self._answer(trial.batch)
        except RunError as error:
            self.outcomes.append(Outcome(trial.name, trial.change, None, passed=may_raise, raised=str(error)))
            if trial.change in ("padding", "neighbours", "poison"):
                # The shape is that of the first batch, which it answers: what it reads is the padding, or a neighbour.
                self.moved.append(Moved(first.batch, trial, 0))
            elif not may_raise:
                raise why_it_raises_for(first, trial, error) from error
            return error
        self._judge(first, trial, answer)
        return None

    def _note_a_fast_path(self, first: First) -> None:
        """Says so where the framework's own fast path does not show what was found on the plain one."""
        moved = next((moved for moved in self.moved if moved.base is first.batch), None)
        if moved is None:
            return
        try:
            shipped = First(first.sequences, first.batch, self.subject.answer_as_shipped(first.batch))
            after = self.subject.answer_as_shipped(moved.trial.batch)
        except RunError:
            return
        if max(shipped.moved_by(after, row, other) for row, other in moved.trial.rows) <= self.tolerance:
            self.notes.append(
                f"the framework's fast path computes no padding and does not show it ({moved.trial.name}); training, "
                "other settings and an exported graph take the plain path"
            )

    def _judge(self, first: First, trial: Trial, answer: Answer) -> None:
        moved = [first.moved_by(answer, row, other) for row, other in trial.rows]
        passed = max(moved) <= self.tolerance
        self.outcomes.append(Outcome(trial.name, trial.change, max(moved), passed))
        if not passed:
            self.moved.append(Moved(first.batch, trial, int(np.argmax(moved))))


def _beside(first: First, long: Steps) -> Trial:
    """One of the first sequences beside the longest that there may be."""
    row = len(first.sequences) // 2
    return Trial(
        f"beside a sequence of {len(long)} steps", "company", pad([long, first.sequences[row]], multiple=1), ((row, 1),)
    )


def _at_valid_steps(logits: NDArray[np.float32], batch: PaddedBatch) -> NDArray[np.float32]:
    """Logits without those at padding, where there is one for each step."""
    return logits[step_mask(batch.lengths, batch.width)] if logits.ndim == 3 else logits


def _is_table_of(width: int, sizes: frozenset[int], error: RunError) -> bool:
    """Whether a table of positions ends at a width: an index or a size does not fit, a weight has that many entries.

    A token or two in front of the steps take their places in it.
    """
    does_not_fit = re.search(r"ind(ex|ices)|size|bound|shape|dimension|broadcast", error.detail.lower()) is not None
    return does_not_fit and width >= _SMALLEST_TABLE and any(width + more in sizes for more in range(3))


def said(sizes: Sequence[int]) -> str:
    """Sizes for people: those in a row as `1 to 5`."""
    parts: list[list[int]] = []
    for size in sizes:
        if parts and size == parts[-1][-1] + 1:
            parts[-1].append(size)
        else:
            parts.append([size])
    shown = (f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)
    return ", ".join(shown)


def _first_of(names: list[str]) -> str:
    more = f"; and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return "; ".join(names[:_MOST_NAMED]) + more

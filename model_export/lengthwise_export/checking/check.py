"""Checks whether padding or another row of the batch changes a model's answer: the engine of `lengthwise check`.

    subject --trials--> answers that must be equal --compare--> verdict
                                      |
                             if they differ --record both runs--> the first operator that differs

A baseline batch is run first. Each trial then changes one thing about it: the padding, the width, the other rows or
their order. The answer to a sequence must stay the same. If it changes, `leaks` finds the operator where that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, pad, step_mask
from lengthwise.verification.random_sequences import AMPLIFIED, ROUNDING
from lengthwise_export.checking import finite_fills
from lengthwise_export.checking.baseline import Baseline, Steadiness
from lengthwise_export.checking.finite_fills import FiniteFill
from lengthwise_export.checking.leaks import FailedTrial, find_leaks
from lengthwise_export.checking.limits import (
    WidthLimits,
    of_one_width,
    require_service_contract,
    runs,
    why_it_raises,
    why_it_raises_for,
)
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.report import CheckedSizes, Report, TrialResult, Verdict, as_ranges
from lengthwise_export.checking.trials import (
    BatchSizes,
    CheckTrial,
    Geometry,
    Sampler,
    base_sequences,
    beside_the_longest,
    fewer_rows,
    geometry,
    kinds_of_rows,
    lone_trials,
    odd_batches,
    padding_changed,
    trials,
    unbatched_name,
)
from lengthwise_export.errors import RunError, UncheckableError

_MAX_UNBATCHED: Final = 48  # at most this many lengths are run unbatched

_RAW_OF_EACH: Final = 2  # so many sequences of each kind of raw values are run unbatched, most of them short

_MAX_NAMED: Final = 5  # at most this many trials are named in the reason

ProgressCallback = Callable[[str], None]


def check(
    subject: Subject,
    *,
    max_length: int = 1024,
    min_length: int = 1,
    tolerance: float = 0.0,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Report:
    """Checks a model."""
    running = _Check(subject, min_length, max_length, ROUNDING + tolerance, seed, progress or (lambda _: None))
    try:
        try:
            return running.report()
        except UncheckableError:
            running.ask_again()
            raise
    except UncheckableError as error:
        return Report("uncheckable", str(error))


class _Check:
    """The state of one check: the results of the trials so far, and the notes for the report."""

    def __init__(
        self, subject: Subject, shortest: int, longest: int, tolerance: float, seed: int, progress: ProgressCallback
    ) -> None:
        self.subject, self.min_length, self.max_length = subject, shortest, longest
        self.tolerance = tolerance
        self.progress = progress
        self.sampler = Sampler(subject.steps, seed)
        self.outcomes: list[TrialResult] = []
        self.notes: list[str] = []
        self.failed: list[FailedTrial] = []
        self.checked: list[Geometry] = []
        self.amplified: dict[int, tuple[Baseline, list[float]]] = {}
        self.ill_conditioned: dict[str, tuple[float, float]] = {}
        self.steadiness: Steadiness | None = None

    def ask_again(self) -> None:
        """Compares the answer to a fixed batch with the one before the trials."""
        if self.steadiness is not None:
            self.steadiness.ask_again()

    def report(self) -> Report:
        """Runs all trials and decides the verdict."""
        self.progress(f"a sequence of {self.max_length} steps")
        limits = WidthLimits.of(self.subject, self.sampler, self.max_length, self.min_length)
        widest, sizes = limits.widest, limits.sizes
        self.min_length = sizes.shortest
        self.notes += [] if limits.note is None else [limits.note]
        self._leave_out_kinds(sizes)
        first = self._first(sizes)
        for trial in trials(first.sequences, sizes, self.sampler):
            self._try(first, trial)
        self._try_unbatched(sizes, limits.too_short)
        self._try(first, beside_the_longest(first.sequences, self.sampler.sequence(widest)))
        self._try_odd_batches(first, sizes, widest)
        self.ask_again()
        finite = [moved for moved in self.failed if moved.trial.change != "poison"]
        if finite:
            moved_trials = [moved.trial for moved in finite]
            require_service_contract(self.subject, first, moved_trials, sizes, self.sampler, self.tolerance)
            self._note_other_readings(first, finite)
        else:
            self._require_meaningful_trials(first, widest)
        self._note_fast_path(first)
        self._note_ill_conditioned()
        self.progress("finding the first operator that differs")
        leaks = tuple(find_leaks(self.subject, finite or self.failed, self.tolerance)) if self.failed else ()
        fill = None if finite else finite_fills.find(self.subject, first.batch, sizes, self.sampler)
        if fill is not None:
            leaks = (fill.leak, *leaks)
            self.outcomes.append(TrialResult(fill.leak.trial, "scale", fill.leak.difference, passed=False))
        verdict, reason = self._decided(finite, fill)
        told, ran = (tuple(self.outcomes), tuple(self.notes)), CheckedSizes.of(self.checked)
        return Report(verdict, reason, leaks, *told, widest, self.tolerance, ran, self.min_length)

    def _decided(self, finite: Sequence[FailedTrial], fill: FiniteFill | None) -> tuple[Verdict, str]:
        """The verdict, and the reason for it."""
        names = _first_of([moved.trial.name for moved in finite or self.failed])
        if finite:
            return "leak", f"the answer to a sequence changes with: {names}"
        warnings = (
            [] if fill is None else [f"a mask fills padding with {fill.number:g}, and {fill.leak.trial} get past it"]
        )
        warnings += [f"only NaN, Inf or an overflow in the padding reaches an answer: {names}"] if self.failed else []
        if warnings:
            return "warning", "; ".join(warnings)
        ran = [outcome for outcome in self.outcomes if outcome.difference is not None]
        raised = len(self.outcomes) - len(ran)
        lengths = f"; {raised} raised, at lengths that the model does not accept" if raised else ""
        return "sound", f"no answer changed in {len(ran)} trials{lengths}"

    def _leave_out_kinds(self, sizes: BatchSizes) -> None:
        """Leaves out the kinds of raw values for which the model raises, or has no finite answer."""
        tried = {kind: self.sampler.sequence(sizes.longest, kind) for kind in self.sampler.kinds}
        if not tried or self._is_answered([*tried.values()], sizes):
            return
        if not self._is_answered([self.sampler.sequence(sizes.longest)] * 2, sizes):
            return  # not because of the kinds, so the baseline says why
        self.sampler.kinds = tuple(kind for kind, steps in tried.items() if self._is_answered([steps] * 2, sizes))
        left = [kind for kind in tried if kind not in self.sampler.kinds]
        if left:
            self.notes.append(f"no trial has {', '.join(left)}: the model raises there, or its answer is not finite")

    def _is_answered(self, sequences: Sequence[Steps], sizes: BatchSizes) -> bool:
        """Whether a batch of sequences gets finite answers."""
        batch = pad(sequences, width=sizes.width)
        try:
            return bool(np.isfinite(_at_valid_steps(self.subject.answer(batch).logits, batch)).all())
        except (RunError, IndexError):  # an answer of another shape may lack these rows
            return False

    def _answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch and adds its sizes to the report."""
        answer = self.subject.answer(batch)
        self.checked.append(geometry(batch))
        return answer

    def _require_meaningful_trials(self, first: Baseline, widest: int) -> None:
        """Makes sure that a leak would have been visible, before a model is called sound."""
        ran = CheckedSizes.of(self.checked)
        if len(ran.rows) < 2 or len(ran.widths) < 2 or len(ran.lengths) < min(2, widest - self.min_length + 1):
            raise of_one_width(self.subject) or UncheckableError(
                f"too few batch sizes could be run: {as_ranges(ran.rows)} rows, widths of {as_ranges(ran.widths)} and "
                f"sequences of {as_ranges(ran.lengths)} steps"
            )
        others = Sampler(self.subject.steps, seed=len(first.sequences) + 1)
        replaced = pad([others.sequence(len(steps)) for steps in first.sequences], width=first.batch.width)
        moved = first.largest_difference(self.subject.answer(replaced))
        if moved <= self.tolerance:
            raise UncheckableError(
                f"the answers do not depend on the sequences: other sequences of the same lengths move them by "
                f"{moved:.2g}, which is within the tolerance of {self.tolerance:.2g}, so a leak could not be seen. "
                "Possible reasons: the last layer is all zeros, an input is not used, or --tolerance is too large"
            )

    def _note_other_readings(self, first: Baseline, finite: Sequence[FailedTrial]) -> None:
        """Adds a note if the model does not leak when it is called in another way, such as time-first."""
        for other in self.subject.alternatives():
            try:
                again = Baseline(first.sequences, first.batch, other.subject.answer(first.batch), first.kinds)
                answers = [other.subject.answer(moved.trial.batch) for moved in finite if moved.base is first.batch]
                last = other.subject.answer(first.with_last_steps_changed(self.subject.steps.vocabulary))
                trials_of = [moved.trial for moved in finite if moved.base is first.batch]
                is_sound = all(
                    again.moved_by(answer, row, place) <= self.tolerance
                    for trial, answer in zip(trials_of, answers, strict=True)
                    for row, place in trial.rows
                )
                # If a changed last step does not change the answer, this way does not read the whole sequence.
                is_sound = is_sound and all(again.moved_by(last, row, row) > self.tolerance for row in again.ordinary())
            except (RunError, IndexError):  # an answer of another shape may lack these rows
                continue
            if is_sound and answers and other.is_option:
                self.notes.append(f"no answer changes in these trials {other.runs}")
            elif is_sound and answers and "share" in other.runs:
                raise UncheckableError(f"the model is sound only {other.runs}")

    def _first(self, sizes: BatchSizes) -> Baseline:
        self.progress("the baseline batch, and one answer again and again")
        sequences = base_sequences(self.sampler, sizes)
        batch = pad(sequences, width=sizes.width)
        if self.subject.state is not None:  # what the search of widths has left
            self.subject.state.restore()
        try:
            first = Baseline(sequences, batch, self._answer(batch), kinds_of_rows(len(sequences), self.sampler))
        except RunError as error:
            self.progress("sizes at which the model runs")
            raise why_it_raises(self.subject, sequences, sizes.width, error) from error
        shape = first.answer.logits.shape
        if shape[:-1] not in ((batch.rows,), (batch.rows, batch.width)):
            raise UncheckableError(
                f"the output is {list(shape)} for {batch.rows} rows and a width of {batch.width}, but must be "
                "[rows, classes] or [rows, width, classes]: choose the right output with --output"
            )
        if not np.isfinite(_at_valid_steps(first.answer.logits, batch)).all():
            raise UncheckableError(
                "the answers to finite sequences are not finite: train the model, or pass its weights with --checkpoint"
            )
        wider = pad(sequences, width=sizes.wider)
        if runs(self.subject, wider) and self.subject.answer(wider).logits.shape[-1] != first.answer.logits.shape[-1]:
            raise UncheckableError(
                "the last axis of the output grows with the width, but the output must be [rows, classes] or "
                "[rows, width, classes]: choose the right output with --output"
            )
        self.steadiness = Steadiness(self.subject, sizes, self.tolerance)
        self.steadiness.require()
        self._allow_for_rounding(first)
        return first

    def _allow_for_rounding(self, first: Baseline) -> None:
        """Raises the tolerance for a model that amplifies rounding."""
        allowed = first.allowed_rounding(self.subject, self.tolerance)
        if allowed > self.tolerance:
            self.tolerance = allowed
            self.notes.append(
                f"a 1-ulp input change moves the output by {allowed / 10:.2g}; differences below 10x are ignored"
            )

    def _try_unbatched(self, sizes: BatchSizes, too_short: Mapping[int, RunError]) -> None:
        """Runs sequences of every length from the shortest unbatched, and compares with all of them in one batch."""
        count = min(sizes.width - sizes.shortest + 1, _MAX_UNBATCHED)
        lengths = np.unique(np.linspace(sizes.shortest, sizes.width, count).round().astype(int))[::-1]
        kinds = [*[None] * len(lengths), *_RAW_OF_EACH * self.sampler.kinds]
        short = np.resize(lengths[::-1][::2], len(kinds) - len(lengths))
        sequences = [
            self.sampler.sequence(int(length), kind) for length, kind in zip((*lengths, *short), kinds, strict=True)
        ]
        batch = pad(sequences, width=sizes.wider)
        together = Baseline(sequences, batch, self._answer(batch), kinds)
        rows = [
            np.isfinite(row[: len(steps)] if row.ndim == 2 else row).all()
            for row, steps in zip(together.answer.logits, sequences, strict=True)
        ]
        if not all(rows):
            bad = sorted(len(steps) for steps, finite in zip(sequences, rows, strict=True) if not finite)
            raise UncheckableError(f"the answers to finite sequences of {as_ranges(bad)} steps are not finite")
        raised = {
            len(sequence): error
            for sequence, trial in zip(sequences, lone_trials(sequences, kinds), strict=True)
            if (error := self._try(together, trial, may_raise=True)) is not None
        }
        if len(raised) == len(lengths) and not any(moved.trial.change != "poison" for moved in self.failed):
            raise UncheckableError(
                f"the model raises for a batch of one row, at every length: {raised[min(raised)]} (usually because of "
                "a squeeze without a dim, which also removes the axis of the rows)"
            )
        for length, error in sorted(too_short.items(), reverse=True):
            raised[length] = error
            self.outcomes.append(TrialResult(unbatched_name(length), "batch", None, passed=True, raised=str(error)))
        if raised:
            listed = ", ".join(map(str, sorted(raised)))
            self.notes.append(f"unbatched, the model raises at {listed} steps: {raised[min(raised)]}")
        if too_short:
            self.notes.append(
                f"a sequence needs at least {sizes.shortest} steps; export writes that into the manifest (min_length), "
                "and the service refuses shorter ones"
            )

    def _try_odd_batches(self, first: Baseline, sizes: BatchSizes, widest: int) -> None:
        """Runs the row counts, lengths and widths that a model may handle in a separate code path."""
        for trial in fewer_rows(first.batch):
            self._try(first, trial)
        for name, sequences, batch in odd_batches(sizes, widest, self.sampler):
            try:
                base = Baseline(sequences, batch, self._answer(batch), kinds_of_rows(len(sequences), self.sampler))
            except RunError as error:
                if batch.rows == 1:  # already noted by the unbatched trials
                    continue
                raise UncheckableError(f"the model raises for a batch {name}: {error}") from error
            if not np.isfinite(_at_valid_steps(base.answer.logits, batch)).all():
                raise UncheckableError(f"the answers to finite sequences are not finite in a batch {name}")
            for trial in padding_changed(name, sequences, batch, self.sampler):
                self._try(base, trial)

    def _try(self, first: Baseline, trial: CheckTrial, *, may_raise: bool = False) -> RunError | None:
        """Runs a trial and adds its result. Returns the error if the model raised and `may_raise` allows that."""
        self.progress(trial.name)
        try:
            answer = self._answer(trial.batch)
        except RunError as error:
            self.outcomes.append(TrialResult(trial.name, trial.change, None, passed=may_raise, raised=str(error)))
            if trial.change in ("padding", "neighbours", "poison"):
                # The baseline has the same shape and ran, so the error comes from the padding or from another row.
                self.failed.append(FailedTrial(first.batch, trial, 0))
            elif not may_raise:
                raise why_it_raises_for(first, trial, error) from error
            return error
        self._add_result(first, trial, answer)
        return None

    def _note_fast_path(self, first: Baseline) -> None:
        """Adds a note if the leak does not show on the framework's fast path, which trials switch off."""
        moved = next((moved for moved in self.failed if moved.base is first.batch), None)
        if moved is None:
            return
        try:
            shipped = Baseline(first.sequences, first.batch, self.subject.answer_as_shipped(first.batch))
            after = self.subject.answer_as_shipped(moved.trial.batch)
        except RunError:
            return
        if max(shipped.moved_by(after, row, other) for row, other in moved.trial.rows) <= self.tolerance:
            self.notes.append(
                f"the framework's fast path skips padding and does not show it ({moved.trial.name}); training, other "
                "settings and an exported graph use the plain path"
            )

    def _add_result(self, first: Baseline, trial: CheckTrial, answer: ModelOutput) -> None:
        moved = [self._unexplained(first, row, first.moved_by(answer, row, other)) for row, other in trial.rows]
        passed = max(moved) <= self.tolerance
        self.outcomes.append(TrialResult(trial.name, trial.change, max(moved), passed))
        if not passed:
            # Where ordinary values show it, they show best where it begins.
            apart = dict(zip(trial.rows, moved, strict=True))
            failed = [pair for pair in trial.rows if not apart[pair] <= self.tolerance]
            ordinary = [pair for pair in trial.rows if first.kind(pair[0]) is None]
            rows = tuple(ordinary if set(ordinary) & set(failed) else failed)
            worst = max(rows, key=lambda pair: apart[pair])
            self.failed.append(FailedTrial(first.batch, replace(trial, rows=rows), rows.index(worst)))

    def _unexplained(self, first: Baseline, row: int, moved: float) -> float:
        """The difference of an answer; 0 if the sequence is raw and ill-conditioned, so that rounding explains it."""
        kind = first.kind(row)
        if moved <= self.tolerance or kind is None or not np.isfinite(moved):
            return moved
        if id(first) not in self.amplified:
            self.amplified[id(first)] = first, first.amplified(self.subject)
        by_ulps = self.amplified[id(first)][1][row]
        if moved > self.tolerance + AMPLIFIED * by_ulps:
            return moved
        before = self.ill_conditioned.get(kind, (0.0, 0.0))
        self.ill_conditioned[kind] = (max(before[0], by_ulps), max(before[1], moved))
        return 0.0

    def _note_ill_conditioned(self) -> None:
        for kind, (by_ulps, moved) in self.ill_conditioned.items():
            self.notes.append(
                f"ill-conditioned at {kind}: a few ulps of such values move the answer by {by_ulps:.2g}; differences "
                f"of up to {moved:.2g} there are rounding"
            )


def _at_valid_steps(logits: NDArray[np.float32], batch: PaddedBatch) -> NDArray[np.float32]:
    """The logits; of a per-step model only those at valid steps."""
    return logits[step_mask(batch.lengths, batch.width)] if logits.ndim == 3 else logits


def _first_of(names: list[str]) -> str:
    more = f"; and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return "; ".join(names[:_MAX_NAMED]) + more

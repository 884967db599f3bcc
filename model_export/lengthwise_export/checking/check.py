"""Checks whether padding or another row of the batch changes a model's answer: the engine of `lengthwise check`.

    subject --trials--> answers that must be equal --compare--> verdict
                                      |
                             if they differ --record both runs--> the first operator that differs

A baseline batch is run first. Each trial then changes one thing about it: the padding, the width, the other rows or
their order. The answer to a sequence must stay the same. If it changes, `leaks` finds the operator where that begins.

A trial of NaN, Inf or 1e30 in the padding (`poison`) that fails is a warning only; a *finite* trial, which is any other
trial, is a leak. Some rows hold *raw* sequences, of values that nobody has scaled (`Sampler.kinds`); all others are
*ordinary*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from lengthwise_export.checking import limits, trials
from lengthwise_export.checking.baseline import ROUNDING, Baseline, Conditioning, Steadiness, is_finite
from lengthwise_export.checking.finite_fills import find_finite_fill
from lengthwise_export.checking.leaks import FailedTrial, Leak, find_leaks
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.report import CheckedSizes, Report, TrialResult, Verdict, as_ranges
from lengthwise_export.checking.trial_rules import (
    ComparedId,
    TrialRules,
    compared_ids,
    dropped_id,
    padding_id_of,
    unread_static,
    unread_steps,
)
from lengthwise_export.checking.trials import BatchSizes, CheckTrial, Sampler
from lengthwise_export.checking.verdicts import ONLY_SHORT, PaddedLengths, verdict_and_reason
from lengthwise_export.errors import RunError, UncheckableError
from lengthwise_export.layouts import PaddedBatch, Steps, pad
from lengthwise_export.options import ProgressCallback

_MAX_ASKED_TWICE: Final = 12  # at most this many sequences whose answers changed are run again, of different lengths

_OF_THE_SAME_ROWS: Final = ("padding", "width", "order", "poison")
"""Changes that leave batch statistics over valid steps as they are, so that they are tried in training mode too."""


def check_subject(
    subject: Subject,
    *,
    max_length: int = 1024,
    min_length: int = 1,
    tolerance: float = 0.0,
    seed: int = 0,
    missing: bool = False,
    progress: ProgressCallback | None = None,
) -> Report:
    """Checks a model, and returns the report. Of a model that cannot be checked, the report says why.

    A model that cannot be checked is asked once more for answers that were steady before the trials: if they change by
    themselves now, that is the reason in the report.

    Args:
        subject: The model.
        max_length: The longest sequence that is tried, in steps.
        min_length: The shortest sequence that the model is known to accept, in steps.
        tolerance: The allowed difference of an answer, beyond rounding.
        seed: The seed of the random sequences.
        missing: Whether some values of the sequences are missing (NaN); only for a model that is known to replace them.
        progress: Called with the name of each part of the check before it runs; None for nobody.
    """
    tell = progress or (lambda _: None)

    def check_from(length: int) -> _Check:
        """A check of sequences of at least `length` steps."""
        sampler = Sampler(subject.steps, seed, missing=missing)
        longest = min(max_length, subject.steps.most_steps or max_length)
        return _Check(subject, length, longest, ROUNDING + tolerance, sampler, tell, Conditioning(subject))

    running = check_from(min_length)
    try:
        report = running.report()
        if report.verdict == "leak" and (length := running.padded.may_hold_from) is not None:
            tell(f"sequences of {length} steps and more")
            with suppress(UncheckableError):
                if check_from(length).report().verdict != "leak":
                    return replace(report, notes=(*report.notes, ONLY_SHORT.format(length)))
        return report
    except UncheckableError as error:
        reason = str(error)
    if running.steadiness is not None:
        try:
            running.steadiness.ask_again()
        except UncheckableError as error:
            reason = str(error)
    return Report(
        "uncheckable",
        reason,
        trials=tuple(running.results),
        notes=tuple(running.notes),
        ran=running.checked_sizes,
    )


@dataclass(slots=True)
class _Check:
    """The state of one check: the results of the trials so far, and the notes for the report."""

    subject: Subject
    min_length: int  # in steps
    max_length: int  # in steps
    tolerance: float  # the allowed difference of an answer; raised for a model that amplifies rounding
    sampler: Sampler
    progress: ProgressCallback
    conditioning: Conditioning
    results: list[TrialResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[FailedTrial] = field(default_factory=list)
    # The row counts, widths and lengths of the batches that ran and whose answers were compared
    ran: tuple[set[int], set[int], set[int]] = field(default_factory=lambda: (set(), set(), set()))
    steadiness: Steadiness | None = None  # None until the baseline ran
    padded: PaddedLengths = field(default_factory=PaddedLengths)  # of finite trials

    @property
    def checked_sizes(self) -> CheckedSizes:
        """The sizes of the batches that ran so far."""
        return CheckedSizes(*(tuple(sorted(sizes)) for sizes in self.ran))

    def report(self) -> Report:
        """Runs all trials and decides the verdict.

        Raises:
            UncheckableError: The model cannot be checked; the message says why.
        """  # noqa: DOC502 - what it calls raises it
        # 1. The sizes of batches, and the sequences, that the model accepts
        self.progress(f"a sequence of {self.max_length} steps")
        accepted = limits.WidthLimits.of(self.subject, self.sampler, self.max_length, self.min_length)
        self.notes += [] if accepted.note is None else [accepted.note]
        self._leave_out_kinds(accepted.sizes)
        # 2. The baseline, and all trials
        baseline = self._first_baseline(accepted.sizes)
        ids = [*compared_ids(self.subject, baseline.batch)]
        self._run_trials(baseline, ids, accepted)
        # 3. Other reasons for differences than a leak
        self._require_steadiness()
        padding_id = padding_id_of(self.subject, baseline, ids, self.leaking, self.tolerance)
        self._exclude_other_reasons(baseline, accepted, padding_id)
        # 4. The operators at which leaks begin, and their rules
        self.progress("finding the first operator that differs")
        leaks = find_leaks(self.subject, self.leaking or self.failed, self.tolerance) if self.failed else []
        if self.leaking:
            rules_of_trials = TrialRules(self.subject, baseline, self.leaking, self.tolerance, padding_id)
            leaks, (verdict, reason) = [*rules_of_trials.applied(leaks)], verdict_and_reason(self.failed, self.results)
        else:
            verdict, reason, more_leaks = self._find_more(baseline, ids, accepted.sizes)
            leaks = [*more_leaks, *leaks]
        return Report(
            verdict,
            reason,
            tuple(leaks),
            tuple(self.results),
            tuple(self.notes),
            max_length=accepted.widest,
            tolerance=self.tolerance,
            ran=self.checked_sizes,
            min_length=accepted.sizes.shortest,
        )

    @property
    def leaking(self) -> list[FailedTrial]:
        """The failed trials that are leaks, and not only warnings: those of finite padding."""
        return [failed for failed in self.failed if failed.trial.change != "poison"]

    def _run_trials(self, baseline: Baseline, ids: Sequence[ComparedId], accepted: limits.WidthLimits) -> None:
        """Runs all trials of the baseline; if some of its answers are not finite, only the rows with these, each alone.

        `ids` are those with which the model compares its steps.

        Raises:
            UncheckableError: The model raises for a batch, or has no finite answers.
        """  # noqa: DOC502 - what it calls raises it
        if not baseline.is_answered:
            self._try_alone(baseline, "")
            return
        numbers = sorted({compared.number for compared in ids} - {self.subject.layout.pad_id})
        for trial in trials.trials(baseline.sequences, accepted.sizes, self.sampler, numbers):
            if trial.change in _OF_THE_SAME_ROWS or not self.subject.in_training:
                self._try(baseline, trial)
        if not self.subject.in_training:
            self._try_unbatched(accepted.sizes, accepted.too_short)
            long = self.sampler.sequence(accepted.widest)
            self._try(baseline, trials.beside_the_longest(baseline.sequences, long))
            self._try_odd_batches(baseline, accepted.sizes, accepted.widest)
            for trial, sequences, batch in trials.rows_of_ids(baseline.batch, numbers, self.sampler):
                if self._is_answered(trial.batch):
                    with suppress(RunError):
                        self._try(self._baseline(sequences, batch), trial)

    def _exclude_other_reasons(
        self, baseline: Baseline, accepted: limits.WidthLimits, padding_id: ComparedId | None
    ) -> None:
        """Makes sure that only a leak explains what failed, and adds notes of what the user may have meant.

        `padding_id` is the id by which the model recognises padding: then it is a leak whatever side the padding is on.

        Raises:
            UncheckableError: There is another explanation, or the trials could not have shown a leak.
        """  # noqa: DOC502 - what it calls raises it
        subject, sizes = self.subject, accepted.sizes
        if self.leaking and baseline.is_answered:
            if padding_id is None:
                limits.require_service_contract(subject, baseline, self.leaking, sizes, self.sampler, self.tolerance)
            self.notes += limits.notes_of_alternatives(subject, baseline, self.leaking, self.tolerance)
        elif not self.leaking and not subject.in_training:
            self._require_meaningful_trials(baseline, min(2, accepted.widest - sizes.shortest + 1))
        self.notes += limits.notes_of_the_fast_path(subject, baseline, self.failed, self.tolerance)
        self.notes += self.conditioning.notes()

    def _find_more(
        self, baseline: Baseline, ids: Sequence[ComparedId], sizes: BatchSizes
    ) -> tuple[Verdict, str, list[Leak]]:
        """Runs what may show a leak where no trial does; returns the verdict, the reason and these leaks.

        1. A mask that hides padding with a finite number, which large values get past: a warning.
        2. Steps that are not read: a note.
        3. Valid steps that are taken for padding by their id, which is one of `ids`: a leak.
        """
        leaks, why_filled = list[Leak](), ""
        if (fill := find_finite_fill(self.subject, baseline.batch, sizes, self.sampler)) is not None:
            number, leak = fill
            leaks.append(leak)
            self.results.append(TrialResult(leak.trial, "scale", leak.difference, passed=False))
            why_filled = f"a mask fills padding with {number:g}, and {leak.trial} get past it"
        for unread in (unread_steps, unread_static) if baseline.is_answered else ():
            self.notes += [note] if (note := unread(self.subject, baseline)) is not None else []
        verdict, reason = verdict_and_reason(self.failed, self.results, why_filled)
        if baseline.is_answered and (dropped := dropped_id(self.subject, baseline, ids, self.tolerance)):
            leaks.insert(0, dropped)
            self.results.append(TrialResult(dropped.trial, "padding", dropped.difference, passed=False))
            verdict, reason = "leak", f"a valid step is not read, as if it were padding: {dropped.trial}"
        return verdict, reason, leaks

    def _require_steadiness(self) -> None:
        """Makes sure that the same batch gets the same answer again, before padding or other rows are blamed.

        Raises:
            UncheckableError: The answers differ.
        """  # noqa: DOC502 - what it calls raises it
        if self.steadiness is None:
            return
        self.steadiness.ask_again()
        # One sequence of each length whose answer changed
        sequences = {
            int(failed.base.lengths[row]): failed.base.steps[row]
            for failed in self.failed
            for row, _ in failed.trial.rows
        }
        for length, steps in sorted(sequences.items())[:_MAX_ASKED_TWICE]:
            self.steadiness.require_same_alone(steps[:length])

    def _leave_out_kinds(self, sizes: BatchSizes) -> None:
        """Changes the sampler: it no longer draws what the model raises for, or has no finite answer to.

        This may be steps of zeros, and kinds of raw values. A note says what is left out.
        """
        # 1. Steps of zeros: a sequence with one, and one without
        probe = Sampler(self.subject.steps, seed=0)  # of its own, so that the sequences of the trials stay the same
        sequences = [probe.sequence(sizes.longest), probe.fill((sizes.longest,), 1.0)]
        takes_zeros, takes_values = (self._is_answered(pad([steps], multiple=1)) for steps in sequences)
        if takes_values and not takes_zeros:
            self.sampler.zeros = False
            self.notes.append("no trial has a step of zeros: the answer to a sequence alone is not finite there")
        if self.sampler.missing and takes_values and not self._is_answered(pad([sequences[1] * np.nan], multiple=1)):
            self.sampler.missing_features = False
            self.notes.append("no trial has a feature without a value: an answer is not finite if all is missing")

        def is_batch_answered(*sequences: Steps) -> bool:
            """Whether the batch of these sequences, padded to the usual width, runs with a finite answer."""
            return self._is_answered(pad(sequences, width=sizes.width))

        # 2. Kinds of raw values: all in one batch, and each by itself if that fails. If ordinary values fail as well,
        #    the kinds are not the reason, and the baseline will say it.
        of_kinds = {kind: self.sampler.sequence(sizes.longest, kind) for kind in self.sampler.kinds}
        if not of_kinds or is_batch_answered(*of_kinds.values()):
            return
        ordinary = self.sampler.sequence(sizes.longest)
        if not is_batch_answered(ordinary, ordinary):
            return
        self.sampler.kinds = tuple(kind for kind, steps in of_kinds.items() if is_batch_answered(steps, steps))
        if left_out := [kind for kind in of_kinds if kind not in self.sampler.kinds]:
            self.notes.append(
                f"no trial has {', '.join(left_out)}: the model raises there, or its answer is not finite"
            )

    def _is_answered(self, batch: PaddedBatch) -> bool:
        """Whether a batch runs, and its answer is finite."""
        try:
            return is_finite(self.subject.answer(batch), batch)
        except (RunError, IndexError):  # an answer of another shape may lack these rows
            return False

    def _answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch and adds its sizes to the report."""
        answer = self.subject.answer(batch)
        for ran, sizes in zip(self.ran, ([batch.rows], [batch.width], batch.lengths.tolist()), strict=True):
            ran.update(sizes)
        return answer

    def _require_meaningful_trials(self, baseline: Baseline, fewest_lengths: int) -> None:
        """Makes sure that a leak would have been visible: several sizes ran, and answers depend on the sequences.

        Args:
            baseline: The sequences and their first answers.
            fewest_lengths: The least number of different lengths that must have run.

        Raises:
            UncheckableError: Too few sizes could be run, or the answers do not depend on the sequences.
        """
        rows, widths, lengths = map(sorted, self.ran)
        if len(rows) < 2 or len(widths) < 2 or len(lengths) < fewest_lengths:
            raise UncheckableError(
                limits.why_of_one_width(self.subject)
                or f"too few batch sizes could be run: {as_ranges(rows)} rows, widths of {as_ranges(widths)} and "
                f"sequences of {as_ranges(lengths)} steps"
            )
        sampler = Sampler(self.subject.steps, seed=len(baseline.sequences) + 1)
        sampler.zeros = self.sampler.zeros  # what the model does not answer is not drawn here either
        other_sequences = [sampler.sequence(len(steps)) for steps in baseline.sequences]
        answer = self.subject.answer(pad(other_sequences, width=baseline.batch.width))
        difference = baseline.largest_difference(answer)
        if difference <= self.tolerance:
            raise UncheckableError(
                f"the answers do not depend on the sequences: other sequences of the same lengths move them by "
                f"{difference:.2g}, which is within the tolerance of {self.tolerance:.2g}, so a leak could not be "
                "seen. Possible reasons: the last layer is all zeros, an input is not used, or --tolerance is too large"
            )

    def _first_baseline(self, sizes: BatchSizes) -> Baseline:
        """Runs the first batch, and returns it with its answer.

        The answer may be not finite. The tolerance is raised if the model amplifies rounding.

        Raises:
            UncheckableError: The model raises, its answer has another form than a classifier's, or it does not give the
                same answer twice.
        """
        self.progress("the baseline batch, and one answer again and again")
        sequences = trials.base_sequences(self.sampler, sizes)
        batch = pad(sequences, width=sizes.width)
        if self.subject.state is not None:  # undoes what the search of widths changed
            self.subject.state.restore()
        try:
            baseline = self._baseline(sequences, batch)
        except RunError as error:
            self.progress("sizes at which the model runs")
            raise UncheckableError(limits.why_it_raises(self.subject, sequences, sizes.width, error)) from error
        shape = baseline.answer.logits.shape
        if shape[:-1] not in ((batch.rows,), (batch.rows, batch.width)):
            raise UncheckableError(limits.why_of_another_form(self.subject, batch))
        self.steadiness = Steadiness(self.subject, sizes, self.tolerance)
        self.steadiness.require()
        baseline = self._with_answerable_sequences(baseline)
        if not baseline.is_answered:
            return baseline
        # A last axis that follows the width is not one of classes.
        wider = pad(sequences, width=sizes.wider)
        if limits.runs(self.subject, wider) and self.subject.answer(wider).logits.shape[-1] != shape[-1]:
            raise UncheckableError(limits.why_of_another_form(self.subject, batch))
        allowed = baseline.allowed_rounding(self.subject, self.tolerance)
        if allowed > self.tolerance:
            self.tolerance = allowed
            self.notes.append(
                f"a 1-ulp input change moves the output by {allowed / 10:.2g}; differences below 10x are ignored"
            )
        return baseline

    def _baseline(
        self, sequences: Sequence[Steps], batch: PaddedBatch, kinds: Sequence[str | None] | None = None
    ) -> Baseline:
        """Runs a batch, and returns it with its answer; `kinds`: None for those that `kinds_of_rows` gives."""
        kinds = trials.kinds_of_rows(len(sequences), self.sampler) if kinds is None else kinds
        return Baseline(sequences, batch, self._answer(batch), kinds)

    def _with_answerable_sequences(self, baseline: Baseline) -> Baseline:
        """The baseline, with ordinary sequences in the place of raw ones that have no finite answer even alone.

        A note says which kinds were replaced. Without such sequences, the baseline is returned as it is.
        """
        rows = [] if baseline.is_answered else range(baseline.batch.rows)
        unanswered = [
            row
            for row in rows
            if baseline.kind(row) and not self._is_answered(pad([baseline.sequences[row]], multiple=1))
        ]
        if not unanswered:
            return baseline
        kinds_left_out = ", ".join(dict.fromkeys(str(baseline.kind(row)) for row in unanswered))
        self.notes.append(f"some sequences of {kinds_left_out} are left out: the answer to them alone is not finite")
        sequences, kinds = [*baseline.sequences], [*baseline.kinds]
        for row in unanswered:
            sequences[row], kinds[row] = self.sampler.sequence(len(sequences[row])), None
        return self._baseline(sequences, pad(sequences, width=baseline.batch.width), kinds)

    def _try_alone(self, baseline: Baseline, where: str) -> None:
        """Runs alone the sequences whose answers are not finite in the batch: if they are finite alone, it is a leak.

        `where` says in messages which batch it is.

        Raises:
            UncheckableError: They are not finite alone either.
        """
        answered = [
            trial
            for trial in trials.lone_trials(baseline.sequences, baseline.kinds)
            if not baseline.is_finite(trial.rows[0][0]) and self._is_answered(trial.batch)
        ]
        if not answered:
            where = f" are not finite{where}, not even to one alone and without padding"
            raise UncheckableError(limits.why_not_finite(self.subject, baseline.batch, self.sampler, where))
        for trial in answered:
            self._try(baseline, trial)

    def _try_unbatched(self, sizes: BatchSizes, too_short: Mapping[int, RunError]) -> None:
        """Runs sequences of many lengths unbatched, and compares the answers with those to all of them in one batch.

        `too_short` has the lengths at which the model is known to raise unbatched, for the report.

        Raises:
            UncheckableError: The model raises for every batch of one row, or answers to finite sequences are not
                finite.
        """
        # 1. All in one batch, then each alone. An answer that is finite alone, and not in the batch, is a leak.
        sequences, kinds = trials.unbatched_sequences(
            self.sampler, sizes, limits.MAX_UNBATCHED, is_packed=self.subject.layout.packed is not None
        )
        batched = self._with_answerable_sequences(self._baseline(sequences, pad(sequences, width=sizes.wider), kinds))
        lone_trials = [*trials.lone_trials(batched.sequences, batched.kinds)]
        unanswered = [
            trial
            for row, trial in enumerate(lone_trials)
            if not (batched.is_finite(row) or self._is_answered(trial.batch))
        ]
        if unanswered:
            shown = as_ranges(sorted({trial.batch.width for trial in unanswered}))
            where = f" of {shown} steps are not finite, alone too"
            raise UncheckableError(limits.why_not_finite(self.subject, unanswered[0].batch, self.sampler, where))
        # 2. The lengths at which the model raises, with the errors
        errors = {
            trial.batch.width: error
            for trial in lone_trials
            if (error := self._try(batched, trial, may_raise=True)) is not None
        }
        if len(errors) == len({len(steps) for steps in sequences}) and not self.leaking:
            raise UncheckableError(
                f"the model raises for a batch of one row, at every length: {errors[min(errors)]} (usually because of "
                "a squeeze without a dim, which also removes the axis of the rows)"
            )
        self.results += [
            TrialResult(trials.unbatched_name(length), "batch", None, passed=True, raised=str(error))
            for length, error in sorted(too_short.items(), reverse=True)
        ]
        if errors := {**errors, **too_short}:
            self.notes.append(
                f"unbatched, the model raises at {', '.join(map(str, sorted(errors)))} steps: {errors[min(errors)]}"
            )
        if too_short:
            self.notes.append(
                f"a sequence needs at least {sizes.shortest} steps; export writes that into the manifest (min_length), "
                "and the service refuses shorter ones"
            )

    def _try_odd_batches(self, baseline: Baseline, sizes: BatchSizes, widest: int) -> None:
        """Runs the row counts, lengths and widths that a model may handle in a separate code path.

        `widest` is the widest batch that the model accepts, in steps.

        Raises:
            UncheckableError: The model raises for such a batch of two rows or more.
        """
        # With sequences of the baseline
        for trial in trials.fewer_rows(baseline.batch):
            self._try(baseline, trial, may_raise=trial.batch.rows == 1)  # already noted by the unbatched trials
        for trial in (
            *trials.equal_lengths(baseline.sequences, sizes, self.sampler),
            *trials.block_widths(baseline.sequences, widest, self.sampler),
        ):
            self._try(baseline, trial)
        # With sequences of their own: such a batch is the baseline of its trials
        for name, sequences, batch in trials.odd_batches(sizes, widest, self.sampler):
            try:
                odd = self._with_answerable_sequences(self._baseline(sequences, batch))
            except RunError as error:
                if batch.rows == 1:  # already noted by the unbatched trials
                    continue
                raise UncheckableError(f"the model raises for a batch {name}: {error}") from error
            if not odd.is_answered:
                self._try_alone(odd, f" in a batch {name}")
                continue
            for trial in trials.padding_changed(name, odd.sequences, odd.batch, self.sampler):
                self._try(odd, trial)

    def _try(self, baseline: Baseline, trial: CheckTrial, *, may_raise: bool = False) -> RunError | None:
        """Runs a trial, and adds its result to `results`, and to `failed` if an answer changed.

        A trial whose padding no caller sends is left out.

        Args:
            baseline: The sequences and their first answers.
            trial: The batch with some of these sequences.
            may_raise: Whether the model may raise without failing the trial.

        Returns:
            The error, if the model raised and the check can go on; else None. It goes on in three cases: the model may
            raise; it raises for one of the other rows alone, too; or the padding or another row is the reason, which is
            a leak.

        Raises:
            UncheckableError: The model raises for another reason.
        """
        if trial.change == "padding" and self.subject.layout.pad_id is not None:
            return None  # callers always write this id into padding
        self.progress(trial.name)
        try:
            answer = self._answer(trial.batch)
        except RunError as error:
            if trial.change == "neighbours" and not all(limits.runs(self.subject, batch) for batch in trial.others()):
                self.notes.append(f"left out: {trial.name}, as the model raises for one of them alone: {error}")
                return error
            self.results.append(TrialResult(trial.name, trial.change, None, passed=may_raise, raised=str(error)))
            if trial.change in ("padding", "neighbours", "poison"):
                # The baseline has the same shape and ran, so the error comes from the padding or from another row.
                self.failed.append(FailedTrial(baseline.batch, trial, 0))
            elif not may_raise:
                raise UncheckableError(limits.why_it_raises_for(baseline, trial, error)) from error
            return error
        differences = {pair: baseline.row_difference(answer, *pair) for pair in trial.rows}
        # Float64 runs long, and is not needed to excuse a difference once ordinary sequences have shown a leak.
        is_leak = any(failed.is_ordinary for failed in self.leaking)
        beyond_rounding = self.conditioning.beyond_rounding(
            baseline, trial, differences, self.tolerance, use_float64=not is_leak
        )
        if trial.change != "poison":
            self.padded.note(baseline, trial, beyond_rounding, self.tolerance)
        largest, is_rounding = max(beyond_rounding.values()), beyond_rounding != differences
        passed = largest <= self.tolerance  # NaN fails, too
        self.results.append(TrialResult(trial.name, trial.change, largest, passed=passed, is_rounding=is_rounding))
        if not passed:
            self.failed.append(FailedTrial.of(baseline, trial, answer, beyond_rounding, self.tolerance))
        return None

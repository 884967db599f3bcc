"""Checks whether padding or another row of the batch changes a model's answer: the engine of `lengthwise check`.

    subject --trials--> answers that must be equal --compare--> verdict
                                      |
                             if they differ --record both runs--> the first operator that differs

A baseline batch is run first. Each trial then changes one thing about it: the padding, the width, the other rows or
their order. The answer to a sequence must stay the same. If it changes, `leaks` finds the operator where that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.verification.random_sequences import ROUNDING
from lengthwise_export.checking import limits, trials
from lengthwise_export.checking.baseline import Baseline, Steadiness, is_finite
from lengthwise_export.checking.conditioning import Conditioning
from lengthwise_export.checking.finite_fills import find_finite_fill
from lengthwise_export.checking.leaks import FailedTrial, find_leaks
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.report import CheckedSizes, Report, TrialResult, Verdict, as_ranges
from lengthwise_export.checking.trial_rules import (
    ComparedId,
    TrialRules,
    compared_ids,
    dropped_id,
    padding_id_of,
    unread_steps,
)
from lengthwise_export.checking.trials import BatchSizes, CheckTrial, Sampler
from lengthwise_export.errors import RunError, UncheckableError

_MAX_UNBATCHED: Final = 48  # at most this many lengths are run unbatched

_RAW_OF_EACH: Final = 2  # so many sequences of each kind of raw values are run unbatched, most of them short

_MAX_ASKED_TWICE: Final = 12  # at most this many lengths of sequences whose answers changed

_OF_THE_SAME_ROWS: Final = ("padding", "width", "order", "poison")
"""Changes that leave batch statistics over valid steps as they are."""

_MAX_NAMED: Final = 5  # at most this many trials are named in the reason

ProgressCallback = Callable[[str], None]


def check_subject(
    subject: Subject,
    *,
    max_length: int = 1024,
    min_length: int = 1,
    tolerance: float = 0.0,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Report:
    """Checks a model. One that cannot be checked gets a report that says why.

    Raises:
        UncheckableError: Never leaves this function: it becomes a report.
    """
    sampler, tell = Sampler(subject.steps, seed), progress or (lambda _: None)
    running = _Check(subject, min_length, max_length, ROUNDING + tolerance, sampler, tell, Conditioning(subject))
    try:
        try:
            return running.report()
        except UncheckableError:
            if running.steadiness is not None:
                running.steadiness.ask_again()
            raise
    except UncheckableError as error:
        return Report(
            "uncheckable",
            str(error),
            trials=tuple(running.outcomes),
            notes=tuple(running.notes),
            ran=running.checked_sizes,
        )


@dataclass(slots=True)
class _Check:
    """The state of one check: the results of the trials so far, and the notes for the report."""

    subject: Subject
    min_length: int
    max_length: int
    tolerance: float
    sampler: Sampler
    progress: ProgressCallback
    conditioning: Conditioning
    outcomes: list[TrialResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[FailedTrial] = field(default_factory=list)
    # The row counts, widths and lengths of the batches that ran and whose answers were compared
    ran: tuple[set[int], set[int], set[int]] = field(default_factory=lambda: (set(), set(), set()))
    steadiness: Steadiness | None = None

    @property
    def checked_sizes(self) -> CheckedSizes:
        """The sizes of the batches that ran so far."""
        return CheckedSizes(*(tuple(sorted(sizes)) for sizes in self.ran))

    def report(self) -> Report:
        """Runs all trials and decides the verdict."""
        self.progress(f"a sequence of {self.max_length} steps")
        accepted = limits.WidthLimits.of(self.subject, self.sampler, self.max_length, self.min_length)
        widest, sizes = accepted.widest, accepted.sizes
        self.notes += [] if accepted.note is None else [accepted.note]
        self._leave_out_kinds(sizes)
        first = self._first(sizes)
        compared = [*compared_ids(self.subject, first.batch)]
        if is_answered := is_finite(first.answer, first.batch):
            self._try_padding(first, sizes, compared)
            if not self.subject.in_training:
                self._try_unbatched(sizes, accepted.too_short)
                self._try(first, trials.beside_the_longest(first.sequences, self.sampler.sequence(widest)))
                self._try_odd_batches(first, sizes, widest)
        else:
            self._try_alone(first, "")
        self._require_steadiness()
        finite = [moved for moved in self.failed if moved.trial.change != "poison"]
        padding_id = padding_id_of(self.subject, first, compared, finite, self.tolerance)
        if finite and is_answered:
            moved = [moved.trial for moved in finite]
            if padding_id is None:  # else it is a leak whatever side the padding is on
                limits.require_service_contract(self.subject, first, moved, sizes, self.sampler, self.tolerance)
            self.notes += limits.notes_of_other_readings(self.subject, first, finite, self.tolerance)
        elif not finite and not self.subject.in_training:
            self._require_meaningful_trials(first, min(2, widest - sizes.shortest + 1))
        self.notes += limits.notes_of_the_fast_path(self.subject, first, self.failed, self.tolerance)
        self.notes += self.conditioning.notes()
        self.progress("finding the first operator that differs")
        leaks = tuple(find_leaks(self.subject, finite or self.failed, self.tolerance)) if self.failed else ()
        if finite:
            leaks = tuple(TrialRules(self.subject, first, finite, self.tolerance, padding_id).applied(leaks))
        filled = ""
        if not finite and (finite_fill := find_finite_fill(self.subject, first.batch, sizes, self.sampler)) is not None:
            number, leak = finite_fill
            leaks = (leak, *leaks)
            self.outcomes.append(TrialResult(leak.trial, "scale", leak.difference, passed=False))
            filled = f"a mask fills padding with {number:g}, and {leak.trial} get past it"
        if not finite and is_answered and (unread := unread_steps(self.subject, first)) is not None:
            self.notes.append(unread)
        verdict, reason = self._decided(finite, filled)
        if not finite and is_answered and (dropped := dropped_id(self.subject, first, compared, self.tolerance)):
            leaks, verdict = (dropped, *leaks), "leak"
            self.outcomes.append(TrialResult(dropped.trial, "padding", dropped.difference, passed=False))
            reason = f"a valid step is not read, as if it were padding: {dropped.trial}"
        results = (tuple(self.outcomes), tuple(self.notes))
        return Report(verdict, reason, leaks, *results, widest, self.tolerance, self.checked_sizes, sizes.shortest)

    def _decided(self, finite: Sequence[FailedTrial], filled: str) -> tuple[Verdict, str]:
        """The verdict, and the reason for it."""
        every = [moved.trial.name for moved in finite or self.failed]
        more = f"; and {len(every) - _MAX_NAMED} more" if len(every) > _MAX_NAMED else ""
        names = "; ".join(every[:_MAX_NAMED]) + more
        if finite and all(moved.nan_with for moved in finite):
            return "leak", f"the answer to a sequence is finite alone, and not finite in a padded batch: {names}"
        if finite:
            return "leak", f"the answer to a sequence changes with: {names}"
        warnings = [filled] if filled else []
        warnings += [f"only NaN, Inf or an overflow in the padding reaches an answer: {names}"] if self.failed else []
        if warnings:
            return "warning", "; ".join(warnings)
        raised = sum(outcome.difference is None for outcome in self.outcomes)
        lengths = f"; {raised} raised, at lengths that the model does not accept" if raised else ""
        return "sound", f"no answer changed in {len(self.outcomes) - raised} trials{lengths}"

    def _require_steadiness(self) -> None:
        """Makes sure that the same batch gets the same answer again, before padding or other rows are blamed.

        Raises:
            UncheckableError: They do not.
        """  # noqa: DOC502 - what it calls raises it
        if self.steadiness is None:
            return
        self.steadiness.ask_again()
        rows = {int(one.base.lengths[row]): one.base.steps[row] for one in self.failed for row, _ in one.trial.rows}
        for length, steps in sorted(rows.items())[:_MAX_ASKED_TWICE]:
            self.steadiness.require_same_alone(steps[:length])

    def _leave_out_kinds(self, sizes: BatchSizes) -> None:
        """Leaves out the kinds of raw values for which the model raises, or has no finite answer."""

        def is_answered(sequences: Sequence[Steps]) -> bool:
            return self._is_answered(pad(sequences, width=sizes.width))

        probe = Sampler(self.subject.steps, seed=0)  # of its own, so that the sequences of the trials stay the same
        alone = [probe.sequence(sizes.longest), probe.fill((sizes.longest,), 1.0)]
        zeros, others = (self._is_answered(pad([steps], multiple=1)) for steps in alone)
        if others and not zeros:
            self.sampler.zeros = False
            self.notes.append("no trial has a step of zeros: the answer to a sequence alone is not finite there")
        tried = {kind: self.sampler.sequence(sizes.longest, kind) for kind in self.sampler.kinds}
        if not tried or is_answered([*tried.values()]):
            return
        if not is_answered([self.sampler.sequence(sizes.longest)] * 2):
            return  # not because of the kinds, so the baseline says why
        self.sampler.kinds = tuple(kind for kind, steps in tried.items() if is_answered([steps] * 2))
        if left := [kind for kind in tried if kind not in self.sampler.kinds]:
            self.notes.append(f"no trial has {', '.join(left)}: the model raises there, or its answer is not finite")

    def _is_answered(self, batch: PaddedBatch) -> bool:
        """Whether a batch runs, and its answer is finite."""
        try:
            return is_finite(self.subject.answer(batch), batch)
        except (RunError, IndexError):  # an answer of another shape may lack these rows
            return False

    def _answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch and adds its sizes to the report."""
        answer = self.subject.answer(batch)
        for seen, sizes in zip(self.ran, ([batch.rows], [batch.width], batch.lengths.tolist()), strict=True):
            seen.update(sizes)
        return answer

    def _require_meaningful_trials(self, first: Baseline, fewest_lengths: int) -> None:
        """Makes sure that a leak would have been visible: several sizes ran, and answers depend on the sequences.

        Args:
            first: The baseline.
            fewest_lengths: At least so many different lengths must have run.

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
        others = Sampler(self.subject.steps, seed=len(first.sequences) + 1)
        others.zeros = self.sampler.zeros
        replaced = pad([others.sequence(len(steps)) for steps in first.sequences], width=first.batch.width)
        moved = first.largest_difference(self.subject.answer(replaced))
        if moved <= self.tolerance:
            raise UncheckableError(
                f"the answers do not depend on the sequences: other sequences of the same lengths move them by "
                f"{moved:.2g}, which is within the tolerance of {self.tolerance:.2g}, so a leak could not be seen. "
                "Possible reasons: the last layer is all zeros, an input is not used, or --tolerance is too large"
            )

    def _first(self, sizes: BatchSizes) -> Baseline:
        self.progress("the baseline batch, and one answer again and again")
        sequences = trials.base_sequences(self.sampler, sizes)
        batch = pad(sequences, width=sizes.width)
        if self.subject.state is not None:  # what the search of widths has left
            self.subject.state.restore()
        try:
            first = self._baseline(sequences, batch)
        except RunError as error:
            self.progress("sizes at which the model runs")
            raise UncheckableError(limits.why_it_raises(self.subject, sequences, sizes.width, error)) from error
        shape = first.answer.logits.shape
        if shape[:-1] not in ((batch.rows,), (batch.rows, batch.width)):
            raise UncheckableError(limits.why_of_another_form(self.subject, batch))
        self.steadiness = Steadiness(self.subject, sizes, self.tolerance)
        self.steadiness.require()
        first = self._without_unanswered(first)
        if not is_finite(first.answer, batch):
            return first
        wider = pad(sequences, width=sizes.wider)
        if limits.runs(self.subject, wider) and self.subject.answer(wider).logits.shape[-1] != shape[-1]:
            raise UncheckableError(limits.why_of_another_form(self.subject, batch))
        allowed = first.allowed_rounding(self.subject, self.tolerance)
        if allowed > self.tolerance:
            self.tolerance = allowed
            self.notes.append(
                f"a 1-ulp input change moves the output by {allowed / 10:.2g}; differences below 10x are ignored"
            )
        return first

    def _baseline(
        self, sequences: Sequence[Steps], batch: PaddedBatch, kinds: Sequence[str | None] | None = None
    ) -> Baseline:
        kinds = trials.kinds_of_rows(len(sequences), self.sampler) if kinds is None else kinds
        return Baseline(sequences, batch, self._answer(batch), kinds)

    def _without_unanswered(self, base: Baseline) -> Baseline:
        """The baseline, with ordinary sequences in the place of raw ones that have no finite answer even alone."""
        rows = [] if is_finite(base.answer, base.batch) else range(base.batch.rows)
        unanswered = [
            row for row in rows if base.kind(row) and not self._is_answered(pad([base.sequences[row]], multiple=1))
        ]
        if not unanswered:
            return base
        shown = ", ".join(dict.fromkeys(str(base.kind(row)) for row in unanswered))
        self.notes.append(f"some sequences of {shown} are left out: the answer to them alone is not finite")
        sequences, kinds = [*base.sequences], [*base.kinds]
        for row in unanswered:
            sequences[row], kinds[row] = self.sampler.sequence(len(sequences[row])), None
        return self._baseline(sequences, pad(sequences, width=base.batch.width), kinds)

    def _try_padding(self, first: Baseline, sizes: BatchSizes, compared: Sequence[ComparedId]) -> None:
        """Tries other padding, also of the ids that the model compares its steps with; widths, and other rows."""
        for trial in trials.trials(first.sequences, sizes, self.sampler):
            if trial.change in _OF_THE_SAME_ROWS or not self.subject.in_training:
                self._try(first, trial)
        same = tuple((row, row) for row in range(first.batch.rows))
        for number in dict.fromkeys(one.number for one in compared):
            filled = trials.with_padding_filled(first.batch, np.int64(number))
            self._try(first, CheckTrial(f"id {number} in the padding", "padding", filled, same))

    def _try_alone(self, base: Baseline, where: str) -> None:
        """Tries alone the sequences of a batch whose answers are not finite in it: if those are, it is a leak.

        Raises:
            UncheckableError: They are not finite alone either.
        """
        alone = [
            trial
            for trial in trials.lone_trials(base.sequences, [base.kind(row) for row in range(base.batch.rows)])
            if not base.is_finite(trial.rows[0][0]) and self._is_answered(trial.batch)
        ]
        if not alone:
            raise UncheckableError(
                f"the answers to finite sequences are not finite{where}, not even to one alone and without padding: "
                "train the model, or pass its weights with --checkpoint"
            )
        for trial in alone:
            self._try(base, trial)

    def _try_unbatched(self, sizes: BatchSizes, too_short: Mapping[int, RunError]) -> None:
        """Runs sequences of every length from the shortest unbatched, and compares with all of them in one batch.

        Raises:
            UncheckableError: The model raises for every batch of one row, or answers to finite sequences are not
                finite.
        """
        most = sizes.rows if self.subject.layout.packed else _MAX_UNBATCHED
        count = min(sizes.width - sizes.shortest + 1, most)
        lengths = np.unique(np.linspace(sizes.shortest, sizes.width, count).round().astype(int))[::-1]
        kinds = [*[None] * len(lengths), *(() if self.subject.layout.packed else _RAW_OF_EACH * self.sampler.kinds)]
        short = np.resize(lengths[::-1][::2], len(kinds) - len(lengths))
        sequences = [
            self.sampler.sequence(int(length), kind) for length, kind in zip((*lengths, *short), kinds, strict=True)
        ]
        together = self._without_unanswered(self._baseline(sequences, pad(sequences, width=sizes.wider), kinds))
        alone = [*trials.lone_trials(together.sequences, together.kinds)]
        # What is not finite in this batch only, is a leak
        bad = [
            trial for row, trial in enumerate(alone) if not (together.is_finite(row) or self._is_answered(trial.batch))
        ]
        if bad:
            shown = as_ranges(sorted({trial.batch.width for trial in bad}))
            raise UncheckableError(f"the answers to finite sequences of {shown} steps are not finite, alone too")
        raised = {
            trial.batch.width: error
            for trial in alone
            if (error := self._try(together, trial, may_raise=True)) is not None
        }
        if len(raised) == len(lengths) and not any(moved.trial.change != "poison" for moved in self.failed):
            raise UncheckableError(
                f"the model raises for a batch of one row, at every length: {raised[min(raised)]} (usually because of "
                "a squeeze without a dim, which also removes the axis of the rows)"
            )
        for length, error in sorted(too_short.items(), reverse=True):
            raised[length] = error
            self.outcomes.append(
                TrialResult(trials.unbatched_name(length), "batch", None, passed=True, raised=str(error))
            )
        if raised:
            self.notes.append(
                f"unbatched, the model raises at {', '.join(map(str, sorted(raised)))} steps: {raised[min(raised)]}"
            )
        if too_short:
            self.notes.append(
                f"a sequence needs at least {sizes.shortest} steps; export writes that into the manifest (min_length), "
                "and the service refuses shorter ones"
            )

    def _try_odd_batches(self, first: Baseline, sizes: BatchSizes, widest: int) -> None:
        """Runs the row counts, lengths and widths that a model may handle in a separate code path.

        Raises:
            UncheckableError: The model raises for such a batch of two rows or more.
        """
        for trial in trials.fewer_rows(first.batch):
            self._try(first, trial, may_raise=trial.batch.rows == 1)  # already noted by the unbatched trials
        for trial in (
            *trials.equal_lengths(first.sequences, sizes, self.sampler),
            *trials.block_widths(first.sequences, widest, self.sampler),
        ):
            self._try(first, trial)
        for name, sequences, batch in trials.odd_batches(sizes, widest, self.sampler):
            try:
                base = self._without_unanswered(self._baseline(sequences, batch))
            except RunError as error:
                if batch.rows == 1:  # already noted by the unbatched trials
                    continue
                raise UncheckableError(f"the model raises for a batch {name}: {error}") from error
            if not is_finite(base.answer, base.batch):
                self._try_alone(base, f" in a batch {name}")
                continue
            for trial in trials.padding_changed(name, base.sequences, base.batch, self.sampler):
                self._try(base, trial)

    def _try(self, first: Baseline, trial: CheckTrial, *, may_raise: bool = False) -> RunError | None:
        """Runs a trial and adds its result. Returns the error if the model raised and `may_raise` allows that.

        Raises:
            UncheckableError: The model raises, and neither the padding nor another row is the reason.
        """
        if trial.change == "padding" and self.subject.layout.pad_id is not None:
            return None  # no other id is ever there
        self.progress(trial.name)
        try:
            answer = self._answer(trial.batch)
        except RunError as error:
            self.outcomes.append(TrialResult(trial.name, trial.change, None, passed=may_raise, raised=str(error)))
            if trial.change in ("padding", "neighbours", "poison"):
                # The baseline has the same shape and ran, so the error comes from the padding or from another row.
                self.failed.append(FailedTrial(first.batch, trial, 0))
            elif not may_raise:
                raise UncheckableError(limits.why_it_raises_for(first, trial, error)) from error
            return error
        differences = {pair: first.row_difference(answer, *pair) for pair in trial.rows}
        is_leak = any(failed.is_ordinary and failed.trial.change != "poison" for failed in self.failed)
        beyond_rounding = self.conditioning.beyond_rounding(
            first, trial, differences, self.tolerance, exactly=not is_leak
        )
        largest = max(beyond_rounding.values())
        self.outcomes.append(
            TrialResult(
                trial.name,
                trial.change,
                largest,
                largest <= self.tolerance,
                is_rounding=beyond_rounding != differences,
            )
        )
        if not largest <= self.tolerance:
            # If rows of ordinary values fail, only those are used to find the operator: raw values may hide it.
            failed = [pair for pair in trial.rows if not beyond_rounding[pair] <= self.tolerance]
            ordinary = [pair for pair in trial.rows if first.kind(pair[0]) is None]
            is_ordinary = bool(set(ordinary) & set(failed))
            rows = tuple(ordinary if is_ordinary else failed)
            worst = max(rows, key=lambda pair: beyond_rounding[pair])
            failed_trial = FailedTrial(first.batch, replace(trial, rows=rows), rows.index(worst), is_ordinary)
            self.failed.append(
                failed_trial if trial.change == "poison" else _where_it_is_nan(failed_trial, first, answer, worst)
            )
        return None


def _where_it_is_nan(failed: FailedTrial, first: Baseline, after: ModelOutput, rows: tuple[int, int]) -> FailedTrial:
    """The failed trial; if an answer is finite in only one of its batches, seen from the batch in which it is not."""
    is_finite_before, is_finite_after = first.is_finite(rows[0]), first.is_finite_in(after, *rows)
    if is_finite_before == is_finite_after:
        return failed
    if is_finite_before:
        return failed.backwards()
    return replace(failed, nan_with=f"padding, and is finite {failed.trial.name}")

"""The baseline of a check: some sequences, their first answer, and the difference of a later answer from it.

An answer is *finite* if its logits at valid steps are neither NaN nor infinite. Some rows hold *raw values*, as
sensors and logs have them before anybody scales them; `kind` says which, and is None for *ordinary* values.

The same sequences must get the same answer, whatever the model was asked before (`Steadiness`):

    as it was read: ask, another batch, ask, another batch, ask, ...
    as it was read: the other batches, ask                             all answers must be equal
    after all trials: ask

A model that changes itself in evaluation mode (a running mean, a memory of the first batch, a counter) is refused: a
graph holds only one of its states. A change that does not reach an answer, such as that of a cache, does no harm.

A model may be *ill-conditioned* at raw values (`Conditioning`): a sequence of equal steps has a standard deviation that
is rounding only, and a model that divides by it makes that large. A difference at such a sequence is *excused*, so not
a leak, in two cases; those of ordinary sequences never are:

- A few ulps (units in the last place) of the values, or of a graph's weights, change the answer as much.
- In float64, the difference is far smaller.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import (
    AMPLIFIED,
    MOST_AMPLIFIED,
    ROUNDING,
    PaddedBatch,
    Steps,
    pad,
    rounded_otherwise,
    step_mask,
)
from lengthwise_export.checking.recording import ModelOutput, Operation, Subject
from lengthwise_export.checking.trials import BatchSizes, CheckTrial, Sampler
from lengthwise_export.errors import RunError, UncheckableError

if TYPE_CHECKING:  # a graph does without torch
    from lengthwise_export.tracing.module_state import ModuleState
__all__ = [
    "AMPLIFIED",
    "ROUNDING",
    "Baseline",
    "Conditioning",
    "Steadiness",
    "at_valid_steps",
    "is_finite",
    "relative_difference",
    "why_unsteady",
]


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """Sequences, the batch in which they ran first, and the answer to it."""

    sequences: Sequence[Steps]
    batch: PaddedBatch
    answer: ModelOutput
    kinds: Sequence[str | None] = ()  # For each row the kind of its raw values, None for ordinary ones; empty: all None

    def row_difference(self, after: ModelOutput, row: int, row_after: int) -> float:
        """The `relative_difference` of the answer to one sequence in two batches.

        Logits and attention weights are compared at valid steps; the larger difference counts. It is infinite if the
        answers have different forms.

        Args:
            after: The answer to another batch.
            row: The row of the sequence in the baseline.
            row_after: Its row in the other batch.
        """
        length, differences = len(self.sequences[row]), [0.0]
        for values_before, values_after, has_steps in (
            (self.answer.logits, after.logits, self.answer.logits.ndim == 3),
            (self.answer.attention, after.attention, True),
        ):
            if values_before is None or values_after is None:
                continue
            if values_before.ndim != values_after.ndim or row_after >= len(values_after):
                return float("inf")
            valid = slice(length) if has_steps else ...  # all values
            differences.append(relative_difference(values_before[row][valid], values_after[row_after][valid]))
        return max(differences)

    def largest_difference(self, after: ModelOutput, rows: Iterable[int] | None = None) -> float:
        """The largest `row_difference` of an answer to the same sequences in the same order; `rows`: None for all."""
        return max(self.row_difference(after, row, row) for row in (range(self.batch.rows) if rows is None else rows))

    @property
    def is_answered(self) -> bool:
        """Whether the answers to all rows are finite at valid steps."""
        return is_finite(self.answer, self.batch)

    def is_finite(self, row: int) -> bool:
        """Whether the answer to a row of the baseline is finite at valid steps."""
        return self.is_finite_in(self.answer, row, row)

    def is_finite_in(self, after: ModelOutput, row: int, row_after: int) -> bool:
        """Whether the answer to the sequence of `row` is finite in row `row_after` of another batch.

        True as well if the answer has another form there: `row_difference` shows that.
        """
        if after.logits.ndim != self.answer.logits.ndim or row_after >= len(after.logits):
            return True
        logits = after.logits[row_after]
        return bool(np.isfinite(logits[: len(self.sequences[row])] if logits.ndim == 2 else logits).all())

    def kind(self, row: int) -> str | None:
        """The kind of raw values of a row; None if its values are ordinary."""
        return self.kinds[row] if self.kinds else None

    def ordinary(self) -> list[int]:
        """The rows of ordinary values."""
        return [row for row in range(self.batch.rows) if self.kind(row) is None]

    def changes_by_ulps(self, subject: Subject) -> list[float]:
        """For each row, the largest finite change of its answer when all values, or the weights, change by a few ulps.

        So it is how much rounding alone may change the answer; 0 for token ids, which have no rounding.
        """
        if subject.steps.kind == "tokens":
            return [0.0] * self.batch.rows
        rounded = (PaddedBatch(steps, self.batch.lengths) for steps in rounded_otherwise(self.batch.steps))
        answers = [*map(subject.answer, rounded), *subject.answers_of_rounded_weights(self.batch)]
        differences = [[self.row_difference(answer, row, row) for answer in answers] for row in range(self.batch.rows)]
        # An infinite change is an overflow, and says nothing about rounding.
        return [max(filter(np.isfinite, of_row), default=0.0) for of_row in differences]

    def allowed_rounding(self, subject: Subject, tolerance: float) -> float:
        """The tolerance for this model: `tolerance`, or a larger one if the model amplifies rounding.

        Another width or number of rows changes the order of sums, and so their rounding. How much that can change an
        answer is estimated by changing every input value by 1 ulp, the smallest step of float32.
        """
        if subject.steps.kind == "tokens":
            return tolerance
        steps = self.batch.steps
        next_larger = np.where(steps == 0, steps, np.nextafter(steps, np.float32(np.inf))).astype(np.float32)
        answer = subject.answer(PaddedBatch(next_larger, self.batch.lengths))
        amplified_rounding = AMPLIFIED * self.largest_difference(answer, self.ordinary())
        return amplified_rounding if tolerance < amplified_rounding < MOST_AMPLIFIED else tolerance

    def with_last_steps_changed(self, vocabulary: int | None) -> PaddedBatch:
        """The batch with another last valid step in each row; `vocabulary`: None if steps are values."""
        steps = self.batch.steps.copy()
        last = (np.arange(self.batch.rows), self.batch.lengths - 1)
        steps[last] = (steps[last] + 1) % vocabulary if vocabulary else np.roll(steps[last], 1, axis=-1) + 1
        return PaddedBatch(steps, self.batch.lengths)


def at_valid_steps(answer: ModelOutput, batch: PaddedBatch) -> NDArray[np.float32]:
    """The logits `[answers, classes]`: one for each row, or for each valid step if the model answers each step."""
    return answer.logits[step_mask(batch.lengths, batch.width)] if answer.logits.ndim == 3 else answer.logits


def is_finite(answer: ModelOutput, batch: PaddedBatch) -> bool:
    """Whether the logits are finite at all valid steps."""
    return bool(np.isfinite(at_valid_steps(answer, batch)).all())


def relative_difference(before: NDArray[Any], after: NDArray[Any]) -> float:
    """The largest absolute difference of two arrays, divided by max(1, the largest finite value of the first).

    - NaN is equal to NaN, and an infinity to the same infinity.
    - It is infinite if the shapes differ, or where a value that is not finite meets another.
    - Of integers and booleans it is 1 if any differ, and otherwise 0.
    """
    if before.shape != after.shape:
        return float("inf")
    if before.size == 0:
        return 0.0
    if before.dtype.kind not in "fc":
        return float(np.any(before != after))
    with np.errstate(invalid="ignore", over="ignore"):
        is_same = (before == after) | (np.isnan(before) & np.isnan(after))
        if is_same.all():
            return 0.0
        difference = np.abs(before[~is_same].astype(np.complex128) - after[~is_same])
    if not np.isfinite(difference).all():
        return float("inf")
    finite = np.abs(before[np.isfinite(before)])
    return float(difference.max() / max(1.0, float(finite.max(initial=0.0))))


_SCALES: Final = (1.0, 1000.0, 0.01)  # what the values of the other batches are multiplied by, in turn
_MAX_TRIED: Final = 12  # at most this many of the changed values are restored one by one
_MAX_NAMED: Final = 3  # at most this many of them are in a message


class Steadiness:
    """Asks a model for the same answers again and again: to a batch of two rows, and to one row alone.

    The *other batches* are those that run in between.
    """

    def __init__(self, subject: Subject, sizes: BatchSizes, tolerance: float) -> None:
        """Runs the two batches for the first time, in the state in which the model was read.

        Args:
            subject: The model.
            sizes: The sizes of batches that it accepts.
            tolerance: The allowed difference of an answer.
        """
        self._subject = subject
        self._tolerance = tolerance
        sampler, longest = Sampler(subject.steps, seed=0), sizes.longest
        self._other_batches = [
            pad([sampler.sequence(length, scale=scale) for length in lengths], multiple=1)
            for scale in _SCALES
            for lengths in ([sizes.shortest], [sizes.width, longest], [longest] * 3, [sizes.wider, sizes.shortest])
        ]
        sequences = [sampler.sequence(longest) for _ in range(2)]
        batch, batch_of_one = pad(sequences, multiple=1), pad(sequences[:1], multiple=1)
        self._restart()
        # The batch that is being asked for at the moment, and both batches; each with its first answer
        self._baseline = Baseline(sequences, batch, subject.answer(batch))
        self._baselines = [self._baseline]
        with suppress(RunError):  # a model that raises for one row alone is asked for two rows only
            self._baselines.append(Baseline(sequences[:1], batch_of_one, subject.answer(batch_of_one)))

    def require(self) -> None:
        """Makes sure that the answers stay the same: after each of the other batches, and after all of them in a row.

        They are asked for at once, too: where nothing else runs in between, another number of calls lies between two
        answers than later, so a model that counts its calls by threes is seen as well.

        Raises:
            UncheckableError: They differ; the message says why.
        """  # noqa: DOC502 - what it calls raises it
        self.ask_again()
        for batch in self._other_batches:
            _run(self._subject, [batch])
            self.ask_again()
        self._restart()
        _run(self._subject, self._other_batches)
        self.ask_again()

    def ask_again(self) -> None:
        """Asks for the answers, and makes sure that they are the first ones.

        Raises:
            UncheckableError: They differ, or the model raises now; the message says why.
        """
        for baseline in self._baselines:
            self._baseline = baseline
            with suppress(RunError):
                if self._is_same(baseline.answer, self._answer()):
                    continue
            raise UncheckableError(self._explanation())

    def require_same_alone(self, steps: Steps) -> None:
        """Runs one sequence alone twice, and makes sure that the answers are the same.

        Raises:
            UncheckableError: The answers differ.
        """
        batch = pad([steps], multiple=1)
        with suppress(RunError):
            baseline = Baseline([steps], batch, self._subject.answer(batch))
            if baseline.largest_difference(self._subject.answer(batch)) > self._tolerance:
                raise UncheckableError(_message_of_random(self._subject, batch))

    def _explanation(self) -> str:
        """The message that says what makes the answers differ: something random, or a state that calls change."""
        state = self._subject.state
        if state is None:
            return _message_of_random(self._subject, self._baseline.batch)
        state_now, changed_names = state.now(), state.changed()  # before `_is_random` restores the state
        if self._is_random():
            return _message_of_random(self._subject, self._baseline.batch)
        # The changed values on which an answer depends, by trying a few of them
        names_that_matter = [
            name for name in changed_names[:_MAX_TRIED] if self._reaches_answer(name, state, state_now)
        ]
        return why_unsteady(
            self._subject, names_that_matter or changed_names, [*self._other_batches, self._baseline.batch]
        )

    def _is_random(self) -> bool:
        """Whether the answers depend on torch's seed, or differ for another reason than the calls before.

        The calls before are no reason if an answer in the restored state differs from the next one, and also from
        another one in the restored state.
        """
        import torch  # a model with a state is a torch module

        first, second, restored = self._answer(restart=True), self._answer(), self._answer(restart=True)
        seeded_answers = []
        for seed in (0, 0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                seeded_answers.append(self._answer().logits.tobytes())
        depends_on_seed = seeded_answers[0] == seeded_answers[1] != seeded_answers[2]
        return depends_on_seed or not (self._is_same(first, second) or self._is_same(first, restored))

    def _reaches_answer(self, name: str, state: ModuleState, state_now: ModuleState) -> bool:
        """Whether an answer depends on the change of the value `name`: it differs if only this value is restored.

        `state` is that of the model when it was read, `state_now` that with all changes. True if the model raises.
        """
        answers: list[ModelOutput] = []
        for names in ((), (name,)):
            state_now.restore()
            state.restore(names)
            try:
                answers.append(self._answer())
            except RunError:
                return True
        return not self._is_same(*answers)

    def _is_same(self, answer: ModelOutput, other_answer: ModelOutput) -> bool:
        """Whether two answers to the batch of `_baseline` are equal within the tolerance."""
        return replace(self._baseline, answer=answer).largest_difference(other_answer) <= self._tolerance

    def _answer(self, *, restart: bool = False) -> ModelOutput:
        """The answer to the batch of `_baseline`; `restart`: in the state in which the model was read."""
        if restart:
            self._restart()
        return self._subject.answer(self._baseline.batch)

    def _restart(self) -> None:
        """Restores the state in which the model was read, if it has one."""
        if self._subject.state is not None:
            self._subject.state.restore()


def why_unsteady(subject: Subject, names: Sequence[str], batches: Sequence[PaddedBatch]) -> str:
    """The message for a model that changes its own state: what it changes, on which line, and what to do.

    `names` are the changed values, empty if they are not known. The `batches` are run to find the line.
    """
    cause = "remembers the calls before, where that cannot be seen"
    if names and subject.state is not None:
        location = subject.state.line_of_change(names, lambda: _run(subject, batches))
        listed_names = ", ".join(f"`{name}`" for name in names[:_MAX_NAMED])
        more = ", ..." if len(names) > _MAX_NAMED else ""
        at_line = "" if location is None else f" at {location} (`{location.source}`)"
        cause = f"changes {listed_names}{more} in evaluation mode{at_line}"
    return (
        f"not the same answer twice: the model {cause}, and later answers depend on it: change it in "
        "training only (`if self.training:`), or take it out of the answer"
    )


def _message_of_random(subject: Subject, batch: PaddedBatch) -> str:
    """The message for a model with random answers: its first random operation, and what to do."""

    def differs(before: Operation, after: Operation) -> bool:
        """Whether an output of the same operation differs between two runs."""
        outputs = zip(before.outputs, after.outputs, strict=False)
        return any(
            not np.array_equal(value, value_after, equal_nan=value.dtype.kind == "f")
            for (_, value), (_, value_after) in outputs
        )

    first_run, second_run = (subject.record(batch).operations for _ in range(2))
    pairs = zip(first_run, second_run, strict=False)
    operation = next((before for before, after in pairs if differs(before, after)), None)
    at_line = "" if operation is None else f" at {operation.location or operation.operator}"
    if operation is not None and operation.location is not None:
        at_line += f" (`{operation.location.source}`)"
    return (
        f"not the same answer twice: something random runs in evaluation mode{at_line} (for example F.dropout without "
        "training=self.training)"
    )


def _run(subject: Subject, batches: Iterable[PaddedBatch]) -> None:
    """Runs batches, whatever the answers are; a batch for which the model raises is skipped."""
    for batch in batches:
        with suppress(RunError):
            subject.answer(batch)


_FINER: Final = 1000  # a difference that is at least so many times smaller in float64 is rounding


class Conditioning:
    """Excuses differences of one model that are rounding, and keeps what it excused for the notes of the report."""

    def __init__(self, subject: Subject) -> None:
        """Begins without an excused difference."""
        self._subject = subject
        # For each row of a baseline, what a few ulps change; computed once for each baseline
        self._changes_by_ulps = functools.cache(lambda baseline: baseline.changes_by_ulps(subject))
        # For each kind of raw values, what a few ulps change (0 if float64 excused it), and the largest difference
        self._excused: dict[str, tuple[float, float]] = {}

    def notes(self) -> Iterator[str]:
        """Yields one note for each kind of raw values at which differences were excused."""
        for kind, (by_ulps, difference) in self._excused.items():
            why = f"a few ulps of such values move the answer by {by_ulps:.2g}" if by_ulps else "float64 has none"
            yield f"ill-conditioned at {kind}: {why}; differences of up to {difference:.2g} there are rounding"

    def beyond_rounding(
        self,
        baseline: Baseline,
        trial: CheckTrial,
        differences: Mapping[tuple[int, int], float],
        tolerance: float,
        *,
        use_float64: bool,
    ) -> dict[tuple[int, int], float]:
        """The differences of a trial, with 0 in the place of those that are excused.

        Args:
            baseline: The sequences and their first answers.
            trial: The batch with the same sequences.
            differences: The difference of each answer, by the pair of its rows in the baseline and in the trial.
            tolerance: What differences may be without an excuse.
            use_float64: Whether to run in float64 too, if ulps do not explain a difference. It is not needed once
                ordinary sequences have shown a leak.
        """
        if any(value > tolerance and baseline.kind(row) is None for (row, _), value in differences.items()):
            return dict(differences)  # ordinary sequences show a leak in this trial, so no excuse changes the verdict
        # 1. By ulps
        remaining = {
            pair: self._beyond_ulps(baseline, pair[0], value, tolerance) for pair, value in differences.items()
        }
        # 2. By float64, what is left
        unexplained = {pair: baseline.kind(pair[0]) for pair, value in remaining.items() if tolerance < value < np.inf}
        if not use_float64 or trial.change == "poison" or not unexplained:
            return remaining
        before, after = (self._subject.answer_in_float64(batch) for batch in (baseline.batch, trial.batch))
        if before is None or after is None:
            return remaining
        exact = replace(baseline, answer=before)
        for pair, kind in unexplained.items():
            if exact.row_difference(after, *pair) <= min(tolerance, remaining[pair] / _FINER):
                remaining[pair] = self._excuse(str(kind), 0.0, remaining[pair])
        return remaining

    def _beyond_ulps(self, baseline: Baseline, row: int, difference: float, tolerance: float) -> float:
        """The difference of the answer to a row of the baseline; 0 if a few ulps of its raw values change it as much.

        An excused difference is kept for the notes.
        """
        kind = baseline.kind(row)
        if difference <= tolerance or kind is None or not np.isfinite(difference):
            return difference
        by_ulps = self._changes_by_ulps(baseline)[row]
        return difference if difference > tolerance + AMPLIFIED * by_ulps else self._excuse(kind, by_ulps, difference)

    def _excuse(self, kind: str, by_ulps: float, difference: float) -> float:
        """Keeps an excused difference for the notes, the largest of each kind of raw values. Returns 0."""
        largest_by_ulps, largest_difference = self._excused.get(kind, (0.0, 0.0))
        self._excused[kind] = (max(largest_by_ulps, by_ulps), max(largest_difference, difference))
        return 0.0

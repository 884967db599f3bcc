"""The rules that the trials of a leaking model show: what its code does, where the operator alone does not say it.

The operator and its line stay those of the leak. Its rule is replaced where the trials say more: for which batches the
code takes another path, what a mask is made of, and whether the mask is inverted. For models of tokens, the ids with
which the code compares its steps are found (`ComparedId`), as in `mask = ids != 0`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.checking import axes, trials
from lengthwise_export.checking.baseline import Baseline, relative_difference
from lengthwise_export.checking.compared_runs import aligned
from lengthwise_export.checking.leaks import FailedTrial, Leak
from lengthwise_export.checking.recording import Operation, Subject
from lengthwise_export.checking.rule import Cause, rules
from lengthwise_export.checking.trials import Geometry, Pairing, Sampler
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import PaddedBatch, pad
from lengthwise_export.onnx_graphs.beside import LENGTHS, completed, names_beside, with_other_static

_BLOCKS: Final = (128, 64, 32, 16, 8)
_OF_WINDOWS: Final = ("LW208", "LW402")  # of operators with a stride, for which multiples of it differ by themselves
_RANGE: Final = re.compile(r"(reduce)?a?(max|min)|aminmax|(max|min)imum", re.IGNORECASE)
_SCALED: Final = re.compile(r"(true_)?div(ide)?_?|mul(tiply)?_?|.*quantize.*", re.IGNORECASE)
_ROUNDED: Final = re.compile(r"(round|floor|trunc|ceil|fix)_?|.*quantize.*|.*integer|_(scaled|int)_mm", re.IGNORECASE)
_SMALL_TYPE: Final = re.compile(r"u?int(8|16|32)|float[48]_.*|qu?int.*")
_MASKED: Final = frozenset({"LW101", "LW102", "LW201", "LW202", "LW203", "LW205", "LW802"})
"""Rules of operators that read all steps except those that a mask leaves out."""
_ONCE_A_MODEL: Final = frozenset({"LW104", "LW106", "LW107", "LW504", "LW804"})
"""Rules that are reported once for a model, whatever operators show them."""
_MAX_BETWEEN: Final = 10  # at most this many operations between a scale and what is rounded with it
_OF_OTHER_ROWS: Final = frozenset({"neighbours", "order", "lengths"})
"""Changes that leave the padding as it is."""
_OF_ORDERS: Final = frozenset({"order", "lengths", "batch", "block"})
"""Changes that may move rows that a model sorts by length."""
_SMALL: Final = 10  # a difference that is so many times smaller than another is none beside it
_MIN_STEPS: Final = 3  # shorter sequences have no middle
_PROBED: Final = 512  # so many of the lowest ids, and so many of the highest, are tried


@dataclass(frozen=True, slots=True)
class ComparedId:
    """An id that a model compares its steps with."""

    number: int  # the id
    operation: Operation  # the comparison

    def __str__(self) -> str:
        """`id 0 (ne at model.py:12)`."""
        location = self.operation.location
        return f"id {self.number} ({self.operation.operator}{'' if location is None else f' at {location}'})"


@dataclass(frozen=True, slots=True)
class TrialRules:
    """A leaking model: its baseline, and the trials in which answers changed."""

    subject: Subject
    baseline: Baseline
    failed: Sequence[FailedTrial]
    tolerance: float
    padding_id: ComparedId | None = None  # The id by which the model recognises padding

    def applied(self, leaks: Sequence[Leak]) -> Iterator[Leak]:
        """Yields the leaks, with the rules that the trials show. Of leaks with one cause only the first is yielded."""
        reported: set[tuple[str, str]] = set()
        for leak in leaks:
            with suppress(RunError):
                is_packed = self.subject.layout.packed is not None  # then the borders have rules of their own
                leak = leak if is_packed else replace(leak, cause=self._rule_of(leak) or leak.cause)
            line = leak.operator if leak.location is None else str(leak.location)
            cause_and_line = (leak.code, "" if leak.code in _ONCE_A_MODEL else line)
            if cause_and_line not in reported:
                yield leak
            reported.add(cause_and_line)

    def _rule_of(self, leak: Leak) -> Cause | None:
        """The cause that the trials show for a leak; None if they show no other than that of its operator.

        Causes that hold for the whole model come before those of single operators, and what needs further runs of the
        model comes last.
        """
        trial_of_leak = next(
            (
                failed_trial
                for failed_trial in self.failed
                if leak.trial in (failed_trial.nan_with, failed_trial.trial.name)
            ),
            None,
        )
        if trial_of_leak is None or leak.code == "LW805":  # a rule about missing values, not about padding
            return None
        if self._needs_equal_lengths():
            return rules()["LW104"].cause(fix=leak.cause.fix)
        if (widths := self._widths_of_blocks()) and leak.cause.code not in _OF_WINDOWS:
            return rules()["LW804"].cause({"widths": ", ".join(map(str, widths))}, fix=leak.cause.fix)
        if trial_of_leak.nan_with:
            return None
        if names_beside(self.subject.steps) and (cause := self._rule_of_beside(leak)) is not None:
            return cause
        if self.padding_id is not None:
            return rules()["LW106"].cause({"id": self.padding_id}, fix=leak.cause.fix)
        if leak.cause.code in _MASKED and self._reads_padding_only(leak, trial_of_leak.base):
            # An attention takes the right mask as an argument, in the place of the inverted one.
            return rules()["LW105"].cause(fix=leak.cause.fix if "attention" in leak.kind else None)
        if self._is_scale(leak, trial_of_leak.base):
            return rules()["LW504"].cause()
        return self._rule_of_unused(leak)

    def _rule_of_beside(self, leak: Leak) -> Cause | None:
        """The cause of a leak that comes from what stands beside the sequence; None if it does not."""
        changes = {failed.trial.change for failed in self.failed}
        if "order" in changes and changes <= _OF_ORDERS:
            return rules()["LW309"].cause()
        steps = self.subject.steps
        base = completed(self.baseline.batch, steps)
        shorter = replace(base, lengths=np.maximum(base.lengths - 1, 1))
        for sequence in steps.sequences[1:] if self.subject.names.fix is None else ():
            lengths = LENGTHS.format(sequence.name)
            own_shorter = replace(base, beside={**base.beside, lengths: np.maximum(base.beside[lengths] - 1, 1)})
            is_unused = np.array_equal(self.baseline.answer.logits, self.subject.answer(own_shorter).logits)
            if is_unused and self._moves(leak, base, shorter):
                words = {"lengths": lengths, "sequence": sequence.name}
                return rules()["LW110"].cause(words)
        if leak.cause.code != "LW201" or steps.static is None:
            return None
        is_in_padding = self._has_other_padding(leak, base, with_other_static(base, steps))
        return rules()["LW211"].cause(fix=leak.cause.fix) if is_in_padding else None

    def _moves(self, leak: Leak, base: PaddedBatch, other: PaddedBatch) -> bool:
        """Whether the output of a leak's operator differs between the runs of two batches of one size."""
        before, after = (self.subject.record(batch).operations for batch in (base, other))
        return any(
            not np.array_equal(value, value_after, equal_nan=value.dtype.kind == "f")
            for operation, same in aligned(before, after)
            if operation.identity == (leak.operator, leak.kind, leak.location)
            for (_, value), (_, value_after) in zip(operation.outputs, same.outputs, strict=False)
        )

    def _has_other_padding(self, leak: Leak, base: PaddedBatch, other: PaddedBatch) -> bool:
        """Whether what a leak's operator reads differs at padding between the runs of two batches of one size."""
        before, after = (self.subject.record(batch).operations for batch in (base, other))
        pairs, identity = aligned(before, after), (leak.operator, leak.kind, leak.location)
        read = frozenset().union(*(operation.input_keys for operation in before if operation.identity == identity))
        batch = trials.geometry(base, self.subject.layout)
        padding = [
            (axes.values_at_padding(value, batch), axes.values_at_padding(value_after, batch))
            for operation, same in pairs
            if operation.output_keys & read
            for (_, value), (_, value_after) in zip(operation.outputs, same.outputs, strict=False)
        ]
        return any(one is not None and two is not None and not np.array_equal(one, two) for one, two in padding)

    def _needs_equal_lengths(self) -> bool:
        """Whether answers change only if all rows of a batch have one length, and several ordinary rows show it."""

        def rows_of_one_length(batch: PaddedBatch) -> int:
            """The number of rows; 0 if their lengths differ."""
            return batch.rows if batch.lengths.min() == batch.lengths.max() else 0

        counts = [
            max(rows_of_one_length(failed.base), rows_of_one_length(failed.trial.batch)) for failed in self.failed
        ]
        ordinary = [count for count, failed in zip(counts, self.failed, strict=True) if failed.is_ordinary]
        return all(counts) and max(ordinary, default=0) > 1

    def _widths_of_blocks(self) -> list[int]:
        """The widths at which answers change, ascending, if all are multiples of a block of steps; otherwise empty.

        A block is a power of two that does not divide the width of the baseline.
        """
        width_of_baseline = self.baseline.batch.width
        other_widths = [
            {failed_trial.base.width, failed_trial.trial.batch.width} - {width_of_baseline}
            for failed_trial in self.failed
        ]
        for block in _BLOCKS:
            block_widths = [{width for width in pair if width % block == 0} for pair in other_widths]
            if width_of_baseline % block and all(block_widths):
                return sorted(set().union(*block_widths))
        return []

    def _reads_padding_only(self, leak: Leak, base: PaddedBatch) -> bool:
        """Whether a mask is inverted: the operator of a leak reads the padding, and not the valid steps.

        One valid step of each row stays. At this step the operator's output is compared between the run of `base` and
        two others: it must differ where the padding is other, and be equal where all other valid steps are.
        """
        layout, sampler = self.subject.layout, Sampler(self.subject.steps, seed=len(base.lengths))
        junk = sampler.fill(base.steps.shape[:2], trials.JUNK_SCALES["junk"])
        with_other_padding = trials.with_padding_filled(base, junk)
        with_other_steps = trials.with_padding_filled(PaddedBatch(junk, base.lengths), base.steps)
        # The step that stays is where a row of one step would have it, so that `one_step` says that it is valid.
        kept = layout.starts(np.ones_like(base.lengths), base.width) - layout.starts(base.lengths, base.width)
        with_other_steps.steps[range(base.rows), kept] = base.steps[range(base.rows), kept]
        one_step = Geometry((1,) * base.rows, base.width, layout)
        rows = tuple((row, row) for row, length in enumerate(base.lengths) if length > 1)
        pairing = Pairing(one_step, one_step, rows, self.subject.sizes)
        before, *other_runs = (self.subject.record(batch) for batch in (base, with_other_padding, with_other_steps))
        differences_by_padding, differences_by_steps = (
            [
                # No reading may take padding in front for the steps
                axes.difference(value, value_after, pairing, of_any_reading=not layout.is_right_padded)
                for operation, same in aligned(before.operations, run.operations)
                if operation.identity == (leak.operator, leak.kind, leak.location)
                for (_, value), (_, value_after) in zip(operation.outputs, same.outputs, strict=False)
            ]
            for run in other_runs
        )
        return any(differences_by_padding) and all(difference == 0.0 for difference in differences_by_steps)

    def _is_scale(self, leak: Leak, base: PaddedBatch) -> bool:
        """Whether the output of a leak's operator is a scale: something is divided by it, and rounded.

        This is how activations are quantised with a number of the whole batch, such as their largest value. If the
        number is a Python number, the leak begins at the division itself. The largest value of each row is a scale only
        if it divides the tensor that it is taken from. The next `_MAX_BETWEEN` operations that depend on the output are
        looked at.
        """
        operations = iter(self.subject.record(base).operations)
        # This uses up the iterator up to the leak; the loop below goes on from there.
        identity = (leak.operator, leak.kind, leak.location)
        leaking = next((operation for operation in operations if operation.identity == identity), None)
        is_scaled = _SCALED.fullmatch(leak.kind) is not None
        if leaking is None:
            return False
        shapes = [value.shape for _, value in leaking.outputs]
        has_rows = any(size % base.rows == 0 for shape in shapes for size in shape)
        if has_rows and not (is_scaled or _RANGE.fullmatch(leak.kind)):
            return False
        keys = leaking.output_keys
        depending = (operation for operation in operations if operation.input_keys & keys)
        for operation in itertools.islice(depending, _MAX_BETWEEN):
            divides = len(operation.input_keys) > 1 and _SCALED.fullmatch(operation.kind) is not None
            is_scaled |= divides and (not has_rows or operation.outputs[0][1].shape == leaking.input_shape)
            if is_scaled and (_ROUNDED.fullmatch(operation.kind) or _SMALL_TYPE.fullmatch(operation.input_type)):
                return True
            keys |= operation.output_keys
        return False

    def _rule_of_unused(self, leak: Leak) -> Cause | None:
        """The cause of a model whose answers do not depend on the lengths or the mask; None if they do.

        None also for a model that takes neither, as one of Keras, which makes its mask itself. If the operator of the
        leak has a rule of its own, that rule stays, with this reason added.
        """
        base = completed(self.baseline.batch, self.subject.steps)  # what stands beside the steps stays
        names, logits = self.subject.names, self.baseline.answer.logits
        other_lengths = (np.full_like(base.lengths, base.width), base.lengths[::-1].copy())
        if (
            names.is_to_add
            or names.fix is not None
            or not all(
                np.array_equal(logits, self.subject.answer(replace(base, lengths=lengths)).logits, equal_nan=True)
                for lengths in other_lengths
            )
        ):
            return None
        unused = rules()["LW107"].cause({"second": names.lengths_or_mask}, fix=leak.cause.fix)
        if leak.cause.code.startswith(("LW1", "LW9")):
            return unused
        return replace(leak.cause, why=f"{leak.cause.why} {unused.why}")


def _with_any_padding(subject: Subject) -> Subject:
    """The model without the id that callers always write into padding, so that any id may be padding in its batches."""
    layout = subject.layout
    return subject if layout.pad_id is None else subject.with_layout(replace(layout, pad_id=None))


def compared_ids(subject: Subject, base: PaddedBatch) -> Iterator[ComparedId]:
    """Yields the ids with which a model of tokens compares its steps. Yields none for a model of values.

    They are found in the run of one batch, as wide as `base`, whose steps and padding are the lowest and the highest
    `_PROBED` ids of the vocabulary: a tensor of booleans that is true, or false, at one of these ids only is a
    comparison with it.
    """
    subject, vocabulary = _with_any_padding(subject), subject.steps.vocabulary or 0
    if subject.steps.kind != "tokens" or subject.layout.packed is not None:
        return
    # 1. The batch: the first row is as long as the width, the others half as long, so that the lengths differ
    lowest, highest = range(min(vocabulary, _PROBED)), range(max(vocabulary - _PROBED, 0), vocabulary)
    ids = np.unique([*lowest, *highest]).astype(np.int64)
    rows = max(-(-len(ids) // base.width), 2)
    lengths = np.full(rows, max(base.width // 2, 1), dtype=np.int32)
    lengths[0] = base.width
    batch = PaddedBatch(np.resize(ids, (rows, base.width)), lengths)
    # 2. Its run
    arranged = subject.layout.arrange(batch).steps
    with suppress(RunError):
        for operation in subject.record(batch).operations:
            for _, value in operation.outputs:
                if (number := _compared_id(value, arranged)) is not None:
                    yield ComparedId(number, operation)


def padding_id_of(
    subject: Subject, baseline: Baseline, ids: Sequence[ComparedId], failed: Sequence[FailedTrial], tolerance: float
) -> ComparedId | None:
    """The first of `ids` by which the model recognises padding; None if there is none.

    With this id as padding, all answers are the unbatched ones. Or the padding is in front, and the only answers that
    changed are those of rows that have this id at every valid step: their positions move with the width, so the
    operators do not say why. None if neither such rows nor padding changed an answer.
    """
    base, subject = baseline.batch, _with_any_padding(subject)
    with_rows_of = {trials.ROWS_OF_ID.format(compared.number): compared for compared in ids}
    names = {failed_trial.trial.name for failed_trial in failed}
    if names and names <= with_rows_of.keys() and not subject.layout.is_right_padded:
        return with_rows_of[failed[0].trial.name]
    if {failed_trial.trial.change for failed_trial in failed if failed_trial.base is base} <= _OF_OTHER_ROWS:
        return None
    for compared in ids:
        with suppress(RunError):
            filled = trials.with_padding_filled(base, np.int64(compared.number))
            filled_baseline = replace(baseline, answer=subject.answer(filled))
            unbatched = [subject.answer(pad([steps], multiple=1)) for steps in baseline.sequences]
            if all(filled_baseline.row_difference(answer, row, 0) <= tolerance for row, answer in enumerate(unbatched)):
                return compared
    return None


def unread_steps(subject: Subject, baseline: Baseline) -> str | None:
    """A note if no answer depends on the last step of its sequence, and some depend on a middle one; otherwise None.

    The lengths are consecutive, because a stride leaves out the last step of some.
    """
    sampler = Sampler(subject.steps, seed=1)
    sequences = [sampler.sequence(length) for length in range(len(baseline.sequences[0]), _MIN_STEPS, -1)]
    if not sequences:
        return None
    batch, rows = completed(pad(sequences, width=baseline.batch.width), subject.steps), range(len(sequences))
    reads_middle = False
    with suppress(RunError):
        for scale, is_constant in itertools.product((1.0, *trials.JUNK_SCALES.values()), (False, True)):
            steps, (value, other) = batch.steps.copy(), sampler.fill((2, len(rows)), scale)
            steps[...] = value[:, None] if is_constant else steps
            # The middle step and the last one are equal, so that a change of either gives the same steps, in another
            # order: an extremum or a count moves with both or with neither.
            answers = []
            for indices in (None, batch.lengths // 2, batch.lengths - 1):
                changed = steps.copy()
                changed[rows, batch.lengths // 2] = changed[rows, batch.lengths - 1] = value
                if indices is not None:
                    changed[rows, indices] = other
                answers.append(subject.answer(replace(batch, steps=changed)))
            base = Baseline(sequences, batch, answers[0])
            reads_middle |= base.largest_difference(answers[1]) > 0.0
            if base.largest_difference(answers[2]) > 0.0:
                return None
        return f"LW210: {rules()['LW210'].why}" if reads_middle else None
    return None


def unread_static(subject: Subject, baseline: Baseline) -> str | None:
    """A note if other static values move no answer; None if they do, or the model takes none."""
    if subject.steps.static is None:
        return None
    answer = subject.answer(with_other_static(baseline.batch, subject.steps))
    is_read = baseline.largest_difference(answer) > 0.0
    return None if is_read else "the static values move no answer: other values beside the same sequences change none"


def _compared_id(marks_tensor: NDArray[Any], steps: NDArray[Any]) -> int | None:
    """The id with which a tensor compares the steps: it is true at this id only, or false at this id only.

    None if there is no such id, or the tensor does not have one boolean for each of `steps [rows, width]`.
    """
    if marks_tensor.dtype != bool or marks_tensor.size != steps.size:
        return None
    is_time_first = marks_tensor.shape[0] == steps.shape[1]
    marks = marks_tensor.reshape(steps.shape[::-1]).T if is_time_first else marks_tensor.reshape(steps.shape)
    for marked in (marks, ~marks):
        numbers = np.unique(steps[marked])
        if len(numbers) == 1 and (steps == numbers[0]).sum() == marked.sum():
            return int(numbers[0])
    return None


def dropped_id(subject: Subject, baseline: Baseline, ids: Sequence[ComparedId], tolerance: float) -> Leak | None:
    """The leak of a model that takes valid steps with one of `ids` for padding, whatever the lengths say; None if none.

    It is found with one sequence that does not have the id: its answer does not change if a step with that id is
    appended, and changes if a step with another id is. If the second change is less than `_SMALL` times the first, it
    says nothing: in a model with small random weights, for example, answers hardly depend on the last step.
    """
    for compared in ids:
        number, vocabulary = compared.number, subject.steps.vocabulary or 1
        steps = np.where(baseline.sequences[0] == number, (number + 1) % vocabulary, baseline.sequences[0])
        other_id = next((step for step in steps if step != steps[-1]), (number + 2) % vocabulary)
        with suppress(RunError):
            sequences = (steps, np.append(steps, number), np.append(steps, other_id))
            answer, answer_with_id, answer_with_other = (
                subject.answer(pad([sequence], multiple=1)).logits[0] for sequence in sequences
            )
            valid = slice(len(steps)) if answer.ndim == 2 else slice(None)
            difference = relative_difference(answer, answer_with_other[valid])
            by_id = relative_difference(answer, answer_with_id[valid])
            if by_id <= tolerance < difference and _SMALL * by_id <= difference:
                at, cause = compared.operation, rules()["LW106"].cause({"id": compared})
                return Leak(at.operator, at.kind, at.location, cause, None, difference, f"a last step of id {number}")
    return None

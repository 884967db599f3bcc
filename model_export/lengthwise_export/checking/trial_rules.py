"""The rules that the trials of a leaking model show: what its code does, where the operator alone does not say it.

The operator and its line stay those of the leak; its rule is replaced where the trials say more: which batches go
another way through the code, what a mask is made of, and whether it is the right way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, pad
from lengthwise_export.checking import axes, trials
from lengthwise_export.checking.baseline import Baseline, relative_difference
from lengthwise_export.checking.leaks import FailedTrial, Leak, aligned
from lengthwise_export.checking.recording import Operation, Subject
from lengthwise_export.checking.rule import Cause, rules
from lengthwise_export.checking.trials import Geometry, Pairing, Sampler
from lengthwise_export.errors import RunError

_BLOCKS: Final = (128, 64, 32, 16, 8)
_OF_WINDOWS: Final = ("LW208", "LW402")  # a stride may make a path for multiples by itself
_ATTENTION: Final = re.compile(r"(log_?)?softmax|.*attention.*", re.IGNORECASE)
_LARGEST: Final = re.compile(r"(reduce)?a?max|aminmax|maximum", re.IGNORECASE)
_ROUNDED: Final = re.compile(r"round_?|.*quantize.*", re.IGNORECASE)
_MAX_BETWEEN: Final = 8  # at most this many operations between a largest value and what is rounded with it
_MASKED: Final = frozenset({"LW101", "LW102", "LW201", "LW202", "LW203", "LW205", "LW802"})
"""Rules of operators that read all steps but those that a mask leaves out."""
_OF_THE_MODEL: Final = frozenset({"LW104", "LW106", "LW107", "LW804"})
"""Rules of what a model does with all batches of a kind, wherever that shows."""
_OF_OTHER_ROWS: Final = frozenset({"neighbours", "order", "lengths"})
"""Changes that leave the padding as it is."""
_LEAST_STEPS: Final = 3  # shorter sequences have no middle
_PROBED: Final = 512  # so many of the lowest, and of the highest, ids are looked for


@dataclass(frozen=True, slots=True)
class ComparedId:
    """An id that a model compares its steps with, and where."""

    number: int
    at: Operation

    def __str__(self) -> str:
        """`id 0 (ne at model.py:12)`."""
        return f"id {self.number} ({self.at.operator}{'' if self.at.location is None else f' at {self.at.location}'})"


@dataclass(frozen=True, slots=True)
class TrialRules:
    """A leaking model: its baseline, and the trials in which answers changed."""

    subject: Subject
    first: Baseline
    failed: Sequence[FailedTrial]
    tolerance: float
    padding_id: ComparedId | None = None  # The id by which the model recognises padding

    def applied(self, leaks: Sequence[Leak]) -> Iterator[Leak]:
        """The leaks, with the rules that the trials show. Each cause is there once."""
        known: set[tuple[str, str]] = set()
        for leak in leaks:
            with suppress(RunError):
                packed = self.subject.layout.packed is not None  # then its borders have rules of their own
                leak = leak if packed else replace(leak, cause=self._cause(leak) or leak.cause)
            where = leak.operator if leak.location is None else str(leak.location)
            at = (leak.code, "" if leak.code in _OF_THE_MODEL else where)
            if at not in known:
                yield leak
            known.add(at)

    def _cause(self, leak: Leak) -> Cause | None:
        """The rule that the trials show for a leak; None for that of its operator."""
        failed = next((one for one in self.failed if leak.trial in (one.nan_with, one.trial.name)), None)
        if failed is None:
            return None
        if self._is_of_equal_lengths():
            return rules()["LW104"].cause(fix=leak.cause.fix)
        if (widths := self._of_blocks()) and leak.cause.code not in _OF_WINDOWS:
            return rules()["LW804"].cause({"widths": ", ".join(map(str, widths))}, fix=leak.cause.fix)
        if failed.nan_with:
            return rules()["LW108"].cause(fix=leak.cause.fix) if _ATTENTION.fullmatch(leak.kind) else None
        if self.padding_id is not None:
            return rules()["LW106"].cause({"id": self.padding_id}, fix=leak.cause.fix)
        if leak.cause.code in _MASKED and self._reads_padding_only(leak, failed.base):
            return rules()["LW105"].cause(fix=leak.cause.fix)
        if _LARGEST.fullmatch(leak.kind) and self._scales(leak, failed.base):
            return rules()["LW504"].cause(fix="")
        return self._unused(leak)

    def _is_of_equal_lengths(self) -> bool:
        """Whether answers change only with batches of one length, several rows among them."""

        def rows_of_one_length(batch: PaddedBatch) -> int:
            return batch.rows if batch.lengths.min() == batch.lengths.max() else 0

        rows = [(max(map(rows_of_one_length, (one.base, one.trial.batch))), one.is_ordinary) for one in self.failed]
        return all(count for count, _ in rows) and any(count > 1 and is_ordinary for count, is_ordinary in rows)

    def _of_blocks(self) -> list[int]:
        """The widths at which answers change, if all are multiples of a block; else none."""
        own = self.first.batch.width
        widths = [{one.base.width, one.trial.batch.width} - {own} for one in self.failed]
        for block in _BLOCKS:
            whole = [{width for width in pair if width % block == 0} for pair in widths]
            if own % block and all(whole):
                return sorted(set().union(*whole))
        return []

    def _reads_padding_only(self, leak: Leak, base: PaddedBatch) -> bool:
        """Whether the output of a leak for one step moves with the padding, and not with the other valid steps."""
        layout, sampler = self.subject.layout, Sampler(self.subject.steps, seed=len(base.lengths))
        drawn = sampler.fill(base.steps.shape[:2], trials.JUNK["junk"])
        padded = trials.with_padding_filled(base, drawn)
        others = trials.with_padding_filled(PaddedBatch(drawn, base.lengths), base.steps).steps
        # The step of each row that is where the only step of a row of one would be
        kept = layout.starts(np.ones_like(base.lengths), base.width) - layout.starts(base.lengths, base.width)
        others[range(base.rows), kept] = base.steps[range(base.rows), kept]
        before, *after = (self.subject.record(one) for one in (base, padded, PaddedBatch(others, base.lengths)))
        one_step = Geometry((1,) * base.rows, base.width, layout)
        rows = tuple((row, row) for row, length in enumerate(base.lengths) if length > 1)
        pairing = Pairing(one_step, one_step, rows, self.subject.sizes)
        by_padding, by_others = (
            [
                # No reading may take padding in front for the steps
                axes.difference(mine, other, pairing, of_any_reading=not layout.is_usual)
                for one, same in aligned(before.operations, run.operations)
                if (one.operator, one.kind, one.location) == (leak.operator, leak.kind, leak.location)
                for (_, mine), (_, other) in zip(one.outputs, same.outputs, strict=False)
            ]
            for run in after
        )
        return any(by_padding) and all(apart == 0.0 for apart in by_others)

    def _scales(self, leak: Leak, base: PaddedBatch) -> bool:
        """Whether something is rounded by what comes out of a leak, as activations are by their largest value."""
        operations = iter(self.subject.record(base).operations)
        keys = next((one.output_keys for one in operations if one.operator == leak.operator), frozenset())
        for _, one in zip(range(_MAX_BETWEEN), (one for one in operations if one.input_keys & keys), strict=False):
            if _ROUNDED.fullmatch(one.kind):
                return True
            keys |= one.output_keys
        return False

    def _unused(self, leak: Leak) -> Cause | None:
        """The rule of lengths or a mask that no answer depends on; of an operator with a rule of its own, that one."""
        base, names = self.first.batch, self.subject.names
        others = (np.full_like(base.lengths, base.width), base.lengths[::-1].copy())
        answers = [self.subject.answer(PaddedBatch(base.steps, lengths)).logits for lengths in others]
        if not all(np.array_equal(self.first.answer.logits, one, equal_nan=True) for one in answers):
            return None
        unused = rules()["LW107"].cause({"second": names.lengths_or_mask}, fix=leak.cause.fix)
        if leak.cause.code.startswith(("LW1", "LW9")):
            return unused
        return replace(leak.cause, why=f"{leak.cause.why} {unused.why}")


def _with_any_padding(subject: Subject) -> Subject:
    """The model with batches as they are, whatever id callers write into padding."""
    layout = subject.layout
    return subject if layout.pad_id is None else subject.with_layout(replace(layout, pad_id=None))


def compared_ids(subject: Subject, base: PaddedBatch) -> Iterator[ComparedId]:
    """The ids that a model of tokens compares its steps with, as far as a batch of many ids shows them."""
    subject, count = _with_any_padding(subject), subject.steps.vocabulary or 0
    if subject.steps.kind != "tokens" or subject.layout.packed is not None:
        return
    ids = np.unique([*range(min(count, _PROBED)), *range(max(count - _PROBED, 0), count)]).astype(np.int64)
    rows = -(-len(ids) // base.width)
    steps = np.resize(ids, (max(rows, 2), base.width))
    lengths = np.full(len(steps), max(base.width // 2, 1), dtype=np.int32)
    lengths[0] = base.width
    batch = PaddedBatch(steps, lengths)
    arranged = subject.layout.arrange(batch).steps
    with suppress(RunError):
        for operation in subject.record(batch).operations:
            for _, value in operation.outputs:
                if (number := _compared(value, arranged)) is not None:
                    yield ComparedId(number, operation)


def padding_id_of(
    subject: Subject, first: Baseline, compared_with: Sequence[ComparedId], failed: Sequence[FailedTrial], most: float
) -> ComparedId | None:
    """The id by which the model recognises padding: with it as padding, all answers are those of a row alone."""
    if {one.trial.change for one in failed} <= _OF_OTHER_ROWS:
        return None
    base, subject = first.batch, _with_any_padding(subject)
    for compared in compared_with:
        with suppress(RunError):
            filled = trials.with_padding_filled(base, np.int64(compared.number))
            again = replace(first, answer=subject.answer(filled))
            alone = [subject.answer(pad([steps], multiple=1)) for steps in first.sequences]
            if max(again.row_difference(answer, row, 0) for row, answer in enumerate(alone)) <= most:
                return compared
    return None


def unread_steps(subject: Subject, first: Baseline) -> str | None:
    """A note, if no answer moves with the last step of its sequence, and some do with a middle one; else None.

    The lengths are consecutive, because a stride leaves out the last step of some.
    """
    sampler = Sampler(subject.steps, seed=1)
    sequences = [sampler.sequence(length) for length in range(len(first.sequences[0]), _LEAST_STEPS, -1)]
    if not sequences:
        return None
    batch, rows = pad(sequences, width=first.batch.width), range(len(sequences))

    def moves(base: Baseline, at: list[int]) -> bool:
        for scale in trials.JUNK.values():
            steps = batch.steps.copy()
            steps[rows, at] = sampler.fill((len(sequences),), scale)
            if base.largest_difference(subject.answer(PaddedBatch(steps, batch.lengths))) > 0.0:
                return True
        return False

    with suppress(RunError):
        base = Baseline(sequences, batch, subject.answer(batch))
        if not moves(base, [len(own) - 1 for own in sequences]) and moves(base, [len(own) // 2 for own in sequences]):
            return f"LW210: {rules()['LW210'].why}"
    return None


def _compared(value: NDArray[Any], steps: NDArray[Any]) -> int | None:
    """The id at which alone a tensor of truth values is true, or false; None if there is none."""
    if value.dtype != bool or value.size != steps.size:
        return None
    marks = value.reshape(steps.shape) if value.shape[0] != steps.shape[1] else value.reshape(steps.shape[::-1]).T
    for marked in (marks, ~marks):
        numbers = np.unique(steps[marked])
        if len(numbers) == 1 and (steps == numbers[0]).sum() == marked.sum():
            return int(numbers[0])
    return None


def dropped_id(subject: Subject, first: Baseline, compared_with: Sequence[ComparedId], tolerance: float) -> Leak | None:
    """A leak of a model that takes a valid step of some id for padding, whatever the lengths say; None if it is none.

    Its answer does not move when a step of that id comes behind a sequence, and moves with a step of another id.
    """
    for compared in compared_with:
        number, vocabulary = compared.number, subject.steps.vocabulary or 1
        steps = np.where(first.sequences[0] == number, (number + 1) % vocabulary, first.sequences[0])
        other = next((own for own in steps if own != steps[-1]), (number + 2) % vocabulary)
        with suppress(RunError):
            longer = [pad([np.append(steps, last)], multiple=1) for last in (number, other)]
            alone, same, moved = (subject.answer(one).logits[0] for one in (pad([steps], multiple=1), *longer))
            along = slice(len(steps)) if alone.ndim == 2 else slice(None)
            apart = relative_difference(alone, moved[along])
            if relative_difference(alone, same[along]) <= tolerance < apart:
                at, cause = compared.at, rules()["LW106"].cause({"id": compared})
                return Leak(at.operator, at.kind, at.location, cause, None, apart, f"a last step of id {number}")
    return None

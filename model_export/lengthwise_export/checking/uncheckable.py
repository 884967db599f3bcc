"""Why a model cannot be judged: frozen axes, an order of rows that it demands, sequences wanted at the row's end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise_export.checking import axes
from lengthwise_export.checking.baseline import Baseline
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import BatchSizes, CheckTrial, Sampler
from lengthwise_export.errors import RunError, UncheckableError

_MOST_ROWS, _LARGEST_WIDTH = 64, 128
"""How far a frozen axis is searched for."""
_LARGEST_SUGGESTED, _MOST_SUGGESTED = 8192, 64
"""Likewise, among the widths that the sizes of weights suggest."""
_MOST_NAMED = 8


def runs(subject: Subject, batch: PaddedBatch) -> bool:
    """Whether a model answers a batch at all."""
    try:
        subject.answer(batch)
    except RunError:
        return False
    return True


def why_it_raises(subject: Subject, sequences: Sequence[Steps], width: int, error: RunError) -> UncheckableError:
    """Why not even the first batch runs: a frozen axis, lengths that differ, or whatever the model says."""
    if runs(subject, pad(sequences, multiple=1)):
        return UncheckableError(
            f"the model raises where a batch is wider than its longest sequence ({error}): take the width from the "
            "tensor (x.size(1)) and not from lengths.max(), and give pad_packed_sequence total_length=x.size(1)"
        )
    good = [size for size in range(1, _MOST_ROWS + 1) if runs(subject, pad([sequences[0]] * size, width=width))]
    if len(good) == 1:
        return _frozen("rows", good[0], error)
    if len(sequences) in good:
        return lengths_may_not_differ(len(sequences), error)
    sampler = Sampler(subject.steps, seed=0)
    good = widths_at_which_it_runs(subject, sampler, rows=len(sequences))
    if len(good) == 1:
        return _frozen("width", good[0], error)
    common = math.gcd(*good)
    if common > 1 and len(good) > 2:
        return UncheckableError(
            f"the model runs only at widths that are multiples of {common}, and raises at {width} ({error}): pad to "
            "whole chunks in forward, so that it takes every width"
        )
    ran = f"; it runs at widths of {_listed(good)}" if good else ""
    return UncheckableError(
        f"the model raises for a batch of {len(sequences)} rows and a width of {width}{ran}: {error}"
    )


def lengths_may_not_differ(rows: int, error: RunError) -> UncheckableError:
    """What is said of a model that runs where so many rows are of one length, and raises where they are not."""
    return UncheckableError(
        f"the model takes {rows} rows of one length, and raises where the lengths differ within a batch: {error}"
    )


def widths_at_which_it_runs(subject: Subject, sampler: Sampler, *, rows: int = 2) -> list[int]:
    """The widths up to a bound at which full rows run, and beyond it those that its weights' sizes suggest.

    A module that flattens all steps has a layer of width x channels inputs.
    """
    sizes = sorted(subject.sizes)
    suggested = {
        large // small * times
        for large in sizes
        for small in sizes
        for times in (1, 2, 4)
        if large % small == 0 and _LARGEST_WIDTH < large // small * times <= _LARGEST_SUGGESTED
    }
    return [
        size
        for size in (*range(1, _LARGEST_WIDTH + 1), *sorted(suggested)[:_MOST_SUGGESTED])
        if runs(subject, pad([sampler.sequence(size)] * rows, width=size))
    ]


def _frozen(axis: str, size: int, error: RunError) -> UncheckableError:
    return UncheckableError(
        f"the model takes batches of one size only: {axis} is frozen at {size} ({error}); make it from the tensor's "
        "own shape"
    )


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:_MOST_NAMED])) + (", ..." if len(sizes) > _MOST_NAMED else "")


def why_it_raises_for(first: Baseline, trial: CheckTrial, error: RunError) -> UncheckableError:
    """Why the first batch runs and a trial's does not."""
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


def refuse_other_contracts(
    subject: Subject,
    first: Baseline,
    moved: Sequence[CheckTrial],
    sizes: BatchSizes,
    sampler: Sampler,
    tolerance: float,
) -> None:
    """Refuses what is no leak but another contract.

    Args:
        subject: The model.
        first: The first answer.
        moved: The trials with finite padding in which an answer moved.
        sizes: Of the check's batches.
        sampler: Makes what stands before a sequence at the row's end.
        tolerance: What an answer may move by.

    Raises:
        UncheckableError: The model demands sorted rows, or wants left padding.
    """
    only_order = all(trial.change == "order" for trial in moved)
    if only_order and not _are_rows_exchanged(subject, first, moved[0], tolerance):
        raise UncheckableError(
            "the model demands an order of the rows (sorted by length, the longest first): it answers otherwise when "
            "the first row is not the longest"
        )
    # Steps of zeros behind a sequence are no sequence to a model that looks for it at the end.
    if any(trial.change in ("width", "company") for trial in moved) and all(
        _is_right_at_the_end(subject, first, width, sampler, tolerance) for width in (sizes.width, sizes.wider)
    ):
        raise UncheckableError(
            "the model wants left padding (each sequence at the end of its row); Lengthwise pads behind a sequence: "
            "take positions and masks from the start of the row"
        )


def _are_rows_exchanged(subject: Subject, first: Baseline, trial: CheckTrial, tolerance: float) -> bool:
    """Whether every answer of a batch in another order is right, but another row's: a leak, and no contract."""
    answers = subject.answer(trial.batch).logits
    return all(min(axes.gap(mine, other) for other in answers) <= tolerance for mine in first.answer.logits)


def _is_right_at_the_end(subject: Subject, first: Baseline, width: int, sampler: Sampler, tolerance: float) -> bool:
    """Whether sequences at the end of their rows get the answers that they get alone, because of their lengths."""
    steps = sampler.fill((first.batch.rows, width), 3.0)
    for row, sequence in zip(steps, first.sequences, strict=True):
        row[width - len(sequence) :] = sequence
    longer = np.minimum(first.batch.lengths + 2, width).astype(np.int32)
    try:
        alone = [subject.answer(pad([sequence], multiple=1)).logits[0] for sequence in first.sequences]
        at_the_end = subject.answer_left(PaddedBatch(steps, first.batch.lengths)).logits
        noticed = subject.answer_left(PaddedBatch(steps, longer)).logits
    except RunError:
        return False
    # A model that reads backwards and knows no lengths is right as well, and does not notice other lengths.
    return _gap_at_the_end(alone, at_the_end) <= tolerance < _gap_at_the_end(alone, noticed)


def _gap_at_the_end(alone: Sequence[NDArray[np.float32]], answers: NDArray[np.float32]) -> float:
    """How far answers lie from those alone; of answers a step, the last are the sequence's."""
    return max(
        axes.gap(expected, answer[-len(expected) :] if expected.ndim == 2 else answer)
        for expected, answer in zip(alone, answers, strict=True)
    )

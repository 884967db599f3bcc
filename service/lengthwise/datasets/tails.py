"""Finds and cuts padding in data that arrives: equal steps at the end of sequences that are equally long.

Only a length says where a sequence ends, and a step of zeros is data. So `doubts` only warns of what looks like
padding, and `without_padding` cuts it off where the caller says what padding is.

A *tail* is the run of equal steps at the end of a row: `1 2 3 0 0` has the tail `0 0`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import Steps

if TYPE_CHECKING:
    from lengthwise.datasets.input_sequences import InputSequence, Padding
    from lengthwise.datasets.record_fields import Record

T = TypeVar("T", "Record", "InputSequence")

_MOST_VALUES: Final = 4_000_000  # numbers that `doubts` reads
_MOST_SEQUENCES: Final = 1000  # sequences that `doubts` reads
_MOST: Final = 0.5  # share of the padded rows
_NEARLY_ALL: Final = 0.9  # share of the sequences that have one length
_KNOWN: Final[Mapping[tuple[str, ...], tuple[str, str | None]]] = {
    ("0",): ("zeros", "zeros"),
    ("nan",): ("missing values", "nan"),
}
"""By the different values of a step, as texts: the name of such steps, and the `Padding` that cuts them off."""
_MOST_SHOWN: Final = 4  # values in a message
_LONGER: Final = 4  # tails of padding are at least so many times as long as by chance
_LONGER_THAN_INSIDE: Final = 1.5  # and on average that much longer than the longest run before the tail


def without_padding(sequence: T, padding: Padding | None) -> T | str:
    """Cuts padded steps off the end of a sequence, and their labels and entries of its step mask.

    Returns the sequence as it is if `padding` is None; a text with the reason if no step would be left.
    """
    if padding is None:
        return sequence
    has_value = ~np.isnan(sequence.steps) if padding == "nan" else sequence.steps != 0
    value_steps = np.flatnonzero(has_value if has_value.ndim == 1 else has_value.any(axis=1))
    if not len(value_steps):
        return (
            f"each of its {len(sequence.steps)} steps is padding ({padding}), so no step is left: leave the sequence "
            "out"
        )
    length = value_steps[-1] + 1
    cut_fields: dict[str, Any] = {
        name: value[:length]
        for name in ("label", "step_mask")
        if isinstance(value := getattr(sequence, name, None), list | tuple) and len(value) == len(sequence.steps)
    }
    return replace(sequence, steps=sequence.steps[:length], **cut_fields)


def doubts(sequences: Sequence[Steps]) -> Iterator[str]:
    """Yields a warning, as a sentence, if nearly all sequences look padded to one length: at their end, or beginning.

    They look padded if nearly all have the same length, and most of these end in equal steps. There is no warning
    - if the tails are equally long, too: then the sequences without them would be;
    - if such steps are frequent before the tails: then they are data.
    """
    sample = sequences[:_MOST_SEQUENCES]
    shape, count = Counter(sequence.shape for sequence in sample).most_common(1)[0] if len(sample) > 1 else ((0,), 0)
    if not shape[0] or count < max(2, _NEARLY_ALL * len(sample)):
        return
    # [sequences, length, features] of the sequences that have the usual length
    equally_long = [sequence for sequence in sample if sequence.shape == shape][
        : 2 + _MOST_VALUES // max(1, sample[0].size)
    ]
    block = np.stack(equally_long).reshape(len(equally_long), shape[0], -1)
    for side, edge, rows in (("end in", "last", block), ("begin with", "first", block[:, ::-1])):
        step, padded_rows = _find_padding(rows)
        # What such steps are called, and the option that cuts them off
        values = tuple(dict.fromkeys(f"{value:g}" for value in (() if step is None else step.tolist())))
        other_name = f"steps of {', '.join(values[:_MOST_SHOWN])}" if values else f"copies of their {edge} step"
        name, option = _KNOWN.get(values, (other_name, None))
        cure = "Leave such steps out: only its length says where a sequence ends"
        if option is not None and rows is block:
            cure = f"Such steps count as data: padding='{option}' (--padding {option}) cuts these tails off"
        if padded_rows:
            length_text = f"{'every' if count == len(sample) else 'nearly every'} sequence has {shape[0]} steps"
            yield f"{length_text}, and {padded_rows} of {len(equally_long)} {side} {name}: is this padding? {cure}"


def _find_padding(block: NDArray[Any]) -> tuple[NDArray[Any] | None, int]:
    """Looks for padding at the end of the rows of `block [rows, length, features]`.

    Rows are padded in one of two ways:

    1. Most rows end in the same step, and it looks like a filler: zeros, NaN, a constant.
    2. Most rows repeat their own last step, as padding by the last step does.

    Returns:
        The step that most rows end in, None if there is none; and how many rows are padded, 0 if this is no padding.
    """
    last = block[:, -1:] + 0.0  # -0.0 is 0.0
    texts = [row.tobytes() for row in last]
    common_text, padded_rows = Counter(texts).most_common(1)[0]
    step = last[texts.index(common_text), 0] if 2 * padded_rows > len(block) else None
    repeats = np.pad(_equal(block[:, 1:], block[:, :-1]), ((0, 0), (1, 0)))  # steps that equal the step before
    is_blank = step is not None and (not step.any() or bool(np.isnan(step).all()))
    # Zeros or NaN, a token id, one negative number for all features, or what a scaler made of one number
    is_filler = step is not None and bool(
        is_blank or block.dtype.kind in "iu" or (step == min(step[0], 0)).all() or (step % 1).all()
    )
    # Rows whose first two steps equal their last: a pulse that returns to rest, not padding
    starts_in_it = np.all(_equal(block[:, :2], last), axis=1)
    # 1. A common filler
    if step is not None and is_filler:
        rows = np.equal(texts, common_text)
        padded_rows = _count_padded(_equal(block, step)[rows], repeats[rows], len(block), may_be_inside=is_blank)
        if padded_rows or is_blank:
            return step, 0 if starts_in_it[rows].mean() > _MOST else padded_rows
    # 2. Repeated last steps, if rows do not just rest there
    repeating = repeats[:, -1]
    padded_rows = _count_padded(repeats[repeating], repeats[repeating], len(block), may_be_inside=True)
    if padded_rows and (starts_in_it[repeating].mean() > _MOST or _is_at_rest(block, step)):
        padded_rows = 0
    return step, padded_rows


def _is_at_rest(block: NDArray[Any], step: NDArray[Any] | None) -> bool:
    """Whether the rows reach their common last step by small moves: then it is a signal at rest, not padding.

    A signal that is cut off and padded jumps to the padding. `step` None, no common last step: False.
    """
    moves = np.nan_to_num(np.abs(np.diff(block, axis=1)).sum(axis=2))
    # the last move of each row that is not 0
    final = moves[np.arange(len(moves)), -1 - (moves[:, ::-1] > 0).argmax(axis=1)]
    return step is not None and bool(final.mean() < moves[moves > 0].mean())


def _equal(steps: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """`[rows, length]`: whether each step equals that of `others`, which is broadcast; NaN equals NaN."""
    return np.asarray(((steps == others) | (np.isnan(steps) & np.isnan(others))).all(axis=2))


def _count_padded(is_padding: NDArray[np.bool_], repeats: NDArray[np.bool_], count: int, *, may_be_inside: bool) -> int:
    """Decides by the lengths of the tails whether they are padding; returns how many rows are padded.

    These are all rows of `is_padding`, or 0 if the tails are no padding.

    Args:
        is_padding: `[rows, length]`, which steps equal the padding, of the rows that end in it.
        repeats: `[rows, length]`, which steps equal the step before, of the same rows.
        count: The number of all rows; most of them must end in the padding.
        may_be_inside: Whether a few such steps before the tails may be data.
    """
    if 2 * len(is_padding) <= count:
        return 0
    tails = np.where(is_padding.all(axis=1), is_padding.shape[1], is_padding[:, ::-1].argmin(axis=1))
    # The share of such steps before the tails: where they are frequent, a row ends in some of them by chance.
    frequency = float(is_padding.sum() - tails.sum()) / max(1, int((is_padding.shape[1] - tails).sum()))
    # Padding is longer than by chance, and longer than the runs of such steps in the signal.
    is_no_chance = not frequency or (may_be_inside and tails.mean() * (1 - frequency) > _LONGER * frequency)
    is_no_run = tails.mean() > _LONGER_THAN_INSIDE * _longest_runs(is_padding | repeats, tails).mean()
    # Tails of one length in all rows say nothing: the sequences before them are equally long, too.
    are_equally_long = len(is_padding) == count and len({*tails.tolist()}) == 1
    is_padded = is_no_chance and is_no_run and not are_equally_long and tails.max() > 1
    return len(is_padding) if is_padded else 0


def _longest_runs(is_padding: NDArray[np.bool_], tails: NDArray[np.intp]) -> NDArray[np.intp]:
    """`[rows]`: the length of the longest run of steps like padding before the tail of each row.

    A signal that has such runs within may end in one, too.
    """
    steps = np.arange(is_padding.shape[1])
    inside = is_padding & (steps < (is_padding.shape[1] - tails)[:, None])
    # `[rows, width]`: the index of the last step that is not in a run
    last_other = np.maximum.accumulate(np.where(inside, -1, steps), axis=1)
    return np.asarray(np.where(inside, steps - last_other, 0).max(axis=1))

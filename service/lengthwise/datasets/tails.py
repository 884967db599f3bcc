"""Padding in what comes: steps of zeros, without values, of one number, or repeated, behind sequences of one length.

Only a length says where a sequence ends, and a step of zeros is data. So `doubts` says what looks like padding, and
`without_padding` takes it off only where the caller names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import Steps

if TYPE_CHECKING:
    from lengthwise.datasets.input_sequences import InputSequence, Padding
    from lengthwise.datasets.record_fields import Record

T = TypeVar("T", "Record", "InputSequence")

_MOST_VALUES: Final = 4_000_000  # that are looked at, and
_MOST_SEQUENCES: Final = 1000
_MOST: Final = 0.5
_NEARLY_ALL: Final = 0.9  # of the sequences, which have one length
_KNOWN: Final = {"0": ("zeros", "zeros"), "nan": ("missing values", "nan")}  # values of a step: its name, its `Padding`
_MOST_SHOWN: Final = 4  # values in a message
_LONGER: Final = 4  # times as long as tails of such steps would be by chance, are those of padding
_LONGER_THAN_INSIDE: Final = 1.5  # tails of padding are, on average, that much longer than the longest run inside


def without_padding(one: T, padding: Padding | None) -> T | str:
    """A sequence without the padding at its end; or the reason, if no step is left."""
    if padding is None:
        return one
    has_value = ~np.isnan(one.steps) if padding == "nan" else one.steps != 0
    kept = np.flatnonzero(has_value if has_value.ndim == 1 else has_value.any(axis=1))
    if not len(kept):
        return f"each of its {len(one.steps)} steps is padding ({padding}), so no step is left: leave the sequence out"
    of_steps: dict[str, Any] = {
        name: value[: kept[-1] + 1]  # a mask, and labels of the steps
        for name in ("label", "step_mask")
        if isinstance(value := getattr(one, name, None), list | tuple) and len(value) == len(one.steps)
    }
    return replace(one, steps=one.steps[: kept[-1] + 1], **of_steps)


def doubts(sequences: Sequence[Steps]) -> Iterator[str]:
    """What looks like padding, as a sentence: most sequences end in equal steps, and nearly all are equally long.

    Nothing where the lengths without these steps would be equal too, and where such steps are frequent before the tail.
    """
    few = sequences[:_MOST_SEQUENCES]
    shape, count = Counter(one.shape for one in few).most_common(1)[0] if len(few) > 1 else ((0,), 0)
    if not shape[0] or count < max(2, _NEARLY_ALL * len(few)):
        return
    alike = [one for one in few if one.shape == shape][: 2 + _MOST_VALUES // max(1, few[0].size)]
    block = np.stack(alike).reshape(len(alike), shape[0], -1)
    for side, edge, turned in (("end in", "last", block), ("begin with", "first", block[:, ::-1])):
        step, number = _padded(turned)
        values = f"copies of their {edge} step"
        if step is not None:
            values = ", ".join([*dict.fromkeys(f"{value:g}" for value in step.tolist())][:_MOST_SHOWN])
        name, word = _KNOWN.get(values, (values if step is None else f"steps of {values}", None))
        cure = "Leave such steps out: only its length says where a sequence ends"
        if word is not None and turned is block:
            cure = f"Such steps count as data: padding='{word}' (--padding {word}) cuts these tails off"
        if number:
            which = f"{'every' if count == len(few) else 'nearly every'} sequence has {shape[0]} steps"
            yield f"{which}, and {number} of {len(alike)} {side} {name}: is this padding? {cure}"


def _padded(block: NDArray[Any]) -> tuple[NDArray[Any] | None, int]:
    """The last step of most of `[rows, length, features]`, and how many rows end in such padding; 0 if it is none.

    The step is None where rows repeat a last step of their own.
    """
    last = block[:, -1:] + 0.0  # -0.0 is 0.0
    texts = [row.tobytes() for row in last]
    text, number = Counter(texts).most_common(1)[0]
    step = last[texts.index(text), 0] if 2 * number > len(block) else None
    repeats = np.zeros(block.shape[:2], np.bool_)
    repeats[:, 1:] = _equal(block[:, 1:], block[:, :-1])
    is_blank = step is not None and (not step.any() or bool(np.isnan(step).all()))
    # An id, one number below 0 for all features, or what a scaler made of one number for each feature
    is_filler = step is not None and bool(
        is_blank or block.dtype.kind in "iu" or (step == min(step[0], 0)).all() or (step % 1).all()
    )
    rests = np.all(_equal(block[:, :2], last), axis=1)  # begins with the steps that it ends in, as a pulse does
    if step is not None and is_filler:
        rows = np.equal(texts, text)
        number = _tails(_equal(block, step)[rows], repeats[rows], len(block), may_be_inside=is_blank)
        if number or is_blank:
            return step, 0 if rests[rows].mean() > _MOST else number
    repeating = repeats[:, -1]
    number = _tails(repeats[repeating], repeats[repeating], len(block), may_be_inside=True)
    return step, 0 if number == 0 or rests[repeating].mean() > _MOST or _settles(block, step) else number


def _settles(block: NDArray[Any], step: NDArray[Any] | None) -> bool:
    """Whether rows come to the common last step in moves of usual size: then it is a signal at rest, not padding."""
    moves = np.nan_to_num(np.abs(np.diff(block, axis=1)).sum(axis=2))
    final = moves[np.arange(len(moves)), -1 - (moves[:, ::-1] > 0).argmax(axis=1)]
    return step is not None and bool(final.mean() < moves[moves > 0].mean())


def _equal(steps: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """`[rows, length]`, whether steps are equal."""
    same: NDArray[np.bool_] = ((steps == others) | (np.isnan(steps) & np.isnan(others))).all(axis=2)
    return same


def _tails(same: NDArray[np.bool_], repeats: NDArray[np.bool_], count: int, *, may_be_inside: bool) -> int:
    """How many of `count` rows end in steps that look like padding.

    `same`, `[rows, length]`: which steps may be padding, in the rows that end in one. `repeats`: which repeat the
    step before.
    """
    if 2 * len(same) <= count:
        return 0
    tails = np.where(same.all(axis=1), same.shape[1], same[:, ::-1].argmin(axis=1))
    # The share of such steps before the tails: where they are frequent, tails of some steps are nothing special
    frequent = float(same.sum() - tails.sum()) / max(1, int((same.shape[1] - tails).sum()))
    is_special = not frequent or (may_be_inside and tails.mean() * (1 - frequent) > _LONGER * frequent)
    are_alike = len(same) == count and len({*tails.tolist()}) == 1
    is_special = is_special and tails.mean() > _LONGER_THAN_INSIDE * _longest_runs(same | repeats, tails).mean()
    return len(same) if is_special and not are_alike and tails.max() > 1 else 0


def _longest_runs(same: NDArray[np.bool_], tails: NDArray[np.intp]) -> NDArray[np.intp]:
    """`[rows]`: the longest run of such steps before the tail of each row. Signals have them inside, too."""
    steps = np.arange(same.shape[1])
    inside = same & (steps < (same.shape[1] - tails)[:, None])
    before = np.maximum.accumulate(np.where(inside, -1, steps), axis=1)
    longest: NDArray[np.intp] = ((steps - before) * inside).max(axis=1)
    return longest

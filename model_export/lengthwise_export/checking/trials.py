"""The batches of a check: the same sequences, padded and accompanied in every way that must make no difference.

Lengths differ within a batch, none fills the width, 1 occurs, and so do genuine steps of zeros, in the middle of a
sequence and at the end of one: a model that guesses lengths from zeros is caught by them. The longest sequence comes
first, so that a model that sorts its rows leaves them where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.axes import Geometry

Change = Literal["padding", "neighbours", "width", "order", "lengths", "company", "poison"]
"""What a trial changes: padding's values, the other rows, the width, the rows' order, the other rows' lengths, all
company at once, or padding to values that are not finite or overflow (what only these show is a warning)."""

CHANGES: Final[tuple[Change, ...]] = get_args(Change)
"""The changes in the order in which they tell most: the first ones leave every shape as it is."""

POISONS: Final = {"NaN": np.nan, "Inf": np.inf, "-Inf": -np.inf, "1e30": 1e30, "-1e30": -1e30}
JUNK: Final = {"junk": 3.0, "large junk": 1000.0}
"""The scale of each junk."""

_MOST_FEWER: Final = 5
"""Rows in the largest of the batches of fewer rows."""
_LEFT_OVER: Final = 3
"""Steps of padding behind the longest sequence that is tried."""


@dataclass(frozen=True, slots=True)
class CheckTrial:
    """A batch that holds sequences of the first batch, and must be answered alike for them.

    Attributes:
        name: What was changed, for people.
        change: What kind of change that is.
        batch: The changed batch.
        rows: Which row of the first batch is which of this one.
    """

    name: str
    change: Change
    batch: PaddedBatch
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """The number of rows and steps of a check's batches; all primes that occur nowhere in the model.

    Attributes:
        rows: Of the first batch.
        longest: Its longest length.
        width: Its width.
        wider: The width of those that are padded wider.
    """

    rows: int
    longest: int
    width: int
    wider: int


def sizes_apart_from(taken: frozenset[int], *, shortest: int = 1, longest_allowed: int) -> BatchSizes:
    """Sizes that none of `taken` can be mistaken for.

    Args:
        taken: The sizes in the model's weights.
        shortest: The narrowest batch that the model takes.
        longest_allowed: The widest; where hardly any prime lies between, the sizes are what fits.
    """
    primes = [size for size in _PRIMES if size not in taken]
    rows = primes[0]
    steps = [size for size in primes[1:] if shortest <= size <= longest_allowed]
    if len(steps) >= 3:
        # The shortest that leave something between one another, for a small model of long steps to stay quick.
        return BatchSizes(rows, steps[0], steps[min(2, len(steps) - 2)], steps[min(4, len(steps) - 1)])
    longest = max(longest_allowed - 2, min(2, longest_allowed))
    width = max(longest_allowed - 1, longest)
    return BatchSizes(rows, longest, width, max(longest_allowed, width))


_PRIMES: Final = tuple(
    size for size in range(7, 1000) if all(size % factor for factor in range(2, 32) if factor < size)
)


class Sampler:
    """Makes sequences of what one step is; the same ones for the same seed."""

    def __init__(self, steps: StepInput, seed: int) -> None:
        """Takes what one step is, and a seed."""
        self._steps = steps
        self._random = np.random.default_rng(seed)

    def sequence(self, length: int) -> Steps:
        """`[length, features]` float32, or `[length]` token ids; from 3 steps on, the middle one is zeros."""
        values = self._draw((length,), 1.0)
        if length >= 3:
            values[length // 2] = 0
        return values

    def fill(self, shape: Sequence[int], scale: float) -> Steps:
        """Junk for padding of `[rows, width]` steps."""
        return self._draw(shape, scale)

    def _draw(self, shape: Sequence[int], scale: float) -> Steps:
        if self._steps.kind == "tokens":
            return self._random.integers(0, self._steps.vocabulary or 1, size=tuple(shape), dtype=np.int64)
        drawn = self._random.normal(scale=scale, size=(*shape, self._steps.features or 0))
        return drawn.astype(np.float32)

    def order(self, rows: int) -> list[int]:
        """An order of rows in which none keeps its place where that is possible."""
        return [*np.roll(np.arange(rows), int(self._random.integers(1, max(rows, 2))))]


def base_sequences(sampler: Sampler, sizes: BatchSizes) -> list[Steps]:
    """The first batch's sequences, the longest first, the shortest of one step; the second ends in a step of zeros."""
    shares = np.linspace(sizes.longest, 1, sizes.rows)
    sequences = [sampler.sequence(round(length)) for length in shares]
    if len(sequences) > 2 and len(sequences[1]) > 1:
        sequences[1][-1] = 0
    return sequences


def geometry(batch: PaddedBatch) -> Geometry:
    """The sizes of a batch."""
    return Geometry(tuple(int(length) for length in batch.lengths), batch.width)


def trials(sequences: Sequence[Steps], sizes: BatchSizes, sampler: Sampler) -> Iterator[CheckTrial]:
    """Everything that is tried with the first batch's sequences, the changes that leave its shape alone first."""
    rows = len(sequences)
    same = tuple((row, row) for row in range(rows))
    kept = tuple((row, row) for row in range(0, rows, 2))
    base = pad(sequences, width=sizes.width)
    for name, scale in JUNK.items():
        yield CheckTrial(
            f"{name} in the padding", "padding", _filled(base, sampler.fill(base.steps.shape[:2], scale)), same
        )
    yield CheckTrial("another row's steps in the padding", "padding", _filled(base, _overlong(base)), same)
    yield CheckTrial("padded wider", "width", pad(sequences, width=sizes.wider), same)
    yield CheckTrial("padded one step wider", "width", pad(sequences, width=min(sizes.width + 1, sizes.wider)), same)
    yield CheckTrial("padded to the longest only", "width", pad(sequences, width=len(sequences[0])), same)
    strangers = [steps if row % 2 == 0 else sampler.sequence(len(steps)) for row, steps in enumerate(sequences)]
    yield CheckTrial("neighbours replaced", "neighbours", pad(strangers, width=sizes.width), kept)
    loud = [steps if row % 2 == 0 else _louder(strangers[row]) for row, steps in enumerate(sequences)]
    yield CheckTrial("neighbours replaced by larger ones", "neighbours", pad(loud, width=sizes.width), kept)
    turned = [(row, rows - 1 - row) for row in range(rows)]
    upside_down = pad(sequences[::-1], width=sizes.width)
    yield CheckTrial("rows in another order", "order", upside_down, tuple(turned))
    order = sampler.order(rows)
    shuffled = pad([sequences[row] for row in order], width=sizes.width)
    yield CheckTrial("rows shuffled", "order", shuffled, tuple((row, place) for place, row in enumerate(order)))
    # The first row is replaced as well, so that the longest length is another one.
    others = [
        sampler.sequence(min(len(steps) + 2, sizes.longest)) if row % 2 == 0 else steps
        for row, steps in enumerate(sequences)
    ]
    others[0] = sampler.sequence(max(sizes.longest - 1, len(sequences[1])))
    odd = tuple((row, row) for row in range(1, rows, 2))
    if odd:
        yield CheckTrial("neighbours of other lengths", "lengths", pad(others, width=sizes.width), odd)
    if base.steps.dtype == np.float32:
        for name, value in POISONS.items():
            yield CheckTrial(f"{name} in the padding", "poison", _filled(base, np.float32(value)), same)


def lone_trials(sequences: Sequence[Steps]) -> Iterator[CheckTrial]:
    """Each of the sequences alone, exactly as wide as it is long."""
    for row, steps in enumerate(sequences):
        yield CheckTrial(
            f"alone, {len(steps)} step{'s' if len(steps) > 1 else ''}", "company", pad([steps], multiple=1), ((row, 0),)
        )


def fewer_rows(first: PaddedBatch) -> Iterator[CheckTrial]:
    """The first rows of the first batch only: numbers of rows that it does not have."""
    for rows in range(2, min(first.rows, _MOST_FEWER + 1)):
        batch = PaddedBatch(first.steps[:rows], first.lengths[:rows])
        yield CheckTrial(f"with {rows} rows", "company", batch, tuple((row, row) for row in range(rows)))


def odd_batches(sizes: BatchSizes, widest: int, sampler: Sampler) -> Iterator[tuple[str, list[Steps], PaddedBatch]]:
    """Batches of which code has a path of its own, with their sequences: each is padded, unlike a sequence alone.

    One row; rows of one length; sequences as long as the longest that is promised, and half as long.
    """
    shapes = [("of one row", [sizes.longest], sizes.width), ("of rows of one length", [sizes.longest] * 3, sizes.width)]
    if widest - _LEFT_OVER > sizes.wider:
        shapes.append((f"of {widest - _LEFT_OVER} steps", [widest - _LEFT_OVER, widest // 2], widest))
    for name, lengths, width in shapes:
        if width > max(lengths):
            sequences = [sampler.sequence(length) for length in lengths]
            yield name, sequences, pad(sequences, width=width)


def padding_changed(name: str, sequences: Sequence[Steps], base: PaddedBatch, sampler: Sampler) -> Iterator[CheckTrial]:
    """What is tried with such a batch: other padding, and where it is short, less of it."""
    same = tuple((row, row) for row in range(base.rows))
    junk = sampler.fill(base.steps.shape[:2], JUNK["junk"])
    yield CheckTrial(f"junk in the padding {name}", "padding", _filled(base, junk), same)
    longest = int(base.lengths.max())
    if longest + _LEFT_OVER < base.width:  # of many steps, another width is another order of their sums
        yield CheckTrial(f"padded to the longest only, {name}", "width", pad(sequences, width=longest), same)


def _filled(batch: PaddedBatch, padding: Any) -> PaddedBatch:
    """A batch with other values past each length."""
    valid = np.arange(batch.width) < batch.lengths[:, None]
    valid = valid.reshape(*valid.shape, *[1] * (batch.steps.ndim - 2))
    steps = batch.steps.copy()
    np.copyto(steps, padding, where=~valid)
    return PaddedBatch(steps, batch.lengths)


def _overlong(batch: PaddedBatch) -> NDArray[Any]:
    """Every row's place taken by the longest row's steps, again and again."""
    longest = batch.steps[0, : batch.lengths[0]]
    times = -(-batch.width // len(longest))
    repeated = np.concatenate([longest] * times)[: batch.width]
    return np.broadcast_to(repeated, batch.steps.shape)


def _louder(steps: Steps) -> Steps:
    return steps * np.float32(50.0) if steps.dtype == np.float32 else steps

"""The trials of a check: the same sequences in batches with other padding, other rows and other widths.

The lengths in a batch differ, include the shortest that the model accepts (nearly always 1), and are all smaller than
the width. Some valid steps are all zeros, in the middle and at the end of a sequence: this catches models that infer
the lengths from zeros. The longest sequence is the first row, so a model that sorts its rows by length does not reorder
the baseline. Some rows are of *raw values*, which nobody has scaled (kinds of them are in
`lengthwise.verification.random_sequences.KINDS`): a mask that adds -10 hides padding only from values of size 1. All
others are *ordinary*: normally distributed, or random token ids.

The *baseline* is the batch whose answers the others must give too; each other batch is a trial (`CheckTrial`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import (
    EXTREME_PADDING,
    KINDS,
    MISSING_SHARE,
    PaddedBatch,
    StepInput,
    Steps,
    pad,
    raw,
    step_mask,
)
from lengthwise_export.layouts import RIGHT, StepLayout


@dataclass(frozen=True, slots=True)
class Geometry:
    """The lengths of one batch, and the width and the layout of what the model gets."""

    lengths: tuple[int, ...]
    width: int
    layout: StepLayout = RIGHT

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """The longest length: the width of a tensor that the model cut to its longest row."""
        return max(self.lengths)

    @property
    def valid_steps(self) -> int:
        """The sum of the lengths: the size of an axis that holds valid steps only."""
        return sum(self.lengths)

    @property
    def is_packed(self) -> bool:
        """Whether all sequences are in one row of `width` steps."""
        return self.layout.packed is not None

    @property
    def padding_sequences(self) -> int:
        """How many sequences a packed model may take the padding for.

        Segment 0 is one sequence. Position ids start again after the longest length, so the padding may be several.
        """
        if self.layout.packed == "segment_ids":
            return 1
        padded_steps = self.width - self.valid_steps if self.layout.packed == "position_ids" else 0
        return -(-padded_steps // self.longest)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """`[rows, width]`, true at valid steps; of a packed batch `[1, width]`."""
        if self.is_packed:
            return step_mask(np.array([self.valid_steps], dtype=np.int32), self.width)
        return self.layout.valid(self.lengths, self.width)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two batches that share some sequences."""

    before: Geometry
    after: Geometry
    rows: tuple[tuple[int, int], ...]  # Pairs of (row in `before`, row in `after`) that hold the same sequence
    # Sizes of the model's weights: an axis of such a size is neither rows nor steps
    known_sizes: frozenset[int] = frozenset()
    larger: Geometry | None = None  # A third batch with more rows and more steps; None if the model raises for it
    may_be_sorted: bool = True  # Whether a tensor's rows may be sorted by length, longest first, as packing does
    chunks: frozenset[int] = frozenset()  # Chunk sizes, in steps, that the model cuts its sequences into
    has_equal_steps: bool = False  # Whether all rows of both batches hold the same valid steps, paired or not

    @property
    def orders(self) -> list[tuple[tuple[int, int], ...]]:
        """The pairs of `rows` as indices into a tensor: in the order of the batch, and with rows sorted by length.

        Only the first if `may_be_sorted` is false, or if both orders are the same.
        """
        # By the row of each batch, its index in a tensor that is sorted by length, the longest first
        index_before, index_after = (
            {row: index for index, row in enumerate(sorted(range(batch.rows), key=lambda row: -batch.lengths[row]))}
            for batch in (self.before, self.after)
        )
        sorted_rows = tuple((index_before[row], index_after[row_after]) for row, row_after in self.rows)
        return [self.rows, sorted_rows] if self.may_be_sorted and sorted_rows != self.rows else [self.rows]

    @property
    def is_same_rows(self) -> bool:
        """Whether both batches hold the same sequences in the same order."""
        has_same_pairs = self.before.lengths == self.after.lengths and self.rows == same_rows(self.before.rows)
        return self.has_equal_steps or has_same_pairs


Change = Literal["padding", "neighbours", "width", "order", "lengths", "block", "batch", "poison", "scale"]
"""What a trial changes:

- `padding`: the values in the padding; `poison`: these to NaN, Inf or 1e30
- `neighbours`: the other rows; `lengths`: other rows and their lengths; `order`: the order of the rows
- `width`: the width; `block`: the width, with another row as long as it; `scale`: the width, for values far larger than
  ordinary ones
- `batch`: the whole batch around a sequence, such as no other rows at all

A difference that only `poison` and `scale` show is a warning."""

CHANGES: Final[tuple[Change, ...]] = get_args(Change)  # Those that keep every shape come first: they locate a leak best

ROWS_OF_ID: Final = "alone, all steps of id {}"
JUNK_SCALES: Final = {"junk": 3.0, "large junk": 1000.0}  # Standard deviations of values written into the padding

_MORE_LENGTHS: Final = 6  # lengths that are tried above the shortest one, for a model that has one
_RAW_OF_EACH: Final = 2  # sequences of each kind of raw values that are run unbatched, most of them short
_MAX_FEWER_ROWS: Final = 5  # the largest batch of `fewer_rows`
BLOCK_WIDTHS: Final = (31, 32, 33, 127, 128, 129)
"""Widths at, below and above whole blocks: kernels and their masks have other paths there."""
_MIN_PADDING: Final = 3  # steps of padding after the longest sequence of a batch of `odd_batches`


@dataclass(frozen=True, slots=True)
class CheckTrial:
    """A batch that holds sequences of the baseline and must give the same answers for them."""

    name: str
    change: Change
    batch: PaddedBatch
    rows: tuple[tuple[int, int], ...]  # Pairs of (row in the baseline, row in this batch) that hold the same sequence

    def others(self) -> Iterator[PaddedBatch]:
        """Yields the sequences that are not of the baseline, each alone and without padding."""
        for row in sorted({*range(self.batch.rows)} - {row for _, row in self.rows}):
            yield pad([self.batch.steps[row, : self.batch.lengths[row]]], multiple=1)


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """The row count and widths of a check's batches: primes where possible, which differ from the sizes of weights."""

    rows: int
    longest: int  # steps of the longest sequence
    width: int  # steps of the baseline
    wider: int  # steps of a wider batch
    shortest: int = 1  # steps of the shortest sequence


def choose_batch_sizes(excluded: frozenset[int], *, narrowest: int = 1, widest: int, min_length: int = 1) -> BatchSizes:
    """Chooses batch sizes; where enough primes fit, they differ from all sizes in the model's weights.

    Args:
        excluded: The sizes in the weights.
        narrowest: The fewest steps of a batch, and of its longest sequence.
        widest: The most steps of a batch.
        min_length: The shortest sequence that the model accepts, in steps.
    """
    if min_length > 1:  # the longest sequence is a few steps longer than the shortest, if that fits
        narrowest = max(narrowest, min_length + _MORE_LENGTHS)
    rows, *steps = (size for size in _PRIMES if size not in excluded)
    steps = [size for size in steps if narrowest <= size <= widest]
    if len(steps) >= 3:
        # Small sizes with gaps between them, so that a check stays fast.
        return BatchSizes(
            rows,
            longest=steps[0],
            width=steps[min(2, len(steps) - 2)],
            wider=steps[min(4, len(steps) - 1)],
            shortest=min_length,
        )
    # There are too few primes between: simply the largest sizes that fit.
    longest = max(widest - 2, min(max(2, min_length), widest))
    width = max(widest - 1, longest)
    return BatchSizes(rows, longest=longest, width=width, wider=max(widest, width), shortest=min_length)


_PRIMES: Final = tuple(
    size for size in range(7, 1000) if all(size % factor for factor in range(2, 32) if factor < size)
)


def same_rows(count: int) -> tuple[tuple[int, int], ...]:
    """The pairs of rows of two batches that hold the same `count` sequences in the same order."""
    return tuple((row, row) for row in range(count))


class Sampler:
    """Draws random sequences; the same seed gives the same sequences."""

    def __init__(self, steps: StepInput, seed: int, *, missing: bool = False) -> None:
        """Begins a new series of sequences; `steps` says what a step is.

        With `missing`, about a tenth of the ordinary values of a sequence are missing: NaN.
        """
        self._steps = steps
        self._random = np.random.default_rng(seed)
        self.zeros = True  # Whether sequences have steps of zeros
        self.missing = missing
        self.missing_features = True  # Whether a feature may be missing at every step of a sequence
        self.kinds: tuple[str, ...] = () if steps.kind == "tokens" else tuple(KINDS)  # kinds of raw values to draw

    def sequence(self, length: int, kind: str | None = None, *, scale: float = 1.0) -> Steps:
        """A random sequence: `[length, features]` float32, or `[length]` token ids.

        Args:
            length: In steps; of 3 or more, the middle step is zeros.
            kind: A kind of raw values; None for ordinary ones.
            scale: The standard deviation of ordinary values.
        """
        if kind is not None:
            return raw(kind, (length, self._steps.features or 0), self._random)
        values = self.fill((length,), scale)
        if self.missing:
            is_missing = self._random.random(values.shape) < MISSING_SHARE
            values[is_missing & (self.missing_features or ~is_missing.all(axis=0))] = np.nan
        if length >= 3 and self.zeros:
            values[length // 2] = 0
        return values

    def fill(self, shape: Sequence[int], scale: float) -> Steps:
        """Random steps in an array of this shape, such as `[rows, width]`; `scale`: standard deviation of values."""
        if self._steps.kind == "tokens":
            return self._random.integers(0, self._steps.vocabulary or 1, size=tuple(shape), dtype=np.int64)
        return self._random.normal(scale=scale, size=(*shape, self._steps.features or 0)).astype(np.float32)

    def order(self, rows: int) -> list[int]:
        """A random rotation of the row indices, in which no row keeps its index, if there is more than one."""
        return [*np.roll(np.arange(rows), int(self._random.integers(1, max(rows, 2))))]


def base_sequences(sampler: Sampler, sizes: BatchSizes) -> list[Steps]:
    """The baseline's sequences, the longest first, the shortest last; the third ends in a step of zeros.

    Their lengths are spread evenly between the two. Every third is of raw values, if the sampler draws such.
    """
    lengths = np.linspace(sizes.longest, sizes.shortest, sizes.rows)
    kinds = kinds_of_rows(len(lengths), sampler)
    sequences = [sampler.sequence(round(length), kind) for length, kind in zip(lengths, kinds, strict=True)]
    if len(sequences) > 3 and len(sequences[2]) > 1 and sampler.zeros:
        sequences[2][-1] = 0
    return sequences


def kinds_of_rows(rows: int, sampler: Sampler) -> list[str | None]:
    """The kind of raw values for each row of a batch, None for ordinary values.

    Raw are the rows 1, 4, 7, ..., with one kind after the other; none if the sampler draws no raw values.
    """
    kinds = sampler.kinds
    return [kinds[row // 3 % len(kinds)] if kinds and row % 3 == 1 else None for row in range(rows)]


def has_equal_steps(first: PaddedBatch, second: PaddedBatch) -> bool:
    """Whether two batches hold the same sequences in the same order, whatever their padding is."""
    if not np.array_equal(first.lengths, second.lengths):
        return False
    steps, other_steps = (batch.steps[step_mask(batch.lengths, batch.width)] for batch in (first, second))
    return np.array_equal(steps, other_steps, equal_nan=True)


def geometry(batch: PaddedBatch, layout: StepLayout = RIGHT) -> Geometry:
    """The lengths of a batch, and the width of the inputs into which a layout arranges it."""
    lengths = tuple(int(length) for length in batch.lengths)
    return Geometry(lengths, layout.width(lengths, batch.width), layout)


def trials(
    sequences: Sequence[Steps], sizes: BatchSizes, sampler: Sampler, ids: Sequence[int] = ()
) -> Iterator[CheckTrial]:
    """Yields the trials that change one thing about the baseline, whose sequences these are.

    First come other values in the padding, then other widths, other rows, orders and lengths, then NaN, Inf and 1e30;
    last the token ids with which the model compares its steps, `ids`.
    """
    base = pad(sequences, width=sizes.width)
    all_rows = same_rows(base.rows)
    yield from _other_padding(base, sampler)
    for name, width in (
        ("padded wider", sizes.wider),
        ("padded one step wider", min(sizes.width + 1, sizes.wider)),
        ("padded to the longest only", len(sequences[0])),
    ):
        yield CheckTrial(name, "width", pad(sequences, width=width), all_rows)
    yield from _other_rows(sequences, sizes, sampler)
    for name, value in EXTREME_PADDING.items() if base.steps.dtype == np.float32 else ():
        yield CheckTrial(f"{name} in the padding", "poison", with_padding_filled(base, np.float32(value)), all_rows)
    for number in ids:
        padded = with_padding_filled(base, np.int64(number))
        yield CheckTrial(f"id {number} in the padding", "padding", padded, all_rows)
        # In other rows, at every second step of them, the first step included. A row of one step stays as it is, as a
        # model may drop this id and want a step to be left.
        others = [steps.copy() for steps in sequences]
        for steps in others[1::2]:
            steps[: len(steps) // 2 * 2 : 2] = number
        yield CheckTrial(f"neighbours of id {number}", "neighbours", pad(others, width=sizes.width), all_rows[::2])


def _other_padding(base: PaddedBatch, sampler: Sampler) -> Iterator[CheckTrial]:
    """Yields the trials with random steps in the padding of the baseline, and with the longest row, again and again."""
    all_rows = same_rows(base.rows)
    for name, scale in JUNK_SCALES.items():
        junk = with_padding_filled(base, sampler.fill(base.steps.shape[:2], scale))
        yield CheckTrial(f"{name} in the padding", "padding", junk, all_rows)
    repeated = np.resize(base.steps[0, : base.lengths[0]], base.steps.shape[1:])
    yield CheckTrial("another row's steps in the padding", "padding", with_padding_filled(base, repeated), all_rows)


def _other_rows(sequences: Sequence[Steps], sizes: BatchSizes, sampler: Sampler) -> Iterator[CheckTrial]:
    """Yields the trials that change rows: every second one, the order of all, and the lengths of every second one."""
    rows = len(sequences)
    all_rows = same_rows(rows)
    replaced = [steps if row % 2 == 0 else sampler.sequence(len(steps)) for row, steps in enumerate(sequences)]
    factor = np.float32(50.0) if sequences[0].dtype == np.float32 else 1
    larger = [steps if row % 2 == 0 else replaced[row] * factor for row, steps in enumerate(sequences)]
    for name, others in (("neighbours replaced", replaced), ("neighbours replaced by larger ones", larger)):
        yield CheckTrial(name, "neighbours", pad(others, width=sizes.width), all_rows[::2])
    # An order that is not its own inverse comes first: a reversal undoes itself, and so would hide a model that sorts
    # its rows and forgets to sort them back.
    for name, order in (("rows shuffled", sampler.order(rows)), ("rows in another order", list(range(rows))[::-1])):
        new_rows = tuple((row, index) for index, row in enumerate(order))
        yield CheckTrial(name, "order", pad([sequences[row] for row in order], width=sizes.width), new_rows)
    # Every second row becomes up to two steps longer. Only the first of them, the longest row, becomes a step
    # shorter, so that the longest length changes; but not shorter than the second row, which has to stay as it is.
    others = [
        sampler.sequence(min(len(steps) + 2, sizes.longest)) if row % 2 == 0 else steps
        for row, steps in enumerate(sequences)
    ]
    others[0] = sampler.sequence(max(sizes.longest - 1, len(sequences[1])))
    if all_rows[1::2]:
        yield CheckTrial("neighbours of other lengths", "lengths", pad(others, width=sizes.width), all_rows[1::2])


def unbatched_name(length: int) -> str:
    """The name of the trial of one unbatched sequence, such as `unbatched, 3 steps`."""
    return f"unbatched, {length} step{'s' if length > 1 else ''}"


def unbatched_sequences(
    sampler: Sampler, sizes: BatchSizes, most_lengths: int, *, is_packed: bool
) -> tuple[list[Steps], list[str | None]]:
    """The sequences that run unbatched, and the kind of raw values of each; None for ordinary values.

    First come ordinary sequences of all lengths, the longest first. At most `most_lengths` lengths are taken (for a
    packed model, at most the rows of a batch), spread evenly. Then come raw sequences, with every second of these
    lengths from the shortest on; a packed model gets none.
    """
    count = min(sizes.width - sizes.shortest + 1, sizes.rows if is_packed else most_lengths)
    lengths = np.unique(np.linspace(sizes.shortest, sizes.width, count).round().astype(int))
    raw_kinds = () if is_packed else _RAW_OF_EACH * sampler.kinds
    kinds = [*[None] * len(lengths), *raw_kinds]
    all_lengths = [*lengths[::-1].tolist(), *np.resize(lengths[::2], len(raw_kinds)).tolist()]
    return [sampler.sequence(length, kind) for length, kind in zip(all_lengths, kinds, strict=True)], kinds


def lone_trials(sequences: Sequence[Steps], kinds: Sequence[str | None]) -> Iterator[CheckTrial]:
    """Yields a trial for each sequence: it runs alone, without padding.

    `kinds` are the kinds of raw values of the sequences, for the names of the trials; None for ordinary values.
    """
    for row, (steps, kind) in enumerate(zip(sequences, kinds, strict=True)):
        name = unbatched_name(len(steps)) + (f" ({kind})" if kind else "")
        yield CheckTrial(name, "batch", pad([steps], multiple=1), ((row, 0),))


def fewer_rows(baseline: PaddedBatch) -> Iterator[CheckTrial]:
    """Yields trials of the first row of the baseline, the first two rows, and so on, up to `_MAX_FEWER_ROWS` rows."""
    for rows in range(1, min(baseline.rows, _MAX_FEWER_ROWS + 1)):
        batch = PaddedBatch(baseline.steps[:rows], baseline.lengths[:rows])
        yield CheckTrial("with 1 row, padded" if rows == 1 else f"with {rows} rows", "batch", batch, same_rows(rows))


def equal_lengths(sequences: Sequence[Steps], sizes: BatchSizes, sampler: Sampler) -> Iterator[CheckTrial]:
    """Yields trials of the baseline's longest sequence beside new ones of its length, with and without padding."""
    longest = len(sequences[0])
    rows = [sequences[0], *(sampler.sequence(longest) for _ in sequences[1:])]
    for name, width in (("rows of one length", sizes.width), ("rows of one length, without padding", longest)):
        yield CheckTrial(name, "lengths", pad(rows, width=width), ((0, 0),))


def block_widths(sequences: Sequence[Steps], widest: int, sampler: Sampler) -> Iterator[CheckTrial]:
    """Yields trials of two of the baseline's sequences beside a new one, which is as long as each of `BLOCK_WIDTHS`.

    Widths that the baseline covers, and those above `widest`, are left out.
    """
    chosen = (len(sequences) // 2, len(sequences) - 1)
    for width in BLOCK_WIDTHS:
        if len(sequences[0]) < width <= widest:
            batch = pad([sampler.sequence(width), *(sequences[row] for row in chosen)], width=width)
            shared_rows = tuple((row, index) for index, row in enumerate(chosen, 1))
            yield CheckTrial(f"beside a sequence of {width} steps", "block", batch, shared_rows)


def beside_the_longest(sequences: Sequence[Steps], long: Steps) -> CheckTrial:
    """A trial that batches one of the baseline's sequences with one of the maximum length."""
    row = len(sequences) // 2
    batch = pad([long, sequences[row]], multiple=1)
    return CheckTrial(f"batched with a sequence of {len(long)} steps", "batch", batch, ((row, 1),))


def odd_batches(sizes: BatchSizes, widest: int, sampler: Sampler) -> Iterator[tuple[str, list[Steps], PaddedBatch]]:
    """Yields padded batches that a model may handle in a separate code path, as (name, sequences, batch).

    These are a batch of one row, one of equal lengths, and one that is nearly as wide as the model accepts.
    """
    shapes = [("of one row", [sizes.longest], sizes.width), ("of rows of one length", [sizes.longest] * 3, sizes.width)]
    long = widest - _MIN_PADDING
    if long > sizes.wider:
        shapes.append((f"of {long} steps", [long, max(widest // 2, sizes.shortest)], widest))
    for name, lengths, width in shapes:
        if width > max(lengths):
            kinds = kinds_of_rows(len(lengths), sampler)
            sequences = [sampler.sequence(length, kind) for length, kind in zip(lengths, kinds, strict=True)]
            yield name, sequences, pad(sequences, width=width)


def padding_changed(name: str, sequences: Sequence[Steps], base: PaddedBatch, sampler: Sampler) -> Iterator[CheckTrial]:
    """Yields the trials for a batch of `odd_batches`: other values in the padding, and no padding of the longest row.

    `name` and `sequences` are those of the batch `base`.
    """
    all_rows = same_rows(base.rows)
    junk = sampler.fill(base.steps.shape[:2], JUNK_SCALES["junk"])
    yield CheckTrial(f"junk in the padding {name}", "padding", with_padding_filled(base, junk), all_rows)
    longest = int(base.lengths.max())
    # Not for the batch of very long rows: it has just this much padding, and over so many steps the rounding of sums
    # changes with the width.
    if longest + _MIN_PADDING < base.width:
        yield CheckTrial(f"padded to the longest only, {name}", "width", pad(sequences, width=longest), all_rows)


def rows_of_ids(
    base: PaddedBatch, ids: Sequence[int], sampler: Sampler
) -> Iterator[tuple[CheckTrial, list[Steps], PaddedBatch]]:
    """Yields trials of a row that has one of `ids` at every valid step, alone, and the padded batch it was in before.

    If a mask of the model hides this id, nothing is left of the row, and the model may read its padding. The other
    sequence of the batch is the first of `base`; the padding is random. Yields (trial, sequences, batch).
    """
    first, second = (base.steps[row, : base.lengths[row]] for row in (0, 1))
    for number in ids:
        only = np.full_like(second, number)
        sequences = [first, only]
        padded = pad(sequences, width=base.width)
        batch = with_padding_filled(padded, sampler.fill(padded.steps.shape, 1.0))
        yield (
            CheckTrial(ROWS_OF_ID.format(number), "batch", pad([only], multiple=1), ((1, 0),)),
            sequences,
            batch,
        )


def with_padding_filled(batch: PaddedBatch, padding: Any) -> PaddedBatch:
    """The batch with other values in the padding: a number, or an array that broadcasts to the batch's steps."""
    valid = step_mask(batch.lengths, batch.width)
    valid = valid.reshape(*valid.shape, *[1] * (batch.steps.ndim - 2))
    steps = batch.steps.copy()
    np.copyto(steps, padding, where=~valid)
    return PaddedBatch(steps, batch.lengths)

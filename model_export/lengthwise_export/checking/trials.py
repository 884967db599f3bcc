"""The trials of a check: the same sequences in batches with other padding, other rows and other widths.

The lengths in a batch differ, include the shortest that the model accepts (nearly always 1), and are all smaller than
the width. Some valid steps are all zeros, in the middle and at the end of a sequence: this catches models that infer
the lengths from zeros. The longest sequence is the first row, so a model that sorts its rows by length does not reorder
the baseline. Some rows are of raw values (`lengthwise.verification.random_sequences.KINDS`): a mask that adds -10
hides padding only from values of size 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, pad, step_mask
from lengthwise.runtime.manifest import StepInput
from lengthwise.verification.random_sequences import EXTREME_PADDING, KINDS, raw
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
    def more_sequences(self) -> tuple[int, int]:
        """How many sequences a packed model may count besides, before and behind: those of the padding."""
        if self.layout.packed == "segment_ids":
            return (1, 0)
        behind = self.width - self.valid_steps if self.layout.packed == "position_ids" else 0
        return (0, -(-behind // self.longest))

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
    rows: tuple[tuple[int, int], ...]  # Pairs of (row in the first, row in the second) that hold the same sequence
    # Sizes of the model's weights: an axis of such a size is neither rows nor steps
    known_sizes: frozenset[int] = frozenset()
    larger: Geometry | None = None  # The sizes of a third batch with more rows and more steps, if that ran
    may_be_sorted: bool = True  # Whether a tensor's rows may be sorted by length, longest first, as packing does
    chunks: frozenset[int] = frozenset()  # Chunk sizes, in steps, that the model cuts its sequences into
    has_equal_steps: bool = False  # Whether both hold the same valid steps, also in rows that are no pair

    @property
    def orders(self) -> list[tuple[tuple[int, int], ...]]:
        """The pairs of rows: for a tensor in the order of the batch, and for one sorted by length."""
        if not self.may_be_sorted:
            return [self.rows]
        before, after = (
            {row: rank for rank, row in enumerate(sorted(range(sizes.rows), key=lambda row: -sizes.lengths[row]))}
            for sizes in (self.before, self.after)
        )
        return list(dict.fromkeys((self.rows, tuple((before[row], after[other]) for row, other in self.rows))))

    @property
    def is_same_rows(self) -> bool:
        """Whether both batches hold the same sequences in the same order."""
        every = tuple((row, row) for row in range(self.before.rows))
        return self.has_equal_steps or (self.before.lengths == self.after.lengths and self.rows == every)


Change = Literal["padding", "neighbours", "width", "order", "lengths", "block", "batch", "poison", "scale"]
"""What a trial changes: the values in the padding, the other rows, the width, the order of the rows, the lengths of the
other rows, the width with a longest row of it (`block`), the whole batch around a sequence (`batch`), the padding to
NaN, Inf or 1e30 (`poison`), or the width for values far larger than ordinary ones (`scale`). A difference that only the
last two show is a warning."""

CHANGES: Final[tuple[Change, ...]] = get_args(Change)  # Those that keep every shape locate a leak best

JUNK: Final = {"junk": 3.0, "large junk": 1000.0}  # Standard deviations of values written into the padding

_MORE_LENGTHS: Final = 6  # So many lengths above its shortest one, for a model that has one
_MAX_FEWER_ROWS: Final = 5  # the largest batch of `fewer_rows`
BLOCK_WIDTHS: Final = (31, 32, 33, 127, 128, 129)
"""Widths at, below and above whole blocks: kernels and their masks have other paths there."""
_MIN_PADDING: Final = 3  # steps of padding behind the longest sequence of a batch of `odd_batches`


@dataclass(frozen=True, slots=True)
class CheckTrial:
    """A batch that holds sequences of the baseline and must give the same answers for them."""

    name: str
    change: Change
    batch: PaddedBatch
    rows: tuple[tuple[int, int], ...]  # Pairs of (row in the baseline, row in this batch) that hold the same sequence


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """The row count and widths of a check's batches: primes that are no sizes of the model's weights."""

    rows: int
    longest: int
    width: int
    wider: int
    shortest: int = 1


def choose_batch_sizes(
    excluded: frozenset[int], *, shortest: int = 1, longest_allowed: int, min_length: int = 1
) -> BatchSizes:
    """Chooses batch sizes that differ from all sizes in the model's weights, from `shortest` to `longest_allowed`."""
    if min_length > 1:  # the shortest sequence that the model accepts; the longest is a few steps longer, if that fits
        shortest = max(shortest, min_length + _MORE_LENGTHS)
    rows, *steps = (size for size in _PRIMES if size not in excluded)
    steps = [size for size in steps if shortest <= size <= longest_allowed]
    if len(steps) >= 3:
        # Small sizes with gaps between them, so that a check stays fast.
        return BatchSizes(rows, steps[0], steps[min(2, len(steps) - 2)], steps[min(4, len(steps) - 1)], min_length)
    # There are too few primes between: simply the largest sizes that fit.
    longest = max(longest_allowed - 2, min(max(2, min_length), longest_allowed))
    width = max(longest_allowed - 1, longest)
    return BatchSizes(rows, longest, width, max(longest_allowed, width), min_length)


_PRIMES: Final = tuple(
    size for size in range(7, 1000) if all(size % factor for factor in range(2, 32) if factor < size)
)


class Sampler:
    """Draws random sequences; the same seed gives the same sequences."""

    def __init__(self, steps: StepInput, seed: int) -> None:
        self._steps = steps
        self._random = np.random.default_rng(seed)
        self.zeros = True  # Whether sequences have steps of zeros
        self.kinds: tuple[str, ...] = () if steps.kind == "tokens" else tuple(KINDS)

    def sequence(self, length: int, kind: str | None = None, *, scale: float = 1.0) -> Steps:
        """`[length, features]` float32, or `[length]` token ids; of 3 steps or more, the middle one is zeros."""
        if kind is not None:
            return raw(kind, (length, self._steps.features or 0), self._random)
        values = self.fill((length,), scale)
        if length >= 3 and self.zeros:
            values[length // 2] = 0
        return values

    def fill(self, shape: Sequence[int], scale: float) -> Steps:
        """Random values of a standard deviation `scale`, as for the padding; `shape` is `[rows, width]`."""
        if self._steps.kind == "tokens":
            return self._random.integers(0, self._steps.vocabulary or 1, size=tuple(shape), dtype=np.int64)
        return self._random.normal(scale=scale, size=(*shape, self._steps.features or 0)).astype(np.float32)

    def order(self, rows: int) -> list[int]:
        """A permutation of the rows in which no row keeps its place, if there is more than one."""
        return [*np.roll(np.arange(rows), int(self._random.integers(1, max(rows, 2))))]


def base_sequences(sampler: Sampler, sizes: BatchSizes) -> list[Steps]:
    """The baseline's sequences, longest first; the last is the shortest, and the third ends in a step of zeros."""
    shares = np.linspace(sizes.longest, sizes.shortest, sizes.rows)
    kinds = kinds_of_rows(len(shares), sampler)
    sequences = [sampler.sequence(round(length), kind) for length, kind in zip(shares, kinds, strict=True)]
    if len(sequences) > 3 and len(sequences[2]) > 1 and sampler.zeros:
        sequences[2][-1] = 0
    return sequences


def kinds_of_rows(rows: int, sampler: Sampler) -> list[str | None]:
    """The kind of raw values of each row of a batch, None for ordinary ones: most rows, the first and the last."""
    kinds = sampler.kinds
    return [kinds[row // 3 % len(kinds)] if kinds and row % 3 == 1 else None for row in range(rows)]


def has_equal_steps(one: PaddedBatch, other: PaddedBatch) -> bool:
    """Whether two batches hold the same sequences in the same order, whatever their padding is."""
    if not np.array_equal(one.lengths, other.lengths):
        return False
    mine, its = (batch.steps[step_mask(batch.lengths, batch.width)] for batch in (one, other))
    return np.array_equal(mine, its)


def geometry(batch: PaddedBatch, layout: StepLayout = RIGHT) -> Geometry:
    """The lengths of a batch, and the width of what a model gets for it in a layout."""
    lengths = tuple(int(length) for length in batch.lengths)
    return Geometry(lengths, layout.width(lengths, batch.width), layout)


def trials(sequences: Sequence[Steps], sizes: BatchSizes, sampler: Sampler) -> Iterator[CheckTrial]:
    """All trials with the baseline's sequences; those that keep its shape come first."""
    rows = len(sequences)
    same = tuple((row, row) for row in range(rows))
    base = pad(sequences, width=sizes.width)
    is_float = base.steps.dtype == np.float32
    for name, scale in JUNK.items():
        junk = with_padding_filled(base, sampler.fill(base.steps.shape[:2], scale))
        yield CheckTrial(f"{name} in the padding", "padding", junk, same)
    overlong = np.resize(base.steps[0, : base.lengths[0]], base.steps.shape[1:])  # the longest row, again and again
    yield CheckTrial("another row's steps in the padding", "padding", with_padding_filled(base, overlong), same)
    for name, width in (
        ("padded wider", sizes.wider),
        ("padded one step wider", min(sizes.width + 1, sizes.wider)),
        ("padded to the longest only", len(sequences[0])),
    ):
        yield CheckTrial(name, "width", pad(sequences, width=width), same)
    strangers = [steps if row % 2 == 0 else sampler.sequence(len(steps)) for row, steps in enumerate(sequences)]
    louder = np.float32(50.0) if is_float else 1
    loud = [steps if row % 2 == 0 else strangers[row] * louder for row, steps in enumerate(sequences)]
    for name, others in (("neighbours replaced", strangers), ("neighbours replaced by larger ones", loud)):
        yield CheckTrial(name, "neighbours", pad(others, width=sizes.width), same[::2])
    # Shuffled first: of rows in reverse, an index that sorts them may be that of the rows before
    for name, order in (("rows shuffled", sampler.order(rows)), ("rows in another order", list(range(rows))[::-1])):
        moved = tuple((row, index) for index, row in enumerate(order))
        yield CheckTrial(name, "order", pad([sequences[row] for row in order], width=sizes.width), moved)
    # The first row is replaced as well, to change the longest length.
    others = [
        sampler.sequence(min(len(steps) + 2, sizes.longest)) if row % 2 == 0 else steps
        for row, steps in enumerate(sequences)
    ]
    others[0] = sampler.sequence(max(sizes.longest - 1, len(sequences[1])))
    if same[1::2]:
        yield CheckTrial("neighbours of other lengths", "lengths", pad(others, width=sizes.width), same[1::2])
    for name, value in EXTREME_PADDING.items() if is_float else ():
        yield CheckTrial(f"{name} in the padding", "poison", with_padding_filled(base, np.float32(value)), same)


def unbatched_name(length: int) -> str:
    """The name of the trial of one sequence, unbatched."""
    return f"unbatched, {length} step{'s' if length > 1 else ''}"


def lone_trials(sequences: Sequence[Steps], kinds: Sequence[str | None]) -> Iterator[CheckTrial]:
    """Each sequence, of raw values of its kind or of ordinary ones, in a batch of its own, without padding."""
    for row, (steps, kind) in enumerate(zip(sequences, kinds, strict=True)):
        name = unbatched_name(len(steps)) + (f" ({kind})" if kind else "")
        yield CheckTrial(name, "batch", pad([steps], multiple=1), ((row, 0),))


def fewer_rows(first: PaddedBatch) -> Iterator[CheckTrial]:
    """The first rows of the baseline, in batches of 1 to `_MAX_FEWER_ROWS` rows."""
    for rows in range(1, min(first.rows, _MAX_FEWER_ROWS + 1)):
        batch = PaddedBatch(first.steps[:rows], first.lengths[:rows])
        name = "with 1 row, padded" if rows == 1 else f"with {rows} rows"
        yield CheckTrial(name, "batch", batch, tuple((row, row) for row in range(rows)))


def equal_lengths(sequences: Sequence[Steps], sizes: BatchSizes, sampler: Sampler) -> Iterator[CheckTrial]:
    """The longest sequence of the baseline beside others of its length, with and without padding."""
    longest = len(sequences[0])
    rows = [sequences[0], *(sampler.sequence(longest) for _ in sequences[1:])]
    for name, width in (("rows of one length", sizes.width), ("rows of one length, without padding", longest)):
        yield CheckTrial(name, "lengths", pad(rows, width=width), ((0, 0),))


def block_widths(sequences: Sequence[Steps], widest: int, sampler: Sampler) -> Iterator[CheckTrial]:
    """Two of the baseline's sequences beside one that is as long as some blocks, or one step shorter or longer."""
    chosen = (len(sequences) // 2, len(sequences) - 1)
    for width in BLOCK_WIDTHS:
        if len(sequences[0]) < width <= widest:
            batch = pad([sampler.sequence(width), *(sequences[row] for row in chosen)], width=width)
            same = tuple((row, index) for index, row in enumerate(chosen, 1))
            yield CheckTrial(f"beside a sequence of {width} steps", "block", batch, same)


def beside_the_longest(sequences: Sequence[Steps], long: Steps) -> CheckTrial:
    """A trial that batches one of the baseline's sequences with one of the maximum length."""
    row = len(sequences) // 2
    batch = pad([long, sequences[row]], multiple=1)
    return CheckTrial(f"batched with a sequence of {len(long)} steps", "batch", batch, ((row, 1),))


def odd_batches(sizes: BatchSizes, widest: int, sampler: Sampler) -> Iterator[tuple[str, list[Steps], PaddedBatch]]:
    """Padded batches that a model may handle in a separate code path, each with its name and its sequences."""
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
    """The trials for a batch of `odd_batches`: other values in the padding, and less padding for a short batch."""
    same = tuple((row, row) for row in range(base.rows))
    junk = sampler.fill(base.steps.shape[:2], JUNK["junk"])
    yield CheckTrial(f"junk in the padding {name}", "padding", with_padding_filled(base, junk), same)
    longest = int(base.lengths.max())
    if longest + _MIN_PADDING < base.width:  # over many steps, another width changes the rounding of sums
        yield CheckTrial(f"padded to the longest only, {name}", "width", pad(sequences, width=longest), same)


def with_padding_filled(batch: PaddedBatch, padding: Any) -> PaddedBatch:
    """The batch with other values in the padding: those of `padding`, which broadcasts to its steps."""
    valid = step_mask(batch.lengths, batch.width)
    valid = valid.reshape(*valid.shape, *[1] * (batch.steps.ndim - 2))
    steps = batch.steps.copy()
    np.copyto(steps, padding, where=~valid)
    return PaddedBatch(steps, batch.lengths)

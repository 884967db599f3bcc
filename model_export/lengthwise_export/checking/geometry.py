"""The sizes of a batch, and the pairing of two batches that share sequences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """The lengths and the width of one batch."""

    lengths: tuple[int, ...]
    width: int

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


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two batches that share some sequences.

    Attributes:
        rows: Pairs of (row in the first, row in the second) that hold the same sequence.
        known_sizes: Sizes of the model's weights: an axis of such a size is neither rows nor steps.
        larger: The sizes of a third batch with more rows and more steps, if that ran.
        may_be_sorted: Whether a tensor's rows may be sorted by length, longest first, as packing does.
        chunks: Chunk sizes, in steps, that the model cuts its sequences into.
    """

    before: Geometry
    after: Geometry
    rows: tuple[tuple[int, int], ...]
    known_sizes: frozenset[int] = frozenset()
    larger: Geometry | None = None
    may_be_sorted: bool = True
    chunks: frozenset[int] = frozenset()

    @property
    def orders(self) -> list[tuple[tuple[int, int], ...]]:
        """The pairs of rows: for a tensor in the order of the batch, and for one sorted by length."""
        return list(dict.fromkeys((self.rows, self._rows_by_length) if self.may_be_sorted else (self.rows,)))

    @property
    def _rows_by_length(self) -> tuple[tuple[int, int], ...]:
        ranks = [
            {row: rank for rank, row in enumerate(sorted(range(sizes.rows), key=lambda row: -sizes.lengths[row]))}
            for sizes in (self.before, self.after)
        ]
        return tuple((ranks[0][row], ranks[1][other]) for row, other in self.rows)

    @property
    def is_same_rows(self) -> bool:
        """Whether both batches hold the same sequences in the same order."""
        every = tuple((row, row) for row in range(self.before.rows))
        return self.before.lengths == self.after.lengths and self.rows == every

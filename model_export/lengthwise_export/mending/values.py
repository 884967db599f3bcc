"""What is known of a value while its graph is mended: which of its axes are rows, time, or of fixed size.

A value is described by its axes in the original, run alone, and by those of the tensor in the mended graph. They
differ:

    merged axes     Of `[rows * width, F]` the mended graph keeps the axes apart, so that a mask still fits; a *group*
                    lists the axes that are one axis of the original.
    an axis of rows What depends on the length (the width of a mean) is one number in the original, and one for each row
                    in the mended graph, on an axis of rows in front that the original does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import onnx

from lengthwise_export.mending.sizes import Size, Table, constant_of


@dataclass(frozen=True, slots=True)
class Numbers:
    """A tensor that is computed from sizes and constants alone."""

    name: str  # The value in the mended graph, computed from the width of the batch; it may be put to use as a shape
    table: Table  # `[2, lengths, *shape]`: what it is for each length of a row, run alone

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.table.shape[2:]

    def elements(self) -> list[Table]:
        """The tables `[2, lengths]` of the elements of a tensor of one axis."""
        return [self.table[..., place] for place in range(self.shape[0])]

    @property
    def is_constant(self) -> bool:
        """Whether it depends neither on the length nor on the rows."""
        return self.table.strides[:2] == (0, 0) or constant_of(self.table) is not None

    @property
    def dtype(self) -> int:
        """Its element type in ONNX."""
        return int(onnx.helper.np_dtype_to_tensor_dtype(self.table.dtype))


@dataclass(frozen=True, slots=True)
class Ragged:
    """A tensor with data, or with an axis of time."""

    name: str  # The value in the mended graph
    dtype: int
    # For each axis of the original, the axes of the mended graph that it consists of, in order
    groups: tuple[tuple[Size, ...], ...]
    row_added: bool = False  # Whether the tensor has an axis of rows in front that the original does not have
    zeroed: bool = field(default=False, compare=False)  # Whether it is known to be 0 beyond every row's length
    counts_rows: bool = False  # Whether it holds the number of each row, to be used as an index of the rows
    columns: tuple[Numbers | Ragged, ...] = ()  # Of an index of several axes: the index of each

    @property
    def rank(self) -> int:
        """The number of axes of the original."""
        return len(self.groups)

    @property
    def axes(self) -> tuple[Size, ...]:
        """The axes of the tensor, without the added axis of rows."""
        return tuple(size for group in self.groups for size in group)

    @property
    def is_merged(self) -> bool:
        """Whether any axis of the original is several axes of the tensor."""
        return any(len(group) != 1 for group in self.groups)

    def starts(self) -> tuple[int, ...]:
        """For each group, the index of its first axis in the tensor."""
        places, at = [], int(self.row_added)
        for group in self.groups:
            places.append(at)
            at += len(group)
        return tuple(places)

    def indexes(self, axis: int) -> range:
        """The axes of the tensor that are one axis of the original."""
        start = self.starts()[axis]
        return range(start, start + len(self.groups[axis]))

    @property
    def rows_at(self) -> int | None:
        """The index of the rows among the tensor's axes; None if it is the same for all rows."""
        if self.row_added:
            return 0
        return next((place for place, size in enumerate(self.axes) if size.is_rows), None)

    def times(self) -> Iterator[tuple[int, Size]]:
        """Each axis of time: its index in the tensor, and its size."""
        for place, size in enumerate(self.axes, start=int(self.row_added)):
            if size.is_time:
                yield place, size

    def resized(self, axis: int, size: Size) -> tuple[Group, ...]:
        """The groups with another size of an axis of the original."""
        return tuple((size,) if at == axis else group for at, group in enumerate(self.groups))

    def called(self, name: str, **changes: object) -> Ragged:
        """The same description of another tensor."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]  # fields of its own


Value = Numbers | Ragged

Group = tuple[Size, ...]  # the axes of a tensor that are one axis of the original


def singles(sizes: Iterable[Size]) -> tuple[tuple[Size, ...], ...]:
    """Groups of one axis each."""
    return tuple((size,) for size in sizes)


def is_one(group: Group) -> bool:
    """Whether an axis of the original has size 1."""
    return all(size.fixed == 1 for size in group)


def same_groups(one: Group, other: Group) -> bool:
    """Whether two axes of the original consist of the same axes."""
    return len(one) == len(other) and all(first.same(second) for first, second in zip(one, other, strict=True))


def shown(group: Group) -> str:
    """An axis in words: `rows x time x 8`."""
    return " x ".join(
        "rows" if size.is_rows else str(size.fixed) if size.fixed is not None else "time" for size in group
    )

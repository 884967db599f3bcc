"""Recognises tensors whose steps are cut into chunks, and merges the chunks again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from lengthwise_export.checking.trials import Geometry, Pairing


def chunks_in(shapes: Sequence[Sequence[int]], batches: Sequence[Geometry]) -> Iterator[int]:
    """Chunk sizes that one tensor shows: two neighbouring axes `[chunks, steps of a chunk]`."""
    for place in range(len(shapes[0]) - 1):
        sizes = {shape[place + 1] for shape in shapes}
        size = next(iter(sizes))
        if len(sizes) > 1 or size < 2 or len({shape[place] for shape in shapes}) == 1:
            continue
        if all(_is_count_of_chunks(shape[place], size, batch) for shape, batch in zip(shapes, batches, strict=True)):
            yield size


def chunks_between(tensors: Sequence[Sequence[Sequence[int]]], batches: Sequence[Geometry]) -> Iterator[int]:
    """Chunk sizes that two tensors show: one axis is padded to whole chunks, another counts the chunks."""
    axes = {sizes for shapes in tensors for sizes in zip(*shapes, strict=True) if len(set(sizes)) > 1 and min(sizes)}
    for wholes, counts in itertools.product(axes, axes):
        size, rest = divmod(wholes[0], counts[0])
        if size < 2 or rest or any(whole != size * count for whole, count in zip(wholes, counts, strict=True)):
            continue
        if all(count == -(-batch.width // size) for count, batch in zip(counts, batches, strict=True)):
            yield size


def _is_count_of_chunks(count: int, size: int, batch: Geometry) -> bool:
    """Whether `count` is the number of chunks of one row, or of all rows, of a batch."""
    chunks = -(-batch.width // size)
    return count in (chunks, batch.rows * chunks)


def without_chunks(
    before: NDArray[Any], after: NDArray[Any], larger: tuple[int, ...] | None, pairing: Pairing
) -> tuple[NDArray[Any], NDArray[Any], tuple[int, ...] | None]:
    """Merges the axes `[chunks, steps of a chunk]` of both tensors into one axis of steps."""
    if not pairing.chunks or before.ndim != after.ndim:
        return before, after, larger
    for place in range(before.ndim - 1):
        size = before.shape[place + 1]
        if size not in pairing.chunks or after.shape[place + 1] != size:
            continue
        if _is_count_of_chunks(before.shape[place], size, pairing.before) and _is_count_of_chunks(
            after.shape[place], size, pairing.after
        ):
            shapes = [_merged(shape, place) for shape in (before.shape, after.shape)]
            if larger is not None and len(larger) == before.ndim:
                larger = _merged(larger, place)
            return before.reshape(shapes[0]), after.reshape(shapes[1]), larger
    return before, after, larger


def _merged(shape: Sequence[int], place: int) -> tuple[int, ...]:
    """A shape with an axis and the next one merged."""
    return (*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :])

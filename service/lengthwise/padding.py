"""Pads sequences of different lengths with zeros to the rectangle that a graph takes.

The width is a multiple of four: then a matrix product over the steps sums in the same order for every width, and an
answer has the same bits batched and unbatched (measured on onnxruntime's CPU kernels, for each model in
`verification.json`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.float32] | NDArray[np.int64]  # `[length, features]` float32, or `[length]` int64 token ids


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Sequences, padded with zeros to a rectangle `rows x width`."""

    steps: Steps  # `[rows, width, features]` float32, or `[rows, width]` int64; zeros past each length
    lengths: NDArray[np.int32]  # `[rows]` int32, each 1 to width
    fillers: int = 0  # rows at the end without a sequence; with them a device sees fewer different shapes

    @property
    def rows(self) -> int:
        """The number of rows that are computed: the sequences and the fillers."""
        return int(self.steps.shape[0])

    @property
    def width(self) -> int:
        """The number of steps of each row, with padding."""
        return int(self.steps.shape[1])

    @property
    def padded_steps(self) -> int:
        """Rows x width, with fillers."""
        return self.rows * self.width

    @property
    def valid_steps(self) -> int:
        """The sum of the sequences' lengths, without fillers."""
        lengths: list[int] = self.lengths.tolist()
        return sum(lengths[: len(lengths) - self.fillers])


def rounded_width(length: int, multiple: int = 4) -> int:
    """The width of a batch whose longest sequence has so many steps: rounded up to a multiple."""
    return -(-length // multiple) * multiple


def pad(
    sequences: Sequence[Steps],
    *,
    multiple: int = 4,
    width: int | None = None,
    rows: int | None = None,
    filler_length: int = 1,
) -> PaddedBatch:
    """Pads sequences of one dtype with zeros, in their order.

    `width`: None takes the longest sequence, rounded up to `multiple`. `rows`: None takes the number of sequences;
    further rows are fillers, of the length `filler_length`.

    Raises:
        ValueError: There is no sequence, an empty one, one longer than `width`, or there are more than `rows`.
    """
    if not sequences:
        raise ValueError("there is no sequence to pad")
    lengths_of_sequences = [len(steps) for steps in sequences]
    longest = max(lengths_of_sequences)
    if min(lengths_of_sequences) < 1:
        raise ValueError("a sequence has at least one step")
    if width is None:
        width = rounded_width(longest, multiple)
    elif width < longest:
        raise ValueError(f"a sequence of {longest} steps does not fit into a width of {width}")
    fillers = 0 if rows is None else rows - len(sequences)
    if fillers < 0:
        raise ValueError(f"{len(sequences)} sequences do not fit into {rows} rows")
    # Zeros, into which the sequences are copied
    lengths = np.array(lengths_of_sequences + [filler_length] * fillers, dtype=np.int32)
    first_sequence = sequences[0]
    rectangle = np.zeros((len(lengths), width, *first_sequence.shape[1:]), dtype=first_sequence.dtype)
    for row, steps in zip(rectangle, sequences, strict=False):
        valid = row[: len(steps)]
        # To copy more than 500 numbers, NumPy releases the interpreter lock, and under load the event loop takes it at
        # once: a batch would wait for the lock again and again, once for each row. So these are copied as bytes, but
        # for very large ones, which take long: the event loop goes on meanwhile.
        if (
            500 < steps.size < 1 << 18
            and (steps.dtype, steps.shape) == (valid.dtype, valid.shape)
            and steps.flags.c_contiguous
        ):
            valid.data.cast("B")[:] = steps.data.cast("B")
        else:
            valid[:] = steps
    return PaddedBatch(rectangle, lengths, fillers)


def batches(
    sequences: Sequence[Steps], *, multiple: int = 4, width: int | None = None, most_rows: int | None = None
) -> Iterator[PaddedBatch]:
    """Pads sequences of one dtype with zeros, in their order, in batches of at most `most_rows` rows (None: one batch).

    `width`: of each batch; None takes the longest sequence of the batch, rounded up to `multiple`.
    """
    rows_of_batch = most_rows or len(sequences)
    for start in range(0, len(sequences), rows_of_batch):
        yield pad(sequences[start : start + rows_of_batch], multiple=multiple, width=width)


def step_mask(lengths: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """`[rows, width]`: true at the valid steps of rows with these `lengths [rows]`."""
    return np.arange(width, dtype=np.int32) < lengths[:, None]

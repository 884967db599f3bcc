"""Pads sequences of different lengths with zeros to the rectangle that a graph takes.

Nearly every model takes the steps of one sequence. Where a graph has further inputs, static values, further sequences
or states, what it takes for one sequence is a `Sample`; `PaddedBatch.beside` then has these inputs for all rows.

The width is a multiple of four: then a matrix product over the steps sums in the same order for every width, and an
answer has the same bits batched and unbatched (measured on onnxruntime's CPU kernels, for each model in
`verification.json`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.float32] | NDArray[np.int64]  # `[length, features]` float32, or `[length]` int64 token ids

BatchLogits = NDArray[np.float32]
"""Logits of a padded batch: `[rows, classes]`, or `[rows, width, classes]` of a per-step model."""

STATIC: Final = "static"
"""The graph's input with the static values, `[rows, count]` float32."""

LENGTHS: Final = "{}_lengths"
"""The graph's input with the lengths of a further sequence, by the name of its input with the steps."""


@dataclass(slots=True, eq=False)
class Sample:
    """A sequence, and what stands beside its steps: one row of all of a graph's inputs."""

    steps: Steps  # of the first sequence; without steps only where a state says what came before
    # By the names of the graph's inputs: their values for this row, without the axis of rows
    beside: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    others: Mapping[str, Steps] = field(default_factory=dict)  # further sequences, by the name of their input
    wants_state: bool = False  # whether the answer has the states after these steps
    repeated: int = 0  # how many steps before these run again: of a model that looks ahead, those in its states
    # The states that came with the steps: one value whose fields are inputs of the graph, in the place of `beside`
    state: np.void | None = None

    def __len__(self) -> int:
        """The length of the first sequence."""
        return len(self.steps)

    def __getitem__(self, kept: slice) -> Sample:
        """The sample with a part of the first sequence's steps, and all that stands beside them."""
        return replace(self, steps=self.steps[kept])

    def __bool__(self) -> bool:
        """A sample is true, also without steps."""
        return True

    @property
    def lengths(self) -> list[int]:
        """The length of each of its sequences, the first before the others."""
        return [len(self.steps), *map(len, self.others.values())]

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        size = self.steps.nbytes if self.state is None else self.steps.nbytes + self.state.nbytes
        for array in (*self.beside.values(), *self.others.values()):  # a loop, as in `Call.memory_bytes`
            size += array.nbytes
        return size

    def copy(self) -> Sample:
        """A sample whose steps are no view of a larger array. What stands beside them never is one."""
        return replace(self, steps=self.steps.copy())


RowInput = Steps | Sample
"""What a graph takes for one row: the steps of a sequence, or a sample where it has further inputs."""


def steps_of(row: RowInput) -> Steps:
    """The steps of a row's first sequence."""
    return row.steps if isinstance(row, Sample) else row


def longest_of(row: RowInput) -> int:
    """The length of a row's longest sequence, by which batches are planned (`planned_length`).

    Of rows with two sequences, those with about the same longest one need less padding together than those with about
    the same sum, or the same first one: `python -m benchmarks.pairs`. It is at least 1: a chunk without steps runs too.
    """
    if not isinstance(row, Sample):
        return len(row)
    return max(1, *row.lengths) if row.others else max(1, len(row.steps))


def planned_length(row: RowInput) -> int:
    """The length by which a row's cost is predicted: of its longest sequence, and of the steps that run again."""
    return longest_of(row) + row.repeated if isinstance(row, Sample) else len(row)


def with_steps(row: RowInput, steps: Steps) -> RowInput:
    """The row with other steps of its first sequence, and with what stands beside them."""
    return replace(row, steps=steps) if isinstance(row, Sample) else steps


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Sequences, padded with zeros to a rectangle `rows x width`."""

    steps: Steps  # `[rows, width, features]` float32, or `[rows, width]` int64; zeros past each length
    lengths: NDArray[np.int32]  # `[rows]` int32, each 1 to width; 0 of a sample without steps
    fillers: int = 0  # rows at the end without a sequence; with them a device sees fewer different shapes
    # The graph's further inputs by their names, each `[rows, ...]`; a further sequence is padded to a width of its own
    beside: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    further: tuple[str, ...] = ()  # the names of the further sequences in it
    wants_states: bool = False  # whether a row's answer has the states after its steps
    begins: bool = False  # whether each row begins with these steps: no state says what came before

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
        """Rows x width, with fillers; of several sequences all steps."""
        widths: list[int] = [self.width, *(self.beside[name].shape[1] for name in self.further)]
        return self.rows * sum(widths)

    @property
    def valid_steps(self) -> int:
        """The sum of the sequences' lengths, without fillers."""
        count, lengths = len(self.lengths) - self.fillers, self.lengths.tolist()
        further = (int(self.beside[LENGTHS.format(name)][:count].sum()) for name in self.further)
        return int(sum(lengths[:count]) + sum(further))


def rounded_width(length: int, multiple: int = 4) -> int:
    """The width of a batch whose longest sequence has so many steps: rounded up to a multiple."""
    return -(-length // multiple) * multiple


def pad(
    sequences: Sequence[RowInput],
    *,
    multiple: int = 4,
    width: int | None = None,
    rows: int | None = None,
    filler_length: int = 1,
    blank: Sample | None = None,
) -> PaddedBatch:
    """Pads sequences of one dtype with zeros, in their order.

    `width`: None takes the longest sequence, rounded up to `multiple`. `rows`: None takes the number of sequences;
    further rows are fillers, of the length `filler_length`. `blank`: what stands beside a filler, and beside a sequence
    that has nothing there (`Manifest.blank`); None if all sequences are samples, or none is.

    Raises:
        ValueError: There is no sequence, an empty one, one longer than `width`, or there are more than `rows`.
    """
    if not sequences:
        raise ValueError("there is no sequence to pad")
    if blank is None and isinstance(sequences[0], Sample):
        blank = sequences[0]
    if blank is None:
        return _rectangle(sequences, multiple, width, rows, filler_length)  # type: ignore[arg-type]  # no sample
    bare = [one.steps if isinstance(one, Sample) else one for one in sequences]
    batch = _rectangle(bare, multiple, width, rows, filler_length, shortest=0)
    given = [one if isinstance(one, Sample) else blank for one in sequences] + [blank] * batch.fillers
    if are_plain := Sample not in map(type, sequences):
        beside = {name: np.repeat(value[None], len(given), axis=0) for name, value in blank.beside.items()}
    else:  # `np.array` takes a twentieth of the time of `np.stack`
        joined = _joined_states(given, blank)
        beside = {
            name: joined[name] if name in joined else np.array([row.beside.get(name, value) for row in given])
            for name, value in blank.beside.items()
        }
    for name in blank.others:
        other = _rectangle([row.others[name] for row in given], multiple)
        beside |= {name: other.steps, LENGTHS.format(name): other.lengths}
    wants_states = any([row.wants_state for row in given])
    return PaddedBatch(batch.steps, batch.lengths, batch.fillers, beside, tuple(blank.others), wants_states, are_plain)


def _joined_states(rows: Sequence[Sample], blank: Sample) -> dict[str, NDArray[Any]]:
    """The states of rows by name, `[rows, ...]`; empty where no row has them as one value (`Sample.state`).

    They are joined as bytes, and each state is copied once for all rows. A row without states has those of `blank`: no
    row has them in `beside` where another one has them as one value.
    """
    states = [row.state for row in rows]
    dtypes = [state.dtype for state in states if state is not None]
    if not dtypes:
        return {}
    names, begin = dtypes[0].names or (), np.zeros((), dtypes[0])[()]
    if len(dtypes) < len(rows):
        for name in names:
            begin[name] = blank.beside[name]
    joined = np.frombuffer(b"".join([(begin if state is None else state).tobytes() for state in states]), dtypes[0])
    return {name: joined[name].copy() for name in names}


def _rectangle(
    sequences: Sequence[Steps],
    multiple: int,
    width: int | None = None,
    rows: int | None = None,
    filler_length: int = 1,
    *,
    shortest: int = 1,
) -> PaddedBatch:
    """Pads the steps of sequences: `pad` without what stands beside them; a sequence has `shortest` steps at least.

    Raises:
        ValueError: An empty sequence, one longer than `width`, or more than `rows`.
    """
    lengths_of_sequences = [len(steps) for steps in sequences]
    longest = max(lengths_of_sequences)
    if min(lengths_of_sequences) < shortest:
        raise ValueError("a sequence has at least one step")
    if width is None:
        width = rounded_width(max(longest, 1), multiple)
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
    sequences: Sequence[RowInput],
    *,
    multiple: int = 4,
    width: int | None = None,
    most_rows: int | None = None,
    blank: Sample | None = None,
) -> Iterator[PaddedBatch]:
    """Pads sequences of one dtype with zeros, in their order, in batches of at most `most_rows` rows (None: one batch).

    `width`: of each batch; None takes the longest sequence of the batch, rounded up to `multiple`. `blank`: see `pad`.
    """
    rows_of_batch = most_rows or len(sequences)
    for start in range(0, len(sequences), rows_of_batch):
        yield pad(sequences[start : start + rows_of_batch], multiple=multiple, width=width, blank=blank)


def step_mask(lengths: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """`[rows, width]`: true at the valid steps of rows with these `lengths [rows]`."""
    return np.arange(width, dtype=np.int32) < lengths[:, None]

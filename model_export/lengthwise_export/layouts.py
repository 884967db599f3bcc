"""How sequences are laid out in what a model gets: padded on the right, on the left or on both sides, or packed.

A check knows one form of a batch, `PaddedBatch`: a row for each sequence, its padding behind it. A `StepLayout`
arranges the steps of such a batch for a model, and puts the model's answers into the rows again:

    PaddedBatch --arrange--> inputs of the model --> its answers --restore--> answers to the rows of the PaddedBatch
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, step_mask
from lengthwise_export.options import Packing, PaddingSide

Array = NDArray[Any]

PackedRole = Literal["mask", "padding-mask", "positions", "segments", "borders", "max-length"]
"""What an argument of a module, or an input of a graph, is beside the steps."""

ROLE_OF: Final[Mapping[Packing, PackedRole]] = {
    "cu_seqlens": "borders",
    "position_ids": "positions",
    "segment_ids": "segments",
}
_NAMES: Final[Mapping[PackedRole, str]] = {
    "max-length": r"max_?(seq_?)?len(gth)?s?(_[qk])?",
    "borders": r"cu(m|mulative)?_?(seq_?)?len(gth)?s?(_[qk])?|offsets|indptr|borders|boundaries",
    "positions": r"pos(ition)?(_?ids?|s)?",
    "segments": r"(seg(ment)?|seq(uence)?|doc(ument)?|sample|pack)_?(ids?|idx|ind(ex|ices))|segments|documents",
    "padding-mask": r".*pad.*mask.*",
    "mask": r".*mask.*",
}
"""By which names, in the order in which they are tried: those of flash-attention, Hugging Face and Mamba among them."""


def role_of(name: str) -> PackedRole | None:
    """What an argument or an input of this name is; None if the name does not tell."""
    return next((role for role, names in _NAMES.items() if re.fullmatch(names, name.lower())), None)


@dataclass(frozen=True, slots=True)
class ArrangedSteps:
    """What a model gets for a batch; a packed batch is one row, `rows` is then 1 and `width` all its steps."""

    steps: Steps  # `[rows, width, features]` float32, or `[rows, width]` int64
    valid: NDArray[np.bool_]  # `[rows, width]`
    positions: NDArray[np.int64]  # `[rows, width]`: that of each step in its sequence, from 0
    segments: NDArray[np.int64]  # `[rows, width]`: the number of the step's sequence, from 1; 0 is padding
    borders: NDArray[np.int32]  # `[sequences + 1]`, from 0: where each sequence ends in a packed row

    def by_role(self) -> dict[PackedRole, Array]:
        """What a model may get beside the steps."""
        return {
            "mask": self.valid,
            "padding-mask": ~self.valid,
            "positions": self.positions,
            "segments": self.segments,
            "borders": self.borders,
            "max-length": np.array(np.diff(self.borders).max()),
        }


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Where the steps of each sequence of a batch are in what a model gets."""

    padding: PaddingSide = "right"
    packed: Packing | None = None  # What tells a model the borders in a packed row; None if each sequence has a row
    packed_input: str | None = None  # The name of what tells them, if the user said it
    is_stated: bool = False  # Whether the user said so: a model that is right in another layout only, leaks
    has_rows_axis: bool = True  # Whether a packed row is `[1, steps]`; else `[steps]`
    # Packed, whether the model answers each step; None if that is not known yet
    per_step: bool | None = None
    known_sizes: frozenset[int] = frozenset()  # A packed row with padding has another number of steps
    pad_id: int | None = None  # The token id that callers write into padding; None if padding may hold any
    is_pad_id_of_steps: bool = False  # Whether valid steps may have that id, too

    @property
    def is_usual(self) -> bool:
        """Whether each sequence is at the start of its row."""
        return self.padding == "right" and self.packed is None

    @property
    def word(self) -> str:
        """The word of the option that chooses it."""
        return self.packed or self.padding

    @property
    def name(self) -> str:
        """For messages."""
        if self.packed is not None:
            return f"packed with {self.packed}"
        return "padded on both sides" if self.padding == "both" else f"padded on the {self.padding}"

    def starts(self, lengths: Sequence[int] | Array, width: int) -> NDArray[np.int64]:
        """Where each sequence begins, in its row `width` steps wide or in the packed row."""
        counts = np.asarray(lengths, dtype=np.int64)
        if self.packed is not None:
            return np.cumsum(counts) - counts
        return {"right": counts * 0, "left": width - counts, "both": (width - counts + 1) // 2}[self.padding]

    def width(self, lengths: Sequence[int] | Array, width: int) -> int:
        """The width of what a model gets for a batch; packed, a prime number if there is padding."""
        if self.packed is None:
            return width
        steps, behind = int(np.sum(lengths)), width - int(np.max(lengths))
        if not behind:
            return steps
        return next(
            size for size in itertools.count(steps + behind) if _is_prime(size) and size not in self.known_sizes
        )

    def valid(self, lengths: Sequence[int] | Array, width: int) -> NDArray[np.bool_]:
        """`[rows, width]`, true at valid steps, of what a model gets."""
        counts = np.asarray(lengths)
        if self.packed is not None:
            return step_mask(counts.sum(keepdims=True), self.width(counts, width))
        index = np.arange(width) - self.starts(counts, width)[:, None]
        valid: NDArray[np.bool_] = (index >= 0) & (index < counts[:, None])
        return valid

    def arrange(self, batch: PaddedBatch) -> ArrangedSteps:
        """What a model gets for a batch. The padding of the batch fills that of a packed row."""
        if self.pad_id is not None:
            batch = self._with_pad_id(batch, self.pad_id)
        lengths, valid = batch.lengths, self.valid(batch.lengths, batch.width)
        borders = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
        numbers = np.arange(1, batch.rows + 1)
        if self.packed is None:
            positions = np.maximum(valid.cumsum(axis=1) - 1, 0)
            steps = batch.steps if self.padding == "right" else _rolled(batch.steps, self.starts(lengths, batch.width))
            return ArrangedSteps(steps, valid, positions, valid * numbers[:, None], borders)
        inside, behind = step_mask(lengths, batch.width), int((~valid).sum())
        padding = batch.steps[~inside] if behind else batch.steps[:0, 0]
        steps = np.concatenate((batch.steps[inside], np.resize(padding, (behind, *padding.shape[1:]))))
        # No position behind the last sequence is larger than those before, as a table of positions may end there.
        counted = [np.arange(length) for length in lengths] + [np.arange(behind) % lengths.max()]
        segments = np.concatenate((np.repeat(numbers, lengths), np.zeros(behind, dtype=np.int64)))
        return ArrangedSteps(steps[None], valid, np.concatenate(counted)[None], segments[None], borders)

    def _with_pad_id(self, batch: PaddedBatch, pad_id: int) -> PaddedBatch:
        """The batch with this id at padding, and with another one at valid steps that may not have it."""
        is_step = step_mask(batch.lengths, batch.width)
        is_taken = is_step & (batch.steps == pad_id) & (not self.is_pad_id_of_steps)
        steps = np.where(is_taken, pad_id - 1 if pad_id else 1, np.where(is_step, batch.steps, pad_id))
        return PaddedBatch(steps.astype(np.int64), batch.lengths)

    def restore(self, answer: Array, batch: PaddedBatch, *, has_classes: bool = True) -> Array:
        """A model's answer as `[rows, classes]` or `[rows, width, classes]` of the batch; unchanged if it is neither.

        Without `has_classes`, it is of one number a step.
        """
        starts = self.starts(batch.lengths, batch.width)
        if self.packed is None:
            along_steps = answer.ndim == (3 if has_classes else 2) and answer.shape[:2] == batch.steps.shape[:2]
            return answer if self.padding == "right" or not along_steps else _rolled(answer, -starts)
        flat = answer[0] if answer.ndim == 3 and len(answer) == 1 else answer
        width = self.width(batch.lengths, batch.width)
        is_per_step = (len(flat) == width != batch.rows) if self.per_step is None else self.per_step
        if flat.ndim != 2 or (is_per_step and len(flat) != width):
            return answer
        if is_per_step:
            inside = step_mask(batch.lengths, batch.width)
            rows = np.zeros((*inside.shape, flat.shape[1]), dtype=flat.dtype)
            rows[inside] = flat[: inside.sum()]
            return rows
        if self.packed == "segment_ids" and len(flat) == batch.rows + 1:  # the first answers to segment 0, the padding
            return flat[1:]
        # Of positions a model cannot know that the steps behind the last sequence are none.
        return flat[: batch.rows] if self.packed == "position_ids" else flat


RIGHT: Final = StepLayout()
LEFT: Final = StepLayout("left")


def _rolled(rows: Array, shifts: Array) -> Array:
    """Each row, its steps moved on by a number of its own; those past the end come first."""
    return np.stack([np.roll(row, shift, axis=0) for row, shift in zip(rows, shifts, strict=True)])


def _is_prime(size: int) -> bool:
    return size > 1 and all(size % factor for factor in range(2, math.isqrt(size) + 1))

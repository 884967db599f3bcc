"""How sequences are laid out in what a model gets: padded on the right, on the left or on both sides, or packed.

A check knows one form of a batch, `PaddedBatch`: a row for each sequence, its padding behind it. A `StepLayout`
arranges the steps of such a batch for a model, and puts the model's answers into the rows again:

    PaddedBatch --arrange--> inputs of the model --> its answers --restore--> answers to the rows of the PaddedBatch

A *packed* batch has all sequences in one row, one after the other. Another input tells where each begins and ends: for
two sequences of 2 and 3 steps

    cu_seqlens    [0, 2, 5]          the borders
    position_ids  [0, 1, 0, 1, 2]
    segment_ids   [1, 1, 2, 2, 2]    0 is padding
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

from lengthwise.exporter_api.contract import PaddedBatch, Steps, pad, rounded_width, step_mask
from lengthwise_export.options import Packing, PaddingSide

__all__ = [
    "LEFT",
    "RIGHT",
    "ROLE_OF",
    "ArrangedSteps",
    "Array",
    "PackedRole",
    "PaddedBatch",
    "StepLayout",
    "Steps",
    "pad",
    "role_of",
    "rounded_width",
    "step_mask",
]

Array = NDArray[Any]

PackedRole = Literal["mask", "padding-mask", "positions", "segments", "borders", "max-length"]
"""What an argument of a module, or an input of a graph, that does not hold the steps means."""

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
"""Names of arguments and inputs, by their role: those of flash-attention, Hugging Face, Mamba and others.

The first regular expression that matches counts."""


def role_of(name: str) -> PackedRole | None:
    """The role of an argument or an input with this name; None if the name does not tell."""
    return next((role for role, names in _NAMES.items() if re.fullmatch(names, name.lower())), None)


@dataclass(frozen=True, slots=True)
class ArrangedSteps:
    """What a model gets for a batch. In a packed batch, `rows` is 1 and `width` is the number of all its steps."""

    steps: Steps  # `[rows, width, features]` float32, or `[rows, width]` int64
    valid: NDArray[np.bool_]  # `[rows, width]`, true at valid steps
    positions: NDArray[np.int64]  # `[rows, width]`: the position of each step in its sequence, from 0
    segments: NDArray[np.int64]  # `[rows, width]`: the number of the step's sequence, from 1; 0 is padding
    borders: NDArray[np.int32]  # `[sequences + 1]`: 0, and where each sequence ends in a packed row

    def by_role(self) -> dict[PackedRole, Array]:
        """The inputs that a model may take beside the steps, by their roles."""
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
    """Where the steps of each sequence of a batch are in the inputs of a model."""

    padding: PaddingSide = "right"
    packed: Packing | None = None  # What tells a model the borders in a packed row; None if each sequence has a row
    packed_input: str | None = None  # The name of the input that tells them, if the user named it
    is_stated: bool = (
        False  # Whether the user named this layout: then a model that is right in another layout only, leaks
    )
    has_rows_axis: bool = True  # Whether a packed row is `[1, steps]`, and not `[steps]`
    # Whether a model of packed rows answers each step; None if that is not known yet
    per_step: bool | None = None
    # Whether a model of packed rows that answers segment 0, the padding, too, answers it last, not first
    is_padding_answered_last: bool = False
    known_sizes: frozenset[int] = frozenset()  # Sizes of weights: a packed row with padding has none of these widths
    pad_id: int | None = None  # The token id that callers write into padding; None if padding may hold any
    is_pad_id_of_steps: bool = False  # Whether valid steps may have that id, too

    @property
    def is_right_padded(self) -> bool:
        """Whether each sequence is at the start of its row."""
        return self.padding == "right" and self.packed is None

    @property
    def option(self) -> str:
        """The value of the option `--packed` or `--padding` that chooses the layout."""
        return self.packed or self.padding

    @property
    def name(self) -> str:
        """The layout in messages, such as `padded on the left`."""
        if self.packed is not None:
            return f"packed with {self.packed}"
        return "padded on both sides" if self.padding == "both" else f"padded on the {self.padding}"

    def starts(self, lengths: Sequence[int] | Array, width: int) -> NDArray[np.int64]:
        """The index of each sequence's first step, `[sequences]`: in its row of `width` steps, or in the packed row."""
        counts = np.asarray(lengths, dtype=np.int64)
        if self.packed is not None:
            return np.cumsum(counts) - counts
        return {"right": counts * 0, "left": width - counts, "both": (width - counts + 1) // 2}[self.padding]

    def width(self, lengths: Sequence[int] | Array, width: int) -> int:
        """The width of a model's inputs, in steps, for a batch with these lengths and this width.

        - Padded rows: the width of the batch.
        - A packed row for a batch whose longest row has no padding: the number of valid steps, so it has none either.
        - Any other packed row has padding: its width is a larger prime that is no size of the model's weights
          (`known_sizes`), so that an axis of this size can only be the steps.
        """
        if self.packed is None:
            return width
        valid_steps, padded_steps = int(np.sum(lengths)), width - int(np.max(lengths))
        if not padded_steps:
            return valid_steps
        sizes = itertools.count(valid_steps + padded_steps)
        return next(size for size in sizes if _is_prime(size) and size not in self.known_sizes)

    def valid(self, lengths: Sequence[int] | Array, width: int) -> NDArray[np.bool_]:
        """The mask `[rows, width]` of a model's inputs, true at valid steps; of a packed batch `[1, width]`."""
        counts = np.asarray(lengths)
        if self.packed is not None:
            return step_mask(counts.sum(keepdims=True), self.width(counts, width))
        positions = np.arange(width) - self.starts(counts, width)[:, None]
        return (positions >= 0) & (positions < counts[:, None])

    def arrange(self, batch: PaddedBatch) -> ArrangedSteps:
        """The inputs of a model for a batch: its rows with their steps moved, or one packed row of all sequences.

        A packed row ends in as many steps of padding as `width` asks for: those of the batch, repeated or cut.
        """
        if self.pad_id is not None:
            batch = self._with_pad_id(batch, self.pad_id)
        lengths, valid = batch.lengths, self.valid(batch.lengths, batch.width)
        borders = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
        sequence_numbers = np.arange(1, batch.rows + 1)
        # Padded rows: the steps of each sequence begin at its index in `starts`
        if self.packed is None:
            positions = np.maximum(valid.cumsum(axis=1) - 1, 0)
            steps = batch.steps if self.padding == "right" else _rolled(batch.steps, self.starts(lengths, batch.width))
            return ArrangedSteps(steps, valid, positions, valid * sequence_numbers[:, None], borders)
        # A packed row: all valid steps, then the padding. `valid` is the mask of this row, `in_batch` that of the batch
        in_batch, padded_steps = step_mask(lengths, batch.width), int((~valid).sum())
        padding = batch.steps[~in_batch] if padded_steps else batch.steps[:0, 0]
        steps = np.concatenate((batch.steps[in_batch], np.resize(padding, (padded_steps, *padding.shape[1:]))))
        # No position in the padding is larger than those of the sequences, as a table of positions may end there.
        positions_of_each = [np.arange(length) for length in lengths] + [np.arange(padded_steps) % lengths.max()]
        segments = np.concatenate((np.repeat(sequence_numbers, lengths), np.zeros(padded_steps, dtype=np.int64)))
        return ArrangedSteps(steps[None], valid, np.concatenate(positions_of_each)[None], segments[None], borders)

    def _with_pad_id(self, batch: PaddedBatch, pad_id: int) -> PaddedBatch:
        """The batch with this id in the padding.

        Unless `is_pad_id_of_steps`, a valid step with this id gets the id below it (above it, if it is 0).
        """
        steps = np.where(step_mask(batch.lengths, batch.width), batch.steps, -1)
        if not self.is_pad_id_of_steps:
            steps = np.where(steps == pad_id, pad_id - 1 if pad_id else 1, steps)
        return PaddedBatch(np.where(steps == -1, pad_id, steps).astype(np.int64), batch.lengths)

    def restore(self, answer: Array, batch: PaddedBatch, *, has_classes: bool = True) -> Array:
        """A model's answer, rearranged to `[rows, classes]` or `[rows, width, classes]` of the batch.

        A model of packed rows answers each step, `[steps, classes]` or `[1, steps, classes]`, or each sequence,
        `[sequences, classes]`. If `per_step` does not say which, an answer with an entry for each step is one for each
        step. An answer of any other shape is returned unchanged.

        Args:
            answer: What the model returned for `arrange(batch)`.
            batch: The batch.
            has_classes: Whether the last axis holds classes; otherwise the answer is one number for each step.
        """
        # Padded rows: only an answer for each step has to be moved
        if self.packed is None:
            is_of_steps = answer.ndim == (3 if has_classes else 2) and answer.shape[:2] == batch.steps.shape[:2]
            if self.padding == "right" or not is_of_steps:
                return answer
            return _rolled(answer, -self.starts(batch.lengths, batch.width))
        # A packed row
        outputs = answer[0] if answer.ndim == 3 and len(answer) == 1 else answer
        width = self.width(batch.lengths, batch.width)
        is_per_step = (len(outputs) == width != batch.rows) if self.per_step is None else self.per_step
        if outputs.ndim != 2 or (is_per_step and len(outputs) != width):
            return answer
        if is_per_step:
            valid = step_mask(batch.lengths, batch.width)
            rows = np.zeros((*valid.shape, outputs.shape[1]), dtype=outputs.dtype)
            rows[valid] = outputs[: valid.sum()]
            return rows
        # An answer for each sequence: the model may have answered to segment 0, the padding, too
        if self.packed == "segment_ids" and len(outputs) == batch.rows + 1:
            return outputs[:-1] if self.is_padding_answered_last else outputs[1:]
        # From positions a model cannot know that the last steps are padding: it may answer to them as sequences.
        return outputs[: batch.rows] if self.packed == "position_ids" else outputs


RIGHT: Final = StepLayout()
LEFT: Final = StepLayout("left")


def _rolled(rows: Array, shifts: Array) -> Array:
    """The rows with the steps of each rotated to the right by its shift, as `np.roll` does."""
    return np.stack([np.roll(row, shift, axis=0) for row, shift in zip(rows, shifts, strict=True)])


def _is_prime(size: int) -> bool:
    return size > 1 and all(size % factor for factor in range(2, math.isqrt(size) + 1))

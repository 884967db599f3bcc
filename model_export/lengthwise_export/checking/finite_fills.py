"""Finds masks that hide padding with a finite number, and from which values on such a mask lets padding through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.verification.random_sequences import raw
from lengthwise_export.checking import axes, trials
from lengthwise_export.checking.leaks import Leak, aligned
from lengthwise_export.checking.recording import Operation, Subject
from lengthwise_export.checking.rule import rules
from lengthwise_export.checking.trials import BatchSizes, Geometry, Pairing, Sampler, geometry
from lengthwise_export.errors import RunError
from lengthwise_export.tracing.source_lines import CodeLocation

_LEAST: Final = 64.0
_MOST: Final = 2.0**24  # Larger fills are never got past, smaller ones by the values of other trials
_ONE_LEVEL: Final = "values around 1,000"
_SCALES: Final = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)  # multiples of such values
_FILL_ROWS: Final = 16
_LET_THROUGH: Final = 0.01  # Weights and maxima change by more where padding takes part; rounding changes them by less
_COMPARE: Final = re.compile(
    r"(log_?)?softmax|logsumexp|reduce(logsumexp|max|min)|a?(max|min)|aminmax|topk|sort|median|.*attention.*",
    re.IGNORECASE,
)
"""Operators in which steps compete: for these a mask fills padding."""


def find_finite_fill(
    subject: Subject, base: PaddedBatch, sizes: BatchSizes, sampler: Sampler
) -> tuple[float, Leak] | None:
    """The first finite number of a mask that padding gets past, as a leak; None if there is none.

    A mask of -10,000 hides padding while the scores of a row stay above it, so trials with values of an ordinary size
    do not show it. So the same run, padded and unpadded, gets ever larger values, until padding changes the output of
    a softmax, a maximum or an attention behind the mask.
    """
    if not sampler.kinds or subject.layout.packed:  # tokens, or a model that takes ordinary values only
        return None
    junk = trials.with_padding_filled(base, sampler.fill(base.steps.shape[:2], trials.JUNK["junk"]))
    shape = geometry(junk, subject.layout)
    # The operations that give the same number at all padding, and the number
    fills = {
        operation.identity: number
        for operation in subject.record(junk).operations
        for _, value in operation.outputs
        if (number := _filled_padding(value, shape)) is not None and _LEAST <= abs(number) < _MOST
    }
    random = np.random.default_rng(0)
    shape_of_each = (sizes.longest, base.steps.shape[2])
    with suppress(RunError):
        for scale in _SCALES if fills else ():
            sequences = [raw(_ONE_LEVEL, shape_of_each, random) * np.float32(scale) for _ in range(_FILL_ROWS)]
            if (let_through := _let_through(subject, fills, sequences, sizes)) is not None:
                return let_through
    return None


def _filled_padding(tensor: NDArray[Any], geometry: Geometry) -> float | None:
    """The finite number that stands at all padding of a tensor, and not at all valid steps; None if there is none."""
    if tensor.dtype.kind != "f" or tensor.ndim < 2 or tensor.shape[0] % geometry.rows:
        return None
    valid = geometry.valid
    others = tensor.shape[0] // geometry.rows  # The rows may be merged with another axis, such as that of heads
    for rows, shape in ((0, (geometry.rows, others)), (1, (others, geometry.rows))):
        split = tensor.reshape(*shape, *tensor.shape[1:])
        for steps in (axis for axis in range(2, split.ndim) if split.shape[axis] == geometry.width):
            along = np.moveaxis(split, (rows, steps), (0, 1))
            padding = along[~valid]
            number = float(padding.flat[0]) if padding.size else np.nan
            if np.isfinite(number) and (padding == number).all() and (along[valid] != number).any():
                return number
    return None


def _let_through(
    subject: Subject,
    fills: dict[tuple[str, str, CodeLocation | None], float],
    sequences: Sequence[Steps],
    sizes: BatchSizes,
) -> tuple[float, Leak] | None:
    """The first of the fills behind which padding changes a comparison of these sequences' steps."""
    alone, padded = pad(sequences, width=sizes.longest), pad(sequences, width=sizes.width)
    before, after = subject.record(alone), subject.record(padded)
    rows = tuple((row, row) for row in range(len(sequences)))
    trial = f"values of size {np.abs(sequences[0]).max():.0e}"
    layout = subject.layout
    pairing = Pairing(geometry(alone, layout), geometry(padded, layout), rows, subject.sizes)
    first: dict[int, Operation] = {}
    for mine, other in aligned(before.operations, after.operations):
        origin = next((first[key] for key in other.input_keys if key in first), None)
        if origin is None and other.identity in fills:
            origin = other
        if origin is None:
            continue
        first.update((key, origin) for key in other.output_keys)
        if _COMPARE.fullmatch(other.kind) is None or len(mine.outputs) != len(other.outputs):
            continue
        apart = [
            axes.difference(one, two, pairing) or 0.0
            for (_, one), (_, two) in zip(mine.outputs, other.outputs, strict=True)
        ]
        if max(apart, default=0.0) > _LET_THROUGH:
            number = fills[origin.identity]
            words = {
                "number": f"{number:g}",
                "side": "below" if number < 0 else "above",
                "infinite": f"torch.finfo(scores.dtype).{'min' if number < 0 else 'max'}",
                "trial": trial,
                "operator": other.operator,
            }
            at = (origin.operator, origin.kind, origin.location)
            return number, Leak(*at, rules()["LW803"].cause(words), None, max(apart), trial, layer=origin.layer)
    return None

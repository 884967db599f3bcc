"""Finds masks that hide padding with a finite number, and from which values on such a mask lets padding through.

    one recorded run --the same number at all padding--> fills --the same run with ever larger values, padded and
    unpadded--> the first softmax, maximum or attention behind a fill whose output padding changes

A mask of -10,000 hides padding while the scores of a row stay above it, so trials with values of an ordinary size do
not show it. A number below -2^24 is as good as -inf: float32 cannot tell scores of that size apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.verification.random_sequences import raw
from lengthwise_export.checking import axes
from lengthwise_export.checking.causes import Cause
from lengthwise_export.checking.leaks import Leak, aligned
from lengthwise_export.checking.recording import Operation, Recording, Subject
from lengthwise_export.checking.trials import JUNK, BatchSizes, Pairing, Sampler, geometry, with_padding_filled
from lengthwise_export.errors import RunError

_LEAST: Final = 64.0
_MOST: Final = 2.0**24
"""Sizes of the fills in question: the other trials' values go past smaller ones, and none goes past larger ones."""
_ONE_LEVEL: Final = "values around 1,000"
_SCALES: Final = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)  # multiples of such values
_ROWS: Final = 16
_LET_THROUGH: Final = 0.01
"""Where padding takes part, weights and maxima change by more than that; scores of such a size are rounded by less."""
_COMPARE: Final = re.compile(
    r"(log_?)?softmax|logsumexp|reduce(logsumexp|max|min)|a?(max|min)|aminmax|topk|sort|median|.*attention.*",
    re.IGNORECASE,
)
"""Operators in which steps compete: for these a mask fills padding."""


@dataclass(frozen=True, slots=True)
class FiniteFill:
    """A mask's number that padding gets past."""

    number: float
    leak: Leak


def find(subject: Subject, base: PaddedBatch, sizes: BatchSizes, sampler: Sampler) -> FiniteFill | None:
    """The first finite fill that padding gets past; None if there is none."""
    if not sampler.kinds:  # tokens, or a model that takes ordinary values only
        return None
    junk = with_padding_filled(base, sampler.fill(base.steps.shape[:2], JUNK["junk"]))
    fills = dict(_fills(subject.record(junk), junk))
    random = np.random.default_rng(0)
    for scale in _SCALES if fills else ():
        shape = (sizes.longest, base.steps.shape[2])
        sequences = [raw(_ONE_LEVEL, shape, random) * np.float32(scale) for _ in range(_ROWS)]
        try:
            found = _let_through(subject, fills, sequences, sizes)
        except RunError:
            return None
        if found is not None:
            return found
    return None


def _fills(recording: Recording, batch: PaddedBatch) -> Iterator[tuple[tuple[object, ...], float]]:
    """The operations that give the same number at all padding, and the number."""
    sizes = geometry(batch)
    for operation in recording.operations:
        for _, value in operation.outputs:
            number = axes.filled_padding(value, sizes)
            if number is not None and _LEAST <= abs(number) < _MOST:
                yield operation.identity, number


def _let_through(
    subject: Subject, fills: dict[tuple[object, ...], float], sequences: Sequence[Steps], sizes: BatchSizes
) -> FiniteFill | None:
    """The first of the fills behind which padding changes a comparison of these sequences' steps."""
    alone, padded = pad(sequences, width=sizes.longest), pad(sequences, width=sizes.width)
    before, after = subject.record(alone), subject.record(padded)
    rows = tuple((row, row) for row in range(len(sequences)))
    trial = f"values of size {np.abs(sequences[0]).max():.0e}"
    pairing = Pairing(geometry(alone), geometry(padded), rows, subject.sizes)
    first: dict[int, Operation] = {}
    for mine, other in aligned(before.operations, after.operations):
        origin = next((first[key] for key in other.inputs if key in first), None)
        if origin is None and other.identity in fills:
            origin = other
        if origin is None:
            continue
        first.update((key, origin) for key in other.gives)
        if _COMPARE.fullmatch(other.kind) is None or len(mine.outputs) != len(other.outputs):
            continue
        apart = [
            axes.difference(one, two, pairing) or 0.0
            for (_, one), (_, two) in zip(mine.outputs, other.outputs, strict=True)
        ]
        if max(apart, default=0.0) > _LET_THROUGH:
            return _found(fills[origin.identity], origin, other, max(apart), trial)
    return None


def _found(number: float, origin: Operation, compared: Operation, apart: float, trial: str) -> FiniteFill:
    beyond = "below" if number < 0 else "above"
    why = (
        f"The mask fills padding with {number:g}, a finite number: it hides padding only while a score of each row is "
        f"not near or {beyond} {number:g}. With {trial}, padding takes part in {compared.operator}."
    )
    infinite = "torch.finfo(scores.dtype)." + ("min" if number < 0 else "max")
    cause = Cause(why, f"scores = scores.masked_fill(~valid, {infinite})  # in the place of {number:g}")
    return FiniteFill(
        number,
        Leak(
            operator=origin.operator,
            kind=origin.kind,
            location=origin.location,
            cause=cause,
            cause_at=None,
            difference=apart,
            trial=trial,
            place=origin.place,
        ),
    )

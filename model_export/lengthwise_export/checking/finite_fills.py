"""Finds masks that hide padding with a finite number, and from which values on such a mask lets padding through.

A *fill* is the number that a mask writes to all padding of a tensor, such as -10,000 or `finfo.min`. It hides padding
while the scores of a row stay above it, so trials with values of an ordinary size do not show it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.checking import trials
from lengthwise_export.checking.compared_runs import OperationPair, aligned
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.recording import Identity, Operation, Subject
from lengthwise_export.checking.rule import rules
from lengthwise_export.checking.trials import BatchSizes, Geometry, Pairing, Sampler, geometry
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import PaddedBatch, Steps, pad

_SMALLEST_FILL: Final = 64.0  # the trials show smaller fills
_LARGEST_FILL: Final = 2.0**24  # no values that a model can compute with get past a larger fill
_RAW_KIND: Final = "values around 1,000"
_SCALES: Final = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)  # what the values of this kind are multiplied by, in turn
_FILL_ROWS: Final = 16
_MIN_DIFFERENCE: Final = (
    0.01  # Weights and maxima change by more if padding takes part, and by less if they are rounded
)
_COMPARING: Final = re.compile(
    r"(log_?)?softmax|logsumexp|reduce(logsumexp|max|min)|a?(max|min)|aminmax|topk|sort|median|.*attention.*",
    re.IGNORECASE,
)
"""Operators in which steps compete: masks fill padding for these."""


def find_finite_fill(
    subject: Subject, base: PaddedBatch, sizes: BatchSizes, sampler: Sampler
) -> tuple[float, Leak] | None:
    """The first fill that padding gets past, and the leak at its mask; None if there is none.

    The model runs sequences of ever larger values, padded and unpadded, until padding changes the output of a softmax,
    a maximum or an attention that uses the mask.
    """
    if not sampler.kinds or subject.layout.packed:  # tokens, or a model that takes ordinary values only
        return None
    junk = trials.with_padding_filled(base, sampler.fill(base.steps.shape[:2], trials.JUNK_SCALES["junk"]))
    shape = geometry(junk, subject.layout)
    # The fills, by the operations whose output has them
    fills = {
        operation.identity: number
        for operation in subject.record(junk).operations
        for _, value in operation.outputs
        if (number := _filled_padding(value, shape)) is not None and _SMALLEST_FILL <= abs(number) < _LARGEST_FILL
    }
    raw = Sampler(subject.steps, 0)
    with suppress(RunError):
        for scale in _SCALES if fills else ():
            sequences = [raw.sequence(sizes.longest, _RAW_KIND) * np.float32(scale) for _ in range(_FILL_ROWS)]
            if (fill_and_leak := _first_fill_let_through(subject, fills, sequences, sizes)) is not None:
                return fill_and_leak
    return None


def _filled_padding(tensor: NDArray[Any], batch: Geometry) -> float | None:
    """The finite number that a tensor has at all padding, and not at all valid steps; None if there is none.

    The axis of rows is the first one, or is merged with another axis, such as that of heads, in the first one.
    """
    if tensor.dtype.kind != "f" or tensor.ndim < 2 or tensor.shape[0] % batch.rows:
        return None
    valid = batch.valid
    merged_size = tensor.shape[0] // batch.rows
    for rows, shape in ((0, (batch.rows, merged_size)), (1, (merged_size, batch.rows))):
        split = tensor.reshape(*shape, *tensor.shape[1:])
        for steps in (axis for axis in range(2, split.ndim) if split.shape[axis] == batch.width):
            rows_and_steps_first = np.moveaxis(split, (rows, steps), (0, 1))
            padding = rows_and_steps_first[~valid]
            number = float(padding.flat[0]) if padding.size else np.nan
            if np.isfinite(number) and (padding == number).all() and (rows_and_steps_first[valid] != number).any():
                return number
    return None


def _first_fill_let_through(
    subject: Subject,
    fills: dict[Identity, float],
    sequences: Sequence[Steps],
    sizes: BatchSizes,
) -> tuple[float, Leak] | None:
    """The first fill that padding gets past, and the leak at its mask; None if there is none.

    The sequences run padded and unpadded. The tensors that are made of a filled one are followed to an operator in
    which steps compete: if its output differs between both runs, padding was not hidden from it.

    Args:
        subject: The model.
        fills: The fill of each operation that writes one, by its identity.
        sequences: Sequences of `sizes.longest` steps.
        sizes: The sizes of the batches.
    """
    unpadded, padded = pad(sequences, width=sizes.longest), pad(sequences, width=sizes.width)
    run_unpadded, run_padded = subject.record(unpadded), subject.record(padded)
    trial = f"values of size {np.abs(sequences[0]).max():.0e}"
    layout = subject.layout
    pairing = Pairing(
        geometry(unpadded, layout), geometry(padded, layout), trials.same_rows(len(sequences)), subject.sizes
    )
    # By the key of each tensor that is made of a filled one: the operation that filled it
    filled_by: dict[int, Operation] = {}
    for operation_unpadded, operation in aligned(run_unpadded.operations, run_padded.operations):
        origin = next((filled_by[key] for key in operation.input_keys if key in filled_by), None)
        if origin is None and operation.identity in fills:
            origin = operation
        if origin is None:
            continue
        filled_by.update((key, origin) for key in operation.output_keys)
        pair = OperationPair(operation_unpadded, operation, (None,) * len(operation_unpadded.outputs))
        difference = pair.difference(pairing) if _COMPARING.fullmatch(operation.kind) else None
        if difference is not None and difference > _MIN_DIFFERENCE:
            number = fills[origin.identity]
            return number, _leak_at_mask(origin, number, operation, difference, trial)
    return None


def _leak_at_mask(mask: Operation, number: float, operation: Operation, difference: float, trial: str) -> Leak:
    """The leak at a mask that fills padding with a number.

    Args:
        mask: The operation that fills.
        number: The number that it fills with.
        operation: The operation in which padding takes part.
        difference: By how much the output of that operation differs.
        trial: The name of the trial that shows it.
    """
    message_words = {
        "number": f"{number:g}",
        "side": "below" if number < 0 else "above",
        "infinite": f"torch.finfo(scores.dtype).{'min' if number < 0 else 'max'}",
        "trial": trial,
        "operator": operation.operator,
    }
    return Leak(
        operator=mask.operator,
        kind=mask.kind,
        location=mask.location,
        cause=rules()["LW803"].cause(message_words),
        cause_at=None,
        difference=difference,
        trial=trial,
        layer=mask.layer,
    )

"""Makes the inputs of a graph for a batch, by the graph's own names, types and order of axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, RowInput, Sample, pad, step_mask, steps_of
from lengthwise.runtime.manifest import GraphNames, Manifest


def feed(names: GraphNames, batch: PaddedBatch, valid: NDArray[np.bool_] | None = None) -> dict[str, NDArray[Any]]:
    """Makes the graph's inputs for a batch `[rows, width, features]`; returns the arrays by the graph's names.

    What stands beside the steps is under these names already.

    Args:
        names: The names, types and orders of axes of the graph's inputs.
        batch: The batch.
        valid: `[rows, width]`, true at valid steps; by default at the steps within each length.
    """
    inputs: dict[str, NDArray[Any]] = {}
    if names.mask is not None:
        valid = step_mask(batch.lengths, batch.width) if valid is None else valid
        mask = (valid if names.mask_marks == "valid" else ~valid).astype(names.mask_type, copy=False)
        inputs[names.mask] = np.ascontiguousarray(mask.T) if names.time_first else mask
    if names.lengths is not None:
        inputs[names.lengths] = batch.lengths.astype(names.lengths_type, copy=False)
    steps: NDArray[Any] = batch.steps if names.features_axis else batch.steps[:, :, 0]
    if names.channels_first:
        steps = np.ascontiguousarray(steps.swapaxes(1, 2))
    elif names.time_first:
        steps = np.ascontiguousarray(steps.swapaxes(0, 1))
    inputs[names.sequences] = steps
    inputs.update(batch.beside)
    return inputs


def zero_batch(manifest: Manifest, rows: int, width: int) -> PaddedBatch:
    """Makes a batch of zeros for the model, `[rows, width, features]`, or `[rows, width]` for tokens.

    Every row is as long as the width, or as `max_length` where the width was rounded up beyond that. Of several
    sequences, each is.
    """
    row: RowInput = manifest.input.zeros(min(width, manifest.max_length))
    if not manifest.further:
        return pad([row] * rows, width=width, blank=manifest.blank)
    others = {name: one.input.zeros(min(width, one.max_length)) for name, one in manifest.further.items()}
    return pad([Sample(steps_of(row), others=others)] * rows, blank=manifest.blank)

"""Joins the calls in a loop of the user's code, over steps or over sequences, to one operation.

In layouts other than right padding, a turn of a loop over the steps may belong to different sequences in two runs, so
turns cannot be compared one by one. So each call in such a loop becomes one operation for all turns, with an axis of
steps in front of its outputs; in a loop over the packed sequences, with an axis of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lengthwise_export.checking.recording import Operation, Recording
from lengthwise_export.checking.trials import Geometry
from lengthwise_export.layouts import Array


def with_joined_loops(recording: Recording, batch: Geometry) -> Recording:
    """The recording of a run of a batch, with the calls in a loop over its steps or sequences joined to one operation.

    The joined operation stands where the first call was.
    """
    calls_by_identity: dict[object, list[Operation]] = defaultdict(list)
    for operation in recording.operations:
        calls_by_identity[operation.identity].append(operation)
    joined = {identity: _as_one(group, batch) for identity, group in calls_by_identity.items()}
    # Each call that is not joined, and in the place of the first call of a loop the joined operation
    operations = [
        joined[operation.identity] or operation
        for operation in recording.operations
        if joined[operation.identity] is None or operation is calls_by_identity[operation.identity][0]
    ]
    return replace(recording, operations=operations)


def _as_one(calls: Sequence[Operation], batch: Geometry) -> Operation | None:
    """The calls of all turns joined to one operation.

    None if the number of calls is not that of the steps or the sequences, or their outputs cannot be stacked.
    """
    count, first = len(calls), calls[0]
    if count < 2 or any(len(call.outputs) != len(first.outputs) for call in calls):
        return None
    # A loop with a state may begin at the second step.
    is_over_steps = count in (batch.width, batch.width - 1)
    if not is_over_steps and not (batch.is_packed and count in (batch.rows, batch.rows + sum(batch.padding_sequences))):
        return None
    outputs = []
    for numbered in zip(*(call.outputs for call in calls), strict=True):
        stacked = _stacked([value for _, value in numbered], None if is_over_steps else batch.longest)
        if stacked is None:
            return None
        if is_over_steps:
            stacked = np.concatenate((np.zeros_like(stacked[: batch.width - count]), stacked))
        outputs.append((numbered[-1][0], stacked))
    return replace(
        first,
        input_keys=frozenset().union(*(call.input_keys for call in calls)),
        output_keys=frozenset().union(*(call.output_keys for call in calls)),
        outputs=tuple(outputs),
        is_loop=is_over_steps,
    )


def _stacked(values: Sequence[Array], longest: int | None) -> Array | None:
    """The values stacked along a new first axis; axes of different sizes are padded with zeros to `longest`.

    None if they have different numbers of axes, or if sizes differ where `longest` is None or smaller.
    """
    if len({value.ndim for value in values}) > 1:
        return None
    sizes = [{*of_axis} for of_axis in zip(*(value.shape for value in values), strict=True)]
    ragged = [axis for axis, sizes_of_axis in enumerate(sizes) if len(sizes_of_axis) > 1]
    if not ragged:
        return np.stack(values)
    if longest is None or any(value.shape[axis] > longest for value in values for axis in ragged):
        return None
    return np.stack(
        [
            np.pad(value, [(0, longest - size if axis in ragged else 0) for axis, size in enumerate(value.shape)])
            for value in values
        ]
    )

"""Converts the sequences that `input_sequences` read to items, by the rules for the body of a request.

An item (`Item` of `decoding.calls`) is a sequence that was validated for a model. Errors of all sequences are collected
in one.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets import input_sequences
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.input_sequences import InputSequence, Layout, Padding
from lengthwise.decoding.calls import Item, make_item, missing_message, rounded, why_refused
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

_INT64: Final = np.iinfo(np.int64)


def items(sequences: Any, manifest: Manifest, layout: Layout = "steps-first", **options: Any) -> list[Item]:
    """Converts the sequences to items; InvalidSequences names all that are wrong. Arguments: see `items_or_reasons`."""
    return input_sequences.require_valid(items_or_reasons(sequences, manifest, layout, **options))


def items_or_reasons(
    sequences: Any,
    manifest: Manifest,
    layout: Layout = "steps-first",
    *,
    padding: Padding | None = None,
    ask: bool = True,
) -> list[Item | str]:
    """The item of each sequence, or a text with the reason why the model refuses it.

    `padding`, `ask` and errors: see `input_sequences.read`.
    """
    columns = ColumnNames(inputs=manifest.input.names or ())
    features = manifest.input.features or 0
    entries, _ = input_sequences.read(sequences, layout, columns, features=features, padding=padding, ask=ask)
    return [entry if isinstance(entry, str) else item(entry, manifest) for entry in entries]


def item(sequence: InputSequence, manifest: Manifest) -> Item | str:
    """The item of one sequence, or a text with the reason why the model refuses it."""
    features = manifest.input.features
    try:
        steps = kept_steps = as_steps(sequence.steps, manifest.input.kind, features)
        # With a wrong number of features the masks would be reported, not the features: `why_refused` does.
        if steps.ndim == 1 or steps.shape[1] == features:
            kept_steps = masked_steps(sequence, steps)
    except ValueError as error:
        return str(error)
    # A feature that is left out is a missing value in every step.
    if (
        kept_steps is not steps
        and sequence.feature_mask is not None
        and not all(sequence.feature_mask)
        and manifest.missing == "refuse"
    ):
        return missing_message(manifest)
    if (reason := why_refused(kept_steps, manifest)) is not None:
        return reason
    indices = None if sequence.step_mask is None else np.flatnonzero(sequence.step_mask)
    return make_item(kept_steps, manifest, sent_steps=len(steps), step_indices=indices, id=sequence.id)


def masked_steps(sequence: InputSequence, steps: Steps) -> Steps:
    """The steps that `step_mask` leaves, with NaN for the features that `feature_mask` leaves out.

    Raises:
        ValueError: A mask has another length, leaves no step, or is of features that tokens do not have.
    """
    if sequence.step_mask is not None:
        if len(sequence.step_mask) != len(steps):
            raise ValueError(f"step_mask has {len(sequence.step_mask)} entries, and the sequence {len(steps)} steps")
        if not any(sequence.step_mask):
            raise ValueError("step_mask leaves no step; a sequence has at least one")
        steps = steps[np.array(sequence.step_mask)]
    if sequence.feature_mask is not None:
        if steps.ndim == 1:
            raise ValueError("feature_mask: a token has no features to mask")
        if len(sequence.feature_mask) != steps.shape[1]:
            raise ValueError(
                f"feature_mask has {len(sequence.feature_mask)} entries, and a step {steps.shape[1]} features"
            )
        steps = np.where(np.array(sequence.feature_mask), steps, np.float32(np.nan))
    return steps


def as_steps(array: NDArray[Any], kind: Literal["values", "tokens"], features: int | None) -> Steps:
    """Converts an array to what the model takes: values `[length, features]` float32, or token ids `[length]` int64.

    Raises:
        ValueError: The array has another form; the message says which is right.
    """
    if array.ndim == 1 and not array.size:
        raise ValueError("a sequence has at least one step")
    if kind == "tokens":
        if array.ndim != 1:
            raise ValueError(f"the shape of token ids must be [length], got {[*array.shape]}")
        if array.dtype.kind not in "iu":
            raise ValueError(f"token ids are whole numbers, the type of this array is {array.dtype}")
        if array.dtype == np.uint64 and array.max() > _INT64.max:
            raise ValueError(f"step {int(array.argmax())}: a token id must be at most {_INT64.max}, got {array.max()}")
        return array.astype(np.int64, copy=False)
    if array.ndim == 1 and features in (1, None):
        array = array[:, None]
    if array.ndim != 2:
        second = "features" if features is None else features
        hint = "; put a single sequence in a list too" if array.shape == (features,) else ""
        raise ValueError(f"the shape must be [length, {second}], got {[*array.shape]}{hint}")
    return array if array.dtype == np.float32 else rounded(array)

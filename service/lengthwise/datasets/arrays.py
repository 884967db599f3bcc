"""Converts a Python caller's sequences, read by `given`, to items, by the rules for a body. One error names all."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets import given as forms
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.given import GivenSequence, Layout, Padding
from lengthwise.decoding.calls import Item, make_item, missing_message, rounded, why_refused
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

_INT64: Final = np.iinfo(np.int64)


def items(sequences: Any, manifest: Manifest, layout: Layout = "steps-first", **how: Any) -> list[Item]:
    """Converts and validates as `items_or_reasons`; InvalidSequences names each that is wrong."""
    return forms.good(items_or_reasons(sequences, manifest, layout, **how))


def items_or_reasons(
    sequences: Any,
    manifest: Manifest,
    layout: Layout = "steps-first",
    *,
    padding: Padding | None = None,
    ask: bool = True,
) -> list[Item | str]:
    """The item of each sequence, or why the model refuses it; `ask` and what is raised: see `given.read`."""
    columns = ColumnNames(inputs=manifest.input.names or ())
    features = manifest.input.features or 0
    found, _ = forms.read(sequences, layout, columns, features=features, padding=padding, ask=ask)
    return [one if isinstance(one, str) else item(one, manifest) for one in found]


def item(given: GivenSequence, manifest: Manifest) -> Item | str:
    """The item of one sequence, or why the model refuses it, as a sentence."""
    features = manifest.input.features
    try:
        steps = kept = as_steps(given.steps, manifest.input.kind, features)
        has_mask = not given.is_plain and (steps.ndim == 1 or steps.shape[1] == features)
        if has_mask:
            kept = kept_steps(given, steps)
    except ValueError as error:
        return str(error)
    if has_mask and given.feature_mask is not None and not all(given.feature_mask) and manifest.missing == "refuse":
        return missing_message(manifest)
    why = why_refused(kept, manifest)
    if why is not None:
        return why
    places = None if given.step_mask is None else np.flatnonzero(given.step_mask)
    return make_item(kept, manifest, sent_steps=len(steps), kept_places=places, id=given.id)


def kept_steps(given: GivenSequence, steps: Steps) -> Steps:
    """The steps that the masks leave, with NaN for the features that they leave out.

    Raises:
        ValueError: A mask has another length, leaves no step, or is of features that tokens do not have.
    """
    if given.step_mask is not None:
        if len(given.step_mask) != len(steps):
            raise ValueError(f"step_mask has {len(given.step_mask)} entries, and the sequence {len(steps)} steps")
        if not any(given.step_mask):
            raise ValueError("step_mask leaves no step; a sequence has at least one")
        steps = steps[np.array(given.step_mask)]
    if given.feature_mask is not None:
        if steps.ndim == 1:
            raise ValueError("feature_mask: a token has no features to mask")
        if len(given.feature_mask) != steps.shape[1]:
            entries = len(given.feature_mask)
            raise ValueError(f"feature_mask has {entries} entries, and a step {steps.shape[1]} features")
        steps = np.where(np.array(given.feature_mask), steps, np.float32(np.nan))
    return steps


def as_steps(array: NDArray[Any], kind: Literal["values", "tokens"], features: int | None) -> Steps:
    """Converts what `given` read to `[length, features]` float32, or `[length]` int64.

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

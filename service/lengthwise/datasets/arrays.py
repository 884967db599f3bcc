"""Converts the sequences that `input_sequences` read to items, by the rules for the body of a request.

An item (`Item` of `decoding.calls`) is a sequence that was validated for a model. Errors of all sequences are collected
in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets import input_sequences
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.input_sequences import InputSequence, Layout, Padding
from lengthwise.datasets.tables import INT64
from lengthwise.decoding.calls import (
    TRANSPOSED,
    Item,
    Problems,
    make_item,
    missing_message,
    no_steps,
    rounded,
    unknown_fields,
    why_refused,
)
from lengthwise.decoding.chunks import ABSENT, Past, SentState, SentStates, resumed
from lengthwise.decoding.validation import item_fields, read_fields
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.states import StateKeys


def items(sequences: Any, manifest: Manifest, layout: Layout = "steps-first", **options: Any) -> list[Item]:
    """Converts a caller's sequences to items.

    `options` are those of `items_or_reasons`.

    Raises:
        InvalidSequences: Some sequences cannot be read, or the model refuses them; the error names all of them.
        StateConflict: Some states do not fit; see `items_or_reasons`.
    """  # noqa: DOC502 - what it calls raises it
    return input_sequences.require_valid(items_or_reasons(sequences, manifest, layout, **options))


def items_or_reasons(
    sequences: Any,
    manifest: Manifest,
    layout: Layout = "steps-first",
    *,
    padding: Padding | None = None,
    ask: bool = True,
    static: Any = None,
    inputs: Any = None,
    before: Mapping[str, Any] | None = None,
    wants_state: bool = False,
) -> list[Item | str]:
    """Reads a caller's sequences; returns for each its item, or a text: why it cannot be read, or the model refuses it.

    Args:
        sequences: The sequences, in any form of `input_sequences`.
        manifest: The manifest of the model.
        layout: The order of the axes of an array.
        padding: What is cut off the end of each sequence: steps of zeros, or without values (nan); None: nothing.
        ask: Whether to log a warning about steps that look like padding, and to refuse plain numbers that may be one
            sequence or many; False for data that was read before.
        static: The static values of each sequence, where they are not in `sequences`; or the columns of a table that
            are static values. By default those with the names of the model's.
        inputs: Of a model that takes several sequences: the sequences of each name, in the place of `sequences`.
        before: The `state` and the `offset` of each sequence, as in `input_sequences.read`.
        wants_state: Whether the answers have the next states.

    Raises:
        StateConflict: Nothing else is wrong, and a state is of another version, or has seen another number of steps.
        InvalidSequences: `sequences` is not a collection of sequences at all, such as a single number or a path.
        ConfigurationError: `layout` or `padding` is no value of these options, or it is not clear what the columns of a
            table are.
    """  # noqa: DOC502 - what it calls raises them
    takes = manifest.input
    columns = ColumnNames(inputs=takes.names or (), static=() if static is not None else takes.static_names)
    options: Any = {"features": takes.features or 0, "padding": padding, "ask": ask, "static": static, "inputs": inputs}
    entries, _ = input_sequences.read(sequences, layout, columns, **options, before=before)
    # What came before the steps of each, if it is sent with a state
    sent = [SentState() if isinstance(entry, str) else _sent_state(entry) for entry in entries]
    problems = Problems(most_listed=len(entries))
    states = SentStates(sent, "/sequences/{}/state", "/sequences/{}/offset", problems, wants_state)
    _, pasts = states.read([manifest], StateKeys())
    reasons = {
        problem.sequence: f"{problem.pointer.rpartition('/')[2]}: {problem.detail}" for problem in problems.first
    }
    results = [
        reasons.get(index) or (entry if isinstance(entry, str) else item(entry, manifest, past))
        for index, (entry, past) in enumerate(zip(entries, pasts, strict=True))
    ]
    if not any(isinstance(result, str) for result in results):
        states.conflicts.require_none()
    return results


def _sent_state(sequence: InputSequence) -> SentState:
    """What a sequence says of the steps before its own."""
    return SentState(*(ABSENT if said is None else said for said in (sequence.state, sequence.offset)))


def item(
    sequence: InputSequence, manifest: Manifest, past: Past | None = None, transposed: str = TRANSPOSED
) -> Item | str:
    """Makes the item of one sequence; returns a text with the reason if the model refuses the sequence.

    `past`: what came before, of a sequence that is sent with states. `transposed` ends the text if the steps seem to be
    transposed.
    """
    made = _with_more(sequence, manifest, None if past is None else past.offset, transposed)
    return made if isinstance(made, str) else resumed(made, past)


def _with_more(sequence: InputSequence, manifest: Manifest, seen: int | None, transposed: str) -> Item | str:
    """`item` without what came before its steps; `seen`: as in `calls.length_problem`."""
    fields = {name: value for name in ("static", "inputs") if (value := getattr(sequence, name)) is not None}
    if not manifest.input.has_more and not fields:
        return _item_alone(sequence, manifest, seen, transposed)
    problems, static = Problems(), manifest.input.static
    if isinstance(sequence.static, Mapping) and static is not None and static.names is None:
        fields["static"] = [*sequence.static.values()]  # the columns of a table, in their order

    def read(steps: Any, at: str, alone: Manifest) -> Item | None:
        """Reads the steps of one sequence."""
        made = _item_alone(replace(sequence, steps=steps), alone, seen, transposed)
        if isinstance(made, str):
            problems.add(at, made)
            return None
        return made

    unknown_fields(fields, item_fields(manifest.input), "", problems)
    made = read_fields({"steps": sequence.steps} | fields, "", manifest, problems, read)
    if made is not None and not problems.total:
        return made
    first = problems.first[0]
    return f"{first.pointer[1:]}: {first.detail}" if first.pointer else first.detail


def _item_alone(sequence: InputSequence, manifest: Manifest, seen: int | None, transposed: str) -> Item | str:
    """`item` for a model that takes the steps of one sequence alone; `seen`: as in `calls.length_problem`."""
    features = manifest.input.features
    if seen and not len(sequence.steps):
        return make_item(no_steps(manifest.input), manifest, sent_steps=0, id=sequence.id)
    try:
        steps = as_steps(sequence.steps, manifest.input.kind, features)
        # Masks are not applied to a wrong number of features: `why_refused` reports the features, not the masks.
        is_wide_enough = steps.ndim == 1 or steps.shape[1] == features
        kept_steps = masked_steps(sequence, steps) if is_wide_enough else steps
    except ValueError as error:
        return str(error)
    # A feature that the mask leaves out is a missing value in every step.
    if is_wide_enough and not all(sequence.feature_mask or ()) and manifest.missing == "refuse":
        return missing_message(manifest)
    if (reason := why_refused(kept_steps, manifest, transposed, seen=seen)) is not None:
        return reason
    indices = None if sequence.step_mask is None else np.flatnonzero(sequence.step_mask)
    return make_item(kept_steps, manifest, sent_steps=len(steps), step_indices=indices, id=sequence.id)


def masked_steps(sequence: InputSequence, steps: Steps) -> Steps:
    """Applies the masks of a sequence to its steps: without those that `step_mask` leaves out; NaN for masked features.

    `steps [length, features]` or `[length]` are those of the sequence, converted by `as_steps`.

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
        if array.dtype == np.uint64 and array.max() > INT64.max:
            raise ValueError(f"step {int(array.argmax())}: a token id must be at most {INT64.max}, got {array.max()}")
        return array.astype(np.int64, copy=False)
    if array.ndim == 1 and features in (1, None):
        array = array[:, None]
    if array.ndim != 2:
        second = "features" if features is None else features
        hint = "; put a single sequence in a list too" if array.shape == (features,) else ""
        raise ValueError(f"the shape must be [length, {second}], got {[*array.shape]}{hint}")
    return array if array.dtype == np.float32 else rounded(array)

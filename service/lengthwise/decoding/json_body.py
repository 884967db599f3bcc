"""The JSON of `POST /predict`: a body becomes a call, by `fast_json` or `validation`, and answers become JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import Call, Find, Item
from lengthwise.padding import Sample
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.states import StateKeys


def decode(body: bytes, find: Find, *, max_sequences: int, layout: validation.BodyLayout = validation.PREDICT) -> Call:
    """Reads an inflated body, and returns its call: in C if it is ordinary, else by `validation`.

    Raises `InvalidRequest` if the body is wrong, `TooLarge` if it has too many sequences or parts, and another
    `RequestError` if its model is not known or not ready.
    """
    if (call := fast_json.read(body, find, max_sequences=max_sequences, layout=layout)) is not None:
        return call
    fast_json.explain(body, find, max_sequences=max_sequences, layout=layout)
    return validation.read(body, find, max_sequences=max_sequences, layout=layout)


def predictions(call: Call, answers: list[Answer]) -> list[dict[str, Any]]:
    """The entries of `predictions` in an answer, in the order of the request."""
    manifest = call.model.manifest
    keys = call.model.state_keys if call.states else None
    return [
        prediction(manifest, item, answer, attention=call.attention, state_keys=keys)
        for item, answer in zip(call.items, answers, strict=True)
    ]


def prediction(
    manifest: Manifest, item: Item, answer: Answer, *, attention: bool, state_keys: StateKeys | None = None
) -> dict[str, Any]:
    """One entry of `predictions`, as a dict with NumPy arrays, which orjson writes without a loop in Python.

    With `state_keys` it has the state after the item's steps, which they sign.
    """
    labels = manifest.labels
    fields: dict[str, Any] = {} if item.id is None else {"id": item.id}
    probabilities = answer.probabilities
    if manifest.task == "single-label":
        best = answer.best
        fields |= {"label": labels[best], "score": probabilities[best], "probabilities": probabilities}
    elif manifest.task == "multi-label":
        assigned = np.flatnonzero(probabilities >= manifest.threshold)
        fields |= {"assigned": [labels[i] for i in assigned], "probabilities": probabilities}
    elif manifest.task == "embedding":
        fields["values"] = probabilities
    else:
        best_of_steps = probabilities.argmax(axis=1)
        fields |= {
            "step_labels": _at_sent_steps(item, [labels[i] for i in best_of_steps]),
            "step_scores": _at_sent_steps(item, probabilities.max(axis=1)),
            "probabilities": _at_sent_steps(item, np.ascontiguousarray(probabilities)),
        }
    fields["length"] = len(item.steps) if not manifest.input.sequences else lengths_of(manifest, item)
    if manifest.input.fit is not None:
        fields["fitted"] = manifest.input.fit
    if attention and answer.attention is not None:
        weights = answer.attention
        if item.step_indices is not None:  # a masked step has the weight 0
            weights = np.zeros(item.sent_steps, dtype=np.float32)
            weights[item.step_indices] = answer.attention
        fields["attention"] = weights
    if answer.windows is not None:
        fields["windows"] = answer.windows
    return fields | _of_stream(manifest, item, answer, state_keys)


def _of_stream(manifest: Manifest, item: Item, answer: Answer, state_keys: StateKeys | None) -> dict[str, Any]:
    """The fields of the answer to steps that were sent with a state, or with `state_keys`; of any other none."""
    fields: dict[str, Any] = {}
    if state_keys is not None:
        fields["offset"], fields["state"] = next_state(manifest, item, answer, state_keys)
    if manifest.stop_at is not None and (state_keys is not None or item.seen is not None):
        fields["decided"] = is_decided(manifest, item, answer)
    return fields


def is_decided(manifest: Manifest, item: Item, answer: Answer) -> bool:
    """Whether the label of a sequence so far is decided (`Manifest.stop_at`); of a model that says nothing, never."""
    steps, stop_at = (item.seen or 0) + len(item.steps), manifest.stop_at
    return stop_at is not None and stop_at.is_reached(float(answer.probabilities[answer.best]), steps)


def next_state(manifest: Manifest, item: Item, answer: Answer, keys: StateKeys) -> tuple[int, str]:
    """How many steps the sequence of an item has so far, and the text of the state after them."""
    offset = (item.seen or 0) + len(item.steps)
    assert answer.state is not None  # else the answer was refused (`answers.with_states`)
    return offset, keys.text(manifest.state_digest, offset, answer.state)


def lengths_of(manifest: Manifest, item: Item) -> dict[str, int]:
    """The length of each of several sequences, by its name."""
    assert isinstance(item.steps, Sample)
    return dict(zip(manifest.by_sequence, item.steps.lengths, strict=True))


def _at_sent_steps(item: Item, entries: Sequence[Any] | NDArray[Any]) -> Sequence[Any] | NDArray[Any]:
    """The entries of the kept steps at their indices in the request; None at each masked step."""
    if item.step_indices is None:
        return entries
    spread: list[Any] = [None] * item.sent_steps
    for index, entry in zip(item.step_indices, entries, strict=True):
        spread[index] = entry
    return spread

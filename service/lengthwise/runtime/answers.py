"""Computes answers from a graph's outputs: the probabilities of each row, and one answer from a sequence's windows.

Everything is computed row by row, so the answer of a row does not depend on another row (batch invariance).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import RowInput
from lengthwise.runtime.input_tables import Streaming
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.states import are_finite

if TYPE_CHECKING:  # a session brings onnxruntime along; a command's help does without
    from lengthwise.runtime.session import Outputs

Floats = NDArray[np.float32]

NOT_FINITE: Final = "the model's answer to this sequence is not finite"
"""The message where a sequence has no answer."""


class Answer(NamedTuple):
    """The model's answer for one sequence."""

    probabilities: Floats  # [classes], or [length, classes] of a per-step head; of an embedding its values
    best: int = 0  # the class of the highest probability; 0 for a per-step head, which has one for each step
    attention: Floats | None = None  # [length], with sum 1; None if it was not requested
    windows: list[dict[str, Any]] | None = None  # under policy `window`: start, length, probabilities of each
    # The states after the steps (`Streaming.row`); None if they were not requested, or one is not finite
    state: bytes | None = None


def score(outputs: Outputs, lengths: NDArray[np.int32], manifest: Manifest) -> list[Answer | None]:
    """Computes the answer of each row of a batch, without padding; None for a row whose logits are not finite.

    Attention weights and states that are not finite lose no answer here: only the requests that ask for them need
    finite ones (`with_attention`, `with_states`).

    Args:
        outputs: The graph's outputs for the batch.
        lengths: `[rows]`, the length of each row.
        manifest: The manifest of the model.
    """
    logits, attention = outputs.logits, outputs.attention
    weights = (
        [None] * len(lengths)
        if attention is None
        else [row[:length] for row, length in zip(attention, lengths, strict=True)]
    )
    states: Sequence[bytes | None] = [None] * len(lengths)
    if manifest.streaming is not None and outputs.states:
        states = _of_rows(outputs.states, manifest.streaming)
    # 1. A per-step head: rows have different lengths.
    if manifest.task == "per-step":
        return [
            Answer(probabilities(row, manifest), attention=weight, state=state) if np.isfinite(row).all() else None
            for row, weight, state in zip(by_row(logits, lengths, manifest), weights, states, strict=True)
        ]
    # 2. One row of logits for each sequence: all at once. Rows that are not finite are computed as zeros.
    is_finite = np.isfinite(logits)
    finite_rows = None if np.count_nonzero(is_finite) == is_finite.size else np.logical_and.reduce(is_finite, axis=1)
    safe_logits = logits if finite_rows is None else np.where(finite_rows[:, None], logits, np.float32(0))
    scored = probabilities(safe_logits, manifest)
    best = scored.argmax(axis=1).tolist()
    answers: list[Answer | None] = [
        Answer(row, index, weight, state=state)
        for row, index, weight, state in zip(scored, best, weights, states, strict=True)
    ]
    if finite_rows is None:
        return answers
    return [answer if finite else None for answer, finite in zip(answers, finite_rows, strict=True)]


def by_row(logits: Floats, lengths: NDArray[np.int32], manifest: Manifest) -> list[Floats]:
    """The logits of each row of a batch: `[classes]`, or of a per-step model `[length, classes]`, without padding."""
    per_step = manifest.task == "per-step"
    return [row[:length] if per_step else row for row, length in zip(logits, lengths, strict=True)]


def with_attention(answers: Sequence[Answer | None]) -> list[Answer | None]:
    """Returns the answers to a request that asks for attention, with None for those whose attention is not finite.

    Only this request loses such an answer. Other requests of the batch, which ask for no attention, keep theirs.
    """
    return [
        None if answer is None or (answer.attention is not None and not np.isfinite(answer.attention).all()) else answer
        for answer in answers
    ]


def _of_rows(states: Sequence[NDArray[Any]], streaming: Streaming) -> list[bytes | None]:
    """The states of each row, from those of all rows, `[rows, ...]` each; None of a row where one is not finite."""
    table = np.empty(len(states[0]), streaming.row)
    for name, values in zip(streaming.row.names or (), states, strict=True):
        table[name] = values
    content, size = table.tobytes(), streaming.state_bytes
    rows = [content[start : start + size] for start in range(0, len(content), size)]
    return [row if are_finite(streaming.form, row) else None for row in rows]


def with_states(answers: Sequence[Answer | None]) -> list[Answer | None]:
    """Returns the answers to a request that asks for states, with None for those whose states are not finite."""
    return [answer if answer is not None and answer.state is not None else None for answer in answers]


def probabilities(logits: Floats, manifest: Manifest) -> Floats:
    """The probabilities of the classes from logits `[..., classes]`, in the same shape.

    They are the softmax over the classes; of a multi-label head, the logistic function of each logit. If the graph's
    outputs are probabilities already (`manifest.scores`), they are returned unchanged.
    """
    if manifest.scores == "probabilities" or manifest.task == "embedding":
        return logits
    if manifest.task == "multi-label":
        # In float64, exp(-x) overflows only for logits whose probability is 0 anyway.
        with np.errstate(over="ignore"):
            return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    powers: Floats = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def windows(steps: RowInput, max_length: int) -> list[tuple[int, RowInput]]:
    """Splits a sequence into windows of at most `max_length` steps; returns the first step and the steps of each.

    Windows follow each other without gaps. The last window overlaps the one before, so that every window is full.
    """
    if len(steps) <= max_length:
        return [(0, steps)]
    starts = [*range(0, len(steps) - max_length, max_length), len(steps) - max_length]
    return [(start, steps[start : start + max_length]) for start in starts]


def merge(answers: Sequence[Answer], starts: Sequence[int], length: int, manifest: Manifest) -> Answer:
    """Merges the answers of a sequence's windows into one answer for the sequence of `length` steps.

    `starts` are the first steps of the windows, as `windows` returns them.

    - Probabilities and attention are means over the windows, so the attention sums to 1 over the sequence.
    - With a per-step head, a step that is in two windows gets the answer of the first window.
    """
    if manifest.task == "per-step":
        step_probabilities = np.empty((length, manifest.classes), dtype=np.float32)
        for answer, start in zip(reversed(answers), reversed(starts), strict=True):  # the first window is written last
            step_probabilities[start : start + len(answer.probabilities)] = answer.probabilities
        parts: list[dict[str, Any]] = [
            {"start": start, "length": len(answer.probabilities)} for answer, start in zip(answers, starts, strict=True)
        ]
        return Answer(step_probabilities, windows=parts)
    stacked = np.stack([answer.probabilities for answer in answers])
    mean: Floats = stacked.mean(axis=0, dtype=np.float64, keepdims=True)[0].astype(np.float32)
    attention = None
    if weights := [answer.attention for answer in answers if answer.attention is not None]:
        attention = np.zeros(length, dtype=np.float32)
        for start, window_weights in zip(starts, weights, strict=True):
            attention[start : start + len(window_weights)] += window_weights / np.float32(len(weights))
    size = min(length, manifest.max_length)
    parts = [
        {"start": start, "length": size, "probabilities": answer.probabilities}
        for answer, start in zip(answers, starts, strict=True)
    ]
    return Answer(mean, int(mean.argmax()), attention, parts)

"""From a graph's outputs to answers: probabilities of each row, and of a sequence in windows one answer again.

Everything is row by row: no figure of one row depends on another, so scoring keeps what the graph promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

if TYPE_CHECKING:  # a session brings onnxruntime along; a command's help does without
    from lengthwise.runtime.session import Outputs

Floats = NDArray[np.float32]


class Answer(NamedTuple):
    """What the model says of one sequence.

    Attributes:
        probabilities: `[classes]`, or `[length, classes]` of a per-step head.
        best: The class of the highest probability; 0 of a per-step head, which has one for each step.
        attention: `[length]`, summing to 1, or None where it was not asked for.
        windows: Under policy `window`, what each window said, where it starts and how long it is.
    """

    probabilities: Floats
    best: int = 0
    attention: Floats | None = None
    windows: list[dict[str, Any]] | None = None


def score(outputs: Outputs, lengths: NDArray[np.int32], manifest: Manifest) -> list[Answer | None]:
    """The answer of each row; None where its logits are not finite. Its attention may not be: see `with_attention`.

    Args:
        outputs: `logits [rows, classes]` (per-step: `[rows, width, classes]`), `attention [rows, width]` or None.
        lengths: `[rows]`; what lies past a row's length is cut off.
        manifest: Task, and what the output is.
    """
    logits, attention = outputs.logits, outputs.attention
    weights = (
        [None] * len(lengths)
        if attention is None
        else [row[:length] for row, length in zip(attention, lengths, strict=True)]
    )
    if manifest.task == "per-step":
        rows = [row[:length] for row, length in zip(logits, lengths, strict=True)]
        return [
            Answer(probabilities(row, manifest), attention=weight) if np.isfinite(row).all() else None
            for row, weight in zip(rows, weights, strict=True)
        ]
    numbers = np.isfinite(logits)
    finite = None if np.count_nonzero(numbers) == numbers.size else np.logical_and.reduce(numbers, axis=1)
    scored = probabilities(logits if finite is None else np.where(finite[:, None], logits, np.float32(0)), manifest)
    best = scored.argmax(axis=1).tolist()
    answers: list[Answer | None] = [
        Answer(row, index, weight) for row, index, weight in zip(scored, best, weights, strict=True)
    ]
    if finite is None:
        return answers
    return [answer if good else None for answer, good in zip(answers, finite, strict=True)]


def with_attention(answers: Sequence[Answer | None]) -> list[Answer | None]:
    """The answers for a caller who asked for the attention; None in the place of one whose attention is not finite.

    Whoever did not ask has his answer all the same: what his company asked for must not change it.
    """
    return [
        None if answer is None or (answer.attention is not None and not np.isfinite(answer.attention).all()) else answer
        for answer in answers
    ]


def probabilities(logits: Floats, manifest: Manifest) -> Floats:
    """Softmax over the last axis, or of a multi-label head the logistic function; nothing where they are already."""
    if manifest.scores == "probabilities":
        return logits
    if manifest.task == "multi-label":
        # 1 / (1 + exp(-x)) in float64, where exp cannot overflow for any float32 that is a logit of interest.
        with np.errstate(over="ignore"):
            return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    powers: Floats = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def windows(steps: Steps, max_length: int) -> list[tuple[int, Steps]]:
    """A sequence as windows of at most `max_length` steps, each with its start.

    They stand end to end; the last reaches back over its neighbour, so that every window of a long sequence is full.
    """
    if len(steps) <= max_length:
        return [(0, steps)]
    starts = [*range(0, len(steps) - max_length, max_length), len(steps) - max_length]
    return [(start, steps[start : start + max_length]) for start in starts]


def merge(answers: Sequence[Answer], starts: Sequence[int], length: int, manifest: Manifest) -> Answer:
    """One answer from those of a sequence's windows.

    Probabilities are the mean over the windows; so is the attention, which then sums to 1 over the sequence. A step
    of a per-step head that lies in two windows is answered by the first.

    Args:
        answers: Of each window.
        starts: Where each window starts.
        length: Of the whole sequence.
        manifest: Labels and task.
    """
    if manifest.task == "per-step":
        whole = np.empty((length, manifest.classes), dtype=np.float32)
        for answer, start in zip(reversed(answers), reversed(starts), strict=True):
            whole[start : start + len(answer.probabilities)] = answer.probabilities
        told: list[dict[str, Any]] = [
            {"start": start, "length": len(answer.probabilities)} for answer, start in zip(answers, starts, strict=True)
        ]
        return Answer(whole, windows=told)
    stacked = np.stack([answer.probabilities for answer in answers])
    mean: Floats = stacked.mean(axis=0, dtype=np.float64, keepdims=True)[0].astype(np.float32)
    attention = None
    if answers[0].attention is not None:
        attention = np.zeros(length, dtype=np.float32)
        for answer, start in zip(answers, starts, strict=True):
            if answer.attention is not None:
                attention[start : start + len(answer.attention)] += answer.attention / np.float32(len(answers))
    size = min(length, manifest.max_length)
    told = [
        {"start": start, "length": size, "probabilities": answer.probabilities}
        for answer, start in zip(answers, starts, strict=True)
    ]
    return Answer(mean, int(mean.argmax()), attention, told)

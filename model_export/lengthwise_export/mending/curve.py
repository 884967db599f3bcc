"""One sequence's answer against the padding behind it, before and after a mend: the picture of the leak report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import Steps, pad
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError

_LENGTH: Final = 40  # steps of the sequence, if the model accepts batches wide enough
_MAX_SHARE: Final = 2.0
_POINTS: Final = 41
CANDIDATES: Final = 16  # the sequence is the one whose answer moves most among this many random ones


@dataclass(frozen=True, slots=True)
class PaddingCurve:
    """The probability of one sequence's class against the padding behind it."""

    length: int  # The steps of the sequence
    shares: tuple[float, ...]  # The padding as a share of the length: 0 to 2
    before: tuple[float, ...]  # The probability that the original gives, at each share
    after: tuple[float, ...]  # The probability that the mended model gives, at each share


def draw_curve(
    original: Subject, mended: Subject, *, max_length: int, min_length: int = 1, seed: int = 0
) -> PaddingCurve | None:
    """Runs one sequence with more and more zeros behind it; None if a model raises, or an answer is not finite."""
    length = max(min(_LENGTH, int(max_length / (1 + _MAX_SHARE))), min_length)
    widths = {share: round(length * (1 + share)) for share in np.linspace(0, _MAX_SHARE, _POINTS).tolist()}
    shares = [share for share, width in widths.items() if width <= max_length]
    sampler = Sampler(original.steps, seed)
    sequences = [sampler.sequence(length) for _ in range(CANDIDATES)]
    try:
        alone = [_probabilities(original, steps, length) for steps in sequences]
        padded = [_probabilities(original, steps, widths[shares[-1]]) for steps in sequences]
        moved = [abs(one - other)[one.argmax()] for one, other in zip(alone, padded, strict=True)]
        chosen = int(np.argmax(moved))
        place = int(alone[chosen].argmax())
        before, after = (
            tuple(float(_probabilities(model, sequences[chosen], widths[share])[place]) for share in shares)
            for model in (original, mended)
        )
    except (RunError, IndexError):  # no axis of steps as wide as the batch
        return None
    return PaddingCurve(length, tuple(shares), before, after) if np.isfinite([*before, *after]).all() else None


def _probabilities(model: Subject, steps: Steps, width: int) -> NDArray[np.float64]:
    """The probabilities of the classes; of a per-step model those at the last valid step."""
    logits = model.answer(pad([steps], width=width)).logits[0]
    row: NDArray[np.float64] = (logits[len(steps) - 1] if logits.ndim == 2 else logits).astype(np.float64)
    if row.size == 1:
        row = np.array([row[0], 0.0])
    elif row.min() >= 0 and abs(row.sum() - 1) <= 1e-4:
        return row
    powers = np.exp(row - row.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares

"""Calibrates probabilities: one number, the temperature, by which all logits are divided.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599. The temperature is the one with the smallest log loss on answers that were not trained
on. It changes no label.

Where all these answers are right, the loss falls without end as the temperature falls, so a model would claim to be
certain. So the targets are a little uncertain: an error is expected once in `answers + 2` answers, as Laplace's rule of
succession says after answers without one. J. Platt's targets for his sigmoids (1999) have the same reason.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

LOWEST: Final = 1e-3
HIGHEST: Final = 1e3
FEWEST: Final = 5
"""With fewer answers, all may be right or wrong by chance: the temperature would be at one of its bounds."""


def fit(logits: NDArray[np.floating], targets: NDArray[np.generic], *, multi_label: bool) -> float | None:
    """Fits the temperature to answers that were not trained on, by a bounded search for the smallest log loss.

    Args:
        logits: `[answers, classes]`.
        targets: `[answers]`, the index of the correct class; for a multi-label model `[answers, classes]`, 0 or 1.
        multi_label: Whether each class is a yes or no of its own, so that probabilities come from a sigmoid.

    Returns:
        The temperature, from `LOWEST` to `HIGHEST`; None with fewer than `FEWEST` answers.
    """
    if len(logits) < FEWEST:
        return None
    values = np.asarray(logits, dtype=np.float64)
    chance = 1 / (len(values) + 2)
    if multi_label:
        smoothed = np.where(targets.astype(bool), 1 - chance, chance)
    else:
        smoothed = np.full(values.shape, chance / max(values.shape[1] - 1, 1))
        smoothed[np.arange(len(values)), targets.astype(np.int64)] = 1 - chance

    def loss(exponent: float) -> float:
        """The log loss with the temperature e**exponent."""
        scaled = values / np.exp(exponent)
        if multi_label:
            return float((np.logaddexp(0, scaled) - smoothed * scaled).sum())
        return float((np.logaddexp.reduce(scaled, axis=1) - (smoothed * scaled).sum(axis=1)).sum())

    bounds = (float(np.log(LOWEST)), float(np.log(HIGHEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))

"""Ridge regression on labels, with the answers that each sequence would get from a model trained without it.

The answers without a sequence come from the same fit ("leave-one-out"; Hastie, Tibshirani, Friedman, "The Elements of
Statistical Learning", section 7.10): for a linear smoother, the residual without example i is the residual divided by
one minus the i-th diagonal element of the smoother. So the penalty is chosen, and probabilities are calibrated, without
a validation split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PENALTIES: Final = np.logspace(-3, 5, 17)
"""The penalties that are tried."""
_SMALLEST_SPREAD: Final = 1e-6
_LARGEST_LEVERAGE: Final = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A fitted ridge regression.

    Attributes:
        weights: `[features, targets]`.
        intercepts: `[targets]`.
        penalty: The penalty, chosen among `PENALTIES`.
        left_out: `[examples, targets]`, for each example the answer of a fit without it.
    """

    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    penalty: float
    left_out: NDArray[np.float64]


def fit(
    features: NDArray[np.float32], targets: NDArray[np.float64], importance: NDArray[np.float64] | None = None
) -> RidgeFit:
    """Fits a ridge regression whose penalty has the smallest squared error on examples that were left out.

    Each feature is divided by its standard deviation first; the weights that are returned are those of the features as
    they were passed. The intercept has no penalty.

    Args:
        features: `[examples, features]`, at least two examples.
        targets: `[examples, targets]`.
        importance: `[examples]`, how much each example counts; None for all the same.
    """
    weight = np.ones(len(features)) if importance is None else importance / importance.mean()
    share = weight / weight.sum()
    mean = share @ features.astype(np.float64)
    scaled = features - mean
    spread = np.sqrt(share @ scaled**2)
    scale = np.where(spread > _SMALLEST_SPREAD, spread, 1.0)
    root = np.sqrt(weight)[:, None]
    scaled /= scale
    scaled *= root
    middle = share @ targets
    wanted = (targets - middle) * root
    basis, squares = _directions(scaled)
    found = basis.T @ wanted  # (directions, targets)
    fits = []
    for penalty in PENALTIES:
        shrunk = squares / (squares + penalty)
        residuals = wanted - basis @ (shrunk[:, None] * found)
        leverage = np.minimum((basis**2) @ shrunk + share, _LARGEST_LEVERAGE)
        without = residuals / (1 - leverage)[:, None]
        fits.append((float((without**2).sum()), float(penalty), without))
    _, penalty, without = min(fits, key=lambda fit: fit[0])
    inverse = basis @ (found / (squares + penalty)[:, None])  # (examples, targets)
    weights = (scaled.T @ inverse) / scale[:, None]
    return RidgeFit(weights, middle - mean @ weights, penalty, targets - without / root)


def _directions(scaled: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The left singular vectors `[examples, directions]` of a matrix, and the squares of its singular values."""
    examples, features = scaled.shape
    if examples <= features:
        squares, basis = np.linalg.eigh(scaled @ scaled.T)
    else:
        squares, right = np.linalg.eigh(scaled.T @ scaled)
        basis = scaled @ right
    kept = squares > squares.max(initial=0.0) * 1e-12
    squares, basis = squares[kept], basis[:, kept]
    return (basis if examples <= features else basis / np.sqrt(squares)), squares

"""Ridge regression on labels, with the answers that each sequence would get from a model trained without it.

The answers without a sequence come from the same fit ("leave-one-out"; Hastie, Tibshirani, Friedman, "The Elements of
Statistical Learning", section 7.10): for a linear smoother, the residual without example i is the residual divided by
one minus the i-th diagonal element of the smoother. So the penalty is chosen, and probabilities are calibrated, without
a validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

PENALTIES: Final = np.logspace(-3, 5, 17)
"""The penalties that are tried."""
SHARES: Final = (0.0, 0.1, 0.3, 1.0, 3.0)
"""How much features that stand apart count together, relative to all others together; each is tried."""
USUAL_SHARE: Final = 1.0
_MANY_EXAMPLES: Final = 1500
"""With more examples only the usual share is tried: each takes a decomposition of a matrix."""
_SMALLEST_SPREAD: Final = 1e-6
_LARGEST_LEVERAGE: Final = 1 - 1e-9

_Directions: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]


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
    features: NDArray[np.float32],
    targets: NDArray[np.float64],
    importance: NDArray[np.float64] | None = None,
    *,
    apart: int = 0,
) -> RidgeFit:
    """Fits a ridge regression whose penalty has the smallest squared error on examples that were left out.

    Each feature is divided by its standard deviation first; the weights that are returned are those of the features as
    they were passed. The intercept has no penalty. A few features beside thousands of others would count for nothing,
    so those that stand apart are multiplied by a number that is chosen as the penalty is.

    Args:
        features: `[examples, features]`, at least two examples.
        targets: `[examples, targets]`.
        importance: `[examples]`, how much each example counts; None for all the same.
        apart: Number of features, the last ones, that stand apart.
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
    best: _Penalised | None = None
    for factor, directions in _weighed(scaled, apart):
        found = _penalised(directions, wanted, share, factor)
        if best is None or found.error < best.error:
            best = found
    assert best is not None  # at least one factor is tried
    factors = np.ones(scaled.shape[1])
    factors[len(factors) - apart :] = best.factor
    weights = (scaled.T @ best.inverse) * (factors**2 / scale)[:, None]
    return RidgeFit(weights, middle - mean @ weights, best.penalty, targets - best.without / root)


@dataclass(frozen=True, slots=True)
class _Penalised:
    """A fit with one penalty: its squared error on examples that were left out, and what the weights come from."""

    error: float
    penalty: float
    factor: float
    without: NDArray[np.float64]
    inverse: NDArray[np.float64]


def _weighed(scaled: NDArray[np.float64], apart: int) -> Iterator[tuple[float, _Directions]]:
    """Each factor of the features that stand apart, and the directions of the matrix with them multiplied by it."""
    examples, features = scaled.shape
    others = features - apart
    if not apart or not others:
        yield 1.0, _directions(scaled)
        return
    shares = SHARES if examples <= _MANY_EXAMPLES else (USUAL_SHARE,)
    factors = [float(np.sqrt(share * others / apart)) for share in shares]
    if examples > features:
        for factor in factors:
            yield factor, _directions(np.hstack([scaled[:, :others], scaled[:, others:] * factor]))
        return
    # the product of all is the sum of the products of both parts: only the small one depends on the factor
    large, small = (part @ part.T for part in (scaled[:, :others], scaled[:, others:]))
    for factor in factors:
        yield factor, _kept(*np.linalg.eigh(large + factor**2 * small))


def _penalised(
    directions: _Directions, wanted: NDArray[np.float64], share: NDArray[np.float64], factor: float
) -> _Penalised:
    """The penalty with the smallest squared error on examples that were left out."""
    basis, squares = directions
    found = basis.T @ wanted  # (directions, targets)
    fits = []
    for penalty in PENALTIES:
        shrunk = squares / (squares + penalty)
        residuals = wanted - basis @ (shrunk[:, None] * found)
        leverage = np.minimum((basis**2) @ shrunk + share, _LARGEST_LEVERAGE)
        without = residuals / (1 - leverage)[:, None]
        fits.append((float((without**2).sum()), float(penalty), without))
    error, penalty, without = min(fits, key=lambda fit: fit[0])
    inverse = basis @ (found / (squares + penalty)[:, None])  # (examples, targets)
    return _Penalised(error, penalty, factor, without, inverse)


def _directions(scaled: NDArray[np.float64]) -> _Directions:
    """The left singular vectors `[examples, directions]` of a matrix, and the squares of its singular values."""
    examples, features = scaled.shape
    if examples <= features:
        return _kept(*np.linalg.eigh(scaled @ scaled.T))
    squares, right = np.linalg.eigh(scaled.T @ scaled)
    basis, squares = _kept(squares, scaled @ right)
    return basis / np.sqrt(squares), squares


def _kept(squares: NDArray[np.float64], basis: NDArray[np.float64]) -> _Directions:
    """The directions that are more than rounding."""
    kept = squares > squares.max(initial=0.0) * 1e-12
    return basis[:, kept], squares[kept]

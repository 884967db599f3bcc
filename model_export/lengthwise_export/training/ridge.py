"""Ridge regression on labels, with the answer that each example would get from a fit without it.

scikit-learn's `RidgeCV` has these leave-one-out answers in closed form. So the penalty is chosen, and probabilities are
calibrated, without a validation split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

PENALTIES: Final = np.logspace(-3, 5, 17)
"""Candidate penalties."""
SHARES: Final = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Candidate weights of the sequence-level features against the kernel features, each group taken together."""
USUAL_SHARE: Final = 1.0
_MANY_EXAMPLES: Final = 1500
"""With more examples only the usual share is tried, because each share takes a decomposition of a matrix."""

_SMALLEST_SPREAD: Final = 1e-6
"""A feature with a smaller deviation, such as the level of sequences that were normalised before, is rounding noise."""


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
    """Fits a ridge regression whose penalty has the smallest squared leave-one-out error.

    Each feature is divided by its standard deviation first; the weights that are returned are those of the features as
    they were passed. Among thousands of kernel features, a few sequence-level features would count for nothing, so they
    are multiplied by a factor that is chosen as the penalty is.

    Args:
        features: `[examples, features]`, at least two examples.
        targets: `[examples, targets]`.
        importance: `[examples]`, the weight of each example; None for equal weights.
        apart: Number of sequence-level features, which are the last ones.
    """
    weight = np.ones(len(features)) if importance is None else importance / importance.mean()
    mean = np.average(features.astype(np.float64), axis=0, weights=weight)
    spread = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weight))
    scale = np.where(spread > _SMALLEST_SPREAD, spread, 1.0)
    scaled = (features - mean) / scale
    fits = []
    for factor in _factors(len(scaled), scaled.shape[1], apart):
        factors = np.ones(scaled.shape[1])
        factors[len(factors) - apart :] = factor
        fits.append((factors, _fitted(scaled * factors, targets, weight)))
    factors, best = max(fits, key=lambda made: float(made[1].best_score_))
    weights = np.atleast_2d(best.coef_).T * (factors / scale)[:, None]
    left_out = best.cv_results_[..., int(np.flatnonzero(best.alpha_ == PENALTIES)[0])]
    intercepts = np.atleast_1d(best.intercept_) - mean @ weights
    return RidgeFit(weights, intercepts, float(best.alpha_), left_out.reshape(targets.shape))


def _factors(examples: int, features: int, apart: int) -> list[float]:
    """The factors of the sequence-level features that are tried."""
    others = features - apart
    if not apart or not others:
        return [1.0]
    shares = SHARES if examples <= _MANY_EXAMPLES else (USUAL_SHARE,)
    return [float(np.sqrt(share * others / apart)) for share in shares]


def _fitted(features: NDArray[np.float64], targets: NDArray[np.float64], weight: NDArray[np.float64]) -> RidgeCV:
    """A `RidgeCV` that keeps its leave-one-out predictions."""
    mode = "svd" if features.shape[0] > features.shape[1] else "auto"
    made = RidgeCV(PENALTIES, scoring="neg_mean_squared_error", gcv_mode=mode, store_cv_results=True)
    return made.fit(features, targets, sample_weight=weight)

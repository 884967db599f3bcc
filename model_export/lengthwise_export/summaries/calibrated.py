"""A classifier with calibrated probabilities, in operations that a graph computes with the same bits in every batch.

The temperature divides logits. Those of a forest are logarithms of its probabilities, and a logarithm has other bits at
other places of a batch. `log_probabilities` is the smallest of some tangents of it in its place: products, sums and a
minimum, which are exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.multioutput import MultiOutputClassifier

_POINTS: Final = np.geomspace(1e-4, 1.0, 64)
SLOPES: Final = 1 / _POINTS
OFFSETS: Final = np.log(_POINTS) - 1


def log_probabilities(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest of 64 tangents of the logarithm: within 0.003 of it from 1e-4 on, and -10.2 for 0."""
    return np.asarray((probabilities[..., None] * SLOPES + OFFSETS).min(axis=-1))


def forest_logits(probabilities: NDArray[np.float64], *, multi_label: bool) -> NDArray[np.float64]:
    """Logits of probabilities `[rows, classes]`: for a softmax, or of several labels each for a sigmoid."""
    logits = log_probabilities(probabilities)
    return logits - log_probabilities(1.0 - probabilities) if multi_label else logits


class CalibratedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A fitted classifier of scikit-learn whose logits are divided by a temperature.

    Args:
        classifier: A forest or logistic regression, or boosted trees for one label. Its classes are 0, 1, ..., or of
            several labels 0 and 1.
        temperature: The temperature.
        labels: The names of the classes.
    """

    def __init__(self, classifier: Any, temperature: float, labels: Sequence[str]) -> None:
        self.classifier = classifier
        self.temperature = temperature
        self.labels = labels

    def fit(self, X: Any, y: Any = None) -> CalibratedClassifier:
        """Itself: it is made of a fitted classifier."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Whether it is fitted, which scikit-learn asks."""
        return True

    @property
    def multi_label(self) -> bool:
        """Whether each label is assigned by itself."""
        return isinstance(self.classifier.classes_, list)

    @property
    def classes_(self) -> Any:
        """The labels; of several labels a list of `[0, 1]`, as a forest has it."""
        return self.classifier.classes_ if self.multi_label else np.array(self.labels)

    def logits(self, table: NDArray[np.float32]) -> NDArray[np.float64]:
        """`[rows, labels]`."""
        if isinstance(self.classifier, MultiOutputClassifier):
            scores = [of_label.decision_function(table) for of_label in self.classifier.estimators_]
            return np.stack(scores, axis=1) / self.temperature
        if not hasattr(self.classifier, "decision_function"):
            answer = self.classifier.predict_proba(table)
            probabilities = np.stack([of_label[:, 1] for of_label in answer], axis=1) if self.multi_label else answer
            return forest_logits(probabilities, multi_label=self.multi_label) / self.temperature
        scores = self.classifier.decision_function(table)
        of_classes = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
        return np.asarray(of_classes / self.temperature)

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """`[rows, labels]`: the probability of each label."""
        logits = self.logits(X)
        if self.multi_label:
            return np.asarray(expit(logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def predict(self, X: NDArray[np.float32]) -> NDArray[Any]:
        """`[rows]`, the most probable label; of several `[rows, labels]`, 1 where the probability is above 0.5."""
        probabilities = self.predict_proba(X)
        if self.multi_label:
            return np.asarray(probabilities > 0.5).astype(int)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

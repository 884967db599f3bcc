"""Classifiers and the steps before them, of a pipeline of scikit-learn, as nodes of a graph.

`STEPS` and `CLASSIFIERS` say by the names of classes what can be exported: a new one is a function in its table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lengthwise_export.errors import ConfigurationError
from lengthwise_export.summaries.calibrated import OFFSETS, SLOPES
from lengthwise_export.summaries.series import Numbers, on_grid
from lengthwise_export.summaries.series_graph import GraphNumbers
from lengthwise_export.summaries.trees import Tree, boosted_tree, forest_tree, lightgbm_tree, sum_of_trees, xgboost_tree
from lengthwise_export.targets.target import ScoreKind


class Scores(NamedTuple):
    """What a classifier answers."""

    numbers: Numbers  # [rows, classes] float64; of a multi-label classifier [rows, labels]
    kind: ScoreKind


def scores(classifier: Any, table: GraphNumbers) -> Scores:
    """The answers of a fitted classifier to a table of float32, `[rows, columns]`.

    Raises:
        ConfigurationError: There is no export of such a classifier.
    """
    kind = type(classifier).__name__
    if kind not in _CLASSIFIERS:
        raise ConfigurationError(f"{kind} cannot be exported: the last step must be one of {', '.join(_CLASSIFIERS)}")
    return _CLASSIFIERS[kind](classifier, table)


def transformed(step: Any, table: GraphNumbers) -> GraphNumbers:
    """The table, float32, after a fitted step between the summaries and the classifier.

    Raises:
        ConfigurationError: There is no export of such a step.
    """
    kind = type(step).__name__
    if hasattr(step, "get_support"):  # a selection
        return table.taken(np.flatnonzero(step.get_support()), 1)
    if kind not in _SCALERS:
        can = f"a selection of columns, {', '.join(_SCALERS)}"
        raise ConfigurationError(f"{kind} cannot be exported: between summaries and classifier may be {can}")
    for function, numbers in _SCALERS[kind](step):
        if numbers is not None:  # scikit-learn rounds to float32 after each operation
            table = function(table.cast(TensorProto.DOUBLE), numbers.astype(np.float64)).cast(TensorProto.FLOAT)
    return table


_Operations = list[tuple[np.ufunc, NDArray[Any] | None]]


def _clip(step: Any, lowest: float, highest: float) -> _Operations:
    """The operations of a scaler's `clip`, which an older scikit-learn may not have: none where it is not asked for."""
    limits = ((np.maximum, lowest), (np.minimum, highest))
    return [(function, np.array([limit], np.float32)) for function, limit in limits if getattr(step, "clip", False)]


_SCALERS: Final[dict[str, Callable[[Any], _Operations]]] = {
    # StandardScaler computes with numbers in float32; it knows the mean where it subtracts none
    "StandardScaler": lambda step: [
        (function, numbers.astype(np.float32) if is_used else None)
        for function, numbers, is_used in (
            (np.subtract, step.mean_, step.with_mean),
            (np.divide, step.scale_, step.with_std),
        )
    ],
    "RobustScaler": lambda step: [
        (np.subtract, step.center_ if step.with_centering else None),
        (np.divide, step.scale_ if step.with_scaling else None),
    ],
    "MinMaxScaler": lambda step: [
        (np.multiply, step.scale_),
        (np.add, step.min_),
        *_clip(step, *step.feature_range),
    ],
    "MaxAbsScaler": lambda step: [(np.divide, step.scale_), *_clip(step, -1.0, 1.0)],
}
"""The operations of each scaler in their order, each with one number for each column; None for one that is left out."""


def _forest(classifier: Any, table: GraphNumbers) -> Scores:
    """Decision trees: the mean of the shares of classes in their leaves."""
    trees = [tree.tree_ for tree in getattr(classifier, "estimators_", [classifier])]
    shares = [tree.value / tree.value.sum(axis=2, keepdims=True) for tree in trees]  # (nodes, outputs, classes)
    if classifier.n_outputs_ > 1:
        shares = [share[:, :, 1:] for share in shares]  # the second class of each label: that it is assigned
    rows = [forest_tree(tree, share.reshape(len(share), -1)) for tree, share in zip(trees, shares, strict=True)]
    return Scores(sum_of_trees(table, rows) / float(len(trees)), "probabilities")


def _boosted(classifier: Any, table: GraphNumbers) -> Scores:
    """Histogram-based boosted trees: the sum of their leaves.

    Raises:
        ConfigurationError: A tree splits by category.
    """
    if np.any(classifier.is_categorical_):
        raise ConfigurationError("HistGradientBoostingClassifier with categorical features cannot be exported")
    trees = [tree for iteration in classifier._predictors for tree in iteration]
    return _sum_of_boosted(table, trees, boosted_tree, classifier._baseline_prediction)


def _xgboost(classifier: Any, table: GraphNumbers) -> Scores:
    """XGBoost: the sum of the leaves, and a first score, which for two classes is a probability."""
    learner = json.loads(classifier.get_booster().save_raw("json"))["learner"]
    first = np.array(json.loads(learner["learner_model_param"]["base_score"]), np.float64, ndmin=1)
    if learner["objective"]["name"].startswith("binary"):
        first = np.log(first / (1 - first))
    return _sum_of_boosted(table, learner["gradient_booster"]["model"]["trees"], xgboost_tree, first)


def _lightgbm(classifier: Any, table: GraphNumbers) -> Scores:
    """LightGBM: the sum of the leaves."""
    model = classifier.booster_.dump_model()
    return _sum_of_boosted(table, model["tree_info"], lightgbm_tree, np.zeros(model["num_tree_per_iteration"]))


def _sum_of_boosted(
    table: GraphNumbers, trees: Sequence[Any], read: Callable[[Any, NDArray[np.float64]], Tree], first: NDArray[Any]
) -> Scores:
    """The logits of boosted trees: `first` has one number for each output, and the trees are of these in turn."""
    outputs = np.eye(first.size)
    tables = [read(tree, outputs[index % first.size]) for index, tree in enumerate(trees)]
    return _of_two_classes(sum_of_trees(table, tables) + first.reshape(1, -1).astype(np.float64), first.size)


def _logistic(classifier: Any, table: GraphNumbers) -> Scores:
    """Logistic regression: sums of products, exact in any order."""
    numbers = table.cast(TensorProto.DOUBLE)
    products = numbers.emit("Unsqueeze", numbers, [1]) * classifier.coef_[None].astype(np.float64)
    largest = products.emit("ReduceMax", np.abs(products), [-1])  # (rows, classes, 1)
    sums = products.emit("ReduceSum", on_grid(products, largest), [-1], keepdims=0)
    return _of_two_classes(sums + classifier.intercept_[None].astype(np.float64), len(classifier.coef_))


def _of_two_classes(logits: GraphNumbers, outputs: int) -> Scores:
    """Logits `[rows, 1]` of two classes, of which the first has the logit 0; those of more classes are unchanged."""
    both = logits.emit("Concat", logits * 0.0, logits, axis=1) if outputs == 1 else logits
    return Scores(both, "logits")


def _of_each_label(classifier: Any, table: GraphNumbers) -> Scores:
    """A classifier for each label of a multi-label classifier, with two classes: the score of the second."""
    parts = [scores(estimator, table) for estimator in classifier.estimators_]
    numbers = [part.numbers.taken([1], 1) for part in parts]
    return Scores(numbers[0].emit("Concat", *numbers, axis=1), parts[0].kind)


def _one_against_the_rest(classifier: Any, table: GraphNumbers) -> Scores:
    """A classifier for each label; of two classes one classifier, which has the answers of both.

    Raises:
        ConfigurationError: It chooses one of more than two classes.
    """
    if classifier.multilabel_:
        return _of_each_label(classifier, table)
    if len(classifier.estimators_) > 1:  # it divides the scores by their sum, which is no softmax of logits
        raise ConfigurationError(
            f"OneVsRestClassifier of {len(classifier.classes_)} classes cannot be exported, only of two classes or of "
            f"several labels: {type(classifier.estimator).__name__} alone takes several classes"
        )
    return scores(classifier.estimators_[0], table)


def _calibrated(classifier: Any, table: GraphNumbers) -> Scores:
    """The logits of another classifier, divided by a temperature: `CalibratedClassifier.logits`."""
    numbers, kind = scores(classifier.classifier, table)
    if kind == "probabilities":
        logits = _log_probabilities(numbers)
        numbers = logits - _log_probabilities(1.0 - numbers) if classifier.multi_label else logits
    return Scores(numbers / float(classifier.temperature), "logits")


def _log_probabilities(probabilities: GraphNumbers) -> GraphNumbers:
    """`calibrated.log_probabilities` in a graph."""
    tangents = probabilities.emit("Unsqueeze", probabilities, [-1]) * SLOPES + OFFSETS
    smallest: GraphNumbers = tangents.emit("ReduceMin", tangents, [-1], keepdims=0)
    return smallest


_CLASSIFIERS: Final[dict[str, Callable[[Any, GraphNumbers], Scores]]] = {
    **dict.fromkeys(("ExtraTreesClassifier", "RandomForestClassifier"), _forest),
    **dict.fromkeys(("DecisionTreeClassifier", "ExtraTreeClassifier"), _forest),
    "HistGradientBoostingClassifier": _boosted,
    "XGBClassifier": _xgboost,
    "LGBMClassifier": _lightgbm,
    "LogisticRegression": _logistic,
    "MultiOutputClassifier": _of_each_label,
    "OneVsRestClassifier": _one_against_the_rest,
    "CalibratedClassifier": _calibrated,
}
"""The export of each classifier by the name of its class."""

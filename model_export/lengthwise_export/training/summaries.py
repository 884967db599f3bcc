"""Trains a model with `kind = "summaries"`: a classifier on summaries of the sequences, fitted with scikit-learn.

```
records -> examples -> their summaries -> classifier -> answers that were left out -> temperature -> pipeline -> graph
```
`extra-trees` need no validation split: each tree is fitted without a tenth of the records, and an answer is left out if
it comes from the trees that did not see its record. `boosted-trees`, for large tables, hold out a share of the records.
`logistic` is fitted to scaled summaries of all records; the answers that are left out come from other regressions, each
fitted without a fifth of them.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from lengthwise.exporter_api.data import InputSequence, InputSequences, Record
from lengthwise_export.architecture import temperature
from lengthwise_export.architecture.pipeline import TrainedPipeline
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import ConfigurationError, first_of
from lengthwise_export.options import ExportOptions
from lengthwise_export.summaries import pipeline
from lengthwise_export.summaries.calibrated import CalibratedClassifier, forest_logits
from lengthwise_export.summaries.transformer import SequenceSummaries
from lengthwise_export.training.batches import Example, make_examples, stratified_split, stratum
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.scores import EvaluationScores, ScoredAnswer, loss, scores
from lengthwise_export.training.train import TrainingResult

HELD_OUT: Final = 0.15
"""The share of the records that boosted trees are not fitted to."""
_PARTS: Final = 10
"""Parts of the records, each left out by a share of the trees."""
_FIFTHS: Final = 5
"""Parts of the records, each left out by a logistic regression."""
_ITERATIONS: Final = 1000
"""Of the solver of logistic regressions, at most."""
_AT_ONCE: Final = 1000
"""Sequences whose summaries are computed together."""
_SHOWN: Final = 15
"""Summaries in the report: those that the trees use most."""
_MOST_PERMUTED: Final = 500
"""Records that their importance is measured with, at most."""


class FittedClassifier(NamedTuple):
    """A fitted classifier, and what it answers to examples that were not seen."""

    classifier: Any  # of scikit-learn
    rows: NDArray[np.intp]  # these examples
    # The logits `[rows, labels]`, before calibration, of these rows of a table of all examples
    left_out: Callable[[NDArray[np.float32], NDArray[np.intp]], NDArray[np.float64]]
    used: NDArray[Any]  # `[summaries]`: how much the trees gain by each, or its weights


@dataclass(frozen=True, slots=True)
class FittedSummaries:
    """A fitted pipeline with its scores; `result` makes its graph, which takes longer than the fit."""

    spec: Spec
    table: NDArray[np.float32]  # `[examples, summaries]`, scaled
    targets: Tensor  # of the examples: `[examples]`, or `[examples, labels]`
    summaries: SequenceSummaries
    scalers: Sequence[StandardScaler]  # between the summaries and the classifier: one or none
    fitted: FittedClassifier
    temperature: float | None  # None if it is not calibrated
    splits: dict[str, EvaluationScores]  # `training` and `left_out`
    seconds: float

    def result(self) -> TrainingResult:
        """The trained model: a graph that answers as the pipeline does."""
        begun = time.perf_counter()
        graph, _ = pipeline.described(self.pipeline(), ExportOptions(labels=self.spec.output.labels))
        details = {"kind": "summaries", "summaries": self.table.shape[1], "importance": self.importance()}
        seconds = self.seconds + time.perf_counter() - begun
        model = TrainedPipeline(graph.SerializeToString()).eval()
        return TrainingResult(model, self.splits, self.temperature, seconds, details)

    def pipeline(self) -> Any:
        """The pipeline of scikit-learn."""
        classifier = CalibratedClassifier(self.fitted.classifier, self.temperature or 1.0, self.spec.output.labels)
        return make_pipeline(self.summaries, *self.scalers, classifier)

    def importance(self) -> list[tuple[str, float]]:
        """The summaries that decide, the most important first: by how much the log loss rises if each is permuted.

        The values of a summary are permuted among the sequences (L. Breiman, "Random Forests", 2001). The quantiles of
        one interval count as one summary, and are permuted together. The loss of a sequence is that of a classifier
        that was fitted without it. At most `_SHOWN` summaries are returned, those that the classifier uses most.
        """
        columns: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.summaries.get_feature_names_out()):
            columns[re.sub(r"_q[\d.]+$", "", name)].append(index)
        shown = sorted(columns, key=lambda name: -self.fitted.used[columns[name]].sum())[:_SHOWN]
        rows = self.fitted.rows[:: max(len(self.fitted.rows) // _MOST_PERMUTED, 1)]
        order, rises, before = np.random.default_rng(0).permutation(rows), {}, self._loss(self.table, rows)
        for name in shown:
            permuted = self.table.copy()
            permuted[rows[:, None], columns[name]] = self.table[order[:, None], columns[name]]
            rises[name] = self._loss(permuted, rows) - before
        return sorted(rises.items(), key=lambda entry: -entry[1])

    def _loss(self, table: NDArray[np.float32], rows: NDArray[np.intp]) -> float:
        """The log loss of rows of a table, each answered by a classifier that was fitted without it."""
        logits = torch.from_numpy(self.fitted.left_out(table, rows) / (self.temperature or 1.0))
        return float(loss(logits, self.targets[rows], self.spec.output.task))


def fit(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    *,
    on_examples: Callable[[int], None] = lambda _done: None,
) -> FittedSummaries:
    """Fits a classifier to the summaries of sequences, and calibrates them with the answers that were left out.

    Args:
        spec: What is trained, with kind = "summaries".
        records: The labelled sequences.
        options: How it is trained; of them the seed, the class weights and the calibration count.
        on_examples: Called with the number of examples whose summaries are computed, after each batch of them.

    Raises:
        ConfigurationError: There is no such summary, a label cannot be learned, or a sequence may be too long.
    """  # noqa: DOC502 - what it calls raises it
    begun = time.perf_counter()
    examples, names = make_examples(records, spec), spec.input.feature_names
    targets = torch.stack([example.target for example in examples])
    sequences = InputSequences(InputSequence(example.steps.numpy(), names=names) for example in examples)
    summaries = SequenceSummaries(spec.model.summaries).fit(sequences)
    _require_trainable(spec, summaries.manifest().max_length, targets)
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(sequences), _AT_ONCE):
        parts.append(summaries.transform(InputSequences(sequences[start : start + _AT_ONCE])))
        on_examples(min(start + _AT_ONCE, len(sequences)))
    table = np.concatenate(parts)
    scalers = [StandardScaler()] if spec.model.classifier == "logistic" else []
    for scaler in scalers:
        table = scaler.fit_transform(table)
    classifiers = {"boosted-trees": _boosted, "logistic": _logistic}
    fitted = classifiers.get(str(spec.model.classifier), _forest)(table, examples, spec, options)
    # Calibrate and score
    is_multi_label = spec.output.task == "multi-label"
    left_out, scale = fitted.left_out(table, fitted.rows), None
    if options.calibration:
        scale = temperature.fit(left_out, targets.numpy()[fitted.rows], multi_label=is_multi_label)
    trained = CalibratedClassifier(fitted.classifier, scale or 1.0, spec.output.labels).logits(table)
    seen = np.setdiff1d(np.arange(len(table)), fitted.rows) if len(fitted.rows) < len(table) else fitted.rows
    splits = {
        "training": _scores(trained[seen], [examples[row] for row in seen], spec),
        "left_out": _scores(left_out / (scale or 1.0), [examples[row] for row in fitted.rows], spec),
    }
    seconds = time.perf_counter() - begun
    return FittedSummaries(spec, table, targets, summaries, scalers, fitted, scale, splits, seconds)


def _require_trainable(spec: Spec, most_steps: int, targets: Tensor) -> None:
    """Makes sure that each label can be learned, and that no sequence is longer than the summaries take.

    Raises:
        ConfigurationError: One cannot, or may be longer.
    """
    if spec.input.max_length > most_steps:
        raise ConfigurationError(f"input.max_length = {spec.input.max_length}: these summaries take {most_steps} steps")
    labels = spec.output.labels
    assigned = targets if targets.ndim == 2 else torch.nn.functional.one_hot(targets, len(labels))
    same = [label for label, column in zip(labels, assigned.T, strict=True) if len(column.unique()) == 1]
    if same:
        learner = "logistic regression" if spec.model.classifier == "logistic" else "trees"
        raise ConfigurationError(
            f"no record or every record has the label {first_of(same)}: {learner} cannot learn it; leave it out"
        )


def _scores(logits: NDArray[np.float64], examples: Sequence[Example], spec: Spec) -> EvaluationScores:
    """The scores of answers to examples."""
    return scores([*map(ScoredAnswer, torch.from_numpy(logits), examples)], spec)


def _forest(
    table: NDArray[np.float32], examples: Sequence[Example], spec: Spec, options: TrainingOptions
) -> FittedClassifier:
    """Extremely randomised trees with the parameters of QUANT: a tenth of them for each tenth of the records.

    A tree is fitted without its tenth. Samples with repetition, as forests have them, would leave a third out, and cost
    accuracy where there are few records.
    """
    targets, weights = _weighted_targets(examples, options)
    tenths = np.random.default_rng(options.seed).permutation(len(table)) % _PARTS
    forest = ExtraTreesClassifier(criterion="entropy", max_features=0.1, warm_start=True, random_state=options.seed)
    ends = [spec.model.trees * (part + 1) // _PARTS for part in range(_PARTS)]
    for part, end in enumerate(ends):
        forest.set_params(n_estimators=end).fit(table, targets, sample_weight=weights * (tenths != part))
    is_multi_label = targets.ndim == 2

    def left_out(table: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """The mean of the trees that were fitted without a row."""
        probabilities = np.zeros((len(rows), len(spec.output.labels)))
        for part, (begin, end) in enumerate(pairwise([0, *ends])):
            unseen = tenths[rows] == part
            shares = np.mean(
                [tree.tree_.predict(table[rows[unseen]]) for tree in forest.estimators_[begin:end]], axis=0
            )
            probabilities[unseen] = shares[:, :, 1] if is_multi_label else shares
        return forest_logits(probabilities, multi_label=is_multi_label)

    return FittedClassifier(forest, np.arange(len(table)), left_out, forest.feature_importances_)


def _weighted_targets(
    examples: Sequence[Example], options: TrainingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The targets, `[examples]` or `[examples, labels]`, and the weights of the examples, `[examples]`."""
    targets = np.stack([example.target.numpy() for example in examples]).astype(np.int64)
    return targets, compute_sample_weight("balanced", targets) if options.class_weights else np.ones(len(targets))


def _logistic(
    table: NDArray[np.float32], examples: Sequence[Example], spec: Spec, options: TrainingOptions
) -> FittedClassifier:
    """Logistic regression of a scaled table, of each label where there are several.

    The answers that are left out are those of regressions that weigh a fifth of the records with zero, so that each
    knows all labels.
    """
    targets, weights = _weighted_targets(examples, options)
    # Records of the same labels are dealt round the fifths, so that few are unknown to a regression
    order = np.random.default_rng(options.seed).permutation(len(table))
    strata = [stratum(example, spec.output.task) for example in examples]
    fifths = np.empty(len(table), np.intp)
    fifths[sorted(order, key=lambda row: repr(strata[row]))] = np.arange(len(table)) % _FIFTHS
    regression = LogisticRegression(max_iter=_ITERATIONS)
    unfitted = MultiOutputClassifier(regression) if targets.ndim == 2 else regression
    exact = table.astype(np.float64)  # it fits with the precision of its input

    def fitted_with(weights: NDArray[np.float64]) -> CalibratedClassifier:
        """A regression that is fitted with these weights of the records."""
        classifier = clone(unfitted).fit(exact, targets, sample_weight=weights)
        return CalibratedClassifier(classifier, 1.0, spec.output.labels)

    without_fifth = [fitted_with(weights * (fifths != part)) for part in range(_FIFTHS)]

    def left_out(table: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """The logits of the regression that was fitted without a row."""
        of_all = np.stack([regression.logits(table[rows]) for regression in without_fifth])
        return np.asarray(of_all[fifths[rows], np.arange(len(rows))])

    classifier = fitted_with(weights).classifier
    of_outputs = [part.coef_ for part in getattr(classifier, "estimators_", [classifier])]
    return FittedClassifier(classifier, np.arange(len(table)), left_out, np.abs(np.concatenate(of_outputs)).sum(axis=0))


def _boosted(
    table: NDArray[np.float32], examples: Sequence[Example], spec: Spec, options: TrainingOptions
) -> FittedClassifier:
    """Boosted trees, fitted without the records that are held out."""
    strata = [stratum(example, spec.output.task) for example in examples]
    fitted, held_out = stratified_split(strata, HELD_OUT, seed=options.seed)
    boosted = HistGradientBoostingClassifier(
        max_iter=spec.model.trees,
        class_weight="balanced" if options.class_weights else None,
        random_state=options.seed,
    ).fit(table[fitted], np.array(strata)[fitted])
    nodes = np.concatenate([tree.nodes for iteration in boosted._predictors for tree in iteration])
    used: NDArray[Any] = np.bincount(nodes["feature_idx"], nodes["gain"].clip(0), minlength=table.shape[1])
    classifier = CalibratedClassifier(boosted, 1.0, spec.output.labels)
    return FittedClassifier(boosted, np.array(held_out), lambda table, rows: classifier.logits(table[rows]), used)

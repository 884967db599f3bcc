"""Trains a rocket model: kernels for the training sequences, and a ridge regression on their features.

```
records -> examples -> kernels -> features of each example -> ridge -> temperature -> weights
```
There are no epochs, and no validation split: the ridge regression says what it would answer to each sequence without
having seen it (these leave-one-out answers have a closed form), and the penalty, the temperature and the accuracy to
expect come from these answers. (The kernels and the scale of the features are those of all sequences; they know no
labels.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lengthwise_export.architecture import rocket, temperature
from lengthwise_export.architecture.layers import ROWS_TOGETHER, answer_in_batches
from lengthwise_export.architecture.rocket import fixed_kernels
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.training.batches import Example, make_examples, static_of
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.record_checks import Record
from lengthwise_export.training.scores import ScoredAnswer, scores
from lengthwise_export.training.train import TrainingResult

_LARGEST_MATRIX_BYTES: Final = 4 * 2**30
PENALTIES: Final = np.logspace(-3, 5, 17)
# Candidate weights of the sequence-level features against the kernel features, each group taken together; the second
# where what is missing is among them: with the last, they are a linear model of summary statistics alone
SHARES: Final = (0.0, 0.1, 0.3, 1.0, 3.0)
SHARES_WITH_MISSING: Final = (*SHARES, 30.0, 1000.0)
USUAL_SHARE: Final = 1.0
_MANY_EXAMPLES: Final = 1500  # with more only the usual share is tried: each takes a decomposition of a matrix
# A feature with a smaller deviation, such as the level of sequences that were normalised before, is rounding noise
_SMALLEST_SPREAD: Final = 1e-6


def fit(
    spec: Spec,
    records: Sequence[Record],
    options: TrainingOptions,
    *,
    on_examples: Callable[[int], None] = lambda _done: None,
) -> TrainingResult:
    """Trains a rocket model: fits its kernels, and then its head as a ridge regression.

    Args:
        spec: What is trained, with kind = "rocket".
        records: The labelled sequences.
        options: How it is trained; of them the seed, the class weights and the calibration count.
        on_examples: Called with the number of examples whose features are computed, after each batch of them.

    Raises:
        ConfigurationError: There are too few records, or too many for the memory.
    """  # noqa: DOC502 - what it calls raises it
    begun = time.perf_counter()
    examples = make_examples(records, spec)
    _require_trainable(examples, spec, options)
    sequences, static = [example.steps for example in examples], static_of(examples)
    model = _with_fitted_kernels(spec, sequences, options.seed)
    if model.static_values is not None and static is not None:
        model.static_values.fit(static)
    # Compute the features of each example
    finished = 0

    def features(steps: Tensor, lengths: Tensor, *static: Tensor) -> Tensor:
        """The features of a padded batch; also tells the number of finished examples."""
        nonlocal finished
        finished += len(lengths)
        on_examples(finished)
        return model.features(steps, lengths, *static)

    rows = ROWS_TOGETHER if fixed_kernels.INSTRUCTION_SETS else 1
    values = torch.stack(answer_in_batches(features, sequences, rows, None if static is None else [*static]))
    # Fit the head, and score its answers
    targets = torch.stack([example.target for example in examples])
    fitted, scale = _fit_head(model, values, targets, spec, options)
    with torch.no_grad():
        logits = {"training": model.head(values)}
    logits["left_out"] = torch.from_numpy((fitted.left_out / (scale or 1)).astype(np.float32))
    if model.static_level:  # the same head without the static values, to see what they add
        without = _fit_ridge(
            values[:, : -model.static_level], targets, spec, options, model.sequence_level - model.static_level
        )
        logits["without_static"] = torch.from_numpy(without.left_out.astype(np.float32))
    answered = {name: [*map(ScoredAnswer, logits_of_split, examples)] for name, logits_of_split in logits.items()}
    splits = {name: scores(answers, spec) for name, answers in answered.items()}
    details: dict[str, Any] = {"kind": "rocket", "penalty": fitted.penalty}
    if (without_static := splits.pop("without_static", None)) is not None:
        details["accuracy_without_static"] = without_static.accuracy
    return TrainingResult(model, splits, scale, seconds=time.perf_counter() - begun, details=details)


def _with_fitted_kernels(spec: Spec, sequences: list[Tensor], seed: int) -> rocket.RocketClassifier:
    """A model whose kernels, normalisation and sequence-level features are fitted; its head is not."""
    torch.manual_seed(seed)
    first = rocket.first_layer(spec)
    first.fit(sequences)
    model = rocket.with_fitted_kernels(spec, first, first.each_normalised(sequences), seed=seed).eval()
    if model.sequence_features is not None:
        model.sequence_features.fit(first.each_rescaled(sequences))
    return model


def _fit_head(
    model: rocket.RocketClassifier, features: Tensor, labels: Tensor, spec: Spec, options: TrainingOptions
) -> tuple[RidgeFit, float | None]:
    """Fits the head of a model: a ridge regression to targets of +1 and -1, divided by the temperature.

    Args:
        model: The model, which is changed.
        features: `[examples, features]`.
        labels: The target of each example, `[examples]`; of a multi-label model `[examples, labels]`.
        spec: The spec of the model.
        options: Whether classes have weights, and whether probabilities are calibrated by the leave-one-out answers.

    Returns:
        The ridge regression, and the temperature; None if it is not calibrated.
    """
    multi_label = spec.output.task == "multi-label"
    fitted = _fit_ridge(features, labels, spec, options, model.sequence_level)
    targets = _targets(labels, spec)
    truth = targets if multi_label else targets.argmax(axis=1)
    scale = temperature.fit(fitted.left_out, truth, multi_label=multi_label) if options.calibration else None
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(fitted.weights.T / (scale or 1)))
        model.head.bias.copy_(torch.from_numpy(fitted.intercepts / (scale or 1)))
    return fitted, scale


def _targets(labels: Tensor, spec: Spec) -> NDArray[np.float64]:
    """The targets of examples, `[examples, labels]`, 1 at the labels that each has."""
    is_multi = spec.output.task == "multi-label"
    return (labels if is_multi else functional.one_hot(labels, len(spec.output.labels))).double().numpy()


def _fit_ridge(features: Tensor, labels: Tensor, spec: Spec, options: TrainingOptions, sequence_level: int) -> RidgeFit:
    """The ridge regression of a head, to targets of +1 and -1; the last `sequence_level` features are of a sequence."""
    targets = _targets(labels, spec)
    # With class weights all classes count the same, whatever the number of their examples
    importance = targets @ (1 / np.maximum(targets.sum(axis=0), 1)) if options.class_weights else None
    shares = SHARES_WITH_MISSING if "missing" in spec.model.sequence_features else SHARES
    return fit_ridge(features.numpy(), 2 * targets - 1, importance, sequence_level=sequence_level, shares=shares)


def fits_in_memory(examples: int, kernels: int) -> bool:
    """Whether the `[examples, kernels]` float64 matrix of the ridge regression fits in memory."""
    return examples * kernels * 8 <= _LARGEST_MATRIX_BYTES


def _require_trainable(examples: Sequence[Example], spec: Spec, options: TrainingOptions) -> None:
    """Makes sure that a rocket model can be fitted: by the number of examples, the memory, and the options.

    Raises:
        ConfigurationError: There are too few examples, or too many for the memory, or the options contradict the spec.
    """
    count, kernels = len(examples), spec.model.kernels
    fewer = _LARGEST_MATRIX_BYTES // (max(count, 1) * 8)
    instead = f"set model.kernels = {fewer} or fewer" if fewer >= fixed_kernels.KERNELS else "train on fewer records"
    for is_wrong, why in (
        (count < 2, f"{count} records are too few to train on"),
        (
            options.class_weights and spec.output.task == "multi-label",
            "class_weights has no meaning for a multi-label model with kind = 'rocket'",
        ),
        (
            not fits_in_memory(count, kernels),
            f"{count} sequences with {kernels} kernels need {count * kernels * 8 / 2**30:.0f} GiB for the ridge "
            f"regression: {instead}, or use kind = 'layers'",
        ),
    ):
        if is_wrong:
            raise ConfigurationError(why)


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A fitted ridge regression of targets, one column for each class, on features."""

    weights: NDArray[np.float64]  # `[features, targets]`
    intercepts: NDArray[np.float64]  # `[targets]`
    penalty: float  # chosen among `PENALTIES`
    left_out: NDArray[np.float64]  # `[examples, targets]`, for each example the answer of a fit without it


def fit_ridge(
    features: NDArray[np.float32],
    targets: NDArray[np.float64],
    importance: NDArray[np.float64] | None = None,
    *,
    sequence_level: int = 0,
    shares: Sequence[float] = SHARES,
) -> RidgeFit:
    """Fits a ridge regression; of several penalties, the one with the smallest squared leave-one-out error is taken.

    Features are centred and divided by their standard deviations; the weights that are returned are those of the
    features as they were passed. Among thousands of kernel features, a few sequence-level features would count for
    nothing, so they are multiplied by a factor, which is chosen together with the penalty. Its square is a *share*, the
    weight of the whole group of these features against that of the kernel features, times the number of kernel features
    for each of them.

    The leave-one-out answers come from one decomposition: with `G = K + penalty`, where `K` are the inner products of
    the examples, the error of a fit without an example is `(G^-1 y) / diag(G^-1)` (Rifkin and Lippert, "Notes on
    Regularized Least Squares", 2007). The intercept has no penalty: its direction, the square roots of the examples'
    weights, is taken out of `G^-1`. The sequence-level features, times a factor, are added to `G` by Woodbury's
    formula, so one decomposition serves all factors.

    Args:
        features: `[examples, features]`, the last `sequence_level` of them sequence-level features.
        targets: `[examples, targets]`.
        importance: `[examples]`, the weight of each example; None for equal weights.
        sequence_level: The number of sequence-level features.
        shares: Candidates for the share of these features.
    """
    # Centre and scale the features; a weighted fit is an ordinary one of rows times the root of their weights
    weight = np.ones(len(features)) if importance is None else importance / importance.mean()
    root = np.sqrt(weight)[:, None]
    scaled = features.astype(np.float64)
    mean = weight @ scaled / weight.sum()
    scaled -= mean
    spread = np.sqrt((weight @ np.square(scaled)) / weight.sum())
    scale = np.where(spread > _SMALLEST_SPREAD, spread, 1.0)
    # The candidates for the factor of the sequence-level features
    from_kernels = scaled.shape[1] - sequence_level  # the number of kernel features
    candidates = shares if len(scaled) <= _MANY_EXAMPLES else (USUAL_SHARE,)
    factors = [1.0]
    if sequence_level and from_kernels:
        factors = [float(np.sqrt(share * from_kernels / sequence_level)) for share in candidates]
    if len(factors) == 1:  # nothing to choose: all features are one matrix
        scale[from_kernels:] /= factors[0]
        factors, from_kernels = [1.0], scaled.shape[1]
    scaled *= root / scale
    intercepts = np.average(targets, axis=0, weights=weight)
    centred = root * (targets - intercepts)

    def left_out(solution: _RidgeSolution) -> NDArray[np.float64]:
        return np.asarray((centred - solution.errors) / root + intercepts)

    def squared_error(solution: _RidgeSolution) -> float:
        return float(weight @ np.mean((left_out(solution) - targets) ** 2, axis=1))

    best = min(_ridge_solutions(scaled, centred, weight, from_kernels, factors), key=squared_error)
    # The weights of the features as they were passed: from those of the examples (`dual`)
    weights = (scaled.T @ best.dual) / scale[:, None]
    weights[from_kernels:] *= best.factor**2
    return RidgeFit(weights, intercepts - mean @ weights, best.penalty, left_out(best))


class _RidgeSolution(NamedTuple):
    """A ridge regression with one penalty, and one factor of the sequence-level features."""

    penalty: float
    factor: float
    dual: NDArray[np.float64]  # `[examples, targets]`, G^-1 y of both groups of features
    errors: NDArray[np.float64]  # `[examples, targets]`, the error at each example of a fit without it


def _ridge_solutions(
    scaled: NDArray[np.float64],
    centred: NDArray[np.float64],
    weight: NDArray[np.float64],
    from_kernels: int,
    factors: Sequence[float],
) -> Iterator[_RidgeSolution]:
    """Yields the solutions for each of `PENALTIES` and each of the factors, by one decomposition.

    Args:
        scaled: `[examples, features]`, the features; the first `from_kernels` are those of the kernels.
        centred: `[examples, targets]`, the targets.
        weight: `[examples]`, the weights of the examples, by whose roots features and targets are multiplied.
        from_kernels: The number of kernel features.
        factors: Candidates for the factor of the sequence-level features.
    """
    # Decompose K, the inner products by the kernel features; `columns` are the sequence-level features
    kernels, columns = scaled[:, :from_kernels], scaled[:, from_kernels:]
    if columns.shape[1] > len(columns):  # a smaller matrix with the same inner products
        columns = np.linalg.qr(columns.T)[1].T
    if len(scaled) <= from_kernels:
        values, vectors = np.linalg.eigh(kernels @ kernels.T)
    else:
        vectors, values, _ = np.linalg.svd(kernels, full_matrices=False)
        values = values**2
    # `diagonal` is that of G^-1 of both groups of features
    right_sides = np.hstack([centred, columns])
    rotated, squares = vectors.T @ right_sides, vectors**2
    for penalty in PENALTIES:
        # Inverse of K + penalty: 1 / penalty, and along the vectors this much more
        inverse = 1 / (np.maximum(values, 0) + penalty) - 1 / penalty
        solutions = vectors @ (inverse[:, None] * rotated) + right_sides / penalty
        of_targets, of_columns = np.hsplit(solutions, [centred.shape[1]])
        diagonal_of_kernels = squares @ inverse + (1 - weight / weight.sum()) / penalty
        columns_within, targets_within = columns.T @ of_columns, columns.T @ of_targets
        identity = np.eye(columns.shape[1])
        for factor in factors:  # Woodbury's formula
            change = of_columns @ np.linalg.solve(identity + factor**2 * columns_within, factor**2 * identity)
            dual = of_targets - change @ targets_within
            diagonal = diagonal_of_kernels - (change * of_columns).sum(axis=1)
            yield _RidgeSolution(float(penalty), factor, dual, dual / diagonal[:, None])

"""Makes a graph of a fitted estimator of aeon or sktime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.fixed_kernels import KERNELS
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.adopting.transforms import FittedKernels, FittedTransform, RocketTransform
from lengthwise_export.architecture import temperature
from lengthwise_export.architecture.layers import of_each
from lengthwise_export.tracing import graph

TAKEN: Final = (
    "aeon's MiniRocketClassifier and MultiRocketClassifier, sktime's RocketClassifier with minirocket or multirocket, "
    "and pipelines of one of their transforms, a StandardScaler and a ridge or logistic regression"
)
_CLASSIFIERS: Final = ("aeon.MiniRocketClassifier", "aeon.MultiRocketClassifier")
_TRANSFORMS: Final = frozenset(
    {"aeon.MiniRocket", "aeon.MultiRocket", "sktime.MiniRocket", "sktime.MultiRocket"}
    | {"sktime.MiniRocketMultivariate", "sktime.MultiRocketMultivariate"}
)
_RIDGE: Final = frozenset({"sklearn.RidgeClassifier", "sklearn.RidgeClassifierCV"})
_LOGISTIC: Final = frozenset({"sklearn.LogisticRegression", "sklearn.LogisticRegressionCV"})


@dataclass(frozen=True, slots=True)
class FittedEstimator:
    """A fitted estimator of another library."""

    transform: FittedTransform
    weights: NDArray[np.float64]  # `[classes, features]`, for the features as the transform gives them
    intercepts: NDArray[np.float64]  # `[classes]`
    labels: tuple[str, ...]
    # Whether the head has probabilities, which are the softmax of its decisions. A ridge classifier has none: the
    # libraries answer 1 for the label with the largest decision, and 0 for the others
    gives_probabilities: bool


def read(estimator: Any, *, features: int | None = None) -> FittedEstimator:
    """Reads a fitted estimator; `features` of a step are needed only where it does not know them."""
    name = _name(estimator)
    try:
        (transform, *between, head), known = _steps(estimator)
        if _name(transform) not in _TRANSFORMS:
            raise ConfigurationError(f"{name} begins with {_name(transform)}, which cannot be adopted; {TAKEN} can")
        if _name(head) not in _RIDGE | _LOGISTIC:
            heads = ", ".join(sorted(_RIDGE | _LOGISTIC))
            raise ConfigurationError(f"{name} ends with {_name(head)}; of heads, {heads} can be adopted")
        fitted = _transform(transform, _number(features, known, transform))
        weights, intercepts = _head(head, _scaler(name, between))
        wanted = sum(each.biases.size for each in (*fitted.values, *(fitted.differences or ())))
        wanted *= 1 if fitted.differences is None else 4
        if weights.shape[1] != wanted:
            raise ConfigurationError(f"{name} reads {weights.shape[1]} features, and its transform has {wanted}")
        labels = tuple(map(str, np.asarray(estimator.classes_).tolist()))
    except AttributeError as error:
        lacks = f"{name} has no {error.name!r}, so it cannot be read"
        raise ConfigurationError(f"{lacks}; if it is not fitted yet, call fit(X, y)") from error
    if len(labels) != len(weights):
        raise ConfigurationError(f"{name} has {len(labels)} classes and {len(weights)} outputs")
    return FittedEstimator(fitted, weights, intercepts, labels, _name(head) in _LOGISTIC)


def _name(value: object) -> str:
    """The package and class of an object, such as `aeon.MiniRocket`."""
    kind = type(value)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _steps(estimator: Any) -> tuple[list[Any], int | None]:
    """The fitted parts of an estimator in order, and the number of features of a step if it knows it."""
    name = _name(estimator)
    if name in (*_CLASSIFIERS, "sklearn.Pipeline"):
        pipeline = estimator.pipeline_ if name in _CLASSIFIERS else estimator
        return [part for _, part in pipeline.steps], None
    if name in ("sktime.RocketClassifier", "sktime.SklearnClassifierPipeline"):
        pipeline = estimator.estimator_ if name == "sktime.RocketClassifier" else estimator
        parts = [part for _, part in pipeline.transformers_.steps_]
        kinds = estimator._X_metadata.get("feature_kind")
        return [*parts, pipeline.classifier_], len(kinds) if kinds else None
    raise ConfigurationError(f"{name} cannot be adopted; {TAKEN} can")


def _scaler(name: str, between: Sequence[Any]) -> Any:
    """The scaler between a transform and its head; None if there is none."""
    scalers = [each.transformer_ if _name(each) == "sktime.TabularToSeriesAdaptor" else each for each in between]
    if len(scalers) > 1 or any(_name(each) != "sklearn.StandardScaler" for each in scalers):
        raise ConfigurationError(
            f"{name} has {' and '.join(map(_name, scalers))} between its transform and its head; only one "
            "sklearn.StandardScaler can be there"
        )
    return scalers[0] if scalers else None


def _number(given: int | None, known: int | None, transform: Any) -> int:
    name = _name(transform)
    if name in ("sktime.MiniRocket", "sktime.MultiRocket"):
        known = 1  # these read the first feature only
    if name.startswith("aeon."):
        known = int(transform.metadata_["n_channels"])
    if known is None and given is None:
        raise ConfigurationError(f"{name} does not say how many features a step has: pass features=N")
    if known is not None and given is not None and known != given:
        raise ConfigurationError(f"features={given} contradicts {name}, which has {known}")
    return known or given or 1


def _transform(transform: Any, features: int) -> FittedTransform:
    if "Multi" not in _name(transform).removesuffix("Multivariate"):
        return FittedTransform(features, _series(transform.parameters, transform.parameters, features))
    if transform.normalise:
        raise ConfigurationError(f"{_name(transform)} with normalise=True cannot be adopted: fit it without")
    if transform.n_features_per_kernel != 4:
        raise ConfigurationError(f"{_name(transform)}: n_features_per_kernel must be 4")
    first, second = transform.parameter, transform.parameter1
    if first is None or second is None:
        raise ConfigurationError(f"{_name(transform)} is not fitted: call fit(X, y) first")
    # Both libraries read the features of the kernels for the values, for the differences too.
    return FittedTransform(
        features,
        _series(first, first, features),
        _series(second, first, features),
        in_double=_name(transform).startswith("sktime."),
    )


def _series(parameters: Sequence[Any], of_channels: Sequence[Any], features: int) -> list[FittedKernels]:
    """The kernels in a library's tuple, which ends with dilations, numbers of biases, and biases.

    Before these, one may have the number of features that each kernel reads, and their indices.
    """
    dilations, numbers, biases = (np.asarray(part) for part in parameters[-3:])
    if biases.size != KERNELS * int(numbers.sum()) or len(dilations) != len(numbers):
        raise ConfigurationError("the transform's parameters are not those of this version of aeon or sktime")
    channels = [[[0]] * KERNELS] * len(dilations)
    if features > 1 and len(of_channels) == 5:
        ends = np.cumsum(of_channels[0])
        several = [part.tolist() for part in np.split(np.asarray(of_channels[1]), ends[:-1])]
        channels = [several[place * KERNELS : (place + 1) * KERNELS] for place in range(len(dilations))]
    by_dilation = np.split(biases, np.cumsum(numbers * KERNELS)[:-1])
    parts = [part.reshape(KERNELS, -1).astype(np.float32) for part in by_dilation]
    return list(map(FittedKernels, dilations.tolist(), parts, channels))


def _head(head: Any, scaler: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and intercepts for features without a scaler; two rows for two classes."""
    weights = np.atleast_2d(np.asarray(head.coef_, dtype=np.float64))
    intercepts = np.zeros(len(weights)) + np.atleast_1d(np.asarray(head.intercept_, dtype=np.float64))
    if _name(head) in _LOGISTIC and head.solver == "liblinear" and len(weights) > 1:
        raise ConfigurationError(f"{_name(head)} with solver='liblinear' has one model for each class: use lbfgs")
    if scaler is not None:
        if scaler.scale_ is not None:
            weights = weights / scaler.scale_
        if scaler.with_mean:
            intercepts = intercepts - weights @ scaler.mean_
    if len(weights) == 1:  # the decision is for the second class
        weights, intercepts = (np.concatenate([np.zeros_like(part), part]) for part in (weights, intercepts))
    return weights, intercepts


class AdoptedClassifier(nn.Module):
    """A fitted estimator as a module of `(values, lengths)`; `as_labels` answers 1 for the best one, else 0."""

    def __init__(self, fitted: FittedEstimator, *, as_labels: bool) -> None:
        super().__init__()
        self.transform = RocketTransform(fitted.transform)
        self.as_labels = as_labels
        classes, features = fitted.weights.shape
        self.head = nn.Linear(features, classes, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(fitted.weights))
            self.head.bias.copy_(torch.from_numpy(fitted.intercepts))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `values [rows, width, features]` and `lengths [rows]`."""
        # In float64, as scikit-learn does: features may be large, and their weights small
        features, head = self.transform(values, lengths).double(), self.head
        decisions = functional.linear(features, head.weight, head.bias).float()
        if not self.as_labels:
            return decisions
        classes = torch.arange(self.head.out_features, device=values.device)
        return (decisions.argmax(dim=1, keepdim=True) == classes).to(torch.float32)


def adopt(
    estimator: object,
    *,
    calibrate: tuple[Sequence[NDArray[Any]] | NDArray[Any], Sequence[object]] | None = None,
    features: int | None = None,
    name: str = "adopted",
) -> onnx.ModelProto:
    """Makes a graph of a fitted estimator of aeon or sktime, which `check` and `export` take.

    Its probabilities are those of `estimator.predict_proba`, for sequences of the length of the training. (A ridge
    classifier has none: these libraries answer 1 for one label and 0 for the others, and so does the graph. With
    `calibrate` it gets probabilities.) For sequences of other lengths the dilations and biases stay as they are, and
    steps are counted within each sequence.
    """
    fitted = read(estimator, features=features)
    as_labels = calibrate is None and not fitted.gives_probabilities
    module = AdoptedClassifier(fitted, as_labels=as_labels).eval()
    if calibrate is not None:
        _calibrate(module, fitted, *calibrate)
    steps = StepInput(kind="values", features=fitted.transform.features)
    proto = graph.build(module, steps, name=name, labels=fitted.labels)
    proto.graph.name = name
    return proto


def _calibrate(
    module: AdoptedClassifier,
    fitted: FittedEstimator,
    sequences: Sequence[NDArray[Any]] | NDArray[Any],
    labels: Sequence[object],
) -> None:
    """Divides the weights of the head by the temperature that fits the probabilities to these sequences."""
    if len(sequences) != len(labels) or not len(labels):
        raise ConfigurationError(f"calibrate: {len(sequences)} sequences and {len(labels)} labels: as many of both")
    places = {label: place for place, label in enumerate(fitted.labels)}
    unknown = sorted({str(label) for label in labels} - places.keys())
    if unknown:
        raise ConfigurationError(f"calibrate: the estimator has no label {unknown[0]!r}")
    values = []
    for place, sequence in enumerate(sequences):
        steps = np.ascontiguousarray(np.asarray(sequence, dtype=np.float32).T)
        if steps.ndim != 2 or steps.shape[1] != fitted.transform.features or not len(steps):
            raise ConfigurationError(
                f"calibrate: sequence {place} is {np.shape(sequence)}, not ({fitted.transform.features}, steps)"
            )
        values.append(torch.from_numpy(steps))
    decisions = torch.stack(of_each(module, values, rows=16)).numpy()
    targets = np.array([places[str(label)] for label in labels])
    scale = temperature.fit(decisions, targets, multi_label=False)
    with torch.no_grad():
        for parameter in module.head.parameters():
            parameter.div_(scale)

"""Makes a graph of a fitted estimator of aeon or sktime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.adopting import estimators
from lengthwise_export.adopting.estimators import FittedEstimator
from lengthwise_export.adopting.transforms import RocketTransform
from lengthwise_export.architecture import temperature
from lengthwise_export.tracing import graph

_ROWS = 16


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

    Args:
        estimator: aeon's MiniRocketClassifier or MultiRocketClassifier, sktime's RocketClassifier with minirocket or
            multirocket, or a pipeline of one of their transforms, a StandardScaler and a ridge or logistic regression.
        calibrate: Sequences that the estimator was not fitted to, each `[features, steps]` as for the estimator, and
            their labels. A temperature is fitted to them.
        features: Number of features of a step, where the estimator does not know it.
        name: The name of the graph.

    Raises:
        ConfigurationError: The estimator cannot be adopted, or is not fitted.

    Example:
        >>> graph = lengthwise_export.adopt(MiniRocketClassifier().fit(X, y))
        >>> lengthwise_export.export(graph, "models/gestures")
    """
    fitted = estimators.read(estimator, features=features)
    if calibrate is None:
        module = AdoptedClassifier(fitted, as_labels=not fitted.gives_probabilities)
    else:
        module = AdoptedClassifier(fitted, as_labels=False)
        sequences, told = calibrate
        _calibrate(module.eval(), fitted, list(sequences), told)
    steps = StepInput(kind="values", features=fitted.transform.features)
    proto = graph.build(module.eval(), steps, name=name, labels=fitted.labels)
    proto.graph.name = name
    return proto


def _calibrate(
    module: AdoptedClassifier, fitted: FittedEstimator, sequences: Sequence[NDArray[Any]], labels: Sequence[object]
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
    parts = []
    with torch.no_grad():
        for start in range(0, len(values), _ROWS):
            rows = values[start : start + _ROWS]
            parts.append(module(pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])))
        targets = np.array([places[str(label)] for label in labels])
        scale = temperature.fit(torch.cat(parts).numpy(), targets, multi_label=False)
        for parameter in module.head.parameters():
            parameter.div_(scale)

"""Fitted estimators of aeon and sktime as graphs. The short tests use stand-ins, whose classes have the same names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import lengthwise_export
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.fixed_kernels import HIGH_TAPS, KERNELS
from lengthwise.runtime.session import Session
from lengthwise_export.adopting.adopt import AdoptedClassifier, read
from lengthwise_export.adopting.transforms import FittedKernels, FittedTransform, RocketTransform
from tests.support.integer_graphs import opened

LENGTH = 40


def stand_in(name: str, module: str, **attributes: Any) -> Any:
    """An object whose class has this name and module."""
    value = type(name, (), {"__module__": module})()
    vars(value).update(attributes)
    return value


def parameters(features: int, *, seed: int = 0, is_small: bool = False) -> tuple[NDArray[Any], ...]:
    """Kernels as aeon keeps them: two dilations, with two biases and one; the values are whole numbers and a half.

    A small one has one dilation, because translating a graph takes seconds for each.
    """
    random = np.random.default_rng(seed)
    dilations, numbers = (np.array(row, np.int32) for row in (([2], [3]) if is_small else ([1, 4], [2, 1])))
    counts = random.integers(1, features + 1, len(dilations) * KERNELS)
    indices = np.concatenate([random.choice(features, count, replace=False) for count in counts])
    biases = (random.integers(-9, 10, 3 * KERNELS) + 0.5).astype(np.float32)
    return counts.astype(np.int32), indices.astype(np.int32), dilations, numbers, biases


def transform(kind: str, features: int, *, is_small: bool) -> Any:
    """A fitted transform of aeon."""
    known: dict[str, Any] = {"metadata_": {"n_channels": features}}
    if kind == "MiniRocket":
        known |= {"parameters": parameters(features, is_small=is_small)}
    else:
        first, second = parameters(features), parameters(features, seed=1)
        if features == 1:
            first, second = first[2:], second[2:]
        known |= {"parameter": first, "parameter1": second, "normalise": False, "n_features_per_kernel": 4}
    return stand_in(kind, "aeon.transformations.collection", **known)


def classifier(
    kind: str = "MiniRocket",
    *,
    features: int = 1,
    classes: int = 3,
    last: str = "RidgeClassifierCV",
    solver: str = "lbfgs",
    is_small: bool = False,
) -> Any:
    """A fitted classifier of aeon."""
    size, rows = 3 * KERNELS * (8 if kind == "MultiRocket" else 1), 1 if classes == 2 else classes
    scales = {"scale_": np.random.default_rng(4).uniform(0.5, 2, size), "mean_": np.zeros(size), "with_mean": False}
    random = np.random.default_rng(3)
    weights = {"coef_": random.normal(size=(rows, size)), "intercept_": random.normal(size=rows)}
    parts = [
        transform(kind, features, is_small=is_small),
        stand_in("StandardScaler", "sklearn.preprocessing", **scales),
        stand_in(last, "sklearn.linear_model", solver=solver, **weights),
    ]
    pipeline = stand_in("Pipeline", "sklearn.pipeline", steps=[(str(place), part) for place, part in enumerate(parts)])
    labels = np.array([f"class {place}" for place in range(classes)])
    module = "aeon.classification.convolution_based"
    return stand_in(f"{kind}Classifier", module, pipeline_=pipeline, classes_=labels)


def sequences(features: int, count: int = 5, length: int = LENGTH) -> NDArray[np.float32]:
    """Whole numbers, so that a sum is exact in any order: `[rows, length, features]`."""
    return np.random.default_rng(7).integers(-3, 4, (count, length, features)).astype(np.float32)


def expected(series: NDArray[np.float32], known: tuple[NDArray[Any], ...], *, several: bool, left: int) -> list[float]:
    """The features of one series `[features, length]`, step by step, in the order of the libraries."""
    counts, indices, dilations, numbers, biases = known
    pooled: list[list[float]] = [[], [], [], []]
    used, read = 0, 0
    for place, (dilation, number) in enumerate(zip(dilations, numbers, strict=True)):
        for kernel in range(KERNELS):
            combination = place * KERNELS + kernel
            channels = indices[read : read + counts[combination]]
            read += counts[combination]
            total = series[channels].sum(axis=0)
            results = np.zeros(len(total))
            for tap in range(9):
                shift = dilation * (4 - tap) - (left if tap < 4 else 0)
                weight = -1 + 3 * (tap in HIGH_TAPS[kernel])
                for step in range(len(total)):
                    if 0 <= step - shift < len(total):
                        # the sum of nine steps and the three high ones are shifted alike
                        results[step] += weight * total[step - shift]
            if (place + kernel) % 2:
                results = results[4 * dilation : len(results) - 4 * dilation]
            for bias in biases[used : used + number]:
                above = results > bias
                stretches, last = [], 0
                for step, value in enumerate(results):
                    if value < bias:
                        stretches.append(step - last)
                        last = step
                stretches.append(len(results) - 1 - last)
                pooled[0].append(above.mean())
                pooled[1].append(max(stretches))
                pooled[2].append((results[above] + bias).mean() if above.any() else 0)
                pooled[3].append(np.flatnonzero(above).mean() if above.any() else -1)
            used += number
    return [each for block in pooled[: 4 if several else 1] for each in block]


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("kind", ["MiniRocket", "MultiRocket"])
def test_the_features_are_those_of_the_method(kind: str, features: int) -> None:
    values = sequences(features)
    computed = of_module(RocketTransform(read(classifier(kind, features=features)).transform), values)
    first, second = parameters(features), parameters(features, seed=1)
    for row, steps in zip(computed, values, strict=True):
        wanted = expected(steps.T, first, several=kind == "MultiRocket", left=0)
        if kind == "MultiRocket":
            # the features that a kernel reads are those of the kernels for the values
            wanted += expected(np.diff(steps.T), (*first[:2], *second[2:]), several=True, left=1)
        assert np.allclose(row, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["MiniRocket", "MultiRocket"])
def test_padding_changes_no_feature(kind: str) -> None:
    module = RocketTransform(read(classifier(kind, features=2)).transform)
    given = [sequences(2, 1, length)[0] for length in (1, 2, 7, 9, 31, 33, 40)]
    together = pad(given, width=57)
    together.steps[np.arange(57) >= together.lengths[:, None]] = np.nan
    with torch.no_grad():
        rows = module(torch.from_numpy(together.steps), torch.from_numpy(together.lengths)).numpy()
    for row, steps in zip(rows, given, strict=True):
        assert np.array_equal(row, of_module(module, steps[None])[0])
    assert np.isfinite(rows).all()


def decisions(estimator: Any, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """`[rows, classes]` as scikit-learn computes them; two classes get a zero before theirs."""
    _, scaler, last = (part for _, part in estimator.pipeline_.steps)
    found = of_module(RocketTransform(read(estimator).transform), values)
    decided = (found - scaler.mean_ * scaler.with_mean) / scaler.scale_ @ last.coef_.T + last.intercept_
    return np.column_stack([np.zeros(len(values)), decided]) if decided.shape[1] == 1 else decided


def of_module(module: torch.nn.Module, values: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(values), torch.full((len(values),), values.shape[1])).numpy())


def answers(graph: onnx.ModelProto, values: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.full(len(values), values.shape[1], dtype=np.int32)
    return np.asarray(opened(graph).run(None, {"values": values, "lengths": lengths})[0])


@pytest.mark.parametrize("last", ["RidgeClassifierCV", "LogisticRegression"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_ridge_classifier_answers_one_for_a_label_and_a_logistic_regression_decides(classes: int, last: str) -> None:
    estimator, values, is_ridge = classifier(classes=classes, last=last), sequences(1, 20), last == "RidgeClassifierCV"
    estimator.pipeline_.steps[1][1].with_mean = not is_ridge
    found = of_module(AdoptedClassifier(read(estimator), as_labels=is_ridge), values)
    decided = decisions(estimator, values)
    labels = np.eye(classes)[decided.argmax(axis=1)]
    assert np.array_equal(found, labels) if is_ridge else np.allclose(found, decided, atol=1e-4)


def test_a_ridge_classifier_can_be_calibrated() -> None:
    estimator, values = classifier(is_small=True), sequences(1, 40)
    decided = decisions(estimator, values)
    labels = [f"class {place}" for place in decided.argmax(axis=1)]
    labels[:10] = ["class 0"] * 10
    found = answers(lengthwise_export.adopt(estimator, calibrate=(values.transpose(0, 2, 1), labels)), values)
    ratio = found / decided
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-3)
    assert ratio[0, 0] > 0


def test_an_adopted_graph_is_exported_with_its_labels(tmp_path: Path) -> None:
    estimator = classifier(last="LogisticRegression", is_small=True)
    published = lengthwise_export.export(lengthwise_export.adopt(estimator), tmp_path / "one" / "1", max_length=60)
    manifest = published.manifest
    assert manifest.labels == ("class 0", "class 1", "class 2")
    assert manifest.promises[0].bits
    values = sequences(1, 4)
    session = Session.load(published.directory, manifest)
    assert np.allclose(session.run(pad(list(values), width=64)).logits, decisions(estimator, values), atol=1e-4)


*KNOWN, NUMBERS, BIASES = parameters(1)


def changed(kind: str, **attributes: object) -> Any:
    """A classifier whose transform has other attributes."""
    estimator = classifier(kind)
    vars(estimator.pipeline_.steps[0][1]).update(attributes)
    return estimator


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (stand_in("RocketClassifier", "aeon.classification"), r"aeon\.RocketClassifier cannot be adopted; aeon's M"),
        (3, r"builtins\.int cannot be adopted"),
        (classifier(last="SVC"), r"aeon\.MiniRocketClassifier ends with sklearn\.SVC"),
        (classifier(last="LogisticRegression", solver="liblinear"), "has one model for each class: use lbfgs"),
        (stand_in("MiniRocketClassifier", "aeon.classification"), "has no 'pipeline_', .* call fit"),
        (changed("MultiRocket", normalise=True), "normalise=True cannot be adopted"),
        (changed("MultiRocket", n_features_per_kernel=2), "must be 4"),
        (changed("MultiRocket", parameter1=None), "is not fitted"),
        (changed("MiniRocket", parameters=(*KNOWN, NUMBERS, BIASES[:-1])), "not those of this"),
        (changed("MiniRocket", parameters=(*KNOWN, NUMBERS - [1, 0], BIASES[KERNELS:])), "reads 252"),
    ],
)
def test_what_cannot_be_adopted_is_refused_by_name(estimator: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        lengthwise_export.adopt(estimator)


def test_parts_that_change_the_features_are_refused() -> None:
    estimator = classifier()
    estimator.pipeline_.steps.insert(1, ("pca", stand_in("PCA", "sklearn.decomposition")))
    with pytest.raises(ConfigurationError):
        read(estimator)
    with pytest.raises(ConfigurationError):
        read(classifier(), features=2)  # than it was fitted with
    del estimator.pipeline_.steps[0]
    with pytest.raises(ConfigurationError):
        read(estimator)


@pytest.mark.parametrize(
    ("sequences_given", "labels", "message"),
    [
        ([np.zeros((1, 9))], [], "1 sequences and 0 labels"),
        ([], [], "0 sequences and 0 labels"),
        ([np.zeros((1, 9))], ["x"], "has no label 'x'"),
        ([np.zeros((2, 9))], ["class 0"], r"sequence 0 is \(2, 9\), not \(1, steps\)"),
        ([np.zeros(9)], ["class 0"], r"sequence 0 is \(9,\)"),
        ([np.zeros((1, 0))], ["class 0"], r"sequence 0 is \(1, 0\)"),
    ],
)
def test_wrong_sequences_for_the_calibration_are_refused(
    sequences_given: list[NDArray[Any]], labels: list[str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        lengthwise_export.adopt(classifier(), calibrate=(sequences_given, labels))


def test_differences_can_be_kept_in_double() -> None:
    series = [FittedKernels(1, np.zeros((KERNELS, 1), dtype=np.float32), [[0]] * KERNELS)]
    values = torch.randn(2, 20, 1, generator=torch.Generator().manual_seed(0))
    rows = [
        RocketTransform(FittedTransform(1, series, series, in_double=in_double))(values, torch.tensor([20, 13]))
        for in_double in (False, True)
    ]
    assert torch.allclose(*rows, atol=1e-3)


def aeons(kind: str, last: str) -> Any:
    from aeon.classification import convolution_based
    from sklearn.linear_model import LogisticRegression

    final = LogisticRegression(max_iter=1000) if last == "logistic" else None
    return getattr(convolution_based, f"{kind}Classifier")(n_kernels=400, random_state=1, estimator=final)


def sktimes(kind: str) -> Any:
    kernel_based = pytest.importorskip("sktime.classification.kernel_based")
    return kernel_based.RocketClassifier(num_kernels=400, rocket_transform=kind, random_state=1)


@pytest.mark.gallery
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "make", "form"),
    [
        *(
            (data, aeons, (kind, last))
            for data in ("GunPoint", "BasicMotions")
            for kind in ("MiniRocket", "MultiRocket")
            for last in ("ridge", "logistic")
        ),
        *(("GunPoint", sktimes, ("minirocket",)), ("GunPoint", sktimes, ("multirocket",))),
        ("BasicMotions", sktimes, ("minirocket",)),
    ],
)
def test_the_libraries_estimators_have_the_same_probabilities(
    data: str, make: Callable[..., Any], form: tuple[str, ...]
) -> None:
    from aeon.datasets import load_classification

    estimator = make(*form).fit(*load_classification(data, split="train"))
    values = load_classification(data, split="test")[0][:60].astype(np.float32)
    graph = lengthwise_export.adopt(estimator)
    found = answers(graph, np.ascontiguousarray(values.transpose(0, 2, 1)))
    if read(estimator).gives_probabilities:
        found = np.exp(found - found.max(axis=1, keepdims=True))
        found /= found.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = estimator.predict_proba(values.astype(np.float64))
    assert np.abs(found - wanted).max() < 1e-5

"""The built-in architecture as a classifier of scikit-learn, for sequences of different lengths.

`X` is a list of arrays, so `cross_val_score`, `GridSearchCV` and the others take it as it is. A fitted classifier holds
its weights as the bytes of a checkpoint: it can be pickled, copied, and exported to a model directory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_array, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from lengthwise.exporter_api.contract import STATIC, Sample, steps_of
from lengthwise.exporter_api.data import (
    ADVICE_ON_TAILS,
    InputSequences,
    Layout,
    Padding,
    estimator_sequences,
    is_tail,
    items,
)
from lengthwise_export.architecture import trained
from lengthwise_export.architecture.layers import answer_in_batches
from lengthwise_export.architecture.spec import ROCKET_BATCH_ROWS, Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.errors import ConfigurationError, InvalidSequences, Problem
from lengthwise_export.tracing.process_wide import torch_as_before
from lengthwise_export.training import arrays, training_api
from lengthwise_export.training.labels import in_order
from lengthwise_export.training.options import TrainOptions

if TYPE_CHECKING:
    from lengthwise_export.exporting.flow import PublishedModel


class LengthwiseClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier of sequences: trains the built-in architecture, and chooses from the data what is left open.

    `X` is a list of arrays `[length, features]` (or `[length]` for one feature or token ids), one array for each
    sequence, or any other form that `lengthwise.Model.predict` takes, such as a pandas table with a row for each step.
    An array `[sequences, length, features]` or `[sequences, length]` is taken as its rows. `y` has one label for each,
    in the order of the sequences; without it, those of a table count. NaN is a missing value, where the spec allows it.
    Static values of the spec (`static_names`) are columns of the table with these names, or stand beside the steps of
    each sequence, as `{"steps": ..., "static": ...}`. Parameters that are None are chosen as `train` chooses them.

    Args:
        spec: A preset (`"auto"`, `"rocket"`, `"summaries"`, `"rnn"`, `"conv"`, `"conv-rnn"`, `"transformer"`), the path
            of a TOML file, or the tables of a spec as a dictionary.
        random_state: The seed: a whole number, a RandomState of NumPy, or None for another one at each fit.
        verbose: Whether a fit shows its progress.
        layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.
        padding: `zeros` or `nan` cuts such steps off the end of each sequence, in `fit` and `predict`.
        epochs, batch_rows, learning_rate, weight_decay, validation, class_weights, calibration, threads: As for
            `lengthwise_export.train`.

    Attributes:
        classes_: The labels, sorted, in the order of the columns of `predict_proba`.
        n_features_in_: Number of values of a step; token models do not have it.
        report_: What `lengthwise train` writes into `metrics.json`; a notebook shows it as a page.
        spec_: The spec with everything that was chosen, as a dictionary.
        checkpoint_: The weights: the bytes of a `.safetensors` file.

    Example:
        >>> random = np.random.default_rng(0)
        >>> X = [random.normal(scale=1 + 4 * (n % 2), size=(n, 2)) for n in range(5, 25)]
        >>> y = ["loud" if len(steps) % 2 else "quiet" for steps in X]
        >>> classifier = LengthwiseClassifier("rocket").fit(X, y)
        >>> classifier.classes_.tolist(), classifier.predict_proba(X[:3]).shape
        (['loud', 'quiet'], (3, 2))
    """

    def __init__(
        self,
        spec: Any = "auto",
        *,
        epochs: int | None = None,
        batch_rows: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        validation: float | None = None,
        class_weights: bool | None = None,
        calibration: bool | None = None,
        random_state: Any = 0,
        threads: int = 1,
        verbose: bool = False,
        layout: Layout = "steps-first",
        padding: Padding | None = None,
    ) -> None:
        self.spec = spec
        self.epochs = epochs
        self.batch_rows = batch_rows
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation = validation
        self.class_weights = class_weights
        self.calibration = calibration
        self.random_state = random_state
        self.threads = threads
        self.verbose = verbose
        self.layout = layout
        self.padding = padding

    def fit(self, X: Any, y: Any = None) -> LengthwiseClassifier:
        """Trains on sequences and one label for each; without `y`, on the labels that a table has.

        If `y` has the ids of the sequences, such as a pandas Series with these as its index, it may have any order.

        Raises:
            ValueError: Some sequences or labels cannot be used; names each by its index, or by its id.
            ConfigurationError: The spec or a parameter is wrong.
        """
        sequences, y = _labelled(X, y, self.layout, arrays.tables(self.spec).get("input", {}))
        labels = _labels(y)
        check_consistent_length(sequences, labels)
        classes, indices = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y holds {len(classes)} class: a classifier needs at least two classes")
        names = [str(label) for label in classes.tolist()]
        spec_tables = arrays.with_labels(self.spec, names)
        if spec_tables.get("input", {}).get("long") == "window":
            raise ConfigurationError(
                "spec: long = 'window' is for a service, which puts the answers of the windows together: use 'head', "
                "'tail', or a larger max_length"
            )
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        parameters = self.get_params(deep=False)
        run = training_api.train(
            spec_tables,
            sequences,
            [names[index] for index in indices],
            **{name: parameters[name] for name in TrainOptions.model_fields.keys() & parameters.keys()},
            padding=self.padding,
            seed=int(seed),
            progress="auto" if self.verbose else None,
        )
        self.classes_ = classes
        self.report_ = run.report
        self.spec_ = run.spec
        self.checkpoint_ = run.weights.read_bytes()
        if (features := Spec.from_table(run.spec).input.features) is not None:
            self.n_features_in_ = features
        self.__dict__.pop("_model", None)
        self._module()  # loads the new weights now, because scikit-learn allows no new attribute in `predict`
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """`[sequences, classes]`: the probability of each label, in the order of `classes_`.

        Raises:
            InvalidSequences: Some cannot be used; names each by its index. It is a ValueError.
            ValueError: There is no sequence.
        """
        check_is_fitted(self)
        manifest = Spec.from_table(self.spec_).manifest(name="classifier", version=1)
        names, static, padding = (
            manifest.input.names or (),
            manifest.input.static_names,
            self.spec_["input"].get("padding"),
        )
        sequences = estimator_sequences(X, self.layout, padding, names, static=static)
        # The first step with a missing value, for each sequence that has one
        steps_with_missing = ((sequence.steps, np.argwhere(np.isnan(sequence.steps))) for sequence in sequences)
        first_missing = [(steps, None if not len(indices) else indices[0, 0]) for steps, indices in steps_with_missing]
        missing_values = [
            Problem(
                f"/sequences/{index}",
                f"step {step} lacks a value (NaN), and input.missing = 'refuse'"
                + (f"; {ADVICE_ON_TAILS}" if is_tail(steps, step) else ""),
            )
            for index, (steps, step) in enumerate(first_missing)
            if step is not None
        ]
        if missing_values and manifest.missing == "refuse":  # its text has "NaN", as scikit-learn asks of estimators
            raise InvalidSequences(missing_values)
        rows = [item.steps for item in items(sequences, manifest, ask=False)]
        if not rows:
            raise ValueError("X must hold at least one sequence, got none")
        steps = [torch.tensor(steps_of(row)) for row in rows]
        beside = [torch.tensor(row.beside[STATIC]) for row in rows if isinstance(row, Sample)] or None
        model = self._module()
        logits = answer_in_batches(lambda *batch: model(*batch).logits, steps, ROCKET_BATCH_ROWS, beside)
        return np.asarray(torch.stack(logits).double().softmax(dim=1).numpy())

    def predict(self, X: Any) -> NDArray[Any]:
        """`[sequences]`: the most probable label of each sequence; errors as `predict_proba` raises them."""
        best = self.predict_proba(X).argmax(axis=1)  # before `classes_` is read: raises NotFittedError without a fit
        return np.asarray(self.classes_[best])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The share of sequences that are answered with their labels; `y` and the weights may have ids, as in `fit`.

        Raises:
            ValueError: Some sequences or labels cannot be used; names each by its index, or by its id.
        """  # noqa: DOC502 - what it calls raises it
        check_is_fitted(self)
        step_spec = self.spec_["input"]
        sequences, y = _labelled(X, y, self.layout, step_spec, tuple(step_spec.get("feature_names") or ()))
        weights = sample_weight if sample_weight is None else in_order(sample_weight, sequences, X)
        return float(super().score(sequences, y, weights))

    def export(self, out: str | os.PathLike[str], **options: Any) -> PublishedModel:
        """Publishes the fitted model as a model directory, after its verification.

        `out` and the `options` are those of `lengthwise_export.export`, which says what it raises.
        """
        from lengthwise_export.interface import api

        with self._weights() as weights:
            return api.export(weights, out, **options)

    def __sklearn_tags__(self) -> Tags:
        """Scikit-learn's tags: rows of an array are sequences, and the spec decides about NaN."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self._takes_nan()
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickling: every attribute but the module, which is made again from the weights."""
        state: dict[str, Any] = {**super().__getstate__()}
        state.pop("_model", None)
        return state

    def _module(self) -> trained.BuiltInModel:
        """The PyTorch module with the fitted weights; it is made at the first call, and kept."""
        if "_model" not in vars(self):
            with self._weights() as weights, torch_as_before():
                self._model = trained.load(Spec.from_table(self.spec_), weights)[0]
        return self._model

    @contextmanager
    def _weights(self) -> Iterator[Path]:
        """Writes the checkpoint to a temporary file for the block, and yields its path."""
        check_is_fitted(self)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / WEIGHTS_FILE
            weights.write_bytes(self.checkpoint_)
            yield weights

    def _takes_nan(self) -> bool:
        """Whether the spec allows missing values; False for a wrong spec, which `fit` refuses with the reason."""
        try:
            spec_tables = arrays.tables(self.spec)
        except ConfigurationError:
            return False
        is_open = spec_tables.get("model", {}).get("preset") == "auto"
        return bool(spec_tables.get("input", {}).get("missing", "indicator" if is_open else "refuse") != "refuse")


def _labelled(
    X: Any, y: Any, layout: Layout, step_spec: Mapping[str, Any], names: tuple[str, ...] | None = None
) -> tuple[InputSequences, Any]:
    """Reads sequences, and brings `y` into their order; without it, the labels that all of them have, None without.

    `X`, `layout` and `names` are as for `estimator_sequences`; `step_spec` is the table `input` of the spec.
    """
    sequences = estimator_sequences(X, layout, names=names, per_step=False, static=step_spec.get("static_names"))
    if y is None:
        return sequences, sequences.labels if sequences and None not in sequences.labels else None
    return sequences, in_order(y, sequences, X)


def _labels(y: Any) -> NDArray[Any]:
    """Converts `y` to an array of labels, `[sequences]`, by scikit-learn's checks.

    Raises:
        ValueError: `y` is None, or cannot be labels.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    labels = column_or_1d(check_array(y, ensure_2d=False, dtype=None, input_name="y"), warn=True)
    check_classification_targets(labels)
    return np.asarray(labels)

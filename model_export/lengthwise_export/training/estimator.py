"""The built-in architecture as a classifier of scikit-learn, for sequences of different lengths.

`X` is a list of arrays, so `cross_val_score`, `GridSearchCV` and the others take it as it is. A fitted classifier holds
its weights as the bytes of a checkpoint: it can be pickled, copied, and exported to a model directory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_array, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from lengthwise.datasets.given import GivenSequences, Layout, sequences_of
from lengthwise.datasets.long_table import has_ids
from lengthwise.datasets.tables import columns_of
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture import trained
from lengthwise_export.architecture.spec import ROCKET_BATCH_ROWS, Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.tracing.process_wide import torch_as_before
from lengthwise_export.training import arrays, training_api
from lengthwise_export.training.batches import Example, lenient
from lengthwise_export.training.options import TrainOptions
from lengthwise_export.training.scores import answers

if TYPE_CHECKING:
    from lengthwise_export.exporting.flow import PublishedModel

_LARGEST_SEED: Final = 2**31 - 1


class LengthwiseClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier of sequences: trains the built-in architecture, and chooses from the data what is left open.

    `X` is a list of arrays `[length, features]` (or `[length]` for one feature or token ids), one array for each
    sequence, or any other form that `lengthwise.Model.predict` takes, such as a pandas table with a row for each step.
    An array `[sequences, length, features]` or `[sequences, length]` is taken as its rows. `y` has one label for each,
    in the order of the sequences; without it, those of a table count. NaN is a missing value, where the spec allows it.
    Parameters that are None are chosen as `train` chooses them.

    Args:
        spec: A preset (`"auto"`, `"rocket"`, `"rnn"`, `"conv"`, `"conv-rnn"`, `"transformer"`), the path of a TOML
            file, or the tables of a spec as a dictionary.
        epochs: Most epochs.
        batch_rows: Sequences in a batch of the training.
        learning_rate: Highest learning rate.
        weight_decay: Weight decay.
        validation: Share of the sequences to choose the epoch by.
        budget_minutes: Fewer epochs, so that a fit takes about this long here.
        class_weights: Whether rare labels get the same influence as frequent ones.
        calibration: Whether probabilities are calibrated.
        seeds: Train so many times; the best run is the result.
        ensemble: Whether the networks of all seeds are averaged.
        random_state: The seed: a whole number, a RandomState of NumPy, or None for another one at each fit.
        threads: Threads that torch and NumPy use in a fit.
        verbose: Whether a fit shows its progress.
        layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.

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
        budget_minutes: float | None = None,
        class_weights: bool | None = None,
        calibration: bool | None = None,
        seeds: int | None = None,
        ensemble: bool | None = None,
        random_state: Any = 0,
        threads: int = 1,
        verbose: bool = False,
        layout: Layout = "steps-first",
    ) -> None:
        self.spec = spec
        self.epochs = epochs
        self.batch_rows = batch_rows
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation = validation
        self.budget_minutes = budget_minutes
        self.class_weights = class_weights
        self.calibration = calibration
        self.seeds = seeds
        self.ensemble = ensemble
        self.random_state = random_state
        self.threads = threads
        self.verbose = verbose
        self.layout = layout

    def fit(self, X: Any, y: Any = None) -> LengthwiseClassifier:
        """Trains on sequences and their labels.

        Args:
            X: The sequences.
            y: One label for each; default: those of a table.

        Returns:
            This classifier.

        Raises:
            ValueError: Some sequences or labels cannot be used; names each by its index.
            ConfigurationError: The spec or a parameter is wrong.
        """
        sequences = _read(X, self.layout)
        if y is None and sequences and None not in sequences.labels:
            y = sequences.labels
        labels = _labels(y)
        check_consistent_length(sequences, labels)
        classes, places = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y holds {len(classes)} class: a classifier needs at least two classes")
        names = [str(one) for one in classes.tolist()]
        described = arrays.with_labels(self.spec, names)
        if described.get("input", {}).get("long") == "window":
            raise ConfigurationError(
                "spec: long = 'window' is for a service, which puts the answers of the windows together: use 'head', "
                "'tail', or a larger max_length"
            )
        run = training_api.train(
            described,
            sequences,
            [names[place] for place in places],
            **self._options(),
            seed=self._seed(),
            progress="auto" if self.verbose else None,
        )
        self.classes_ = classes
        self.report_ = run.report
        self.spec_ = run.spec
        self.checkpoint_ = run.weights.read_bytes()
        features = Spec.from_table(run.spec).input.features
        if features is not None:
            self.n_features_in_ = features
        self._model = _loaded(self.spec_, self.checkpoint_)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """`[sequences, classes]`: the probability of each label, in the order of `classes_`.

        Raises:
            InvalidSequences: Some cannot be used; names each by its index. It is a ValueError.
        """
        check_is_fitted(self)
        spec = Spec.from_table(self.spec_)
        steps = arrays.answerable(_read(X, self.layout), spec)
        if not steps:
            raise ValueError("X must hold at least one sequence, got none")
        members = [Example(torch.from_numpy(each), torch.zeros(())) for each in steps]
        found = answers(self._model, members, rows=ROCKET_BATCH_ROWS)
        return np.stack([one.logits.double().softmax(dim=0).numpy() for one in found])

    def predict(self, X: Any) -> NDArray[Any]:
        """`[sequences]`: the most probable label of each sequence; errors as `predict_proba` raises them."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def export(self, out: str | os.PathLike[str], **options: Any) -> PublishedModel:
        """Publishes the fitted model as a model directory, which `lengthwise serve` and `lengthwise.load` take.

        Args:
            out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
            options: As for `lengthwise_export.export`, such as `precision="int8"`.

        Raises:
            LengthwiseError: As `lengthwise_export.export` raises them.
        """
        from lengthwise_export.interface import api

        check_is_fitted(self)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / WEIGHTS_FILE
            weights.write_bytes(self.checkpoint_)
            return api.export(weights, out, **options)

    def __sklearn_tags__(self) -> Tags:
        """What scikit-learn is told: rows of an array are sequences, and NaN is for the spec to decide."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self._takes_nan()
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the module, which is made of the weights again."""
        state: dict[str, Any] = {**super().__getstate__()}
        state.pop("_model", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes the module of the weights."""
        super().__setstate__(state)
        if "checkpoint_" in state:
            self._model = _loaded(self.spec_, self.checkpoint_)

    def _options(self) -> dict[str, Any]:
        """The options of the training that are parameters here, without None."""
        given = self.get_params(deep=False)
        return {name: given[name] for name in TrainOptions.model_fields.keys() & given.keys()}

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(_LARGEST_SEED))

    def _takes_nan(self) -> bool:
        """Whether the spec lets a value be missing. A spec that is wrong is refused by `fit`, with the reason."""
        if isinstance(self.spec, Spec):
            return lenient(self.spec).input.missing != "refuse"
        if isinstance(self.spec, str) and self.spec in arrays.NAMES:
            return self.spec == "auto"
        if isinstance(self.spec, Mapping):
            given = (self.spec.get("input"), self.spec.get("model"))
            step, model = (table if isinstance(table, Mapping) else {} for table in given)
            return bool(step.get("missing", "indicator" if model.get("preset") == "auto" else "refuse") != "refuse")
        return False


def _loaded(spec: Mapping[str, Any], weights: bytes) -> trained.BuiltInModel:
    """The module of a spec with these weights."""
    with tempfile.TemporaryDirectory() as folder, torch_as_before():
        file = Path(folder) / WEIGHTS_FILE
        file.write_bytes(weights)
        return trained.load(Spec.from_table(spec), file)[0]


def _read(X: Any, layout: Layout) -> GivenSequences:
    """The sequences, with the errors that scikit-learn asks for.

    Raises:
        ConfigurationError: It is a table, and it is not clear what its columns are.
        TypeError: A sparse matrix.
        ValueError: No list of sequences.
    """
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError("sequences are dense arrays, and X is sparse: use X.toarray()")
    if getattr(getattr(X, "dtype", None), "kind", "") == "c":
        raise ValueError("Complex data not supported: a sequence has real values")
    table = columns_of(X)
    is_rows = table is not None and "steps" not in table and not has_ids([*table])  # a matrix, as for other estimators
    return sequences_of(np.asarray(X) if is_rows else X, layout, ask=False)


def _labels(y: Any) -> NDArray[Any]:
    """`[sequences]`: the labels.

    Raises:
        ValueError: There are none, or they are no labels.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    labels = column_or_1d(check_array(y, ensure_2d=False, dtype=None, input_name="y"), warn=True)
    check_classification_targets(labels)
    return np.asarray(labels)

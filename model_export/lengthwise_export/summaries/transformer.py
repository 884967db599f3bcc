"""`SequenceSummaries`: a transformer of scikit-learn from sequences of different lengths to a table of summaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from lengthwise.exporter_api.contract import Manifest, StepInput, steps_of
from lengthwise.exporter_api.data import Layout, Padding, estimator_sequences, items
from lengthwise_export.errors import ConfigurationError, counted, nearest
from lengthwise_export.summaries import compiled
from lengthwise_export.summaries.definitions import GROUPS, Choices, Recordings, SummaryColumns
from lengthwise_export.summaries.series import LARGEST, MOST_STEPS, MOST_STEPS_OF_SPECTRUM, Series

SIMPLE = tuple(name for name in GROUPS if name not in ("bands", "intervals"))
"""The groups that are computed by default."""


class SequenceSummaries(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Summaries of sequences: a table `[sequences, summaries]` for any classifier of scikit-learn.

    `X` is a list of arrays `[length, features]` of any lengths, or any other form that `LengthwiseClassifier` takes.
    NaN is a missing value. `docs/summaries.md` has the list of summaries. The same numbers come from the graph that
    `lengthwise.export` makes of a pipeline, with the same bits.

    Args:
        summaries: Names of groups, such as `"moments"`, or of single summaries, such as `"mean"`; their columns come in
            the order of the groups. By default all groups but `bands` and `intervals`.
        quantiles: The shares of `quantiles`; none twice.
        lags: The lags of `autocorrelation`, in steps; none twice.
        interval_depth: How often `intervals` are halved, at most.
        quantile_divisor: How many values of an interval there are for each of its quantiles.
        layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.
        padding: `zeros` or `nan` cuts such steps off the end of each sequence.

    Attributes:
        n_features_in_: Number of values of a step.
        feature_names_in_: The names of the features, if the sequences of `fit` have names.
        mean_, std_: Of each feature over all values of `fit`; an export draws the sequences of its verification so.
        typical_length_: The median length of the sequences of `fit`, in steps, which `intervals` are chosen by.

    Example:
        >>> sequences = [np.arange(6.0), np.array([1.0, 3.0, 2.0])]
        >>> summaries = SequenceSummaries(["length", "mean", "slope"]).fit(sequences)
        >>> summaries.get_feature_names_out().tolist()
        ['length', 'x0_mean', 'x0_slope']
        >>> summaries.transform(sequences).tolist()
        [[6.0, 2.5, 1.0], [3.0, 2.0, 0.5]]
    """

    def __init__(
        self,
        summaries: Sequence[str] = SIMPLE,
        *,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        lags: Sequence[int] = (1, 2, 3),
        interval_depth: int = 6,
        quantile_divisor: int = 4,
        layout: Layout = "steps-first",
        padding: Padding | None = None,
    ) -> None:
        self.summaries = summaries
        self.quantiles = quantiles
        self.lags = lags
        self.interval_depth = interval_depth
        self.quantile_divisor = quantile_divisor
        self.layout = layout
        self.padding = padding

    def fit(self, X: Any, y: Any = None) -> SequenceSummaries:
        """Learns the features, their names and the typical length; of `y` its order is checked.

        Raises:
            ValueError: Some sequences cannot be used; names each by its index, or by its id.
            ConfigurationError: A parameter is wrong, a name is not that of a summary, or `y` is in another order.
        """  # noqa: DOC502 - `_require_parameters` and `_choose` raise it
        sequences = estimator_sequences(X, self.layout, self.padding)
        if not sequences:
            raise ValueError("X must hold at least one sequence, got none")
        self._require_parameters()
        _require_order([sequence.id for sequence in sequences], y)
        first = sequences[0]
        self.n_features_in_ = 1 if first.steps.ndim == 1 else first.steps.shape[1]
        for name in ("feature_names_in_", "mean_", "std_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        if first.names is not None:
            self.feature_names_in_ = np.array(first.names, object)
        self.typical_length_ = int(np.median([len(sequence.steps) for sequence in sequences]))
        self._choose()
        values = np.concatenate([item.steps for item in items(sequences, self.manifest(), ask=False)])
        present = np.ma.array(values, np.float64, mask=np.isnan(values))  # type: ignore[no-untyped-call]
        self.mean_ = present.mean(axis=0).filled(0.0)
        self.std_ = present.std(axis=0).filled(1.0)
        return self

    def transform(self, X: Any) -> Any:
        """`[sequences, summaries]`: the summaries of each sequence, in the order of `get_feature_names_out`.

        An array of float32; after `set_output(transform="pandas")` a table, whose index has the ids of the sequences.

        Raises:
            InvalidSequences: Some cannot be used; names each by its index. It is a ValueError.
            ValueError: There is no sequence.
        """  # noqa: DOC502 - what it calls raises one of them
        check_is_fitted(self)
        manifest = self.manifest()
        sequences = estimator_sequences(X, self.layout, self.padding, manifest.input.names or ())
        steps = [steps_of(item.steps) for item in items(sequences, manifest, ask=False)]
        if not steps:
            raise ValueError("X must hold at least one sequence, got none")
        table = compiled.table(self.description, steps)
        if table is None:
            columns = self.columns(recordings(steps))
            rows = [column.values.transpose(1, 0, 2).reshape(len(steps), -1) for column in columns]
            every = np.concatenate(rows, axis=1)
            table = np.clip(every[:, self._indices], -LARGEST, LARGEST).astype(np.float32) + np.float32(0)  # no -0.0
        container = vars(self).get("_sklearn_output_config", {}).get("transform") or get_config()["transform_output"]
        if container != "pandas" or None in (ids := [sequence.id for sequence in sequences]):
            return table
        # Scikit-learn would take the index of `X`, which has a row for each step
        import pandas

        return pandas.DataFrame(table, index=ids, columns=self.get_feature_names_out())

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """The names of the columns, such as `x0_mean`: the feature's, or `x` and its index, and the summary's."""
        check_is_fitted(self)
        return np.array(self._names, object)

    def columns(self, data: Recordings) -> Iterable[SummaryColumns]:
        """Yields the columns of the chosen groups; `description` says which of them are in the table."""
        return chain.from_iterable(self._columns(group, data) for group in self._groups)

    def _columns(self, group: str, data: Recordings) -> Iterable[SummaryColumns]:
        """Yields the columns of a group."""
        names = getattr(self, "feature_names_in_", [f"x{index}" for index in range(self.n_features_in_)])
        parameters = (self.quantiles, self.lags, self.interval_depth, self.quantile_divisor, self.typical_length_)
        return GROUPS[group](data, Choices([*names], *parameters))

    @property
    def description(self) -> dict[str, Any]:
        """What the table has, as the kernels read it: `columns` are the indices of its columns among all of `columns`.

        All are the numbers of each sequence, those of one `SummaryColumns` after the other.
        """
        parameters = {"quantiles": [*map(float, self.quantiles)], "lags": [*map(int, self.lags)]}
        parameters["intervals"] = [self.typical_length_, int(self.interval_depth), int(self.quantile_divisor)]
        return {"features": self.n_features_in_, "groups": self._groups, "columns": self._indices, **parameters}

    def manifest(self, **fields: Any) -> Manifest:
        """The manifest of a model that takes the sequences of `transform`; `fields` are further fields."""
        names = tuple(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
        statistics = {"mean": tuple(self.mean_), "std": tuple(self.std_)} if hasattr(self, "mean_") else {}
        longest = MOST_STEPS_OF_SPECTRUM if {"bands", "intervals"} & {*self._groups} else MOST_STEPS
        own = {"name": "summaries", "version": 1, "labels": ("0",), "missing": "handled", "max_length": longest}
        return Manifest(input=StepInput(features=self.n_features_in_, names=names, **statistics), **own | fields)

    def _require_parameters(self) -> None:
        """Makes sure that the numbers among the parameters can be used.

        Raises:
            ConfigurationError: One cannot.
        """
        for name, in_range in (
            ("quantiles", all(0 <= share <= 1 for share in self.quantiles)),
            ("lags", _are_counts(*self.lags)),
            ("interval_depth", _are_counts(self.interval_depth)),
            ("quantile_divisor", _are_counts(self.quantile_divisor)),
        ):
            if not in_range:
                raise ConfigurationError(f"{name} = {getattr(self, name)!r} is out of range")
        for name, values in (("quantiles", [f"{share:g}" for share in self.quantiles]), ("lags", [*self.lags])):
            if len({*values}) < len(values):
                raise ConfigurationError(f"{name} = {getattr(self, name)!r} has a value twice: names would be equal")

    def _choose(self) -> None:
        """Finds the groups of the chosen summaries, and which of their columns are chosen.

        Raises:
            ConfigurationError: A name is neither that of a group nor of a summary, or there is no column.
        """
        wanted = {*([self.summaries] if isinstance(self.summaries, str) else self.summaries)}
        # The names of the columns do not depend on the steps, so those of one step are looked at.
        one_step = recordings([np.zeros((1, self.n_features_in_), np.float32)])
        columns = {group: [*self._columns(group, one_step)] for group in GROUPS}
        names = {group: {name for column in columns[group] for name in column.names} for group in GROUPS}
        known = {*GROUPS}.union(*names.values())
        if unknown := sorted(wanted - known):
            raise ConfigurationError(f"summaries: {unknown[0]!r} is none{nearest(unknown[0], sorted(known))}")
        self._groups = [group for group in GROUPS if wanted & {group, *names[group]}]
        every = [
            (f"{feature}_{name}" if feature else name, wanted & {group, name})
            for group in self._groups
            for column in columns[group]
            for feature in column.of
            for name in column.names
        ]
        self._indices = [index for index, (_, chosen_by) in enumerate(every) if chosen_by]
        self._names = [name for name, chosen_by in every if chosen_by]
        if not self._names:
            features = counted(self.n_features_in_, "feature")
            raise ConfigurationError(f"summaries = {self.summaries!r} gives no column for {features}")

    def __sklearn_tags__(self) -> Tags:
        """Scikit-learn's tags: rows of an array are sequences, and NaN is a missing value."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _are_counts(*values: Any) -> bool:
    """Whether these are whole numbers above 0."""
    return all(isinstance(value, int | np.integer) and value > 0 for value in values)


def recordings(sequences: Sequence[NDArray[Any]]) -> Recordings:
    """Sequences `[length, features]` as series, with NaN for a missing value."""
    lengths = np.array([len(steps) for steps in sequences])
    values = np.concatenate(sequences).astype(np.float64).T  # (features, steps)
    is_missing = np.isnan(values).ravel()
    counts = np.tile(lengths, (len(values), 1))
    values = np.where(is_missing, 0.0, values.ravel()) + 0.0  # no -0.0, which sorts in another way
    everywhere = Series(values, counts)
    present = everywhere.total(np.where(is_missing, 0.0, 1.0))[..., 0].astype(np.intp)
    nothing = everywhere.spread((present == 0)[..., None]) & (everywhere.position == 0)  # one zero in its place
    series = Series(values[~is_missing | nothing], np.maximum(present, 1))
    filled = Series(np.where(is_missing, everywhere.spread(series.mean), values), counts)
    return Recordings(series, filled, np.where(is_missing, 1.0, 0.0))


def _require_order(ids: Sequence[str | None], y: Any) -> None:
    """Makes sure that labels with an index stand in the order of the sequences, as a pipeline takes them by position.

    A pipeline hands `y` to its classifier as it is, so nothing can put it into the order of the sequences.

    Raises:
        ConfigurationError: Its index has ids in another order, or other ids.
    """
    index = getattr(y, "index", None)
    if index is None or callable(index) or None in ids or type(index).__name__ == "RangeIndex":
        return
    texts, names = [str(label) for label in index], [str(one) for one in ids]
    if texts != names:
        raise ConfigurationError(
            f"y has labels of {', '.join(texts[:3])}, ... and the sequences are {', '.join(names[:3])}, ...: "
            "a pipeline takes labels by position, so give them in the order of the sequences: y.loc[table.id.unique()]"
        )

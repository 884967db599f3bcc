"""The summaries of a sequence: one function for each group of them, for NumPy and for a graph alike.

A group is a generator under `@group`, whose name is the group's: it yields `SummaryColumns`, numbers and their names.
To add a summary is to add a yield, or such a function; `SequenceSummaries` and the graph have it then. `series` says
what a function may compute with.

**Missing values** are left out: the summaries are those of the present values, in their order, unless a docstring says
otherwise. A feature without a single value in a sequence counts as one zero. No summary is ever NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.summaries.series import Numbers, Series, ratio


@dataclass(frozen=True, slots=True)
class Recordings:
    """Sequences, as their summaries read them."""

    present: Series  # the present values of each feature of each sequence
    filled: Series  # the values at all steps: the mean of the feature in the place of a missing one
    missing: Numbers  # steps of `filled`: 1 where a value is missing, else 0


@dataclass(frozen=True, slots=True)
class Choices:
    """What a user chooses of the summaries."""

    features: Sequence[str]  # their names
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    lags: Sequence[int] = (1, 2, 3)  # of the autocorrelation, in steps
    depth: int = 6  # of intervals: there are 1, 2, 4, ... of them, so many times
    divisor: int = 4  # values of an interval for each quantile of it
    typical_length: int = 1  # steps; decides how many intervals and quantiles there are


class SummaryColumns(NamedTuple):
    """Numbers of all sequences."""

    of: Sequence[str]  # what they are of: the features, or pairs of them
    names: Sequence[str]  # of the summaries
    values: Numbers  # columns, for each in `of` and each sequence


SummaryGroup = Callable[[Recordings, Choices], Iterator[SummaryColumns]]
GROUPS: Final[dict[str, SummaryGroup]] = {}
"""The groups of summaries by name."""


def group(function: SummaryGroup) -> SummaryGroup:
    """Adds a function to `GROUPS`, under its name."""
    GROUPS[function.__name__] = function
    return function


@group
def length(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`length`: the steps of the sequence, missing ones counted. It is one number, whatever the features."""
    yield SummaryColumns([""], ["length"], data.filled.of_features(data.filled.values, np.array([0])).count)


@group
def ends(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`first`, `last`: the first and the last value; of one step both are it."""
    series = data.present
    yield SummaryColumns(choices.features, ["first"], series.at(series.values, series.count * 0.0))
    yield SummaryColumns(choices.features, ["last"], series.at(series.values, series.count - 1.0))


@group
def moments(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`mean`, `std`, `rms`: arithmetic mean, standard deviation (divided by n), root of the mean square.

    Of one step, or a constant, the deviation is exactly 0. As `mean`, `standard_deviation` and `root_mean_square` of
    tsfresh.
    """
    series = data.present
    yield SummaryColumns(choices.features, ["mean"], series.mean)
    yield SummaryColumns(choices.features, ["std"], np.sqrt(series.variance))
    yield SummaryColumns(choices.features, ["rms"], np.sqrt(series.total(series.values * series.values) / series.count))


@group
def extremes(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`minimum`, `maximum`, and `minimum_position`, `maximum_position`: the first step that has it, over the steps.

    The position is 0 to 1 - 1/n: 0 of one step, or a constant. As `minimum`, `maximum`, `first_location_of_minimum` and
    `first_location_of_maximum` of tsfresh.
    """
    series = data.present
    for name, sign in (("minimum", -1.0), ("maximum", 1.0)):
        extreme = sign * series.largest(sign * series.values)
        steps_before = np.where(series.values == series.spread(extreme), -series.position, -np.inf)
        yield SummaryColumns(choices.features, [name], extreme)
        yield SummaryColumns(choices.features, [f"{name}_position"], -series.largest(steps_before) / series.count)


@group
def quantiles(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`quantile_Q`: the value below which the share Q of the values is, by linear interpolation.

    With one step or a constant it is this value. As `numpy.quantile`, and `quantile` of tsfresh.
    """
    names = [f"quantile_{share:g}" for share in choices.quantiles]
    yield SummaryColumns(choices.features, names, _quantiles(data.present.ordered(), np.array([choices.quantiles])))


@group
def trend(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`slope`, `slope_error`: the line of least squares through the values, a change a step, and its standard error.

    The slope of one step is 0, the error of one or two steps is 0. As `linear_trend` of tsfresh with the attributes
    `slope` and `stderr`. Missing values are left out, and the others counted 0, 1, 2, ...
    """
    series, count = data.present, data.present.count
    time = series.position - series.spread((count - 1.0) * 0.5)
    squares = np.maximum(count * (count * count - 1.0) / 12.0, 0.5)  # the sum of time * time; 0 of one step
    slope = series.total(time * series.deviations) / squares
    rest = series.deviations - series.spread(slope) * time
    error = np.sqrt(series.total(rest * rest) / (np.maximum(count - 2.0, 1.0) * squares))
    yield SummaryColumns(choices.features, ["slope"], slope)
    yield SummaryColumns(choices.features, ["slope_error"], np.where(count > 2.0, error, 0.0))


@group
def change(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`mean_absolute_change`, `mean_crossings`, `longest_run`: of neighbouring values.

    The mean of |difference|; how often the values pass from at most their mean to above it, or back; how many steps in
    a row are above it at most. All are 0 of one step and of a constant. As `mean_abs_change`, `number_crossing_m` with
    the mean as m, and `longest_strike_above_mean` of tsfresh.
    """
    series = data.present
    differences = _changes(series)
    above = series.values > series.spread(series.mean)
    counted = np.where(above, 1.0, 0.0)
    crossings = series.total(np.abs(_later(series, counted, 1.0) - counted))
    absolute = differences.total(np.abs(differences.values)) / differences.count
    yield SummaryColumns(choices.features, ["mean_absolute_change"], absolute)
    yield SummaryColumns(choices.features, ["mean_crossings"], crossings)
    yield SummaryColumns(choices.features, ["longest_run"], series.longest_run(above))


@group
def autocorrelation(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`autocorrelation_K`: the mean product of deviations K steps apart, over the variance.

    0 where the sequence has no two steps that are so far apart, and of a constant. As `autocorrelation` of tsfresh,
    which is NaN there.
    """
    series = data.present
    for lag in choices.lags:
        product = series.deviations * _later(series, series.deviations, float(lag))
        total = series.total(np.where(series.position < series.spread(series.count - float(lag)), product, 0.0))
        mean = total / np.maximum(series.count - float(lag), 1.0)
        yield SummaryColumns(choices.features, [f"autocorrelation_{lag}"], ratio(mean, series.variance))


@group
def missing(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`missing_share`, `longest_gap`: which share of the steps has no value, and how many such follow each other."""
    yield SummaryColumns(choices.features, ["missing_share"], data.filled.total(data.missing) / data.filled.count)
    yield SummaryColumns(choices.features, ["longest_gap"], data.filled.longest_run(data.missing > 0.0))


@group
def correlations(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`A_B_correlation`: Pearson's correlation of each two features.

    At a step that lacks a value, that feature counts as at its mean. 0 where a feature is constant.
    """
    pairs = np.array([*combinations(range(len(choices.features)), 2)], np.intp).reshape(-1, 2)
    if not len(pairs):
        return
    deviations = data.filled.values - data.filled.spread(data.present.mean)
    one, other = (data.filled.of_features(deviations, indices) for indices in pairs.T)
    sizes = [np.sqrt(series.total(series.values * series.values)) for series in (one, other)]
    correlation = ratio(one.total(one.values * other.values), sizes[0] * sizes[1])
    names = [f"{choices.features[first]}_{choices.features[second]}" for first, second in pairs]
    yield SummaryColumns(names, ["correlation"], np.minimum(np.maximum(correlation, -1.0), 1.0))


@group
def bands(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`band_B`: the share of the spectrum's energy, without the mean's, in octave B.

    Octave 1 has the frequencies above 1/4 of the sampling rate, 2 those above 1/8, 3 those above 1/16, and 4 the rest.
    All are 0 of one step and of a constant. A missing value counts as the mean.
    """
    spectrum = data.filled.spectrum()
    frequency = spectrum.position / spectrum.spread(data.filled.count)
    energy = np.where(frequency > 0.0, spectrum.values * spectrum.values, 0.0)
    whole, above = spectrum.total(energy), 0.5
    for octave, edge in enumerate((0.25, 0.125, 0.0625, 0.0), 1):
        within = np.where((frequency > edge) & (frequency <= above), energy, 0.0)
        yield SummaryColumns(choices.features, [f"band_{octave}"], ratio(spectrum.total(within), whole))
        above = edge


@group
def intervals(data: Recordings, choices: Choices) -> Iterator[SummaryColumns]:
    """`values_...`, `change_...`, `curvature_...`, `spectrum_...`: QUANT's quantiles of dyadic intervals.

    A sequence is divided into 1, 2, 4, ... intervals of its own length, and these moved by half of one. Of each there
    are quantiles, every second one without the interval's mean. The same of the first differences (means of five), of
    the second ones, and of the spectrum. `change_3/4+_q0.5` is the median of the third of four intervals of the
    differences, moved (+). How many quantiles an interval has depends on the median length of the sequences in `fit`,
    and a sequence of that length has those of QUANT (Dempster, Schmidt and Webb 2024; aeon's `QUANTTransformer`). An
    interval of a shorter sequence has one value at least: intervals may then be equal.
    """
    series, typical = data.present, choices.typical_length
    changes = _changes(series)
    smooth = changes.position * 0.0
    for offset in (-2.0, -1.0, 0.0, 1.0, 2.0):
        smooth = smooth + _later(changes, changes.values, offset)
    curvature = changes.shortened(_later(changes, changes.values, 1.0) - changes.values, 1)
    for name, represented, steps in (
        ("values", series, typical),
        ("change", changes.shortened(smooth / 5.0, 0), typical - 1),
        ("curvature", curvature, typical - 2),
        ("spectrum", data.filled.spectrum(), typical // 2 + 1),
    ):
        for count in 2 ** np.arange(min(choices.depth, int(np.log2(max(steps, 1))) + 1)):
            yield _interval_quantiles(name, represented, max(steps, 1), int(count), choices)


def _interval_quantiles(name: str, series: Series, steps: int, count: int, choices: Choices) -> SummaryColumns:
    """The quantiles of `count` intervals of each series, and of these moved by half of one.

    Args:
        name: What the series represent.
        series: The series.
        steps: The length of a typical one, which decides how many quantiles there are.
        count: How many intervals.
        choices: The user's choices.
    """
    # 1. Which intervals, and how many quantiles of each
    index = np.arange(float(count))
    sizes = ((index + 1) * steps // count - index * steps // count).astype(int)
    if count > 1 and np.sort(sizes)[(count - 1) // 2] > 1:
        index, sizes = np.append(index, index[:-1]), np.append(sizes, sizes[:-1])
    is_moved = np.arange(len(index)) >= count
    numbers = 1 + (sizes - 1) // choices.divisor  # of quantiles
    shares = np.zeros((len(index), numbers.max()))
    for row, number in zip(shares, numbers, strict=True):
        row[:number] = np.linspace(0, 1, number) if number > 1 else 0.5
    # 2. The intervals of each series, by its own length
    length = series.count
    moved_by = np.where(is_moved, 1.0, 0.0) * -np.floor(length / (-2.0 * count))
    begins = np.minimum(np.floor(index * length / float(count)) + moved_by, length - 1.0)
    ends = np.minimum(np.maximum(np.floor((index + 1) * length / float(count)) + moved_by, begins + 1.0), length)
    parts = series.parts(begins, ends)
    # 3. Their quantiles
    second = np.arange(numbers.max()) % 2.0 * (numbers > 1)[:, None]
    values = _quantiles(parts.ordered(), shares) - second * parts.mean
    used = np.arange(numbers.max()) < numbers[:, None]
    names = [
        f"{name}_{index[row] + 1:g}/{count}{'+' if is_moved[row] else ''}_q{shares[row, column]:.3g}"
        for row, column in np.argwhere(used)
    ]
    return SummaryColumns(choices.features, names, series.joined(values, np.flatnonzero(used)))


def _quantiles(ordered: Series, shares: NDArray[np.float64]) -> Numbers:
    """Columns: the quantiles of series whose values are in order; `shares` are `[1, columns]` or `[parts, columns]`."""
    position = shares * (ordered.count - 1.0)
    below = np.floor(position)
    low = ordered.at(ordered.values, below)
    high = ordered.at(ordered.values, np.minimum(below + 1.0, ordered.count - 1.0))
    return low + (high - low) * (position - below)


def _later(series: Series, steps: Numbers, offset: float) -> Numbers:
    """Steps: the numbers so many steps later; the first or the last one beyond an end."""
    last = series.spread(series.count - 1.0)
    return series.at(steps, np.minimum(np.maximum(series.position + offset, 0.0), last))


def _changes(series: Series) -> Series:
    """The first differences; of one value, one zero."""
    return series.shortened(_later(series, series.values, 1.0) - series.values, 1)

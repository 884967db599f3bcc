"""Checks a pipeline that begins with a function of padded arrays: does padding reach a column of its table?

Scikit-learn's `FunctionTransformer` gets an array `[rows, width, features]`. Each sequence alone, without padding, must
give the same numbers as in a padded batch: of zeros or of NaN, whichever the function takes for padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import ROUNDING, StepInput
from lengthwise_export.checking import rule
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import Report, TrialResult
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import ConfigurationError, ModelError, first_of
from lengthwise_export.options import CheckOptions

_LENGTHS: Final = (1, 2, 3, 8, 9, 17)
"""Steps of the sequences."""
_WIDTH: Final = 24
"""Steps of the padded batch."""
_KIND: Final = "FunctionTransformer"
_TARGET: Final = "Pipeline"


def check(pipeline: Any, options: CheckOptions) -> Report:
    """The report of a pipeline that begins with a FunctionTransformer; a leak has the name of its column.

    Raises:
        ConfigurationError: The number of features is not said.
    """
    if options.features is None:
        raise ConfigurationError(f"features: say how many values a step has, as {_KIND} does not say it")
    sampler = Sampler(StepInput(features=options.features), options.seed)
    sequences = [sampler.sequence(length).astype(np.float32) for length in _LENGTHS]
    try:
        columns, differences = _compared(pipeline.steps[0][1].transform, sequences)
    except ModelError as error:
        return Report("uncheckable", f"the function of {_KIND} {error}", target=_TARGET)
    allowed = ROUNDING + options.tolerance
    results = [TrialResult(trial, "padding", of.max(), bool(of.max() <= allowed)) for trial, of in differences.items()]
    if passed := [result.name for result in results if result.passed]:
        return Report("sound", f"no column changes with {passed[0]}", trials=tuple(results), target=_TARGET)
    cause, (trial, difference) = rule.rules()["LW212"].cause(), list(differences.items())[-1]
    leaks = [
        Leak(f"column {name}", _KIND, None, cause, None, float(of), trial)
        for name, of in zip(columns, difference, strict=True)
        if of > allowed
    ]
    reached = first_of([leak.operator for leak in leaks])
    return Report("leak", f"padding reaches {reached}", tuple(leaks), tuple(results), target=_TARGET)


def _compared(
    transform: Callable[[NDArray[np.float32]], Any], sequences: Sequence[NDArray[np.float32]]
) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """The names of the columns; and by trial, how much the padding of a batch changes each of them.

    A function may take one padding only: then the other one is no trial.

    Raises:
        ModelError: It raises for a sequence alone or for both paddings, or makes no table with a row for each.
    """
    try:
        alone = [transform(steps[None]) for steps in sequences]
        before = np.concatenate([np.asarray(table, np.float64) for table in alone])
    except Exception as error:  # whatever a user's function raises
        raise ModelError(f"raises {type(error).__name__}: {error}") from error
    if before.ndim != 2 or len(before) != len(sequences):
        raise ModelError(f"makes no table [rows, columns]: {list(before.shape)} of {len(sequences)} sequences")
    differences, raised = {}, ""
    for name, fill in (("NaN", np.nan), ("zeros", 0.0)):
        batch = np.full((len(sequences), _WIDTH, sequences[0].shape[1]), fill, np.float32)
        for row, steps in zip(batch, sequences, strict=True):
            row[: len(steps)] = steps
        try:
            after = np.asarray(transform(batch), np.float64)
        except Exception as error:  # as above; many functions refuse NaN
            raised = f"raises {type(error).__name__}: {error}"
            continue
        if after.shape != before.shape:
            raise ModelError(f"makes {list(after.shape)} of a batch, and {list(before.shape)} of its rows alone")
        differences[f"{name} in the padding"] = _differences(before, after)
    if not differences:
        raise ModelError(raised)
    return [str(name) for name in getattr(alone[0], "columns", range(before.shape[1]))], differences


def _differences(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest difference of each column, in units of max(1, its largest finite value).

    NaN beside NaN is none, nor is an infinite number beside itself; either beside another value is infinite.
    """
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(invalid="ignore"):  # of an infinite number less itself
        apart = np.where(same, 0.0, np.nan_to_num(np.abs(after - before), nan=np.inf, posinf=np.inf))
    scale = np.where(np.isfinite(before), np.abs(before), 0.0).max(axis=0)
    return np.asarray(apart.max(axis=0) / np.maximum(1.0, scale))

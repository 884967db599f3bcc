"""Checks a pipeline that begins with a function of padded arrays: does padding reach a column of its table?

Scikit-learn's `FunctionTransformer` gets an array `[rows, width, features]`. Each sequence alone, without padding, must
give the same numbers as in a padded batch: of zeros or of NaN, whichever the function takes for padding.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import ROUNDING, StepInput
from lengthwise_export.checking import rule
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import Report, TrialResult
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import ConfigurationError, first_of
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
    transform, sampler = pipeline.steps[0][1].transform, Sampler(StepInput(features=options.features), options.seed)
    sequences = [sampler.sequence(length) for length in _LENGTHS]
    batches = {
        f"{name} in the padding": np.full((len(sequences), _WIDTH, options.features), fill, np.float32)
        for name, fill in (("NaN", np.nan), ("zeros", 0.0))
    }
    try:
        alone = [transform(steps[None].astype(np.float32)) for steps in sequences]
        before = np.concatenate([np.asarray(table, np.float64) for table in alone])
        differences = {}
        for trial, batch in batches.items():
            for row, steps in zip(batch, sequences, strict=True):
                row[: len(steps)] = steps
            differences[trial] = _differences(before, np.asarray(transform(batch), np.float64))
    except Exception as error:  # whatever a user's function raises
        return Report(
            "uncheckable", f"the function of {_KIND} raises {type(error).__name__}: {error}", target="Pipeline"
        )
    names = [str(name) for name in getattr(alone[0], "columns", range(before.shape[1]))]
    allowed = ROUNDING + options.tolerance
    results = [TrialResult(trial, "padding", of.max(), bool(of.max() <= allowed)) for trial, of in differences.items()]
    if passed := [result.name for result in results if result.passed]:
        return Report("sound", f"no column changes with {passed[0]}", trials=tuple(results), target=_TARGET)
    cause, (trial, difference) = rule.rules()["LW212"].cause(), list(differences.items())[-1]
    leaks = [
        Leak(f"column {name}", _KIND, None, cause, None, float(of), trial)
        for name, of in zip(names, difference, strict=True)
        if of > allowed
    ]
    columns = first_of([leak.operator for leak in leaks])
    return Report("leak", f"padding reaches {columns}", tuple(leaks), tuple(results), target=_TARGET)


def _differences(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest difference of each column, in units of max(1, its largest value); NaN beside NaN is none."""
    apart = np.where(np.isnan(before) & np.isnan(after), 0.0, np.abs(after - before))
    return np.asarray(np.nan_to_num(apart, nan=np.inf).max(axis=0) / np.maximum(1.0, np.nanmax(np.abs(before), axis=0)))

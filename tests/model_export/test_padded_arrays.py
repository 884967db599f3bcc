"""`check` of a pipeline that begins with a function of padded arrays: which columns padding reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import lengthwise_export
from lengthwise.errors import ConfigurationError


def checked(function: Any, **options: Any) -> lengthwise_export.CheckReport:
    pipeline = make_pipeline(FunctionTransformer(function), LogisticRegression())
    return lengthwise_export.check(pipeline, **{"features": 2, **options})


def named(table: dict[str, Any]) -> pandas.DataFrame:
    return pandas.DataFrame(table)


def test_each_column_that_padding_reaches_is_a_leak_with_its_name() -> None:
    report = checked(lambda X: named({"mean": X[..., 0].mean(1), "first": X[:, 0, 1], "deviation": X[..., 1].std(1)}))
    assert report.verdict == "leak"
    assert [(leak.code, leak.operator) for leak in report.leaks] == [
        ("LW212", "column mean"),
        ("LW212", "column deviation"),
    ]
    assert report.reason == "padding reaches column mean, column deviation"
    assert [result.passed for result in report.trials] == [False, False]
    assert "LW212" in str(report)
    assert "SequenceSummaries" in str(report)


@pytest.mark.filterwarnings("ignore:Degrees of freedom")
def test_a_function_that_leaves_padding_out_is_sound() -> None:
    by_nan = checked(lambda X: np.concatenate([np.nanmean(X, axis=1), np.isfinite(X[..., :1]).sum(1)], axis=1))
    assert (by_nan.verdict, by_nan.reason) == ("sound", "no column changes with NaN in the padding")
    by_zeros = checked(lambda X: np.abs(np.nan_to_num(X)).sum(axis=1))
    assert by_zeros.verdict == "sound"


def test_columns_without_names_are_counted() -> None:
    report = checked(lambda X: X.mean(axis=1), features=3)
    assert [leak.operator for leak in report.leaks] == ["column 0", "column 1", "column 2"]
    assert checked(lambda X: X.mean(axis=1), ignore="LW212").leaks == ()


def test_what_cannot_be_checked_says_why() -> None:
    report = checked(lambda X: X.reshape(-1, 2) @ np.ones((3, 1)))
    assert report.verdict == "uncheckable"
    assert "the function of FunctionTransformer raises ValueError" in report.reason
    with pytest.raises(ConfigurationError, match="features: say how many values a step has"):
        checked(lambda X: X.mean(axis=1), features=None)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_column_that_is_not_finite_hides_no_leak_and_is_none() -> None:
    ratio = checked(lambda X: X.mean(1) / X.std(1))  # infinite for one step alone
    assert [leak.code for leak in ratio.leaks] == ["LW212", "LW212"]
    assert checked(lambda X: np.stack([np.nansum(X, axis=(1, 2)), np.full(len(X), np.nan)], 1)).verdict == "sound"
    assert checked(lambda X: np.stack([np.nansum(X, axis=(1, 2)), np.full(len(X), -np.inf)], 1)).verdict == "sound"


def test_a_function_that_takes_one_padding_only_is_judged_by_it() -> None:
    def finite(X: Any) -> Any:
        if not np.isfinite(X).all():
            raise ValueError("NaN is not taken")
        return X

    assert checked(lambda X: finite(X).sum(1)).verdict == "sound"
    assert checked(lambda X: finite(X).mean(1)).verdict == "leak"


@pytest.mark.parametrize(
    "function", [lambda X: np.nansum(X, axis=(1, 2)), lambda X: np.nansum(X, axis=(0, 1))[None]], ids=["rows", "batch"]
)
def test_a_function_that_makes_no_table_is_not_checked(function: Any) -> None:
    report = checked(function)
    assert report.verdict == "uncheckable"
    assert "of FunctionTransformer makes" in report.reason

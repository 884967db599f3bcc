"""`assert_padding_safe`: a test of one line, whose failure is the whole report."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise_export import testing
from lengthwise_export.testing import PaddingUnsafeError, assert_padding_safe
from tests.support.users_models import Mean, Tagger

MASKING = Path(__file__).parents[2] / "examples" / "masking.py"


def test_a_sound_model_passes_and_its_report_is_returned() -> None:
    assert assert_padding_safe(Mean(), max_length=40).verdict == "sound"


def test_a_leak_fails_with_the_whole_report() -> None:
    with pytest.raises(AssertionError) as failed:
        assert_padding_safe(Mean(leaks=True), max_length=40)
    assert isinstance(failed.value, PaddingUnsafeError)
    assert str(failed.value) == str(failed.value.report)
    for said in ("leak  Mean", "users_models.py:", "why", "fix", "the answer moves by"):
        assert said in str(failed.value)
    assert failed.traceback[-1].ishidden(failed)


def test_a_model_that_cannot_be_checked_fails_too() -> None:
    with pytest.raises(PaddingUnsafeError):
        assert_padding_safe("examples/mending.py:inception", features=12)


@pytest.mark.long
def test_a_warning_fails_only_if_asked() -> None:
    target = "tests.gallery.torch_sound.recurrent:masked_mean"
    assert assert_padding_safe(target, features=3, second="mask", max_length=40).verdict == "warning"
    with pytest.raises(PaddingUnsafeError):
        assert_padding_safe(target, features=3, second="mask", max_length=40, strict=True)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("leaks", "options", "verdict"),
    [
        (True, {"ignore": ["LW2"]}, "sound"),
        (True, {"select": "LW3"}, "sound"),
        (True, {"select": "LW2"}, "leak"),
        (False, {"padding": "left"}, "leak"),
        (False, {"padding": "right"}, "sound"),
    ],
)
def test_the_options_of_a_check_are_its_keywords(leaks: bool, options: dict[str, Any], verdict: str) -> None:
    try:
        report = assert_padding_safe(Mean(leaks=leaks), max_length=40, **options)
    except PaddingUnsafeError as error:
        report = error.report
    assert report.verdict == verdict


def test_a_wrong_option_is_no_failure_of_the_model() -> None:
    with pytest.raises(ConfigurationError, match="max_length"):
        assert_padding_safe(Tagger(), max_length=0)


def test_the_examples_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MASKING.parents[1])
    assert doctest.testmod(testing).failed == 0

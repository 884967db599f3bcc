"""Cases of a test for every run, those that `make test-long` adds, and the rest, which `make gallery` runs."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def long_but(
    cases: Iterable[T], quick: Callable[[T], bool], *, long: Callable[[T], bool] = lambda _: True
) -> list[Any]:
    """The cases for `pytest.mark.parametrize`: long, but for those that show that the mechanism works."""
    return [
        case if quick(case) else pytest.param(case, marks=pytest.mark.long if long(case) else pytest.mark.gallery)
        for case in cases
    ]

"""Cases of a test that are run in every run, and the rest of them, which `make test-long` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def long_but(cases: Iterable[T], quick: Callable[[T], bool]) -> list[Any]:
    """The cases for `pytest.mark.parametrize`: long, but for those that show that the mechanism works."""
    return [case if quick(case) else pytest.param(case, marks=pytest.mark.long) for case in cases]

"""What the project may grow to: the figures that need no run, against the bounds in `benchmarks/size.toml`."""

from __future__ import annotations

from graphlib import CycleError

import pytest

from benchmarks import size
from tests.test_imports import ANNEXES


def test_no_figure_is_above_its_bound() -> None:
    bounds = size.bounds()
    assert {name: value for name, value in size.figures().items() if value > bounds[name]} == {}


def test_core_and_annexes_are_those_of_the_page() -> None:
    assert {size.PACKAGES[name].name: size.annexes(name) for name in size.PACKAGES} == ANNEXES


def test_floors_are_the_longest_chain_without_hooks() -> None:
    graph = {"a": {"b"}, "b": {"annex"}, "annex": {"a"}}
    assert size.floors(graph, {"annex"}) == 3
    with pytest.raises(CycleError):
        size.floors(graph)

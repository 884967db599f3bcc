"""What the project may grow to: the figures that need no run, against the bounds in `benchmarks/size.toml`."""

from graphlib import CycleError

import pytest

from benchmarks import size


def test_no_figure_is_above_its_bound() -> None:
    bounds = size.bounds()
    assert {name: value for name, value in size.figures().items() if value > bounds[name]} == {}


def test_the_annexes_are_read_from_the_page() -> None:
    assert {"bench", "client"} <= size.annexes("service") <= {*size.rooms(size.PACKAGES["service"])}
    assert {"mending", "training"} <= size.annexes("exporter")


def test_floors_are_the_longest_chain_without_hooks() -> None:
    graph = {"a": {"b"}, "b": {"annex"}, "annex": {"a"}}
    assert size.floors(graph, {"annex"}) == 3
    with pytest.raises(CycleError):
        size.floors(graph)

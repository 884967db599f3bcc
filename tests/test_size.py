"""What the project may grow to: its figures against the bounds in `benchmarks/size.toml`."""

import ast
from graphlib import CycleError
from pathlib import Path

import pytest

from benchmarks import size


@pytest.fixture(scope="module")
def figures() -> dict[str, int]:
    return size.figures()


def test_no_figure_is_above_its_bound(figures: dict[str, int]) -> None:
    assert {name: figures[name] for name, most in size.bounds().items() if figures.get(name, 0) > most} == {}


def test_every_bound_but_those_of_the_paths_has_a_figure(figures: dict[str, int]) -> None:
    counted = {name for name in size.bounds() if not name.startswith(("files of one", "calls of one"))}
    assert counted <= {*figures}
    assert not any(name.startswith("lines of") for name in counted)


@pytest.mark.long
@pytest.mark.parametrize("flow", size.FLOWS)
def test_no_flow_enters_more_files_and_functions_than_its_bounds(flow: str) -> None:
    counted, bounds = size.path(flow), size.bounds()
    assert len(counted) == 2
    assert all(counted.values())
    assert {name: count for name, count in counted.items() if count > bounds[name]} == {}


def test_docstrings_and_comments_are_no_statements(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text('"""Head."""\n\n# Why.\ndef f() -> int:\n    """Doc."""\n    x = 1\n    return x\n', "utf-8")
    assert size.statements([file]) == 3


def test_a_public_function_that_raises_is_found_where_it_raises_itself() -> None:
    text = """
def one():
    if one: raise ValueError
def two():
    def inner(): raise ValueError
class Three:
    def four(self): raise KeyError
    def five(self): raise NotImplementedError
    def _six(self): raise KeyError
"""
    assert [each.name for each in size.public_functions_that_raise(ast.parse(text))] == ["one", "four"]


def test_a_bound_is_only_lowered_and_keeps_its_reason() -> None:
    text = '# Head.\n"a" = 5  # why\n"b" = 2\n'
    assert size.tightened(text, {"a": 3, "b": 4}) == '# Head.\n"a" = 3  # why\n"b" = 2\n'


def test_the_annexes_are_read_from_the_page() -> None:
    assert {"bench", "client"} <= size.annexes("service") <= {*size.rooms(size.PACKAGES["service"])}
    assert {"mending", "training"} <= size.annexes("exporter")


def test_floors_are_the_longest_chain_without_hooks() -> None:
    graph = {"a": {"b"}, "b": {"annex"}, "annex": {"a"}}
    assert size.floors(graph, {"annex"}) == 3
    with pytest.raises(CycleError):
        size.floors(graph)

"""What the project may grow to: its figures against the bounds in `benchmarks/size.toml`."""

import ast
from graphlib import CycleError
from pathlib import Path

import pytest

from benchmarks import size


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return size.figures()


def test_no_figure_is_above_its_bound(figures: dict[str, float]) -> None:
    assert {name: figures[name] for name, most in size.bounds().items() if figures.get(name, 0) > most} == {}


def test_every_bound_but_those_of_the_paths_has_a_figure(figures: dict[str, float]) -> None:
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


def test_the_lines_of_a_function_are_those_of_its_code() -> None:
    text = '@decorator\ndef f(\n    x: int,\n) -> int:\n    """Doc.\n\n    More.\n    """\n    # Why.\n\n    return x\n'
    inner = "def outer():\n    y = 1\n\n    def inner():\n        'Doc.'\n        return y\n    return inner\n"
    assert [*size.functions(text + inner)] == [("f", 4), ("outer", 5), ("inner", 2)]


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


BEFORE = {"a": 5, "b": 2, "ratio": 1.45, "rooms: old": 7, "rooms: y": 4, "rooms: x": 9}
TODAY = {"a": 3, "b": 4, "ratio": 1.42, "rooms: new": 8, "rooms: x": 9, "rooms: y": 6, "lines": 1}


@pytest.mark.parametrize(("may_rise", "risen"), [(False, {"b": 2, "rooms: y": 4}), (True, {"b": 4, "rooms: y": 6})])
def test_a_bound_rises_only_where_that_is_asked_for(may_rise: bool, risen: dict[str, float]) -> None:
    fallen = {"a": 3, "ratio": 1.45, "rooms: new": 8, "rooms: x": 9}
    assert size.tightened(BEFORE, TODAY, may_rise) == fallen | risen


@pytest.mark.parametrize(("may_rise", "ratio"), [(False, 1.45), (True, 1.48)])
def test_a_ratio_is_never_lowered_since_it_rises_where_the_code_shrinks(may_rise: bool, ratio: float) -> None:
    assert size.tightened({"ratio": 1.45}, {"ratio": 1.48}, may_rise) == {"ratio": ratio}


def test_bounds_are_read_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "size.toml"
    file.write_text(size.written(BEFORE), "utf-8")
    monkeypatch.setattr(size, "BOUNDS", file)
    assert size.bounds() == BEFORE
    assert file.read_text("utf-8").endswith('"ratio" = 1.45\n\n["rooms"]\nold = 7\nx = 9\ny = 4\n')


def test_the_bounds_have_figures_and_no_prose() -> None:
    text = size.BOUNDS.read_text("utf-8")
    assert text == size.written(size.bounds())


def test_each_room_has_a_bound_and_they_add_up(figures: dict[str, float]) -> None:
    rooms = {name: count for name, count in figures.items() if ": " in name}
    assert {*rooms} == {name for name in size.bounds() if ": " in name}
    assert sum(rooms.values()) == figures["statements of the packages"]


def test_the_annexes_are_read_from_the_page() -> None:
    assert {"bench", "client"} <= size.annexes("service") <= {*size.rooms(size.PACKAGES["service"])}
    assert {"mending", "training"} <= size.annexes("exporter")


def test_floors_are_the_longest_chain_without_hooks() -> None:
    graph = {"a": {"b"}, "b": {"annex"}, "annex": {"a"}}
    assert size.floors(graph, {"annex"}) == 3
    with pytest.raises(CycleError):
        size.floors(graph)

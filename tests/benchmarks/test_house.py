"""The count of the house, on a package that is small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import house

FILES = {
    "__init__.py": "",
    "errors.py": "class Problem(Exception): ...\nLIMIT = 3\n_HIDDEN = 4\n",
    "low/__init__.py": "",
    "low/one.py": "from small import errors\n\n\nclass Part: ...\n",
    "low/two.py": "from small.low.one import Part\n\n\ndef use(part: Part) -> None: ...\n",
    "high/__init__.py": "",
    "high/top.py": (
        "from typing import TYPE_CHECKING\n\nimport small.low.two\n\n"
        "if TYPE_CHECKING:\n    from small.other import Part as Other\n\n\nclass Part: ...\n"
    ),
    "other.py": "from small.high import top\n\n\nclass Part: ...\n",
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_rooms_are_folders_and_the_modules_beside_them(small: Path) -> None:
    found = house.package(small)
    assert found.rooms == {"errors": set(), "low": {"errors"}, "high": {"low"}, "other": {"high"}}
    assert found.modules.keys() == {"errors", "low.one", "low.two", "high.top", "other"}
    assert (house.floors(found.rooms), house.floors(found.modules)) == (4, 5)
    assert house.circles(found.modules) == []


def test_names_are_counted(small: Path) -> None:
    found = house.package(small)
    assert found.classes == {"Problem": 1, "Part": 3}
    assert house.repeated(found.classes) == ["Part"]
    assert found.public == 6


def test_a_circle_is_found_and_counts_as_one_floor(small: Path) -> None:
    (small / "errors.py").write_text("def late():\n    from small.low import two\n")
    modules = house.package(small).modules
    assert house.circles(modules) == [{"errors", "low.one", "low.two"}]
    assert house.floors(modules) == 3


def test_the_working_tree_is_counted() -> None:
    done = CliRunner().invoke(house.main, [])
    assert done.exit_code == 0, done.output
    assert "| service: circles of rooms | 0 |" in done.output
    assert "| exporter: circles of modules | 0 |" in done.output

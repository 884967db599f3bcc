"""Modules whose code runs when they are used."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise_export.tracing.imports import LATE, late_modules

FILES = {
    "late_library/__init__.py": "from late_library import charts, user\n",
    "late_library/charts.py": "DRAWN = []\nfrom late_library import heavy\nCOLOURS = 3\n",
    "late_library/heavy.py": "",
    "late_library/user.py": "from late_library import charts\n\ndef colours(): return charts.COLOURS\n",
}
NAMES = {"late_library.charts"}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A library that imports a heavy module for charts, which nothing else uses."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("lengthwise_export.tracing.imports.LATE", NAMES)
    yield "late_library"
    for name in [name for name in sys.modules if name.partition(".")[0] == "late_library"]:
        del sys.modules[name]


def test_a_late_module_runs_when_it_is_used(library: str) -> None:
    with late_modules():
        module = importlib.import_module(library)
    assert f"{library}.heavy" not in sys.modules
    assert module.user.colours() == 3
    assert f"{library}.heavy" in sys.modules


def test_inspect_does_not_run_a_late_module(library: str) -> None:
    with late_modules():
        importlib.import_module(library)
    assert inspect.getmodule(inspect.currentframe()) is sys.modules[__name__]  # it asks every module for its file
    assert f"{library}.heavy" not in sys.modules


def test_a_name_that_a_late_module_lacks_is_an_error(library: str) -> None:
    with late_modules():
        module = importlib.import_module(library)
    with pytest.raises(AttributeError, match="SHAPES"):
        _ = module.charts.SHAPES


def test_after_the_block_imports_are_as_before(library: str) -> None:
    finders = [*sys.meta_path]
    with late_modules():
        pass
    assert sys.meta_path == finders
    importlib.import_module(library)
    assert f"{library}.heavy" in sys.modules


@pytest.mark.parametrize("name", sorted(LATE))
def test_a_module_that_is_late_by_default_exists(name: str) -> None:
    pytest.importorskip(name.partition(".")[0])
    assert importlib.util.find_spec(name) is not None

"""Rules for the tests themselves: helpers are in tests/support, and tests use public names."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
SOURCES = (ROOT / "service" / "lengthwise", ROOT / "model_export" / "lengthwise_export", ROOT / "benchmarks")
PUBLIC = {"_", "_asdict", "_fields", "_replace", "_repr_html_"}
"""Names with an underscore that are public: those of a named tuple and of IPython are documented."""
PATCHING = {"setattr", "delattr", "getattr", "object"}
"""Functions that take the name of an attribute."""
FILES = sorted(TESTS.rglob("*.py"))

PRIVATE_NAMES: dict[str, set[str]] = {
    "service/test_inflight.py": {"_transport"},
}
"""Private names that tests use; both are asyncio's, which has no public ones for them. No test may add one."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def defined(module: ast.Module) -> Iterator[str]:
    """Names that a module defines: functions, classes, variables and attributes."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def used(module: ast.Module) -> Iterator[str]:
    """Names that a module imports or reads as an attribute, and those that `setattr` and its like take as text."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            yield from (text.rpartition(".")[2] for text in texts if function in PATCHING)


@functools.cache
def private_names() -> dict[str, set[str]]:
    """By file of the tests, the private names that the packages define, and the file uses but does not define."""
    known = {name for folder in SOURCES for path in folder.rglob("*.py") for name in defined(tree(path))}
    found = {}
    for path in FILES:
        module = tree(path)
        names = {name for name in used(module) if is_private(name)} & known - set(defined(module))
        if names:
            found[path.relative_to(TESTS).as_posix()] = names
    return found


def imported(module: ast.Module) -> Iterator[str]:
    """Every module that a file imports, and the names that it takes from them."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))


def test_no_test_imports_a_test() -> None:
    found = {
        path.relative_to(TESTS).as_posix(): {
            name for name in imported(tree(path)) if name.startswith("tests.") and ".test_" in name
        }
        for path in FILES
    }
    assert not {path: names for path, names in found.items() if names}


def test_one_module_reads_what_only_linux_has() -> None:
    found = {path.relative_to(TESTS).as_posix() for path in FILES if '"/proc' in path.read_text(encoding="utf-8")}
    assert found - {"test_tests.py"} == {"support/proc.py"}


def test_tests_use_no_further_private_name() -> None:
    further = {path: names - PRIVATE_NAMES.get(path, set()) for path, names in private_names().items()}
    assert not {path: names for path, names in further.items() if names}


def test_a_private_name_that_is_not_used_any_more_is_taken_off_the_list() -> None:
    found = private_names()
    gone = {path: names - found.get(path, set()) for path, names in PRIVATE_NAMES.items()}
    assert not {path: names for path, names in gone.items() if names}


def test_the_rules_find_what_they_are_for() -> None:
    module = ast.parse("from lengthwise.a import _b\nx._c = monkeypatch.setattr('lengthwise.d._e', 3)\n")
    assert {name for name in used(module) if is_private(name)} == {"_b", "_c", "_e"}
    assert set(defined(module)) == {"_c"}

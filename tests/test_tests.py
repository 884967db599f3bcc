"""Rules for the tests themselves: helpers are in tests/support, and one module reads what only Linux has."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
FILES = {path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("*.py"))}


def test_no_test_imports_a_test() -> None:
    imports = r"^\s*(?:from|import) tests\.[\w.]*\btest_|^\s*from tests\.\w+ import .*\btest_"
    assert [name for name, text in FILES.items() if re.search(imports, text, re.MULTILINE)] == []


def test_one_module_reads_what_only_linux_has() -> None:
    assert {name for name, text in FILES.items() if '"/' + "proc" in text} == {"support/proc.py"}


STARTS = {"ServerProcess", "started", "exit_of", "subprocess", "VerificationProcess"}
STARTED_FROM = {"tests.support.server_process", "subprocess", "lengthwise.repository.verification_process"}
SLOW = ("process", "long", "deploy", "console", "clients", "engines", "gallery")
"""Marks of tests that `make quick` leaves out."""


def unmarked_starters(text: str) -> Iterator[str]:
    """The tests of a module that start a process, by themselves or through helpers and fixtures, and do not say so."""
    if not any(name in text for name in STARTS):
        return
    tree = ast.parse(text)
    starts = {
        name.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
        if name.name in STARTS and getattr(node, "module", name.name) in STARTED_FROM
    }
    named = {
        node.name: {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        | {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    while more := {name for name, uses in named.items() if uses & starts} - starts:
        starts |= more
    marks = {
        node.attr
        for each in tree.body
        if isinstance(each, ast.Assign)
        for node in ast.walk(each)
        if isinstance(node, ast.Attribute)
    }
    for node in tree.body:
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name in starts
            and node.name[:5] == "test_"
        ):
            own = {
                part.attr for each in node.decorator_list for part in ast.walk(each) if isinstance(part, ast.Attribute)
            }
            if not (own | marks) & {*SLOW}:
                yield node.name


def test_a_test_that_starts_a_process_is_marked_so() -> None:
    found = {name: [*unmarked_starters(text)] for name, text in FILES.items() if "/test_" in f"/{name}"}
    assert {name: tests for name, tests in found.items() if tests} == {}


def test_a_test_starts_a_process_through_its_fixtures_too() -> None:
    text = """
from tests.support.server_process import started
@pytest.fixture
def server(): yield started()
def test_one(server): ...
@pytest.mark.process
def test_two(server): ...
def test_three(): ...
"""
    assert [*unmarked_starters(text)] == ["test_one"]
    assert [*unmarked_starters(text.replace("tests.support.server_process", "tests.support.numpy_models"))] == []

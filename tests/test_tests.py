"""Rules for the tests themselves: helpers are in tests/support, and one module reads what only Linux has."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
FILES = {path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("*.py"))}


def test_no_test_imports_a_test() -> None:
    imports = r"^\s*(?:from|import) tests\.[\w.]*\btest_|^\s*from tests\.\w+ import .*\btest_"
    assert [name for name, text in FILES.items() if re.search(imports, text, re.MULTILINE)] == []


def test_one_module_reads_what_only_linux_has() -> None:
    assert {name for name, text in FILES.items() if '"/' + "proc" in text} == {"support/proc.py"}

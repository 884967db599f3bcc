"""The tests that a change can reach, the nearest first: `make quick FILES="..."`.

A test file is reached by a change of a file that it imports, directly or not; the fewer imports lie between them, the
nearer it is. Without names, what differs from the branch main has changed. Of those that are reached run as many as
`BUDGET` allows, by the processor seconds in `seconds.json`, which `make seconds` writes. Tests that start a process are
left out, unless nothing but tests has changed. Where no change is known, or one that may reach every test, the tests of
the service run. `python -m tests.quick --cost` says what each set takes, and runs nothing.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import statistics
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from benchmarks.size import rooms
from lengthwise_export.interface.changed_files import files_imported_by

ROOT: Final = Path(__file__).parents[1]
TESTS: Final = ROOT / "tests"
SECONDS: Final = TESTS / "seconds.json"
BUDGET: Final = 32.0
"""Processor seconds of the tests that are chosen; to start and to collect them takes some more."""
UNKNOWN: Final = 1.0
"""Processor seconds of a new file."""
START: Final = 18.0
"""Processor seconds to find the tests of a room, and for two processes to import torch and to collect them."""
FEW: Final = 15.0
"""Processor seconds that one process runs as soon as several, each of which would import torch."""
WHOLE: Final = ("tests/service", "tests/test_imports.py")
IMPORTED_FROM: Final = (ROOT, ROOT / "service", ROOT / "model_export")
PACKAGES: Final = (ROOT / "service" / "lengthwise", ROOT / "model_export" / "lengthwise_export")
REACH_ALL: Final = ("conftest.py", "pyproject.toml", "Makefile", "setup.py")


def changed() -> list[Path]:
    """The files that differ from main, or are new, without those that are gone; none where git does not know."""
    names: list[str] = []
    for arguments in ("diff --name-only --diff-filter=d --merge-base main", "ls-files --others --exclude-standard"):
        done = subprocess.run(["git", *arguments.split()], cwd=ROOT, capture_output=True, text=True)
        names += done.stdout.splitlines() if done.returncode == 0 else []
    return [ROOT / name for name in names]


def code() -> list[Path]:
    """Every Python file from which tests are reached."""
    return [path for folder in (*PACKAGES, TESTS, ROOT / "benchmarks") for path in sorted(folder.rglob("*.py"))]


@functools.cache
def importers() -> dict[Path, set[Path]]:
    """The files that import each file."""
    exported = {f"{folder.name}.{name}": file for folder in PACKAGES for name, file in _exported(folder)}
    found: defaultdict[Path, set[Path]] = defaultdict(set)
    for path in code():
        text = path.read_text("utf-8")
        imported = {*files_imported_by(path, IMPORTED_FROM), *_fixtures_of(path, text)}
        for package, names in re.findall(r"\b(lengthwise(?:_export)?)(?:\.| import )([\w, ]+)", text):
            if not any(map(path.is_relative_to, PACKAGES)):  # there it stands in docstrings
                imported |= {exported[name] for each in names.split(", ") if (name := f"{package}.{each}") in exported}
        for file in imported:
            found[file].add(path)
    return found


def _exported(package: Path) -> Iterator[tuple[str, Path]]:
    """The names that a package imports when they are first used, with the files that define them."""
    for node in ast.walk(ast.parse((package / "__init__.py").read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{package.name}."):
            file = package.parent.joinpath(*node.module.split(".")).with_suffix(".py")
            yield from ((name.name, file) for name in node.names)


def _fixtures_of(path: Path, text: str) -> Iterator[Path]:
    """The `conftest.py` beside a test file, where the tests take a fixture of it."""
    conftest = path.with_name("conftest.py")
    if path.name.startswith("test_") and conftest.exists():
        fixtures = re.findall(r"^@pytest\.fixture\n(?:async )?def (\w+)", conftest.read_text("utf-8"), re.MULTILINE)
        if fixtures and re.search(rf"[(\s](?:{'|'.join(fixtures)}): ", text):
            yield conftest


def distances(files: Iterable[Path]) -> dict[Path, int]:
    """The files that changed ones can reach, each with the number of imports between them."""
    known = importers()
    layer = {file for changed_file in files for file in _starts(changed_file)}
    reached: dict[Path, int] = {}
    while layer:
        reached |= dict.fromkeys(layer, max(reached.values(), default=-1) + 1)
        layer = {importer for file in layer for importer in known.get(file, ())} - reached.keys()
    return reached


def _starts(changed_file: Path) -> Iterator[Path]:
    """A Python file or those in a folder; of another file those that name it, else the modules of its folder.

    None of a file that is gone.
    """
    if not changed_file.exists():
        return
    if changed_file.is_dir() or changed_file.suffix == ".py":
        yield from sorted(changed_file.rglob("*.py")) if changed_file.is_dir() else [changed_file]
        return
    naming = [path for path in code() if changed_file.stem in path.read_text("utf-8")]
    yield from naming or changed_file.parent.glob("*.py")


def chosen(files: Collection[Path]) -> tuple[list[Path], list[Path]]:
    """The test files to run for changed files, and those that they reach besides."""
    reached = distances(files)
    tests = [path for path in reached if path.is_relative_to(TESTS) and path.name.startswith("test_")]
    costs, run, left = seconds(tests), list[Path](), BUDGET
    for path in sorted(tests, key=lambda path: (reached[path], costs[path])):
        if reached[path] == 0 or costs[path] <= left:
            run.append(path)
            left -= costs[path]
    return run, [path for path in tests if path not in run]


def seconds(tests: Iterable[Path]) -> dict[Path, float]:
    """The processor seconds that test files took when they were last measured."""
    measured = json.loads(SECONDS.read_text("utf-8"))
    return {path: measured.get(path.relative_to(TESTS).as_posix(), UNKNOWN) for path in tests}


def command(files: Sequence[Path]) -> list[str]:
    """What to give to pytest for changed files, which may be nothing; says what that is."""
    day = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]["addopts"][-1]
    no_process = f"{day} and not process"
    if not files or any(file.name in REACH_ALL for file in files):
        print(f"the tests of the service: {'a change that may reach every test' if files else 'no change is known'}")
        return ["-m", no_process, *WHOLE]
    run, left = chosen(files)
    print(f"{len(run)} files of tests, the nearest to the change; {len(left)} more are left to make test", flush=True)
    only_tests = all(file.name.startswith("test_") for file in files)
    options = [
        "-m",
        day if only_tests else no_process,
        *(["--numprocesses", "0"] if sum(seconds(run).values()) <= FEW else []),
    ]
    return [*options, *(str(path.relative_to(ROOT)) for path in run)] if run else []


def costs() -> dict[str, float]:
    """The processor seconds of the tests that run where every file of a room has changed, for each room."""
    folders = [folder / room for folder in PACKAGES for room in rooms(folder)]
    files = [folder if folder.is_dir() else folder.with_suffix(".py") for folder in folders]
    return {str(file.relative_to(ROOT)): sum(seconds(chosen([file])[0]).values()) for file in files}


def say_costs() -> None:
    """Says what a change of a room takes, in the median and in the dearest five, and the whole set."""
    found = costs()
    dearest = sorted(found, key=lambda room: -found[room])[:5]
    whole = seconds(path for path in TESTS.rglob("test_*.py") if str(path.relative_to(ROOT)).startswith(WHOLE))
    print(f"a room: {statistics.median(found.values()) + START:.0f} s of processor in the median of {len(found)}")
    print("\n".join(f"{found[room] + START:.0f} s  {room}" for room in dearest))
    print(f"without a known change: {sum(whole.values()) + START:.0f} s")


def main() -> None:
    """Runs them; where each starts a process, and so is left out, nothing is wrong."""
    if sys.argv[1:] == ["--cost"]:
        say_costs()
        return
    separator = sys.argv.index("--")
    names = sys.argv[1:separator]
    arguments = command([Path(name).resolve() for name in names] or changed())
    if arguments:
        status = subprocess.run([sys.executable, "-m", "pytest", *sys.argv[separator + 1 :], *arguments]).returncode
        sys.exit(0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status)


if __name__ == "__main__":
    main()

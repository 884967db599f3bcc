"""Sums the processor seconds of tests, those of their processes too: `pytest -p tests.support.processor_seconds`.

At the end stand the slowest tests, all cases of one together. `--seconds FILE` writes those of each file, without tests
that start a process, for `tests.quick`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processor_time import used

SLOWEST = 40
NAME = "processor seconds"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", metavar="FILE", help="write the processor seconds of each file of tests to a file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SECONDS] = defaultdict(float)


SECONDS = pytest.StashKey[defaultdict[tuple[str, bool], float]]()
"""The seconds of each test, and whether it starts a process."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measures a test with its fixtures; a process counts where it is waited for."""
    before = used()
    result = yield
    test = item.nodeid.partition("[")[0], item.get_closest_marker("process") is not None
    item.config.stash[SECONDS][test] += used() - before
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands them to the process that started this one, as plain lists."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[NAME] = [[*test, value] for test, value in session.config.stash[SECONDS].items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds those of a worker that has ended."""
    for test, starts_process, value in getattr(node, "workeroutput", {}).get(NAME, ()):
        node.config.stash[SECONDS][test, starts_process] += value


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what was slow, and writes the file."""
    config = terminalreporter.config
    seconds = config.stash[SECONDS]
    terminalreporter.section(f"processor seconds: {sum(seconds.values()):.0f} in tests")
    for (test, _), value in sorted(seconds.items(), key=lambda each: -each[1])[:SLOWEST]:
        terminalreporter.write_line(f"{value:6.1f}  {test}")
    if file := config.getoption("--seconds"):
        files: defaultdict[str, float] = defaultdict(float)
        for (test, starts_process), value in seconds.items():
            files[test.partition("::")[0].removeprefix("tests/")] += 0.0 if starts_process else value
        rounded = {name: round(value, 1) for name, value in sorted(files.items())}
        Path(file).write_text(json.dumps(rounded, indent=0) + "\n", "utf-8")

"""docs/python.md is true: its blocks run from top to bottom in an empty folder, and print what it says."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT, re.M | re.S)


def test_every_block_of_the_page_runs_and_prints_what_stands_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    printed = ""
    for number, (language, text) in enumerate(BLOCKS):
        if language == "yaml":  # a workflow, which is not for Python
            continue
        if language == "text":
            assert printed == text, f"block {number}"
            printed = ""
            continue
        assert language == "python"
        assert not printed, f"what stands before block {number} prints, and the page does not say what"
        name = f"docs/python.md, block {number}"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # as a notebook does it
        exec(compile(text, name, "exec"), names)
        printed = capsys.readouterr().out
    assert not printed
    assert len(BLOCKS) > 10


def test_every_error_that_it_lists_is_one() -> None:
    from lengthwise import errors
    from lengthwise_export import errors as exporters

    known = {*vars(errors), *vars(exporters)}
    listed = {
        name
        for row in re.findall(r"^\| (`\w+Error`|`I\w+`) \|.*$", DOCUMENT, re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert len(listed) >= 6
    assert listed <= known

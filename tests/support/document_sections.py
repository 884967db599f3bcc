"""Runs the blocks of code of a document, and compares what they print with the block of text under them."""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

Block = tuple[str, str]
"""Its language, and its text."""


def sections(document: Path) -> dict[str, list[Block]]:
    """The blocks of each section (`## ...`) of a document."""
    parts = re.split(r"^## (.*)$", document.read_text(encoding="utf-8"), flags=re.M)
    return {
        title: re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def run_blocks(
    document: Path,
    blocks: Sequence[Block],
    names: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    *,
    chatty: bool = False,
) -> None:
    """Runs blocks one after the other.

    Args:
        document: For messages.
        blocks: `python` ones, each followed by a `text` block if it prints something.
        names: The variables of the blocks before, and of these afterwards.
        capsys: What they print.
        chatty: Whether others print, too, before the text.
    """
    printed = ""
    assert blocks
    for number, (language, text) in enumerate(blocks):
        if language == "text":
            assert (printed[-len(text) :] if chatty else printed) == text, f"block {number}: {printed}"
            printed = ""
            continue
        assert language == "python"
        assert not printed, f"what stands before block {number} prints, and the page does not say what"
        name = f"{document}, block {number}"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), names)
        printed = capsys.readouterr().out
    assert not printed

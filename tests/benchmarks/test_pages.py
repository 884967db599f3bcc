"""Committed results are pages, small, and each says when, where and at which commit it was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from benchmarks import machine, output, pages

FOLDER = Path(__file__).parents[2] / pages.RESULTS
FIRST_LINE = re.compile(
    r"Measured at commit [0-9a-f]{7,40}( with uncommitted changes)? on \d{4}-\d\d-\d\d, on [^,]+, family .+\."
)


@pytest.fixture
def facts() -> dict[str, Any]:
    return machine.facts()


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.stem)
def test_the_first_line_has_commit_date_and_processor(page: Path) -> None:
    assert FIRST_LINE.fullmatch(page.read_text().splitlines()[0])


def test_results_are_pages_and_pictures_and_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".md", ".png"}
    # Words and tables, no raw data. 64,000 bytes before each of 243 encoders of other libraries had its row, 130,000
    # before a GPU and 12 real cores had pages, 145,000 before forms, streams, static values and summaries had theirs.
    assert sum(path.stat().st_size for path in files if path.suffix == ".md") < 165_000


def test_a_result_of_uncommitted_sources_is_refused_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    taken = click.Option(["--out"], type=output.PagePath())
    command = click.Command("measure", callback=lambda out: asked.append(str(out)), params=[taken])
    for commit, code in (("0123abc-dirty", 1), ("0123abc", 0), (None, 0)):
        monkeypatch.setattr(machine, "described", lambda folder, commit=commit: commit)
        assert CliRunner().invoke(command, ["--out", str(FOLDER / "page.md")]).exit_code == code
    monkeypatch.setattr(machine, "described", lambda folder: "0123abc-dirty")
    assert CliRunner().invoke(command, ["--out", "runs/page.md"]).exit_code == 0
    assert asked == [str(FOLDER / "page.md")] * 2 + ["runs/page.md"]

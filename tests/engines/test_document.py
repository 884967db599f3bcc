"""docs/engines.md is true: the blocks of each section run from top to bottom, and print what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.document_sections import run_blocks, sections

DOCUMENT = Path(__file__).parents[2] / "docs" / "engines.md"
PACKAGES = {"Ray Data": "ray", "Spark": "pyspark", "Apache Beam": "apache_beam"}


@pytest.mark.parametrize("section", PACKAGES)
def test_the_blocks_of_an_engine_run(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PACKAGES[section], reason="make engines installs it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)  # else the `python3` of the path
    found = sections(DOCUMENT)
    names = {"__name__": "notebook"}
    run_blocks(DOCUMENT, found["A scorer"], names, capsys)
    run_blocks(DOCUMENT, found[section], names, capsys, chatty=True)

"""docs/engines.md is true as far as it needs no engine; tests/engines runs the rest of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import model_directories
from tests.support.document_sections import run_blocks, sections

DOCUMENT = Path(__file__).parents[1] / "docs" / "engines.md"


def test_the_blocks_about_a_scorer_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model_directories.measure_quickly(monkeypatch)
    run_blocks(DOCUMENT, sections(DOCUMENT)["A scorer"], {"__name__": "notebook"}, capsys)
    assert len(list((tmp_path / "recordings").iterdir())) == 4

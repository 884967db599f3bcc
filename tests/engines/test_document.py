"""docs/engines.md is true: the blocks of each section run from top to bottom, and print what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import documents

PACKAGES = {
    "Ray Data": "ray",
    "Ray Serve": "ray.serve",
    "Spark": "pyspark",
    "Apache Beam": "apache_beam",
    "MLflow": "mlflow",
}


@pytest.mark.parametrize("section", PACKAGES)
def test_the_blocks_of_an_engine_run(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(PACKAGES[section], reason="make engines installs it")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)  # else the `python3` of the path
    page = documents.ROOT / "docs" / "engines.md"
    with documents.page_run("docs/engines.md", tmp_path, tmp_path) as run:
        assert documents.walk(page, run, long=True, sections=["A scorer", section]) >= 4

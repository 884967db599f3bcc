"""The reports that share the console's look: what axe finds in them, in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lengthwise_export.checking.page import as_page
from lengthwise_export.training.report import page as training_page
from tests.console.browser import Window
from tests.support.check_reports import REPORT

pytestmark = pytest.mark.console

SCORES = {"answers": 40, "accuracy": 0.9, "macro_f1": 0.88, "loss": 0.3, "ece": 0.02, "confusion": [[18, 2], [2, 18]]}
TRAINING = {
    "made": {"date": "2026-01-02", "version": "1.0", "seed": 0, "data": "a.jsonl", "records": 80},
    "spec": {"input": {"features": 2}},
    "labels": ["a", "b"],
    "seconds": 12.5,
    "chosen": ["the layers, because the sequences are short"],
    "validation": SCORES,
    "test": SCORES | {"by_length": [{"from": 1, "to": 9, "sequences": 40, "accuracy": 0.9}]},
    "epochs": [{"training_loss": 1.0, "validation_loss": 1.1}, {"training_loss": 0.4, "validation_loss": 0.6}],
}
REPORTS = {"check": lambda: as_page(REPORT), "training": lambda: training_page(TRAINING, "runs/vowels")}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_no_wider_than_a_telephone(browser: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "report.html").write_text(REPORTS[name]())
    window = Window(browser, "", {"width": 360, "height": 800})
    window.page.goto((tmp_path / "report.html").as_uri())
    width = window.page.evaluate("document.documentElement.scrollWidth")
    window.close()
    assert width == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", REPORTS)
def test_axe_finds_nothing(browser: Any, tmp_path: Path, name: str, scheme: str) -> None:
    (tmp_path / "report.html").write_text(REPORTS[name]())
    window = Window(browser, "", color_scheme=scheme)
    window.page.goto((tmp_path / "report.html").as_uri())
    found = window.violations()
    window.close()
    assert found == []

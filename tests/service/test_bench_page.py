"""The page of `lengthwise bench --html`, and that every report shares one look."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lengthwise.bench.figures import Figures
from lengthwise.bench.report_page import page
from lengthwise.reports import look
from tests.support.bench_figures import FIGURES

NONE = replace(FIGURES, latency_ms=None, answers={503: 3}, padding_share=None, rows_per_batch=None, wrong=None)


@pytest.mark.parametrize(
    "rows", [[FIGURES], [FIGURES, replace(FIGURES, load="<b>"), NONE], [NONE]], ids=["one", "several", "none"]
)
def test_the_page_is_one_file_with_every_load(rows: list[Figures]) -> None:
    text = page(rows, "a <model>")
    assert look.style() in text
    assert "a &lt;model&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"https?://|<script|<link|<img", text)
    assert text.count("<tr>") == len(rows) + 1
    assert ("No request was answered" in text) == (rows == [NONE])


def test_every_percentile_of_every_answered_load_is_a_dot() -> None:
    assert page([FIGURES, NONE, FIGURES], "a").count("<title>2 connections") == 8
    assert "p99.9 400 ms" in page([FIGURES], "a")
    assert "503: 3" in page([NONE], "a")

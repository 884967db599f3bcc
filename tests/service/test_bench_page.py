"""The page of `lengthwise bench --html`, and that every report shares one look."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lengthwise import look
from lengthwise.bench.figures import Figures, Latency
from lengthwise.bench.report_page import page

ROW = Figures(
    load="2 connections",
    offered_rate=None,
    seconds=2.0,
    requests_per_second=1234.4,
    sequences_per_second=2468.8,
    latency_ms=Latency(1.0, 2.0, 30.0, 400.0, 1.5, 500.0),
    answers={200: 10},
    unsent=0,
    unanswered=0,
    broken=0,
    wrong=0,
    padding_share=0.25,
    rows_per_batch=4.0,
    late_ms=0.1,
    client_core_share=0.5,
    client_us_per_request=20.0,
)
NONE = replace(ROW, latency_ms=None, answers={503: 3}, padding_share=None, rows_per_batch=None, wrong=None)


@pytest.mark.parametrize("rows", [[ROW], [ROW, replace(ROW, load="<b>"), NONE], [NONE]], ids=["one", "several", "none"])
def test_the_page_is_one_file_with_every_load(rows: list[Figures]) -> None:
    text = page(rows, "a <model>")
    assert look.style() in text
    assert "a &lt;model&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"https?://|<script|<link|<img", text)
    assert text.count("<tr>") == len(rows) + 1
    assert ("No request was answered" in text) == (rows == [NONE])


def test_every_percentile_of_every_answered_load_is_a_dot() -> None:
    assert page([ROW, NONE, ROW], "a").count("<title>2 connections") == 8
    assert "p99.9 400 ms" in page([ROW], "a")
    assert "503: 3" in page([NONE], "a")

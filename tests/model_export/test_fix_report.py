"""A proposed fix, on the terminal, as JSON and as HTML."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from lengthwise_export.checking.page import as_page
from lengthwise_export.checking.report import Report
from lengthwise_export.mending.engine import MendedOperator
from lengthwise_export.mending.fix import FixProposal, padding_curve, unified
from tests.support.check_reports import LEAK, REPORT
from tests.support.mends import CHANGES, CURVE, FIX, REFUSED, NumpySubject, over_the_steps, over_the_width


def shown(fix: FixProposal, report: Report = REPORT) -> str:
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(fix.on_terminal(report), crop=False)
    return text.getvalue()


def test_each_operator_is_shown_before_and_after_with_its_line_and_cause() -> None:
    text = shown(FIX)
    assert "models/net.py:12: node_mean" in text
    assert " 12 | return h.mean(1)  # <all>" in text
    assert "the mean reads the padding" in text
    assert "  -pooled = ReduceMean (h, axes)" in text
    assert "  +pooled = Div (sum, lengths)" in text
    assert "200 sequences of 1 to 1024 steps" in text
    assert "the same bits" in text
    assert "sequences of 5 steps and more" in shown(replace(FIX, min_length=5))


def test_what_cannot_be_mended_is_said_with_the_operator_and_the_line() -> None:
    text = " ".join(shown(REFUSED).split())
    assert "cannot be mended: models/net.py:12: head: Gemm: the width is <fixed> at 32" in text
    assert "--mend" not in text


def test_a_recurrent_layer_that_leaks_needs_a_mend_only_if_it_was_changed() -> None:
    leaks = replace(REPORT, leaks=(replace(LEAK, operator="rnn: lstm", kind="lstm"),))
    changed = replace(FIX, changes=(*CHANGES, replace(CHANGES[0], kind="LSTM")))
    told = "note: rnn: lstm needs no mend: the graph of a torch module gives the lengths to its LSTM, GRU and RNN"
    assert told in shown(FIX, leaks)
    assert all("needs no mend" not in text for text in (shown(FIX), shown(changed, leaks), shown(REFUSED, leaks)))


def test_a_unified_view_keeps_lines_that_did_not_change() -> None:
    change = replace(CHANGES[0], before=("a", "b", "c"), after=("a", "x", "c"))
    assert unified(change) == [" a", "-b", "+x", " c"]


@pytest.mark.parametrize(
    ("changes", "text"), [((), "0 operators"), (CHANGES[:1], "1 operator"), (CHANGES, "2 operators")]
)
def test_operators_are_counted(changes: tuple[MendedOperator, ...], text: str) -> None:
    assert f"mended {text}: " in replace(FIX, changes=changes).summary()


def test_as_json_holds_the_changes_and_the_proof_and_as_a_record_no_path() -> None:
    value = json.loads(json.dumps(FIX.as_json(), allow_nan=False))
    assert value["mendable"] is True
    assert [change["operator"] for change in value["changes"]] == ["node_mean", "node_conv"]
    assert value["changes"][0]["line"] == 12
    assert value["changes"][1]["file"] is None
    assert value["proof"]["worst"]["length"] == 37
    refused = REFUSED.as_json()
    assert (refused["mendable"], refused["operator"], refused["proof"]) == (False, "head: Gemm", None)
    assert "net.py" not in json.dumps(FIX.as_record())
    assert len(FIX.as_record()["operators"]) == 2


def test_the_page_shows_the_mend_beside_the_leak_and_a_picture() -> None:
    page = as_page(replace(REPORT, fix=FIX))
    assert page.index("pool: mean") < page.index("node_mean") < page.index("Trials")
    assert '<span style="color: var(--bad)">-pooled = ReduceMean (h, axes)</span>' in page
    assert "&lt;all&gt;" in page
    points = {kind: at for at, kind in re.findall(r'<polyline points="([^"]+)"[^>]* class="(\w+)"', page)}
    before, after = ([float(point.split(",")[1]) for point in points[kind].split()] for kind in ("before", "after"))
    assert before == sorted(before)  # down, as y grows downwards
    assert len(set(before)) == 3
    assert len(set(after)) == 1
    assert "moves by up to 0.6" in page
    assert "moves by up to 0." in page


def test_a_page_without_a_mend_has_no_section_of_one() -> None:
    assert "<polyline" not in as_page(REPORT)
    assert "<polyline" not in REFUSED.as_section()
    assert "cannot be mended" in REFUSED.as_section()
    assert "&lt;fixed&gt;" in REFUSED.as_section()


def test_a_curve_is_of_the_original_with_padding_and_of_the_mend() -> None:
    original, mended = NumpySubject(over_the_width), NumpySubject(over_the_steps)
    curve = padding_curve(original, mended, max_length=1000)
    assert curve is not None
    assert (curve.length, curve.shares[0], curve.shares[-1]) == (CURVE.length, 0.0, 2.0)
    assert curve.before[0] == pytest.approx(curve.after[0])
    assert max(abs(value - curve.before[0]) for value in curve.before) > 1e-3
    assert len(set(curve.after)) == 1


def test_a_curve_ends_where_the_model_does() -> None:
    curve = padding_curve(NumpySubject(over_the_width), NumpySubject(over_the_steps), max_length=20, min_length=10)
    assert curve is not None
    assert curve.length == 10
    assert round(10 * (1 + curve.shares[-1])) == 20


@pytest.mark.parametrize("values", [(0.14, 0.13, 0.13), (0.99, 1.0, 0.2), (0.0, 0.0, 0.0), (0.0, 1.0, 0.5)])
def test_a_picture_is_drawn_to_scale_within_its_frame(values: tuple[float, float, float]) -> None:
    section = replace(FIX, curve=lambda: replace(CURVE, before=values, after=values)).as_section()
    for points in re.findall(r'<polyline points="([^"]+)"', section):
        heights = [float(point.split(",")[1]) for point in points.split()]
        assert all(20 <= height <= 216 for height in heights)
    low, middle, high = (float(text) for text in re.findall(r'text-anchor="end">([\d.]+)</text>', section))
    assert 0 <= low < middle < high <= 1
    assert low <= min(values) + 0.005
    assert high >= max(values) - 0.005

import re
from dataclasses import replace

from lengthwise_export.checking.compared_runs import OperatorSpread
from lengthwise_export.checking.page import as_page
from lengthwise_export.checking.report import IgnoredLeak, Report, TrialResult
from lengthwise_export.checking.rule import rules
from lengthwise_export.tracing.source_lines import CodeLocation
from tests.support.check_reports import LEAK, NODE, REPORT, SOUND

CALL = CodeLocation("models/net.py", 9, "n = lengths.cpu()", "forward")


def test_operators_run_down_and_steps_along() -> None:
    page = as_page(replace(REPORT, target="net:make <v1>"))
    assert "net:make &lt;v1&gt;" in page
    assert "&lt;all&gt;" in page
    assert page.count('class="first"') == 1
    assert "the sequence ends here, after 2 steps" in page
    assert "x" * 47 + "…" in page
    # The first operator is clean for two steps, then moves a little, and by more than can be told.
    assert page.count('<rect class="moved"') == 3
    assert 'fill-opacity="1.0"' in page
    assert "<td><b>" in page  # a trial that moved an answer


def test_the_picture_is_as_wide_as_the_page_however_few_the_steps() -> None:
    for steps in (1, 4, 200):
        leak = replace(LEAK, spread=(OperatorSpread("rnn: lstm", (0.5,) * steps),), length=1)
        page = as_page(Report("leak", "why", (leak,)))
        assert re.findall(r'<svg width="(\d+)"', page) == ["1050"]
        (right,) = {
            round(float(x) + float(width))
            for x, width in re.findall(r'<rect[^>]* x="([^"]+)"[^>]* width="([^"]+)"', page)
        }
        assert 900 < right <= 1050


def test_the_end_of_a_long_row_is_said_within_the_picture() -> None:
    leak = replace(LEAK, spread=(OperatorSpread("pool: mean", (0.3,) * 30),), length=30)
    page = as_page(Report("leak", "why", (leak,)))
    ((place, words),) = re.findall(r'<text x="(\d+)" y="\d+" text-anchor="end">(the[^<]+)<', page)
    assert 8 * len(words) < int(place) <= 1050


def test_a_bare_function_is_called_by_its_line() -> None:
    spread = (
        OperatorSpread("cpu", (0.0,), CALL),
        OperatorSpread("rnn: lstm", (0.0, 0.2), CALL),
        OperatorSpread("pool: mean", (0.3,)),
    )
    page = as_page(Report("leak", "why", (replace(LEAK, spread=spread),)))
    assert ">9: n = lengths.cpu()<" in page
    assert ">cpu<" not in page
    assert ">rnn: lstm (line 9)<" in page


def test_rows_of_zeros_are_told_in_one_line() -> None:
    still = tuple(OperatorSpread(f"layer{number}: linear", (0.0, 0.0)) for number in range(4))
    spread = (*still, OperatorSpread("pool: mean", (0.3,)), *still[:2])
    page = as_page(Report("leak", "why", (replace(LEAK, spread=spread),)))
    assert "4 operators: nothing moved (layer0: linear, layer1: linear" in page
    assert page.count("<rect") == 1


def test_what_is_too_much_for_a_picture_is_counted() -> None:
    moved = tuple(OperatorSpread(f"layer{number}: linear", (0.0, 0.2)) for number in range(80))
    spread = (*moved[:20], OperatorSpread("pool: mean", (0.3,)), *moved)
    page = as_page(Report("leak", "why", (replace(LEAK, spread=spread),)))
    assert "14 operators before: no valid step moved" in page
    assert "57 operators more, up to the answer" in page


def test_what_leaks_is_said_before_what_was_right_and_all_trials_are_there() -> None:
    trials = (
        TrialResult("padded wider", "width", 0.25, False),
        *(TrialResult(f"unbatched, {steps} steps", "batch", 0.0, True) for steps in range(2, 31)),
    )
    page = as_page(replace(REPORT, trials=trials))
    assert page.index("pool: mean</h2>") < page.index(">Passed<") < page.index(">Trials<")
    assert "29 of 30 trials</b> moved no answer" in page
    summary, every = page[page.index(">Trials<") :].split("<details>")
    assert (summary.count("<tr"), every.count("<tr")) == (3, 31)
    assert "unbatched, 2 steps, and 28 more" in summary


def test_a_leak_is_told_with_a_link_to_its_rule() -> None:
    address = rules()["LW201"].address
    assert f'<a href="{address}">LW201 mean-over-padding</a>: The mean over the steps' in as_page(REPORT)


def test_what_is_ignored_and_the_level_are_on_the_page() -> None:
    page = as_page(replace(SOUND, ignored=(IgnoredLeak(LEAK, "comment"),)))
    assert "ignored: 1 leak (LW201 at models/net.py:12, by its comment)" in page
    assert "level: not padding-safe" in page


def test_the_page_of_several_targets_begins_with_a_table_of_them() -> None:
    page = as_page(replace(REPORT, target="<a>:b"), replace(SOUND, target="c:d"))
    table, _, rest = page.partition("</table>")
    assert '<a href="#target-1">&lt;a&gt;:b</a>' in table
    assert '<h2 id="target-2">' in rest


def test_a_page_without_leaks_has_no_picture() -> None:
    assert "<svg" not in as_page(SOUND)
    assert "<svg" not in as_page(Report("leak", "why", (NODE,)))


def test_notes_and_what_was_raised_are_on_the_page() -> None:
    page = as_page(REPORT)
    assert "the model raises past a width of 40" in page
    assert "too short" in page
    told = as_page(Report("uncheckable", "it raises: index 3 is out of bounds"))
    assert "index 3 is out of bounds" in told

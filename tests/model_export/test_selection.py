"""Which leaks a report shows: `select`, `ignore`, and comments at the statement of a leak."""

import json
from pathlib import Path

import pytest

import lengthwise_export
from lengthwise.errors import ConfigurationError
from lengthwise_export.checking.report import Report, on_terminal
from lengthwise_export.checking.rule import Cause
from lengthwise_export.checking.selection import select_leaks
from lengthwise_export.tracing.source_lines import CodeLocation
from tests.support.check_reports import LEAK, NODE, REPORT
from tests.support.check_reports import plain as text_of


def at(file: Path, line: int, code: str = "LW201") -> Report:
    """The report of a leak at a line of a file."""
    location = CodeLocation(str(file), line, "", "forward")
    leak = LEAK.__class__("mean", "mean", location, Cause("why", "fix", code), None, 0.5, "padded wider")
    return Report("leak", "the answer changes", (leak,), target="net:make")


def selected(folder: Path, text: str, line: int, code: str = "LW201") -> Report:
    """The report of a leak at a line of this code."""
    file = folder / "net.py"
    file.write_bytes(text.encode())
    return select_leaks(at(file, line, code), None, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("p = h.mean(1)  # lengthwise: ignore[LW201]\n", 1),
        ("p = h.mean(1)  #lengthwise:ignore[ LW201 ,LW202]\n", 1),
        ("p = h.mean(1)  # noqa: E501 # lengthwise: ignore[LW201]\n", 1),
        ("p = h.mean(1)  # lengthwise: ignore[LW202] # lengthwise: ignore[LW201]\n", 1),
        ("p = h.mean(1)  # lengthwise: ignore[LW2]\n", 1),
        ("p = h.mean(1)  # lengthwise: ignore[LW8, LW20]\n", 1),
        ("p = h.mean(1)  # lengthwise: ignore[LW]\n", 1),
        ("p = h.mean(1)  # lengthwise: ignore[LW201]\r\nq = p\r\n", 1),
        ("p = h.mean(\n    1,  # lengthwise: ignore[LW201]\n)\n", 1),
        ("p = h.mean(\n    # lengthwise: ignore[LW201]\n    1,\n)\n", 3),
        ("p = (\n    h\n    .mean(1)\n)  # lengthwise: ignore[LW201]\n", 3),
        ("p = h \\\n    .mean(1)  # lengthwise: ignore[LW201]\n", 1),
        ("class Net:\n    def forward(self, h): return h.mean(1)  # lengthwise: ignore[LW201]\n", 2),
        ("if h.mean(1).any():  # lengthwise: ignore[LW201]\n    pass\n", 1),
        ("p = h.mean(1)  # lengthwise: ignore[LW201]", 1),
    ],
)
def test_a_comment_in_the_statement_of_a_leak_ignores_it(text: str, line: int, tmp_path: Path) -> None:
    report = selected(tmp_path, text, line)
    assert (report.verdict, report.exit_code(), report.leaks) == ("sound", 0, ())
    assert [(one.leak.code, one.by) for one in report.ignored] == [("LW201", "comment")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("p = h.mean(1)  # lengthwise: ignore[LW202]\n", 1),
        ("p = h.mean(1)  # lengthwise: ignore[LW1]\n", 1),
        ("# lengthwise: ignore[LW201]\np = h.mean(1)\n", 2),
        ("p = h.mean(1)\n# lengthwise: ignore[LW201]\n", 1),
        ("p = h.mean(1)\nq = p  # lengthwise: ignore[LW201]\n", 1),
        ("q = p  # lengthwise: ignore[LW201]\np = h.mean(1)\n", 2),
        ("p = h.mean(1) + len('# lengthwise: ignore[LW201]')\n", 1),
        ('p = h.mean(1), """\n# lengthwise: ignore[LW201]\n"""\n', 1),
        ("@no_grad()  # lengthwise: ignore[LW201]\ndef f(h):\n    return h.mean(1)\n", 3),
        ("def f(h):  # lengthwise: ignore[LW201]\n    return h.mean(1)\n", 2),
        ("p = h.mean(1)  # lengthwise: ignored[LW201]\n", 1),
        ("p = h.mean(1)  # lengthwise ignore[LW201]\n", 1),
        ("p = h.mean(1  # lengthwise: ignore[LW201]\n", 1),  # it was changed since it ran
        ("", 4),
    ],
)
def test_a_comment_elsewhere_ignores_nothing(text: str, line: int, tmp_path: Path) -> None:
    report = selected(tmp_path, text, line)
    assert (report.verdict, len(report.leaks), report.ignored) == ("leak", 1, ())


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ("ignore", "must name the rules that it is for, such as ignore[LW201]"),
        ("ignore[]", "must name the rules"),
        ("ignore[LW201,]", "must name the rules"),
        ("ignore: LW201", "must name the rules"),
        ("ignore[LW2O5]", "there is no rule LW2O5; did you mean LW205?"),
        ("ignore[LW27]", "there is no rule LW27"),
        ("ignore[L]", "there is no rule L"),
        ("ignore[lw2]", "there is no rule lw2"),
        ("ignore[mean-over-padding]", "there is no rule mean-over-padding"),
    ],
)
def test_a_comment_without_a_known_rule_is_refused_with_its_line(comment: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"net\.py:2: .# lengthwise: ignore") as error:
        selected(tmp_path, f"x = 1\np = h.mean(1)  # lengthwise: {comment}\n", 2)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("select", "ignore", "by"),
    [
        (None, ["LW201"], "ignore"),
        (None, ["LW1", "LW2"], "ignore"),
        (["LW1"], None, "select"),
        (["LW2"], ["LW201"], "ignore"),
        (["LW2"], ["LW202"], None),
        (["LW"], None, None),
        (None, None, None),
    ],
)
def test_a_leak_is_ignored_by_a_code_or_its_beginning(select, ignore, by) -> None:
    report = select_leaks(REPORT, select, ignore)
    assert [one.by for one in report.ignored] == ([] if by is None else [by])
    assert report.verdict == ("leak" if by is None else "sound")


def test_the_verdict_follows_the_leaks_that_are_left() -> None:
    report = select_leaks(Report("leak", "why", (LEAK, NODE)), None, ["LW201"])
    assert (report.verdict, report.reason, report.leaks, len(report.ignored)) == ("leak", "why", (NODE,), 1)


def test_a_leak_without_a_known_operator_stays() -> None:
    assert select_leaks(Report("leak", "why"), ["LW1"], None).verdict == "leak"


def test_a_model_that_cannot_be_checked_stays_so_whatever_is_ignored() -> None:
    report = select_leaks(Report("uncheckable", "it takes no lengths", (LEAK,)), None, ["LW"])
    assert (report.verdict, report.reason, report.exit_code()) == ("uncheckable", "it takes no lengths", 2)


def test_what_is_ignored_is_counted_and_is_not_safe() -> None:
    report = select_leaks(REPORT, None, ["LW201"])
    record = json.loads(json.dumps(report.to_dict()))
    assert (record["verdict"], record["padding_safe"], record["batch_invariant"]) == ("sound", False, False)
    assert [(one["code"], one["line"], one["by"]) for one in record["ignored"]] == [("LW201", 12, "ignore")]
    assert "ignored: 1 leak (LW201 at models/net.py:12, by --ignore); what they hide" in text_of(on_terminal(report))


def test_a_cause_is_reported_once() -> None:
    again = LEAK.__class__(*("x", "x", LEAK.location, LEAK.cause, None, 0.1, "other"))
    assert select_leaks(Report("leak", "why", (LEAK, NODE, again)), None, None).leaks == (LEAK, NODE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ignore": ["LW2O4"]}, "did you mean LW204?"),
        ({"select": "204"}, "must name rules such as LW201"),
        ({"select": []}, "must name at least one rule"),
        ({"ignore": " , "}, "must name at least one rule"),
        ({"ignore": 204}, "must name rules"),
        ({"ignore": [204]}, "must name rules"),
        ({"ignore": ["LW77"]}, "'LW77' is none"),
    ],
)
def test_an_unknown_rule_is_refused(options, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        lengthwise_export.check("examples/masking.py:lengths_given", **options)
    assert words in str(error.value)


def test_a_check_from_python_ignores_as_the_command_does() -> None:
    report = lengthwise_export.check("examples/masking.py:attention_after_lstm", max_length=24, ignore="LW102")
    assert (report.verdict, [one.leak.code for one in report.ignored]) == ("sound", ["LW102"])

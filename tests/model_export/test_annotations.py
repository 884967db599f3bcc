"""`check --annotations github`: a workflow command for each leak."""

from dataclasses import replace

from lengthwise_export.checking.code_scanning import as_github
from lengthwise_export.checking.report import Report
from lengthwise_export.checking.rule import Cause
from lengthwise_export.tracing.source_lines import CodeLocation
from tests.support.check_reports import LEAK, NODE, REPORT, SOUND


def test_a_command_is_escaped_as_github_reads_it() -> None:
    at = CodeLocation("a,b:c%.py", 3, "", "forward")
    leak = replace(LEAK, operator="mean", location=at, cause=Cause("100 % of it:\r\nall, really.", "x = 1", "LW201"))
    (line,) = as_github([Report("leak", "why", (leak,))])
    assert line == (
        "::error file=a%2Cb%3Ac%25.py,line=3,title=LW201 mean-over-padding::"
        "mean: 100 %25 of it:%0D%0Aall, really.%0A%0AFix:%0Ax = 1"
    )


def test_a_leak_of_a_graph_stands_at_its_file() -> None:
    (line,) = as_github([Report("warning", "why", (NODE,), target="model.onnx")])
    assert line.startswith("::warning file=model.onnx,line=1,title=LW900 padding-carried::Mean_3: ")


def test_a_sound_model_has_no_command_and_one_that_is_not_checked_is_an_error() -> None:
    lines = [*as_github([SOUND, REPORT, Report("uncheckable", "no lengths", target="net.py:make")])]
    assert len(lines) == 2
    assert lines[1] == "::error file=net.py,line=1,title=padding-not-checked::net.py:make: no lengths"

"""`check --sarif`: one result for each leak, at its line, in the form that code scanning reads."""

from __future__ import annotations

import email.message
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from click.testing import CliRunner

import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise_export.checking import rule
from lengthwise_export.checking.code_scanning import as_sarif
from lengthwise_export.checking.rule import rules
from tests.gallery import onnx_leaking
from tests.support.check_reports import REPORT
from tests.support.sarif import validate

ROOT = Path(__file__).parents[2]


def checked(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    file = folder / "deep" / "leaks.sarif"
    done = CliRunner().invoke(main, ["check", *words, "--max-length", "40", "--sarif", str(file)])
    log: dict[str, Any] = json.loads(file.read_text())
    validate(log)
    return done.exit_code, log["runs"][0]


def test_a_leak_stands_at_the_line_of_its_first_operator(tmp_path: Path) -> None:
    code, run = checked(tmp_path, "examples/masking.py:attention_after_lstm")
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    line = (ROOT / "examples" / "masking.py").read_text().splitlines()[place["region"]["startLine"] - 1]
    assert (code, result["ruleId"], result["level"]) == (1, "LW102", "error")
    assert place["artifactLocation"] == {"uri": "examples/masking.py", "uriBaseId": "%SRCROOT%"}
    assert line.strip() == place["region"]["snippet"]["text"] == "weights = scores.softmax(dim=1)"
    assert "Fix:" in result["message"]["text"]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_a_sound_model_has_no_result_so_that_earlier_alerts_close(tmp_path: Path) -> None:
    code, run = checked(tmp_path, "examples/masking.py:lengths_given")
    assert (code, run["results"]) == (0, [])
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 0}]


def test_a_leak_of_a_graph_stands_in_its_file_with_the_operator(tmp_path: Path) -> None:
    file = tmp_path / "a graph.onnx"
    onnx.save(onnx_leaking.plain_bilstm(), file)
    _, run = checked(tmp_path, str(file))
    place = run["results"][0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"].endswith("/a%20graph.onnx")
    assert place["physicalLocation"]["region"]["startLine"] == 1
    assert place["logicalLocations"][0]["name"] == run["results"][0]["properties"]["operator"]


def test_what_cannot_be_checked_is_a_warning_at_its_file(tmp_path: Path) -> None:
    code, run = checked(tmp_path, "examples/mending.py:inception", "--features", "12")
    (result,) = run["results"]
    assert (code, result["ruleId"], result["level"]) == (2, "padding-not-checked", "warning")
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "examples/mending.py"
    assert run["invocations"][0] == {"executionSuccessful": False, "exitCode": 2}


def test_a_module_by_its_dotted_name_has_the_file_of_the_module(tmp_path: Path) -> None:
    _, run = checked(tmp_path, "examples.mending:inception", "--features", "12")
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "examples/mending.py"


def test_an_object_is_shown_in_the_file_that_is_named() -> None:
    report = lengthwise_export.check(onnx_leaking.plain_bilstm(), max_length=40)
    log = report.to_sarif("models/bilstm.onnx")
    validate(log)
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": "models/bilstm.onnx", "uriBaseId": "%SRCROOT%"}


@pytest.mark.long
def test_a_fingerprint_stays_where_lines_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the same file is read again after it was changed
    text = (ROOT / "examples" / "masking.py").read_text()
    prints = set()
    for number, above in enumerate(("", "\n\n")):
        (tmp_path / "model.py").write_text(above + text)
        report = lengthwise_export.check("model.py:attention_after_lstm", max_length=40)
        result = report.to_sarif()["runs"][0]["results"][0]
        prints.add(tuple(result["partialFingerprints"].values()))
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] > 2 * number
    assert len(prints) == 1


def test_a_rule_is_described_with_its_page() -> None:
    driver = as_sarif([REPORT], exit_code=1)["runs"][0]["tool"]["driver"]
    described = {one["id"]: one for one in driver["rules"]}
    assert {*described} == {*rules(), "padding-not-checked"}
    assert described["LW201"]["helpUri"].endswith("/docs/rules/LW201.md")
    assert described["LW201"]["help"]["markdown"].startswith("# LW201: mean-over-padding")
    assert (described["LW801"]["defaultConfiguration"], described["LW201"]["name"]) == (
        {"level": "warning"},
        "MeanOverPadding",
    )


def test_a_page_is_that_of_the_repository_of_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = email.message.Message()
    lines["Project-URL"] = "Source, https://code.example/team/it"
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: lines)
    rule.address_of_pages.cache_clear()
    assert rules()["LW201"].address == "https://code.example/team/it/blob/main/docs/rules/LW201.md"
    monkeypatch.undo()
    rule.address_of_pages.cache_clear()


@pytest.mark.long
def test_the_validator_can_fail(tmp_path: Path) -> None:
    _, run = checked(tmp_path, "examples/masking.py:attention_after_lstm")
    validate({"version": "2.1.0", "runs": [run]})
    run["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"] = 0
    with pytest.raises(jsonschema.ValidationError):
        validate({"version": "2.1.0", "runs": [run]})

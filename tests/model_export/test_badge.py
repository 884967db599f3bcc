"""The badge of a check: an SVG picture with the worst verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import click.testing
import pytest

from lengthwise.commands.cli import main
from lengthwise_export.checking.page import as_badge
from lengthwise_export.checking.report import Report, Verdict

SVG = "{http://www.w3.org/2000/svg}"
SOUND = Report("sound", "no answer changed in 30 trials", target="net.py:make")


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        (["sound"], "padding-safe"),
        (["sound", "sound"], "padding-safe (2 of 2)"),
        (["warning", "sound"], "padding: warning (1 of 2)"),
        (["uncheckable"], "not checked"),
        (["sound", "uncheckable", "warning"], "not checked (1 of 3)"),
        (["sound", "uncheckable", "leak", "leak"], "padding leaks (2 of 4)"),
    ],
)
def test_a_badge_has_the_worst_verdict_and_loads_nothing(verdicts: list[Verdict], text: str) -> None:
    picture = str(as_badge([replace(SOUND, verdict=verdict) for verdict in verdicts]))
    root = ElementTree.fromstring(picture)
    assert [one.text for one in root.iter(f"{SVG}text")] == ["lengthwise", text]
    assert root.findtext(f"{SVG}title") == root.get("aria-label") == f"lengthwise: {text}"
    assert picture.count("http") == 1  # the name of SVG
    widths = [float(one.get("width", 0)) for one in root.iter(f"{SVG}rect")]
    assert widths[0] == sum(widths[1:]) == float(root.get("width", 0))


@pytest.mark.long
def test_a_badge_does_not_hide_leaks_that_are_ignored(tmp_path: Path) -> None:
    badge = tmp_path / "padding.svg"
    target = "examples/masking.py:attention_after_lstm"
    words = ["check", target, "--max-length", "40", "--badge", str(badge), "--ignore", "LW1,LW2"]
    assert click.testing.CliRunner().invoke(main, words).exit_code == 0
    assert ElementTree.parse(badge).getroot().get("aria-label") == "lengthwise: padding leaks, ignored"


def test_the_command_writes_it_also_where_a_model_leaks(tmp_path: Path) -> None:
    badge = tmp_path / "pictures" / "padding.svg"
    words = ["check", "examples/masking.py:attention_after_lstm", "--max-length", "40", "--badge", str(badge)]
    result = click.testing.CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "padding leaks" in ElementTree.parse(badge).getroot().get("aria-label", "")

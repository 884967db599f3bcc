"""Findings: scripts about other libraries that stand alone, each in the form that `findings/README.md` describes."""

import os
import re
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "findings").glob("*.sh"))


def test_there_are_scripts() -> None:
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_finding_pins_its_packages_and_leaves_nothing_behind(script: Path) -> None:
    text = script.read_text("utf-8")
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "set -euo pipefail" in text
    assert "mktemp -d" in text
    assert 'rm -rf "$folder"' in text
    (packages,) = re.findall(r"(?<=pip\" install -q ).*", text)
    assert all("==" in package for package in packages.split())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_finding_asserts_what_it_says_and_runs_without_this_project(script: Path) -> None:
    text = script.read_text("utf-8")
    assert "\nassert " in text or "\n    assert " in text
    assert not re.search(r"(import|from|bin/)\s*lengthwise", text)

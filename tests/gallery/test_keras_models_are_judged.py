"""The Keras gallery is the exam of `lengthwise check`: the right verdicts, and the right layer where a leak begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lengthwise.commands.cli import main
from tests.gallery.keras_index import KERAS_BLIND, KERAS_LEAKING, KERAS_REFUSED, KERAS_SOUND, KerasExhibit
from tests.gallery.keras_trials import saved
from tests.support.keras_models import NEEDS_KERAS

pytestmark = NEEDS_KERAS

EXIT_CODES = {"sound": 0, "warning": 0, "leak": 1, "uncheckable": 2}


def target(exhibit: KerasExhibit, folder: Path) -> str:
    """The file that its user has, or the factory where the model needs a class of its own."""
    return exhibit.target if exhibit.custom else str(saved(exhibit, folder))


def checked(exhibit: KerasExhibit, folder: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["check", target(exhibit, folder), *exhibit.options, "--max-length", "64", *more])


def reported(exhibit: KerasExhibit, folder: Path) -> dict[str, Any]:
    result = checked(exhibit, folder, "--json")
    report = json.loads(result.stdout)
    assert (report["verdict"], result.exit_code) == (exhibit.verdict, EXIT_CODES[exhibit.verdict]), report
    return report


@pytest.mark.sampled(40)
@pytest.mark.parametrize("exhibit", KERAS_LEAKING + KERAS_BLIND, ids=str)
def test_a_leak_is_found_at_the_layer_where_it_begins(exhibit: KerasExhibit, tmp_path: Path) -> None:
    first = reported(exhibit, tmp_path)["leaks"][0]
    assert any(part in first["operator"] for part in exhibit.operator), first
    told = " ".join(str(first[part]) for part in ("cause", "cause_at", "fix", "source")).lower()
    assert any(word in told for word in exhibit.cause), first
    assert first["cause"]
    assert first["fix"]


@pytest.mark.gallery
@pytest.mark.parametrize("exhibit", KERAS_SOUND, ids=str)
def test_a_sound_model_is_called_sound(exhibit: KerasExhibit, tmp_path: Path) -> None:
    reported(exhibit, tmp_path)


@pytest.mark.sampled(13)
@pytest.mark.parametrize("exhibit", KERAS_REFUSED, ids=str)
def test_what_cannot_be_judged_is_refused_with_the_reason(exhibit: KerasExhibit, tmp_path: Path) -> None:
    # A class that a file needs is not at hand where the file is read: only the file is given.
    result = CliRunner().invoke(main, ["check", str(saved(exhibit, tmp_path)), *exhibit.options, "--max-length", "64"])
    assert result.exit_code == 2, result.output
    told = " ".join((result.stdout + result.stderr).lower().split())
    assert any(reason in told for reason in exhibit.reason), told
    assert "traceback" not in told


@pytest.mark.long
def test_a_factory_and_the_file_of_its_model_get_the_same_report(tmp_path: Path) -> None:
    for exhibit in (KERAS_LEAKING[0], KERAS_SOUND[0]):
        file, factory = (
            json.loads(CliRunner().invoke(main, ["check", given, "--json", "--max-length", "64"]).stdout)
            for given in (str(saved(exhibit, tmp_path)), exhibit.target)
        )
        assert file["verdict"] == factory["verdict"]
        named = [re.sub(r"_\d+", "", leak["operator"]) for leak in file["leaks"]]  # Keras counts layers of one kind
        assert named == [re.sub(r"_\d+", "", leak["operator"]) for leak in factory["leaks"]]

"""The gallery is the exam: the right verdict on every model, and the right operator and line in every leaking one."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lengthwise.commands.cli import main
from tests.gallery.index import (
    ONNX_LEAKING,
    ONNX_REFUSED,
    ONNX_SOUND,
    TORCH_LEAKING,
    TORCH_REFUSED,
    TORCH_SOUND,
    Exhibit,
)

EXIT_CODES = {"sound": 0, "warning": 0, "leak": 1, "uncheckable": 2}


def checked(exhibit: Exhibit, folder: Path, *more: str) -> Result:
    target = exhibit.target if exhibit.is_torch else str(exhibit.save(folder))
    return CliRunner().invoke(main, ["check", target, *exhibit.options, *more])


@pytest.mark.sampled(77)
@pytest.mark.parametrize("exhibit", TORCH_LEAKING + ONNX_LEAKING, ids=str)
def test_a_leak_is_found_where_it_begins(exhibit: Exhibit, tmp_path: Path) -> None:
    result = checked(exhibit, tmp_path, "--json")
    report = json.loads(result.stdout)
    assert (report["verdict"], result.exit_code) == ("leak", 1), report["reason"]
    first = report["leaks"][0]
    assert not exhibit.operator or any(part in first["operator"] for part in exhibit.operator), first
    if exhibit.is_torch:
        assert (os.path.abspath(first["file"]), first["line"]) == (str(exhibit.file), exhibit.line)
    assert first["cause"]
    assert first["fix"]


@pytest.mark.sampled(66)
@pytest.mark.parametrize("exhibit", TORCH_SOUND + ONNX_SOUND, ids=str)
def test_a_sound_model_is_called_sound(exhibit: Exhibit, tmp_path: Path) -> None:
    result = checked(exhibit, tmp_path, "--json")
    report = json.loads(result.stdout)
    assert (report["verdict"], result.exit_code) == (exhibit.verdict, 0), report


@pytest.mark.sampled(18)
@pytest.mark.parametrize("exhibit", TORCH_REFUSED + ONNX_REFUSED, ids=str)
def test_what_cannot_be_judged_is_refused_with_the_reason(exhibit: Exhibit, tmp_path: Path) -> None:
    result = checked(exhibit, tmp_path)
    assert result.exit_code == 2
    told = " ".join((result.stdout + result.stderr).lower().split())  # lines break where the path of a file lets them
    assert any(reason in told for reason in exhibit.reason), told

"""The README is true: its commands run, its answer is the answer, what it points to is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from lengthwise import errors
from lengthwise_export.architecture.spec import Spec
from tests.support.server_process import ServerProcess, started

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TOOL = ".venv/bin/lengthwise"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


def command(beginning: str) -> str:
    """The one command that begins so."""
    (found,) = (line for line in COMMANDS if line.startswith(beginning))
    return found


def run(line: str, folder: Path, code: int = 0) -> str:
    """Runs a command of the tool, with what it writes under `runs/` going to a folder: what it said.

    As in a fresh checkout, that folder need not be there.
    """
    words = shlex.split(line.replace("runs/", f"{folder}/"))
    assert words[0] == TOOL
    done = subprocess.run(
        [sys.executable, "-m", "lengthwise", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with started() as process:
        yield process


def test_no_command_is_left_out_here() -> None:
    beginnings = (
        "make serve",
        "make test",
        "curl -s",
        *(f"{TOOL} {name}" for name in ("train", "export", "serve", "check", "bench", "score")),
    )
    assert [line for line in COMMANDS if not line.startswith(beginnings)] == []


def test_every_target_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {line.split()[1] for line in COMMANDS if line.startswith("make ")} <= targets


def test_the_answer_is_the_answer(server: ServerProcess) -> None:
    line = command("curl -s").replace("localhost:8000", f"127.0.0.1:{server.port}")
    written = subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = blocks("json")[0]
    assert form(written) == form(shown)
    told, got = orjson.loads(shown), orjson.loads(written)
    for prediction, expected in zip(got.pop("predictions"), told.pop("predictions"), strict=True):
        for name in ("probabilities", "score"):  # other processors round otherwise
            assert prediction.pop(name) == pytest.approx(expected.pop(name), rel=1e-3)
        assert prediction == expected
    assert got == told


def form(answer: str) -> list[str]:
    """What an answer is made of, in its order: each text and sign, and of each number how it is written."""
    parts = re.findall(r'"[^"]*"|[\[\]{},:]|-?[\d.]+(?:[eE][-+]?\d+)?', answer)
    return [re.sub(r"(?<=[1-9])\d+|[1-9]", "", part) if part[0].isdigit() else part for part in parts]


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("service/**/*.py")], ids=lambda page: page.name
)
def test_no_call_wants_a_newer_curl_than_people_have(page: Path) -> None:
    # curl --json came with 7.82, of 2022
    assert not re.search(r"\bcurl\b.* --json\b", page.read_text())


def test_every_status_that_it_lists_is_one_that_the_service_answers() -> None:
    listed = {int(status) for cell in re.findall(r"^\| ([\d, ]+) \|", README, re.M) for status in cell.split(", ")}
    known = {kind.status for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "status")}
    assert listed
    assert listed <= known


def test_every_field_that_it_shows_is_read(server: ServerProcess) -> None:
    body = orjson.loads(blocks("json")[1]) | {"model": "japanese-vowels"}
    answer = server.predict(body)
    assert answer.status_code == 422
    assert {error["pointer"].split("/", 3)[3] for error in answer.json()["errors"]} == {
        "feature_mask",
        "steps/0",
        "steps/1",
    }


def test_the_spec_is_one() -> None:
    (text,) = blocks("toml")
    assert Spec.from_toml(text).input.features == 12


@pytest.mark.parametrize("link", sorted({link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link}))
def test_what_it_points_to_is_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_a_leak_is_found_and_pictured(tmp_path: Path) -> None:
    said = run(command(f"{TOOL} check examples/masking.py"), tmp_path / "absent", code=1)
    assert "softmax" in said
    assert "<svg" in (tmp_path / "absent" / "leak.html").read_text()


def test_a_model_without_lengths_is_mended_as_shown(tmp_path: Path) -> None:
    assert "publishes the mended graph" in run(command(f"{TOOL} check examples/mending.py"), tmp_path, code=2)
    run(command(f"{TOOL} export examples/mending.py"), tmp_path)
    assert (tmp_path / "models" / "inception" / "1" / "model.onnx").is_file()


@pytest.mark.long
def test_a_load_is_answered_without_an_error() -> None:
    said = run(command(f"{TOOL} bench").replace("-seconds 5", "-seconds 1"), ROOT)
    assert "padding" in said


def test_a_file_is_scored(tmp_path: Path) -> None:
    run(command(f"{TOOL} score"), tmp_path / "absent")
    assert len((tmp_path / "absent" / "predictions.jsonl").read_text().splitlines()) == 370


@pytest.mark.long
def test_a_model_is_trained_exported_and_served(tmp_path: Path) -> None:
    run(command(f"{TOOL} train"), tmp_path)
    run(command(f"{TOOL} export model_export/"), tmp_path)
    repository = shlex.split(command(f"{TOOL} serve").replace("runs/", f"{tmp_path}/"))[-1]
    with started(repository) as server:
        (served,) = server.get("/healthz").json()["models"]
        body = orjson.loads((ROOT / "examples" / "japanese-vowels.json").read_bytes())
        predictions = server.predict(body).json()["predictions"]
    assert served["features"] == 12
    assert [prediction["label"] for prediction in predictions] == ["1", "3", "6"]

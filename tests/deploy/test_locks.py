"""What goes into the image is locked, and the locks are current."""

import re
import sys
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, ROOT, loaded, run

LOCK = DEPLOY / "image" / "lock.py"
LOCKS = ("runtime", "cuda", "build")


def _packages(name: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9.-]+)==", (DEPLOY / "image" / f"{name}.lock").read_text(), re.MULTILINE))


def test_the_locks_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded(LOCK).main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_input_makes_a_lock_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = loaded(LOCK)
    for file in (DEPLOY / "image").iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(lock, "FOLDER", tmp_path)
    (tmp_path / "build.in").write_text("wheel\n")
    assert [made.is_current() for made in lock.LOCKS] == [True, True, False]


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_a_version_and_hashes(name: str) -> None:
    entries = re.split(r"^(?=[a-z0-9])", (DEPLOY / "image" / f"{name}.lock").read_text(), flags=re.MULTILINE)[1:]
    assert entries
    bare = [entry.split()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry]
    assert bare == []


@pytest.mark.parametrize("name", ["runtime", "cuda"])
def test_no_lock_of_an_image_has_what_only_the_exporter_needs(name: str) -> None:
    assert _packages(name) & {"torch", "onnx", "onnxscript", "pip", "setuptools", "matplotlib"} == set()


def test_an_image_has_one_onnxruntime() -> None:
    of_name = {name: {package for package in _packages(name) if package.startswith("onnxruntime")} for name in LOCKS}
    assert of_name == {"runtime": {"onnxruntime"}, "cuda": {"onnxruntime-gpu"}, "build": set()}


def test_the_compiler_that_lint_tries_is_the_images() -> None:
    locked = re.search(r"^ziglang==\S+", (DEPLOY / "image" / "build.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert f'"{locked[0]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_names_the_machine_it_was_made_on(name: str) -> None:
    text = (DEPLOY / "image" / f"{name}.lock").read_text()
    assert [line for line in text.splitlines() if "://" in line or "/" in line.partition("# via")[0]] == []


@pytest.mark.deploy
def test_compiling_the_locks_again_changes_nothing() -> None:
    before = {name: (DEPLOY / "image" / f"{name}.lock").read_bytes() for name in LOCKS}
    try:
        run([sys.executable, LOCK])
        assert {name: (DEPLOY / "image" / f"{name}.lock").read_bytes() for name in LOCKS} == before
    finally:
        for name, text in before.items():
            (DEPLOY / "image" / f"{name}.lock").write_bytes(text)

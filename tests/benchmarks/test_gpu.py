"""The measurement of a GPU, on the CPU: all of its code runs, and says of itself that it is no GPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import in_process
from benchmarks.gpu.packed import prepare
from benchmarks.gpu.section import SECTIONS
from lengthwise.processes import server

NOT_ON_A_BARE_MACHINE = (
    "click",
    "fastapi",
    "httptools",
    "matplotlib",
    "mosec",
    "pydantic_settings",
    "rich",
    "starlette",
    "uvicorn",
    "uvloop",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs, as `--prepare` makes them."""
    folder = tmp_path_factory.mktemp("gpu-models")
    lines = [*prepare(folder)]
    assert not [line for line in lines if line.startswith("NOT made")], lines
    return folder


@pytest.mark.long
def test_every_section_has_its_figures(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "cpu.json"
    arguments = ["--provider", "cpu", "--quick", "--models", str(models), "--out", str(out)]
    code = command.main(arguments)
    results = json.loads(out.read_bytes())
    assert {name: found["status"] for name, found in results["sections"].items()} == {
        section.name: "measured" for section in SECTIONS
    }, capsys.readouterr().err
    assert code == 0
    text = capsys.readouterr().out
    assert text == out.with_suffix(".md").read_text()
    assert text.startswith("Measured at commit ")
    assert "no figure here is of a GPU" in text
    assert "are incomplete" not in text
    assert all(f"## {section.name}\n" in text for section in SECTIONS)


@pytest.mark.process
def test_a_machine_without_the_services_packages_can_measure():
    """The sections need NumPy, onnxruntime, orjson, pydantic and prometheus-client."""
    modules = [section.module for section in SECTIONS] + ["benchmarks.gpu.section", "benchmarks.gpu.summary"]
    program = f"""
import importlib, sys
for name in {NOT_ON_A_BARE_MACHINE!r}:
    sys.modules[name] = None
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_http_the_service_sets_the_interpreter_up_as_a_server_does():
    assert in_process.SWITCH_INTERVAL_SECONDS == server.SWITCH_INTERVAL_SECONDS
    assert in_process.YOUNG_OBJECTS == server.YOUNG_OBJECTS

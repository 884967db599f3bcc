"""The driver and the libraries are asked as they are, and every way of their not answering becomes a sentence."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lengthwise.runtime.installation import Gpu, ask_driver, find, missing_libraries
from lengthwise.settings import bundled_models

ROOT = Path(__file__).parents[2]
MODEL = str(bundled_models() / "japanese-vowels" / "1")


class FakeDriver:
    """CUDA's driver interface with so many GPUs, in which a call may fail with a code."""

    def __init__(self, names: Sequence[str] = ("NVIDIA H200",), failing: str = "", code: int = 999) -> None:
        self.names = names
        self.failing = failing
        self.code = code

    def __getattr__(self, call: str) -> Any:
        def called(*given: Any) -> int:
            if call == self.failing:
                return self.code
            if call == "cuDriverGetVersion":
                given[0]._obj.value = 13020
            elif call == "cuDeviceGetCount":
                given[0]._obj.value = len(self.names)
            elif call == "cuDeviceGet":
                given[0]._obj.value = given[1]
            elif call == "cuDeviceGetName":
                given[0].value = self.names[given[2].value].encode()
            elif call == "cuDeviceTotalMem_v2":
                given[0]._obj.value = 5 << 30
            elif call == "cuGetErrorString":
                given[1]._obj.value = b"in its own words"
            return 0

        return called


def no_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_the_gpus_are_those_of_the_driver_with_names_and_memory():
    driver = ask_driver(lambda name: FakeDriver(["NVIDIA H200", "NVIDIA L4"]))
    assert driver.problem is None
    assert driver.cuda == (13, 2)
    assert driver.gpus == (Gpu(0, "NVIDIA H200", 5 << 30), Gpu(1, "NVIDIA L4", 5 << 30))


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (FakeDriver(failing="cuInit", code=100), "sees no GPU"),
        (FakeDriver(names=[]), "sees no GPU"),
        (FakeDriver(failing="cuInit", code=804), r"cannot be used: in its own words \(error 804\)"),
        (FakeDriver(failing="cuDeviceGetCount"), "cannot be asked for its GPUs: in its own words"),
        (FakeDriver(failing="cuDeviceTotalMem_v2"), "GPU 0 does not answer: in its own words"),
        (None, "there is no NVIDIA driver"),
    ],
)
def test_a_driver_that_gives_no_gpu_says_why(library: FakeDriver | None, said: str):
    driver = ask_driver(no_library if library is None else lambda name: library)
    assert driver.gpus == ()
    assert re.search(said, str(driver.problem))


def test_every_library_that_cannot_be_loaded_is_named_cudnn_among_them():
    assert missing_libraries("13.0", no_library) == (
        "libcudart.so.13",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcurand.so.10",
        "libcudnn.so.9",
    )
    assert missing_libraries("12.8", lambda name: name if name.endswith(".12") else no_library(name)) == (
        "libcurand.so.10",
        "libcudnn.so.9",
    )
    assert missing_libraries("13.0", lambda name: object()) == ()


def test_what_is_installed_here_is_found_and_no_gpu_is_asked_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    found = find()
    assert found.module
    assert len(found.packages) == 1
    assert "CPUExecutionProvider" in found.providers


def test_without_onnxruntime_nothing_is_found_and_nothing_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lengthwise.runtime.installation.onnxruntime", None)
    monkeypatch.setattr("lengthwise.runtime.installation.PACKAGES", ("no-such-package",))
    found = find()
    assert (found.module, found.packages, found.providers, found.driver().gpus) == (False, {}, (), ())


WITHOUT = "import sys; sys.modules['onnxruntime'] = None; sys.argv = ['lengthwise', *sys.argv[1:]]; import lengthwise; "


def without_onnxruntime(*call: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in an environment that has no onnxruntime, and no package that would bring it."""
    program = (
        WITHOUT + "from lengthwise.commands.cli import main; from lengthwise.runtime import installation; "
        "installation.PACKAGES = (); main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *call], capture_output=True, text=True, cwd=folder, check=False
    )


@pytest.mark.parametrize(
    "call",
    [
        ("serve", "--port", "1"),
        pytest.param(("score", "in.jsonl", "out.jsonl", "--model", MODEL), marks=pytest.mark.long),
    ],
    ids=lambda call: call[0],
)
def test_without_onnxruntime_a_command_that_runs_graphs_ends_with_the_extras_that_bring_one(
    call: tuple[str, ...], tmp_path: Path
):
    (tmp_path / "in.jsonl").write_text('{"steps": [[0,0,0,0,0,0,0,0,0,0,0,0]]}\n')
    done = without_onnxruntime(*call, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no onnxruntime is installed, and nothing runs a graph")
    assert "Traceback" not in done.stderr


def test_help_needs_no_onnxruntime():
    assert without_onnxruntime("--help").returncode == 0

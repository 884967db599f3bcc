"""The extra `gpu`, installed as a user installs it: without a GPU it serves on the CPU, or says what CUDA lacks."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.runtime.installation import ask_driver
from tests.deploy.live import started, until
from tests.deploy.tools import ROOT, run
from tests.support.waiting import answers

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(ask_driver().problem is None, reason="a GPU answers here: tests/gpu has the tests for it"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with this project and its extra `gpu`: some 3 GB."""
    place = tmp_path_factory.mktemp("gpu") / "venv"
    run([sys.executable, "-m", "venv", place])
    run([place / "bin" / "python", "-m", "pip", "install", "--quiet", f"{ROOT}[serve,gpu]"], seconds=1800)
    return place


def test_one_onnxruntime_is_installed_and_it_is_the_gpus(environment: Path) -> None:
    listed = run([environment / "bin" / "python", "-m", "pip", "list", "--format", "freeze"])
    named = [line.partition("==")[0] for line in listed.splitlines()]
    assert [name for name in named if name.startswith("onnxruntime")] == ["onnxruntime-gpu"]
    assert "nvidia-cudnn-cu13" in named


def test_cuda_is_refused_with_what_is_missing(environment: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [environment / "bin" / "lengthwise", "serve", "--provider", "cuda", "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,  # in the checkout its own modules would be imported
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --provider cuda is not available: there is no NVIDIA driver")
    assert "cannot be loaded (pip install" not in last  # the extra has brought every library but the driver's


@pytest.fixture
def served(environment: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What `/healthz` says of a service with `--provider auto`."""
    port = free_port()
    command = [environment / "bin" / "lengthwise", "serve", "--provider", "auto", "--port", str(port)]
    with started(command, tmp_path / "log"):
        until("the service is ready", 60, lambda: answers(port, "/readyz"))
        yield httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).json()


def test_auto_serves_on_the_cpu_and_says_why(served: dict[str, Any]) -> None:
    assert served["provider"]["name"] == "cpu"
    assert served["provider"]["reason"].startswith("CUDA is not available: there is no NVIDIA driver")
    assert served["models"][0]["provider"] == "CPUExecutionProvider"
    assert served["models"][0]["promise"]["bits"]

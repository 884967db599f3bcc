"""NVIDIA's perf_analyzer, unmodified, against the bundled model: every command of docs/measuring.md, as it stands.

`make clients` runs this. The program comes with `tritonclient`; the two libraries that it wants are fetched once into
`runs/clients/perf_analyzer`, unless the machine has them.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise.bench.launch import free_port
from tests.support.server_process import started

ROOT = Path(__file__).parents[2]
HOME = ROOT / "runs" / "clients" / "perf_analyzer"
PROGRAM = Path(sys.executable).with_name("perf_analyzer")
DOCUMENT = (ROOT / "docs" / "measuring.md").read_text()
COMMANDS = re.findall(r"^```sh\n(perf_analyzer .*?)\n```$", DOCUMENT, re.M | re.S)
(DATA,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.M | re.S)
QUICK = "--measurement-mode count_windows --measurement-request-count 50 --max-trials 5 --stability-percentage 900"
"""Whether a busy machine is steady is not the question."""

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """With which the program runs."""
    folders = [*HOME.glob("**/cuda_runtime/lib"), *HOME.glob("usr/lib/*")]
    made = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, folders))}
    if not PROGRAM.exists() or not _lacks(made):
        return made
    HOME.mkdir(parents=True, exist_ok=True)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", HOME]
    subprocess.run([*uv, "nvidia-cuda-runtime-cu12"], check=False)  # what is missing then, the skip says
    subprocess.run("apt-get download libb64-0d && dpkg -x libb64-0d_*.deb .", shell=True, cwd=HOME, check=False)
    folders = [*HOME.glob("**/cuda_runtime/lib"), *HOME.glob("usr/lib/*")]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, folders))}


def _lacks(environment: dict[str, str]) -> list[str]:
    """The libraries that the program does not find."""
    done = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, env=environment, check=False)
    return re.findall(r"^\s*(\S+) => not found", done.stdout, re.M)


@pytest.fixture(scope="module")
def folder(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the document makes; none where the program cannot run."""
    if not PROGRAM.exists():
        pytest.skip("this tritonclient came without perf_analyzer")
    if lacking := _lacks(environment):
        pytest.skip(f"perf_analyzer does not find {', '.join(lacking)}")
    made = tmp_path_factory.mktemp("perf_analyzer")
    subprocess.run([sys.executable, "-c", DATA], cwd=made, check=True)
    return made


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    grpc_port = free_port()
    with started("--grpc-port", str(grpc_port)) as server:
        yield int(server.url.rpartition(":")[2]), grpc_port


def figure(report: str, name: str) -> int:
    return int(re.findall(rf"{name}: (\d+)", report)[-1])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_document_measures_and_tells_of_the_server(
    command: str, folder: Path, environment: dict[str, str], ports: tuple[int, int]
) -> None:
    address = f"127.0.0.1:{ports['-i grpc' in command]}"
    done = subprocess.run(
        [PROGRAM, *command.split()[1:], *QUICK.split(), "-u", address],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = done.stdout
    rows = int(re.findall(r"-b (\d+)", command)[0]) if "-b " in command else 1
    assert "Inferences/Second vs. Client Average Batch Latency" in report
    sequences, answered = figure(report, "Inference count"), figure(report, "Successful request count")
    assert answered > 0
    assert abs(sequences - rows * answered) <= 2 * 8 * rows  # of what was under way at the window's ends
    assert re.search(r"queue \d+ usec \+ compute input [1-9]\d* usec \+ compute infer [1-9]\d* usec", report)

"""The same Dockerfile in a real docker daemon: BuildKit builds it, and the daemon runs its health check by itself."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from lengthwise.bench.launch import free_port
from tests.deploy.container import CERTIFICATES, FOLDER, base_archive
from tests.deploy.live import started, until
from tests.deploy.tools import ROOT, program, run

pytestmark = pytest.mark.deploy

BASE = "python:stand-in"
IMAGE = "lengthwise:buildkit"


@dataclass(frozen=True)
class Docker:
    """A client of one daemon."""

    client: tuple[str, ...]

    def __call__(self, *words: str | Path, seconds: float = 60) -> str:
        """A command; what it wrote."""
        return run([*self.client, *words], seconds=seconds, env={"DOCKER_BUILDKIT": "1"})


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A daemon without a bridge and without rules on this host, with the image built."""
    if os.geteuid() != 0:
        pytest.skip("a daemon of one's own wants root")
    folder = tmp_path_factory.mktemp("dockerd")
    socket, data = f"unix://{folder}/docker.sock", FOLDER / "docker"
    daemon = [program("dockerd", "apt-get install docker.io"), "--data-root", data, "--exec-root", folder / "exec"]
    daemon += ["-H", socket, "--pidfile", str(folder / "pid"), "--bridge=none", "--iptables=false", "--ip6tables=false"]
    daemon += ["--ip-forward=false", "--ip-masq=false"]
    client = Docker((program("/usr/bin/docker", "apt-get install docker.io"), "-H", socket))
    with started(daemon, folder / "dockerd.log"):
        until("the daemon answers", 60, lambda: (folder / "docker.sock").exists())
        path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        client("import", "--change", path, base_archive(), "python:bare", seconds=200)
        # BuildKit mounts nothing of the host's into a build: the registry's certificates go into the base.
        context = folder / "base"
        context.mkdir()
        shutil.copy(CERTIFICATES, context / "ca.crt")
        (context / "Dockerfile").write_text(f"FROM python:bare\nCOPY ca.crt {CERTIFICATES}\n")
        client("build", "--tag", BASE, context, seconds=200)
        options = ["--network", "host", "--build-arg", f"BASE={BASE}", "--target", "cpu", "--tag", IMAGE]
        client("build", *options, ROOT, seconds=500)
        yield client
    run(["umount", folder / "exec" / "netns" / "default"], good=(0, 32))
    shutil.rmtree(data, ignore_errors=True)


def test_buildkit_builds_an_image_that_answers_and_is_found_healthy(docker: Docker) -> None:
    port = free_port()
    hardened = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host"]
    quick = ["--health-interval", "1s"]
    name = docker("run", "--detach", *hardened, *quick, "--env", f"LENGTHWISE_PORT={port}", IMAGE).strip()
    until("docker finds it healthy", 60, lambda: _state(docker, name)["Health"]["Status"] == "healthy")
    body = (ROOT / "examples" / "japanese-vowels.json").read_bytes()
    assert httpx2.post(f"http://127.0.0.1:{port}/predict", content=body).status_code == 200
    docker("stop", "--time", "40", name)
    assert _state(docker, name)["ExitCode"] == 0
    docker("rm", name)


def _state(docker: Docker, name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(docker("inspect", "--format", "{{json .State}}", name))
    return state

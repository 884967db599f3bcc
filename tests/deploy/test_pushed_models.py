"""Models that `lengthwise push` puts into a real container registry: an engine mounts them, and `load` reads them."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise.bench.launch import free_port
from lengthwise.settings import bundled_models
from tests.deploy.live import started, until
from tests.deploy.tools import program, run
from tests.support.waiting import answers

pytestmark = pytest.mark.deploy


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for podman's sockets."""
    with tempfile.TemporaryDirectory(prefix="lw") as folder:
        yield Path(folder)


def test_a_container_engine_mounts_the_models_of_a_pushed_image_and_load_reads_them(
    tmp_path: Path, short_folder: Path
) -> None:
    registry = program("docker-registry", "apt-get install docker-registry")
    if os.geteuid() != 0:
        pytest.skip("pulling an image without a daemon wants root here")
    store = ["--root", tmp_path / "store", "--runroot", short_folder, "--storage-driver", "vfs"]
    podman, port = [program("podman", "apt-get install podman"), *store, "--cgroup-manager=cgroupfs"], free_port()
    stored, listens = f"{{rootdirectory: {tmp_path / 'blobs'}}}", f"{{addr: '127.0.0.1:{port}'}}"
    (tmp_path / "config.yml").write_text(f"version: 0.1\nstorage: {{filesystem: {stored}}}\nhttp: {listens}\n")
    (tmp_path / "registries.conf").write_text(f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n')
    plain = {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf")}  # without TLS, on loopback
    image, lengthwise = f"127.0.0.1:{port}/team/vowels", [sys.executable, "-m", "lengthwise"]
    with started([registry, "serve", tmp_path / "config.yml"], tmp_path / "registry.log"):
        until("the registry answers", 30, lambda: answers(port, "/v2/"))
        pushed = run([*lengthwise, "push", bundled_models(), f"oci://{image}:1"], only_output=True).strip()
        assert pushed.startswith(f"oci://{image}@sha256:")
        run([*podman, "pull", f"{image}:1"], seconds=300, env=plain)
        mounted = Path(run([*podman, "image", "mount", f"{image}:1"], only_output=True).strip())
        graph = "japanese-vowels/1/model.onnx"
        assert (mounted / "models" / graph).read_bytes() == (bundled_models() / graph).read_bytes()
        run([*podman, "image", "unmount", f"{image}:1"])
        run([*podman, "rmi", f"{image}:1"])
        program_of_load = f"import lengthwise; print(lengthwise.load({pushed!r}).name)"
        cache = {**os.environ, "LENGTHWISE_CACHE": str(tmp_path / "cache")}
        assert run([sys.executable, "-c", program_of_load], env=cache, only_output=True).strip() == "japanese-vowels"

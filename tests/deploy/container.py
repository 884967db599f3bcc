"""A builder and a container engine for the tests of the image, and a base that needs no registry.

The base named in the Dockerfile can only be pulled; where there is no registry, a Debian of the same release with the
same Python stands in for it. Everything is kept under `.venv/deploy`, the base across runs.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.tools import APT, ROOT, program, run

FOLDER = (ROOT / ".venv" / "deploy").resolve()
BASE = "localhost/python:3.11-slim-bookworm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")


@dataclass(frozen=True)
class Engine:
    """buildah and podman on a store of their own."""

    buildah: tuple[str, ...]
    podman: tuple[str, ...]

    @property
    def builder(self) -> list[str]:
        """The words before those of a build, from the base that stands in, to the same bytes each time."""
        certificates = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if CERTIFICATES.is_file() else []
        command = [*self.buildah, "bud", "--layers", "--isolation", "chroot", "--pull-never", "--format", "docker"]
        return [*command, "--timestamp", "0", *certificates, "--build-arg", f"BASE={BASE}"]

    def build(self, target: str, tag: str, *options: str) -> str:
        """Builds a target from this checkout; what the builder said."""
        return run([*self.builder, "--target", target, *options, "--tag", tag, str(ROOT)], seconds=1800)

    def make_image(self) -> None:
        """`make image`, with this builder."""
        run(["make", "image", f"BUILD={' '.join(self.builder)}"], seconds=1800)

    def alone(self, folder: Path, module: str, *words: str) -> Any:
        """Runs a module of these tests where no port or rule of the host is touched and no process outlives it."""
        program("netavark", APT)  # without it, podman publishes no port
        conf, docker = folder / "containers.conf", folder / "docker"
        limits = ", ".join(f'"{limit}"' for limit in LIMITS if "=" in limit)
        conf.write_text(f'[network]\nnetwork_backend="netavark"\n[containers]\ndefault_ulimits=[{limits}]\n')
        docker.write_text(f'#!/bin/sh\nexec {" ".join(self.podman)} "$@"\n')
        docker.chmod(0o755)
        unshare = program("unshare", "apt-get install util-linux")
        alone = [unshare, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-m", module, *words]
        paths = {"PATH": f"{folder}:{os.environ['PATH']}", "CONTAINERS_CONF": str(conf), "PYTHONPATH": str(ROOT)}
        return json.loads(run([*alone, *inside], seconds=400, env=paths, cwd=folder, only_output=True).splitlines()[-1])

    def run(self, *words: str, seconds: float = 60, good: Sequence[int] = (0,)) -> str:
        """A command of podman's; what it wrote."""
        # Of a container past its memory limit, the engine leaves an empty file where it was called.
        return run([*self.podman, *words], seconds=seconds, good=good, cwd=FOLDER)

    def inspected(self, name: str, template: str, kind: str = "image") -> str:
        """A field of an image or a container."""
        said = self.run("inspect", "--type", kind, "--format", template, name)
        return said.strip().splitlines()[-1]

    def exists(self, image: str) -> bool:
        """Whether an image is in the store."""
        return image in self.run("images", "--format", "{{.Repository}}:{{.Tag}}", good=range(256))

    @contextmanager
    def container(self, image: str, *options: str, command: Sequence[str] = ()) -> Iterator[str]:
        """A hardened container while the block runs; its name."""
        name = f"lengthwise-test-{os.getpid()}"
        fixed = ["--name", name, "--network", "host", "--health-interval", "disable", *LIMITS, *HARDENED]
        self.run("run", "--detach", *fixed, *options, image, *command)
        try:
            yield name
        finally:
            self.run("rm", "--force", "--time", "5", name)

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        """The root of an image's files while the block runs."""
        name = run([*self.buildah, "from", "--pull-never", image]).split()[-1]
        try:
            yield Path(run([*self.buildah, "mount", name]).split()[-1])
        finally:
            run([*self.buildah, "umount", name])
            run([*self.buildah, "rm", name])


def engine() -> Engine:
    """The engine, with the base in its store."""
    if os.geteuid() != 0:
        pytest.skip("building an image without a daemon wants root here")
    store = ["--root", str(FOLDER / "store"), "--runroot", str(FOLDER / "run"), "--storage-driver", "overlay"]
    podman = [program("podman", APT), *store, "--cgroup-manager=cgroupfs", "--runtime", program("runc", APT)]
    made = Engine((program("buildah", APT), *store), tuple(podman))
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not made.exists(BASE):
        path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        said = made.run("import", "--change", path, str(base_archive()), BASE, seconds=600, good=range(256))
        if not made.exists(BASE):
            pytest.skip(f"podman cannot keep an image here: {said.strip().splitlines()[-1]}")
    return made


def base_archive() -> Path:
    """The root of a minimal Debian with Python, its headers, and no bytecode, as in the official image; made once."""
    archive = FOLDER / "base.tar"
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not archive.is_file():
        root = FOLDER / "root"
        if root.exists():
            assert not os.path.ismount(root / "proc"), f"umount {root / 'proc'} first: deleting would go through it"
            shutil.rmtree(root)
        packages = "ca-certificates,python3,python3-venv,python3-pip,libpython3.11-dev"
        # debootstrap mounts /proc there. In a mount namespace of its own that ends with it, even if it is killed.
        alone = [program("unshare", "apt-get install util-linux"), "--mount", "--propagation", "private"]
        command = [program("debootstrap", APT), "--variant=minbase", f"--include={packages}", "bookworm", str(root)]
        said = run([*alone, *command, _mirror()], seconds=900, good=range(256))
        if not (root / "usr/bin/python3.11").is_file():
            pytest.skip(f"debootstrap made no base: {said.strip().splitlines()[-1]}")
        for name in ("python", "python3"):
            (root / "usr/local/bin" / name).symlink_to("../../bin/python3.11")
        for folder in [*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*")]:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        for cache in list(root.rglob("__pycache__")):
            shutil.rmtree(cache)
        run(["tar", "-C", root, "--numeric-owner", "-cf", archive, "."])
        shutil.rmtree(root)
    return archive


def _mirror() -> str:
    """The first package mirror that this machine uses."""
    sources = [*Path("/etc/apt").glob("sources.list.d/*.sources"), Path("/etc/apt/sources.list")]
    for source in sources:
        found = re.search(r"^(?:URIs: |deb )(\S+)", source.read_text() if source.is_file() else "", re.MULTILINE)
        if found:
            return found[1]
    return "http://deb.debian.org/debian"

"""`lengthwise` whose bundled model has its costs beside it: `python -m tests.support.prepared serve ...`.

A start then measures nothing, which saves two seconds of processor time. The files are those that a server itself keeps
beside a model that is not bundled.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from lengthwise import files
from lengthwise.files import bundled_models

ROOT = Path(__file__).parents[2]
KEPT_IN = ROOT / "runs" / "tests"
VARIABLE = "PREPARED_MODELS"
KEPT = ("costs.json", "promises.json", "kernels.json")
"""What a server stores beside a model that it has loaded."""


@functools.cache
def models() -> Path:
    """A repository with the bundled model, prepared once for these sources on this machine."""
    folder = KEPT_IN / _key()
    KEPT_IN.mkdir(parents=True, exist_ok=True)
    with (KEPT_IN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes with tests, one prepares it
        if not folder.exists():
            _prepare(folder)
    return folder


def _key() -> str:
    """What the files depend on: whatever is not the same, another folder is made."""
    from lengthwise.runtime.installation import processor
    from lengthwise.runtime.session import RUNTIME_VERSION

    digest = hashlib.sha256(f"{processor()} {RUNTIME_VERSION}".encode())
    sources = ROOT / "service" / "lengthwise"
    for room in ("runtime", "verification", "repository", "batching", "models"):
        for path in sorted(path for path in (sources / room).rglob("*") if path.is_file()):
            if path.suffix in (".py", ".so", ".onnx", ".npz"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _prepare(folder: Path) -> None:
    """Has a server load a copy, and takes what it leaves there."""
    from tests.support.server_process import ServerProcess

    with tempfile.TemporaryDirectory(dir=KEPT_IN) as aside:
        copy = Path(aside) / "models"
        shutil.copytree(bundled_models(), copy, ignore=shutil.ignore_patterns(*KEPT))
        server = ServerProcess(str(copy))
        try:
            server.wait_for("is ready on")
        finally:
            server.kill()
        copy.rename(folder)


def use() -> None:
    """Has this process take them for the bundled ones, where the variable names them."""
    if prepared := os.environ.pop(VARIABLE, ""):
        setattr(files, "bundled_models", lambda: Path(prepared))  # noqa: B010 - before a module takes it by its name


def main() -> None:
    use()
    from lengthwise import cli

    cli.main()


if __name__ == "__main__":
    main()

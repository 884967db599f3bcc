"""`lengthwise` whose bundled model has its costs beside it: `python -m tests.support.prepared serve ...`.

A start then measures nothing, which saves two seconds of processor time. The files are those that a server itself keeps
beside a model that is not bundled.
"""

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
TIMED = ("costs.json", "kernels.json")
"""What a server measures by the clock of a model that it loads, and stores beside it."""
KEPT = (*TIMED, "promises.json")
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
    """What the files are for; one that is no longer valid is passed over by the server that reads it, and only slow."""
    from lengthwise.runtime.installation import processor
    from lengthwise.runtime.opening import RUNTIME_VERSION

    digest = hashlib.sha256(f"{processor()} {RUNTIME_VERSION}".encode())
    sources = ROOT / "service" / "lengthwise"
    stored = [sources / "repository" / name for name in ("stored_measurements.py", "kernel_choice.py")]
    for path in [*stored, sources / "verification" / "promises.py", *sorted(bundled_models().rglob("*.*"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _prepare(folder: Path) -> None:
    """Has a server load a copy, and takes what it leaves there."""
    from tests.support.server_process import ServerProcess

    with tempfile.TemporaryDirectory(dir=KEPT_IN) as aside:
        copy = Path(aside) / "models"
        shutil.copytree(bundled_models(), copy, ignore=shutil.ignore_patterns(*KEPT))
        # One worker: of two, the one that did not measure may be ready before the other one has stored what it did.
        # A busy machine takes long.
        server = ServerProcess(str(copy), LENGTHWISE_WORKERS="1", LENGTHWISE_JUDGE_TIMEOUT_SECONDS="3600")
        try:
            server.wait_for("is ready on")
        finally:
            server.kill()
        copy.rename(folder)


def stand_in() -> None:
    """Has this process take them for the bundled ones, once it asks for these.

    It is called before any other module takes that function by its name.
    """
    prepared = os.environ.get(VARIABLE, "")  # it stays for the workers of a server
    setattr(files, "bundled_models", (lambda: Path(prepared)) if prepared else models)  # noqa: B010


def main() -> None:
    stand_in()
    from lengthwise.commands import cli

    cli.main()


if __name__ == "__main__":
    main()

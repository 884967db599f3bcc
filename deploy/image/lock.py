"""Locks what goes into the image: every package with its version and its hashes, for Linux, without torch.

`python deploy/image/lock.py` writes the locks with uv, keeping the pins that still fit; `--upgrade` takes the newest,
`--check` tests whether they are current. A lock is current while its first line has the digest of its inputs, so the
check needs no network, and does not fail because of a new release of a package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
PYTHON = "3.11"
EXTRAS = ("serve", "grpc", "tracing", "stores")  # what `serve`, its options and MODELS may need, besides an onnxruntime
MARK = "# inputs sha256:"


@dataclass(frozen=True)
class Lock:
    """One lock file.

    Attributes:
        name: Of the file, without its ending.
        extras: Those of the service's that are part of it, with its own dependencies; none leaves these out.
        further: A further file of requirements.
    """

    name: str
    extras: tuple[str, ...] = ()
    further: str | None = None

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return FOLDER / f"{self.name}.lock"

    def digest(self) -> str:
        """The digest of everything that decides what belongs into it."""
        inputs = {
            "python": PYTHON,
            "dependencies": _dependencies(self.extras) if self.extras else [],
            "file": (FOLDER / self.further).read_text() if self.further else "",
        }
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()

    def is_current(self) -> bool:
        """Whether it was made of the inputs as they are."""
        return self.file.is_file() and self.file.read_text().startswith(f"{MARK}{self.digest()}\n")

    def write(self, *, upgrade: bool) -> None:
        """Makes it with uv.

        Raises:
            CalledProcessError: uv found no set of versions, or no registry.
        """
        sources = [f"deploy/image/{self.further}"] if self.further else []
        if self.extras:
            sources += ["pyproject.toml", *(f"--extra={extra}" for extra in self.extras)]
        command = [sys.executable, "-m", "uv", "pip", "compile", *sources, "--output-file", str(self.file)]
        command += ["--python-version", PYTHON, "--python-platform", "linux"]
        command += ["--generate-hashes", "--no-header", "--quiet", *(["--upgrade"] if upgrade else [])]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        body = self.file.read_text()
        self.file.write_text(f"{MARK}{self.digest()}\n# Made by `make lock`; do not edit.\n{body}")


LOCKS = (
    Lock("runtime", extras=("cpu", *EXTRAS)),
    Lock("cuda", extras=("gpu", *EXTRAS)),
    Lock("build", further="build.in"),
)


def _dependencies(extras: tuple[str, ...]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    further = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [project["requires-python"], *sorted([*project["dependencies"], *further])]


def main(arguments: list[str]) -> int:
    """Writes or checks all locks; the exit code."""
    parser = argparse.ArgumentParser(description="Locks what goes into the image.")
    parser.add_argument("--check", action="store_true", help="only say whether the locks are current")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of keeping pins")
    options = parser.parse_args(arguments)
    if options.check:
        stale = [lock.file.name for lock in LOCKS if not lock.is_current()]
        if stale:
            print(f"{', '.join(stale)}: made from other inputs; run `make lock`", file=sys.stderr)
        return 1 if stale else 0
    for lock in LOCKS:
        lock.write(upgrade=options.upgrade)
        print(f"{lock.file.relative_to(ROOT)}: {lock.file.read_text().count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

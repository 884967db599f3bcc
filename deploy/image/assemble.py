"""Makes what pip installed into what the image holds: no tests, headers and symbols, but the bytecode of what serves.

`packages FOLDER` is run in a build stage, `interpreter` in the last one. Both end with the same bytes for the
same input: bytecode carries the hash of its source in the place of a time, and every file gets one and the same time.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.util import cache_from_source, find_spec
from pathlib import Path

CACHE = Path("/cache")
USER = 10001
EPOCH_SECONDS = 315_532_800  # 1980: the earliest that zip files can hold
UNUSED_FOLDERS = {"tests", "include", "__pycache__"}
UNUSED_ENDINGS = {".pyi", ".pyx", ".pxd", ".h", ".a", ".c", ".cpp", ".proto"}
# The exporter needs torch, which no image has. onnxruntime's Python module has the runtime inside: libonnxruntime.so is
# for programs in C. numpy's _simd is for its own tests, its f2py for programs in Fortran, its distutils for building
# extensions. rich asks pygments and markdown_it only to show source code and Markdown, which nothing here does;
# fastapi_offline has Redoc's page besides Swagger's; grpc's certificates are for its clients; pydantic's v1 is its
# former interface; of Google's messages gRPC needs those of rpc. Of the hub's library its interface is used: fsspec and
# the folders of it are for other uses, and hf_xet is switched off by HF_HUB_DISABLE_XET, because obstore downloads.
UNUSED_PATHS = (
    "lengthwise_export",
    "*.dist-info/sboms",
    "bin",
    "fastapi_offline/static/redoc*.js",
    "fsspec",
    *(f"google/{name}" for name in ("api", "cloud", "gapic", "logging", "longrunning", "type")),
    "grpc/_cython/_credentials",
    "hf_xet",
    *(f"huggingface_hub/{name}" for name in ("cli", "inference", "serialization", "templates")),
    "markdown_it",
    *(f"numpy/{name}" for name in ("_pyinstaller", "distutils", "f2py", "fft", "polynomial", "testing")),
    "numpy/_core/_simd.*.so",
    "numpy/_core/*_tests.*.so",
    "onnxruntime/capi/libonnxruntime.so.*",
    *(f"onnxruntime/{name}" for name in ("datasets", "quantization", "tools", "transformers")),
    "pydantic/v1",
    *(f"pygments/{name}" for name in ("filters", "formatters", "lexers", "styles")),
)
AS_SHIPPED = ("nvidia", "onnxruntime")  # nothing to gain, and the CUDA libraries could not be tried afterwards
INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "ensurepip")
SERVED = (
    "lengthwise",
    "lengthwise.__main__",
    "lengthwise.processes.server",
    "lengthwise.processes.supervisor",
    "lengthwise.stores.hub",
    "lengthwise.stores.images",
    "lengthwise.stores.objects",
    "uvloop",
    "httptools",
    "uvicorn.lifespan.on",
)


def packages(folder: Path) -> None:
    """Trims the packages in a folder, and compiles those modules of them that serving imports."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if path.name in UNUSED_FOLDERS:
                shutil.rmtree(path)
        elif path.suffix in UNUSED_ENDINGS:
            path.unlink()
    for path in [path for pattern in UNUSED_PATHS for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for library in folder.rglob("*.so*"):
        if library.relative_to(folder).parts[0] not in AS_SHIPPED:
            strip(library)
    compile_modules(file for file in imported_files() if file.is_relative_to(folder))
    for path in (folder, *folder.rglob("*")):
        settle(path)


def interpreter() -> None:
    """Removes the installers from this interpreter, and compiles those of its modules that serving imports.

    It makes the folder of the cache, in the group of users without a name, as whom some clusters run containers.
    """
    CACHE.mkdir()
    os.chown(CACHE, USER, 0)
    CACHE.chmod(0o770)
    touched = {CACHE}
    touched.update(
        compile_modules(file for file in imported_files() if file.is_relative_to(sysconfig.get_path("stdlib")))
    )
    for name in INSTALLERS:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            continue
        package = Path(spec.origin).parent
        shutil.rmtree(package)
        touched.add(package.parent)
        for record in package.parent.glob(f"{name}-*.dist-info"):
            shutil.rmtree(record)
        (package.parent / "distutils-precedence.pth").unlink(missing_ok=True)
    programs = Path(sysconfig.get_path("scripts"))
    for program in [*programs.glob("pip*"), *programs.glob("wheel*"), *Path("/usr/bin").glob("pip*")]:
        program.unlink()
        touched.add(program.parent)
    shutil.rmtree("/usr/share/python-wheels", ignore_errors=True)
    for path in touched:
        settle(path)


def imported_files() -> list[Path]:
    """The source files that a serving process imports, in order.

    They are imported in a process of its own, so that this one holds nothing of what it removes.
    """
    listing = (
        f"import importlib, sys; [importlib.import_module(name) for name in {SERVED!r}];"
        "print(*sorted({m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}), sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-B", "-P", "-c", listing], check=True, stdout=subprocess.PIPE, text=True)
    return [Path(line) for line in found.stdout.splitlines() if line.endswith(".py")]


def compile_modules(sources: Iterable[Path]) -> list[Path]:
    """Compiles sources that have no bytecode yet; every path that this made or changed."""
    touched: list[Path] = []
    for source in sources:
        compiled = Path(cache_from_source(str(source)))
        if compiled.exists():
            continue
        py_compile.compile(
            str(source), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, quiet=1
        )
        touched += [compiled, compiled.parent, source.parent]
    return touched


def strip(library: Path) -> None:
    """Cuts a shared library off behind the last byte that a program header maps: symbols and debug information.

    The loader reads program headers only (System V ABI, chapter 5), so what no segment covers is never looked at.
    """
    with library.open("r+b") as file:
        head = bytearray(file.read(64))
        if head[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian: both architectures of the image
            return
        (first,) = struct.unpack_from("<Q", head, 0x20)
        size, count = struct.unpack_from("<HH", head, 0x36)
        file.seek(first)
        table = file.read(size * count)
        ends = [first + len(table)]
        for at in range(0, len(table), size):
            offset, _, _, length = struct.unpack_from("<4Q", table, at + 8)
            ends.append(offset + length)
        struct.pack_into("<Q", head, 0x28, 0)  # no section headers: where they stood
        struct.pack_into("<HHH", head, 0x3A, 0, 0, 0)  # their size, their number, their names
        file.seek(0)
        file.write(head)
        file.truncate(max(ends))


def settle(path: Path) -> None:
    """Gives a path the one time."""
    if path.exists():
        os.utime(path, (EPOCH_SECONDS, EPOCH_SECONDS), follow_symlinks=False)


if __name__ == "__main__":
    if sys.argv[1] == "packages":
        packages(Path(sys.argv[2]))
    else:
        interpreter()

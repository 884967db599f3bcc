"""What is installed here to run a graph: which onnxruntime, which CUDA libraries, which GPUs.

This module only looks; `runtime.provider` chooses. It asks the GPU driver directly, because onnxruntime lists its
CUDA provider if the package has it, with or without a GPU.
"""

from __future__ import annotations

import ctypes
import io
import platform
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

_import_error = ""
try:
    import onnxruntime
except ImportError as error:  # `provider.choose` says how to install it; commands that run no graph work without
    onnxruntime, _import_error = None, str(error)

PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu")
"""Both install the module `onnxruntime`; the one installed last overwrites the files of the other."""

_DRIVER: Final = "libcuda.so.1"
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_MOST_NAME_BYTES: Final = 256

LoadLibrary = Callable[[str], Any]
"""Loads a shared library by its name, or raises OSError."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the driver shows; `CUDA_VISIBLE_DEVICES` selects them.

    Attributes:
        index: Its number, which onnxruntime uses too.
        name: The name that the driver gives.
        memory_bytes: Its memory.
    """

    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """The GPU driver.

    Attributes:
        cuda: The newest CUDA version that it supports, as `(major, minor)`.
        gpus: The GPUs that may be used.
        problem: Why there is no GPU, as a sentence; None if there are some.
    """

    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Installation:
    """What is installed.

    Attributes:
        packages: The installed ones of `PACKAGES`, with their versions.
        module: Whether the module `onnxruntime` can be imported.
        import_error: Why it cannot be imported.
        providers: onnxruntime's names of the providers in its package.
        cuda: The CUDA version that onnxruntime was built for, such as `13.0`, or empty.
        driver: Asks the driver.
        missing_libraries: Loads the libraries of the CUDA provider: returns the names of those that fail.
    """

    packages: dict[str, str]
    module: bool
    providers: tuple[str, ...]
    cuda: str
    driver: Callable[[], Driver]
    missing_libraries: Callable[[], tuple[str, ...]]
    import_error: str = ""


def find() -> Installation:
    """Finds out what is installed. GPUs and libraries are touched only by `driver` and `missing_libraries`."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    if onnxruntime is None:
        return Installation(packages, False, (), "", Driver, lambda: (), _import_error)
    cuda = str(getattr(onnxruntime, "cuda_version", "") or "")
    return Installation(
        packages=packages,
        module=True,
        providers=tuple(onnxruntime.get_available_providers()),
        cuda=cuda,
        driver=ask_driver,
        missing_libraries=lambda: missing_libraries(cuda),
    )


def ask_driver(load: LoadLibrary = ctypes.CDLL) -> Driver:
    """Asks the driver for its GPUs, through CUDA's driver interface.

    Args:
        load: Loads the driver's library; tests pass their own.
    """
    try:
        cuda = load(_DRIVER)
    except OSError:
        return Driver(problem=f"there is no NVIDIA driver ({_DRIVER} cannot be loaded; a container needs --gpus all)")
    if code := cuda.cuInit(0):
        if code == _NO_DEVICE:
            return Driver(problem="the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide them)")
        return Driver(problem=f"the NVIDIA driver cannot be used: {_error_text(cuda, code)}")
    newest, count = ctypes.c_int(), ctypes.c_int()
    if code := cuda.cuDriverGetVersion(ctypes.byref(newest)) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return Driver(problem=f"the NVIDIA driver cannot be asked for its GPUs: {_error_text(cuda, code)}")
    version_pair = (newest.value // 1000, newest.value % 1000 // 10)
    if not count.value:
        return Driver(version_pair, problem="the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide them)")
    gpus = []
    for index in range(count.value):
        handle, memory = ctypes.c_int(), ctypes.c_size_t()
        name = ctypes.create_string_buffer(_MOST_NAME_BYTES)
        code = (
            cuda.cuDeviceGet(ctypes.byref(handle), index)
            or cuda.cuDeviceGetName(name, _MOST_NAME_BYTES, handle)
            or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        )
        if code:
            return Driver(version_pair, problem=f"GPU {index} does not answer: {_error_text(cuda, code)}")
        gpus.append(Gpu(index, name.value.decode(errors="replace"), memory.value))
    return Driver(version_pair, tuple(gpus))


def missing_libraries(cuda: str, load: LoadLibrary = ctypes.CDLL) -> tuple[str, ...]:
    """Loads the libraries that the CUDA provider needs, as onnxruntime does; returns the names of those that fail.

    The libraries stay loaded in the process. cuDNN is required here: without it onnxruntime loads its provider too, but
    has no recurrent layers.

    Args:
        cuda: The CUDA version that onnxruntime was built for.
        load: Loads a library; tests pass their own.
    """
    if onnxruntime is not None and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what is missing; reported below in one sentence
            onnxruntime.preload_dlls()  # from NVIDIA's Python packages, which are on no library path
    major = cuda.partition(".")[0] or "13"
    needed = (
        f"libcudart.so.{major}",
        f"libcublasLt.so.{major}",
        f"libcublas.so.{major}",
        "libcurand.so.10",
        "libcudnn.so.9",
    )
    missing = []
    for name in needed:
        try:
            load(name)
        except OSError:
            missing.append(name)
    return tuple(missing)


def _error_text(cuda: Any, code: int) -> str:
    """The driver's text for an error code."""
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode(errors='replace')} (error {code})"


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {platform.machine()}"

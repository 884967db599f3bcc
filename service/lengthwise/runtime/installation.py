"""What is installed here to run a graph: which onnxruntime, which CUDA libraries, which GPUs.

This module only looks; `runtime.provider` chooses. It asks the GPU driver directly, because onnxruntime lists its
CUDA provider if the package has it, with or without a GPU.
"""

from __future__ import annotations

import ctypes
import io
import platform
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
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
_ANY_CUDA_LIBRARIES: Final = ("libcurand.so.10", "libcudnn.so.9")
"""Libraries whose names do not have the version of CUDA."""

LoadLibrary = Callable[[str], Any]
"""Loads a shared library by its name, or raises OSError."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the driver shows; `CUDA_VISIBLE_DEVICES` selects them."""

    index: int  # its number, which onnxruntime uses too
    name: str  # the name that the driver gives
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """The GPU driver."""

    cuda: tuple[int, int] = (0, 0)  # the newest CUDA version that it supports, as (major, minor)
    gpus: tuple[Gpu, ...] = ()  # the GPUs that may be used
    problem: str | None = None  # why there is no GPU, as a sentence; None if there are some


@dataclass(frozen=True, slots=True)
class Installation:
    """What is installed."""

    packages: dict[str, str]  # the installed ones of `PACKAGES`, with their versions
    module: bool  # whether the module `onnxruntime` can be imported
    providers: tuple[str, ...]  # onnxruntime's names of the providers in its package
    cuda: str  # the CUDA version that onnxruntime was built for, such as 13.0, or empty
    driver: Callable[[], Driver]  # asks the driver
    missing_libraries: Callable[[], tuple[str, ...]]  # loads the CUDA provider's libraries; names those that fail
    import_error: str = ""  # why the module cannot be imported


def find() -> Installation:
    """Finds out what is installed.

    It touches neither GPUs nor CUDA's libraries: the result's functions `driver` and `missing_libraries` do.
    """
    packages = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    if onnxruntime is None:
        return Installation(packages, False, (), "", Driver, lambda: (), _import_error)
    cuda = str(getattr(onnxruntime, "cuda_version", "") or "")
    providers = tuple(onnxruntime.get_available_providers())
    return Installation(packages, True, providers, cuda, ask_driver, lambda: missing_libraries(cuda))


def ask_driver(load: LoadLibrary = ctypes.CDLL) -> Driver:
    """Asks the driver for its GPUs, through CUDA's driver interface.

    If there is no driver or no GPU, or the driver fails, the result has no GPUs, and its `problem` says why.

    Args:
        load: Loads the driver's library by its name; tests replace it.
    """
    # 1. The driver
    try:
        cuda = load(_DRIVER)
    except OSError:
        return Driver(problem=f"there is no NVIDIA driver ({_DRIVER} cannot be loaded; a container needs --gpus all)")
    if (init_code := cuda.cuInit(0)) not in (0, _NO_DEVICE):
        return Driver(problem=f"the NVIDIA driver cannot be used: {_error_text(cuda, init_code)}")
    # 2. Its version, and the number of GPUs. Its functions write to these numbers, and return an error code or 0.
    newest, count = ctypes.c_int(), ctypes.c_int()
    if not init_code:
        code = cuda.cuDriverGetVersion(ctypes.byref(newest)) or cuda.cuDeviceGetCount(ctypes.byref(count))
        if code:
            return Driver(problem=f"the NVIDIA driver cannot be asked for its GPUs: {_error_text(cuda, code)}")
    version_pair = (newest.value // 1000, newest.value % 1000 // 10)  # 13020 is 13.2
    if not count.value:
        return Driver(version_pair, problem="the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide them)")
    # 3. Each GPU
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

    The libraries stay loaded in the process. cuDNN counts as needed: onnxruntime loads the provider without it, but
    then has no recurrent layers.

    Args:
        cuda: The version of CUDA, such as 13.0; empty for the newest.
        load: Loads a library by its name; tests replace it.
    """
    if onnxruntime is not None and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what is missing; reported below in one sentence
            onnxruntime.preload_dlls()  # from NVIDIA's Python packages, which are on no library path
    major = cuda.partition(".")[0] or "13"
    missing = []
    for name in (*(f"lib{name}.so.{major}" for name in ("cudart", "cublasLt", "cublas")), *_ANY_CUDA_LIBRARIES):
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
    """The name of this machine's processor and its architecture: `AMD EPYC 9654, x86_64`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {platform.machine()}"

"""What this machine and this environment have for running a graph: which onnxruntime, which CUDA libraries, which GPUs.

Looks, and judges nothing: `runtime.provider` makes a choice of it. The driver is asked directly (its library is part of
no package), because onnxruntime lists its CUDA provider wherever the package has it, GPU or none.
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
except ImportError as error:  # `provider.choose` says what brings it; what needs no graph works without
    onnxruntime, _import_error = None, str(error)

PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu")
"""Both bring the module `onnxruntime`, and the second one installed writes over the files of the first."""

_DRIVER: Final = "libcuda.so.1"
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_MOST_NAME_BYTES: Final = 256

LoadLibrary = Callable[[str], Any]
"""Loads a shared library by its name, or raises OSError."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver shows it; `CUDA_VISIBLE_DEVICES` decides which those are.

    Attributes:
        index: Its number, as onnxruntime counts too.
        name: What it calls itself.
        memory_bytes: Its memory.
    """

    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """The GPU driver.

    Attributes:
        cuda: The newest CUDA that it runs, as `(major, minor)`.
        gpus: The GPUs that may be used.
        problem: Why there are none, as a sentence; None where there are.
    """

    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Installation:
    """What was found.

    Attributes:
        packages: Which of `PACKAGES` are installed, with their versions.
        module: Whether the module `onnxruntime` can be imported.
        import_error: Why it cannot.
        providers: onnxruntime's names of the providers that its package has.
        cuda: The CUDA that onnxruntime was built for, as `13.0`, or empty.
        driver: Asks the driver.
        missing_libraries: Tries the libraries that the CUDA provider loads: the names of those that cannot be had.
    """

    packages: dict[str, str]
    module: bool
    providers: tuple[str, ...]
    cuda: str
    driver: Callable[[], Driver]
    missing_libraries: Callable[[], tuple[str, ...]]
    import_error: str = ""


def find() -> Installation:
    """What is here. Neither GPUs nor libraries are touched before they are asked for."""
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
        load: Loads the driver's library; tests give their own.
    """
    try:
        cuda = load(_DRIVER)
    except OSError:
        return Driver(problem=f"there is no NVIDIA driver ({_DRIVER} cannot be loaded; a container wants --gpus all)")
    if code := cuda.cuInit(0):
        if code == _NO_DEVICE:
            return Driver(problem="the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide them)")
        return Driver(problem=f"the NVIDIA driver cannot be used: {_said(cuda, code)}")
    newest, count = ctypes.c_int(), ctypes.c_int()
    if code := cuda.cuDriverGetVersion(ctypes.byref(newest)) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return Driver(problem=f"the NVIDIA driver cannot be asked for its GPUs: {_said(cuda, code)}")
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
            return Driver(version_pair, problem=f"GPU {index} does not answer: {_said(cuda, code)}")
        gpus.append(Gpu(index, name.value.decode(errors="replace"), memory.value))
    return Driver(version_pair, tuple(gpus))


def missing_libraries(cuda: str, load: LoadLibrary = ctypes.CDLL) -> tuple[str, ...]:
    """Loads what the CUDA provider needs, as onnxruntime does; the names of the libraries that cannot be had.

    Without cuDNN onnxruntime loads its provider all the same, and has no recurrent layer then: here it is needed.

    Args:
        cuda: The CUDA that onnxruntime was built for.
        load: Loads a library; tests give their own.
    """
    if onnxruntime is not None and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what is missing; said below, in one sentence
            onnxruntime.preload_dlls()  # from NVIDIA's packages, which no search path names
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


def _said(cuda: Any, code: int) -> str:
    """The driver's own words for an error."""
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode(errors='replace')} (error {code})"


def processor() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {platform.machine()}"

"""Which device there is, and what it says of itself: by `nvidia-smi`, and by torch where that is installed."""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.stage import Stage
from benchmarks.processes import resident_mib

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "numpy", "onnx", "pydantic", "nvidia-cudnn-cu13")


def name(provider: str) -> str | None:
    """The device that a provider runs on; None where there is none."""
    if provider == "cpu":
        return str(machine.facts()["processor"])
    said = smi("name")
    if said is not None:
        return said
    torch = module("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None


def slug(device: str) -> str:
    """A device's name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def smi(*fields: str) -> str | None:
    """What nvidia-smi says of the first device in these fields, commas between; None where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else None


def module(package: str) -> Any:
    """A package, or None where it cannot be imported (a torch without its libraries raises OSError)."""
    try:
        return importlib.import_module(package)
    except (ImportError, OSError):
        return None


def memory_reader(provider: str) -> Callable[[], float] | None:
    """What reads the memory in use, in MiB: of the whole device, or on the CPU this process's own.

    None where nothing on this machine can say it.
    """
    if provider == "cpu":
        return lambda: resident_mib(int(Path("/proc/self").readlink().name))
    nvml, handle = _nvml()
    if nvml is not None:
        return lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20
    if smi("memory.used") is not None:
        return lambda: float(smi("memory.used") or "nan")
    return None


def busy_reader() -> Callable[[], float | None]:
    """What reads the share of time in which any kernel ran, of a period that the driver chooses (some 0.1 s)."""
    nvml, handle = _nvml()
    if nvml is not None:
        return lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100

    def said() -> float | None:
        text = smi("utilization.gpu")
        return int(text) / 100 if text is not None and text.isdigit() else None

    return said


def measure(stage: Stage, figures: Figures) -> None:
    """Section `device`: what all the other figures were measured on."""
    figures.note(name=name(stage.provider), machine=machine.facts(), python=platform.python_version())
    figures.note(packages={package: machine.version_of(package) for package in _PACKAGES})
    if stage.provider == "cuda":
        figures.note(nvidia_smi=smi("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "power.limit"))
    with figures.trying("the service's device"):
        figures.note(served_on=stage.device().label)
    onnxruntime = module("onnxruntime")
    if onnxruntime is not None:
        figures.note(onnxruntime=onnxruntime.__version__, providers=onnxruntime.get_available_providers())
    torch = module("torch")
    if torch is not None:
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        figures.note(torch=torch.__version__, torch_cuda=torch.version.cuda, torch_cudnn=cudnn)
    for graph in ("fp32", "fp16"):
        if graph not in stage.precisions():
            figures.note(left_out={f"{graph}, everywhere": f"there is no {stage.directory(graph)}; --prepare makes it"})
    figures.note(graphs={precision: stage.graph_digest(precision) for precision in stage.precisions()})


def _nvml() -> tuple[Any, Any]:
    """NVIDIA's management library and its handle of the first device; None twice where either cannot be had."""
    nvml = module("pynvml")
    if nvml is None:
        return None, None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        nvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception:  # its errors are made as it is loaded; nvidia-smi may still answer
        return None, None
    return nvml, handle

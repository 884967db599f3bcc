"""The device and what is installed for it, from `nvidia-smi` and the packages' metadata."""

from __future__ import annotations

import importlib
import re
import subprocess
from typing import Any

from benchmarks import machine

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "numpy", "onnx", "nvidia-cudnn-cu13")


def name(provider: str) -> str | None:
    """The device that a provider runs on; None without one."""
    if provider == "cpu":
        return str(machine.facts()["processor"])
    answer = smi("name")
    if answer is not None:
        return answer
    torch = module("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None


def slug(device: str) -> str:
    """A device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def smi(*fields: str) -> str | None:
    """The first device's fields from nvidia-smi, with commas between; None without an answer."""
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


def installed() -> dict[str, str]:
    """Driver, memory and clocks, and the versions of the packages that take part."""
    versions = {package: machine.version_of(package) for package in _PACKAGES}
    driver = smi("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    return {"nvidia-smi": driver or "no answer"} | {name: value for name, value in versions.items() if value}

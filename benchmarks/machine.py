"""What a figure was measured on: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path("benchmarks/results")
"""Where pages of results are; like other documents they are no part of what is measured."""

_PACKAGES = ("onnxruntime", "torch", "numpy", "orjson", "uvicorn", "uvloop", "fastapi", "pydantic", "mosec")


def facts() -> dict[str, Any]:
    """Processor, cores, memory, the versions of all packages that take part, the commit and today's date (UTC)."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        # What else was running when the measurement began.
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "commit": described(Path(__file__).parent),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    """Its name, and what tells apart those that only go by the maker's."""
    known = Path("/proc/cpuinfo")  # of Linux
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    fields = dict(line.split("\t", 1) for line in lines if "\t" in line)
    values = {name.strip(): value.lstrip("\t: ") for name, value in fields.items()}
    flags = values.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "no AVX")
    family = f"family {values.get('cpu family', '?')} model {values.get('model', '?')}"
    return f"{values.get('model name', platform.processor())}, {family}, {widest}"


def version_of(package: str) -> str | None:
    """That of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def described(folder: Path) -> str | None:
    """The commit of a folder, with `-dirty` where its sources have uncommitted changes; None outside git."""
    commit = _git(folder, "describe", "--always")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/*.md", f":!/{RESULTS}")
    return f"{commit}-dirty" if commit and changed else commit or None


def _git(folder: Path, *words: str) -> str:
    """What git says; nothing where it, or a repository, is missing."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=folder)
    except OSError:
        return ""
    return done.stdout.strip()

"""Runs the sections one after the other within a budget, and writes each one's figures as soon as it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.gpu import device, section
from benchmarks.gpu.figures import read, write
from benchmarks.gpu.section import SECTIONS, Section

ROOT = Path(__file__).parents[2]
_LEAST_SECONDS = 10.0


@dataclass(frozen=True)
class GpuRun:
    """One run of the command."""

    provider: Literal["cuda", "cpu"]
    device: str
    models: Path  # holds the graphs
    out: Path  # the JSON file of results, which `resume` reads
    quick: bool  # whether to measure briefly, to see that the code runs
    seed: int  # of the sequences
    budget_seconds: float  # for all sections together
    say: Callable[[str], None]  # prints progress

    def all(self, wanted: Sequence[Section] = SECTIONS, *, resume: bool = False) -> dict[str, Any]:
        """Runs the sections in this order, with `resume` those that the file lacks; returns what the file then has."""
        start = time.monotonic()
        results = self._initial(resume)
        for number, each in enumerate(wanted, start=1):
            if resume and results["sections"].get(each.name, {}).get("status") == "measured":
                continue
            left = self.budget_seconds - (time.monotonic() - start)
            self.say(f"[{number}/{len(wanted)}] {each.name}: {each.question}? ({left:,.0f} s left)")
            if left < _LEAST_SECONDS:
                entry: dict[str, Any] = {"status": "left out", "reason": "no time was left"}
            else:
                entry = self.one(each, min(each.most_seconds, left))
            reason = entry.get("reason", "").strip().splitlines()
            self.say(f"    {each.name}: {entry['status']}{': ' + reason[-1] if reason else ''}")
            results["sections"][each.name] = entry
            write(self.out, results)
        return results

    def one(self, wanted: Section, seconds: float) -> dict[str, Any]:
        """One section's entry in the results: status, seconds, figures, and the reason where some are missing."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            job, figures, reason = (Path(folder, name) for name in ("job.json", "figures.json", "reason.txt"))
            fields = {
                "module": wanted.module,
                "figures": str(figures),
                "reason": str(reason),
                "provider": self.provider,
                "models": str(self.models),
                "quick": self.quick,
                "seed": self.seed,
                # The section plans to end a little before its process would be ended.
                "seconds": max(1.0, 0.9 * seconds),
            }
            write(job, fields)
            code = _exit_code([sys.executable, "-m", "benchmarks.gpu.section", str(job)], seconds)
            status, why = _status(code, reason.read_text(encoding="utf-8") if reason.is_file() else "")
            entry = {
                "status": status,
                "reason": why,
                "seconds": round(time.monotonic() - began, 1),
                "figures": read(figures) or {},
            }
        return {name: value for name, value in entry.items() if value is not None}

    def _initial(self, resume: bool) -> dict[str, Any]:
        earlier = read(self.out) if resume else None
        if isinstance(earlier, dict) and earlier.get("device") == self.device and earlier.get("quick") == self.quick:
            return earlier
        return {
            "device": self.device,
            "provider": self.provider,
            "quick": self.quick,
            "seed": self.seed,
            "machine": machine.facts(),
            "installed": device.installed(),
            "sections": {},
        }


def _exit_code(command: Sequence[str], seconds: float) -> int | None:
    """The exit code of a process; None where it was killed after `seconds`."""
    try:
        return subprocess.run(command, cwd=ROOT, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return None


def _status(code: int | None, reason: str) -> tuple[str, str | None]:
    """A status, and the reason why it is not `measured`."""
    if code is None:
        return "cut short", "its time was over; the figures so far are kept"
    if code in (section.MEASURED, section.IN_PART):
        return ("measured" if code == section.MEASURED else "in part"), None
    if reason:
        return "failed", reason
    died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return "failed", f"its process ended with {died}; its output says more"

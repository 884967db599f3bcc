"""Runs the sections one after the other within a budget, and keeps what came of each as soon as it is there."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.gpu import section
from benchmarks.gpu.figures import read, write
from benchmarks.gpu.sections import SECTIONS, Section

ROOT = Path(__file__).parents[2]
NO_GPU = "Measured on the CPU, to see that the code runs: no figure here is of a GPU"
_LEAST_SECONDS = 10.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """One run of the command.

    Attributes:
        provider: What is measured.
        device: Its name.
        models: Holds the graphs.
        out: The file of results.
        quick: Whether a short look will do.
        seed: Of sequences and arrivals.
        budget_seconds: For all sections together.
        say: Tells a person.
    """

    provider: Literal["cuda", "cpu"]
    device: str
    models: Path
    out: Path
    quick: bool
    seed: int
    budget_seconds: float
    say: Callable[[str], None]

    def all(self, wanted: Sequence[Section] = SECTIONS, *, resume: bool = False) -> dict[str, Any]:
        """Runs the sections; the results, as they stand in the file.

        Args:
            wanted: In this order.
            resume: Whether to keep what the file holds, and to run only what is missing in it.
        """
        start = time.monotonic()
        results = self._begun(resume)
        for number, each in enumerate(wanted, start=1):
            if resume and results["sections"].get(each.name, {}).get("status") == "measured":
                continue
            left = self.budget_seconds - (time.monotonic() - start)
            self.say(f"[{number}/{len(wanted)}] {each.name}: {each.question}? ({left:,.0f} s left)")
            if left < _LEAST_SECONDS:
                found: dict[str, Any] = {"status": "left out", "reason": "no time was left"}
            else:
                found = self.one(each, min(each.most_seconds, left), results)
            self.say(f"    {each.name}: {found['status']}, {found.get('seconds', 0):.1f} s{_because(found)}")
            results["sections"][each.name] = found
            write(self.out, results)
        return results

    def one(self, wanted: Section, seconds: float, results: dict[str, Any]) -> dict[str, Any]:
        """One section's entry in the results: its status, its seconds, its figures and why they are not all there."""
        earlier = {name: held.get("figures", {}) for name, held in results["sections"].items()}
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            job, figures, reason = (Path(folder, name) for name in ("job.json", "figures.json", "reason.txt"))
            section.Job(
                wanted.module,
                str(figures),
                str(reason),
                self.provider,
                str(self.models),
                self.quick,
                self.seed,
                # It ends by itself a little before it would be ended.
                max(1.0, 0.9 * seconds),
                earlier,
            ).write(job)
            ended = _ended([sys.executable, "-m", "benchmarks.gpu.section", str(job)], seconds)
            status, why = _judged(ended, reason.read_text(encoding="utf-8") if reason.is_file() else "")
            found = {
                "status": status,
                "reason": why,
                "seconds": round(time.monotonic() - began, 1),
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": machine.facts()["commit"],
                "figures": read(figures) or {},
            }
        return {name: value for name, value in found.items() if value is not None}

    def _begun(self, resume: bool) -> dict[str, Any]:
        held = read(self.out) if resume else None
        if isinstance(held, dict) and held.get("device") == self.device and held.get("quick") == self.quick:
            return held
        return {
            "device": self.device,
            "provider": self.provider,
            "label": NO_GPU if self.provider == "cpu" else "Measured on the device",
            "quick": self.quick,
            "seed": self.seed,
            "sections": {},
        }


def _ended(command: Sequence[str], seconds: float) -> int | None:
    """The exit code of a process; None where its time was over, and it was ended."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None
    except BaseException:
        process.kill()
        process.wait()
        raise


def _judged(ended: int | None, reason: str) -> tuple[str, str | None]:
    """A status, and why it is not `measured`."""
    if ended is None:
        return "cut short", "its time was over; the figures are those that it had"
    if ended in (section.MEASURED, section.IN_PART):
        return ("measured" if ended == section.MEASURED else "in part"), None
    if ended == section.LEFT_OUT:
        return "left out", reason
    if reason:
        return "failed", reason
    died = f"signal {signal.Signals(-ended).name}" if ended < 0 else f"exit code {ended}"
    return "failed", f"its process ended with {died}; its output says more"


def _because(found: dict[str, Any]) -> str:
    reason = found.get("reason")
    return f": {reason.strip().splitlines()[-1]}" if reason else ""

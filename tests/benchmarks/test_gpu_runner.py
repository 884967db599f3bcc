"""Sections run one after the other, each in its process; figures are kept, and errors stay in their section."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import runner, summary
from benchmarks.gpu.section import Section
from benchmarks.gpu.stage import MODELS

GOOD = """
def measure(stage, figures):
    figures.note(quick=stage.quick, seconds=stage.seconds)
"""
FAILING = """
def measure(stage, figures):
    figures.note(half=1)
    raise ValueError("the other half is not to be had")
"""
DYING = """
import os, signal
def measure(stage, figures):
    figures.note(half=1)
    os.kill(os.getpid(), signal.SIGSEGV)
"""
HANGING = """
import os, threading
def measure(stage, figures):
    figures.note(half=1)
    open(os.environ["HANGS"], "w").close()
    threading.Event().wait()
"""
IN_PART = """
def measure(stage, figures):
    figures.note(half=1)
    with figures.trying("the other half"):
        raise ValueError("gone")
"""


class Scripted(Section):
    """A section whose module stands in a folder of the test's."""

    @property
    def module(self) -> str:
        """There."""
        return self.name


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs scripts by name, each as a section."""
    monkeypatch.setenv("PYTHONPATH", f"{runner.ROOT}:{tmp_path}")

    def these(budget_seconds: float = 600.0, most_seconds: float = 60.0, resume: bool = False, **scripts: str) -> Any:
        for name, text in scripts.items():
            (tmp_path / f"{name}.py").write_text(text)
        out = tmp_path / "results.json"
        job = runner.GpuRun("cpu", "some device", MODELS, out, True, 0, budget_seconds, lambda text: None)
        results = job.all([Scripted(name, "what", most_seconds) for name in scripts], resume=resume)
        assert json.loads(out.read_bytes()) == results
        return results["sections"]

    return these


def test_a_section_is_told_how_long_it_may_take(run):
    found = run(first=GOOD, second=GOOD)
    assert [each["status"] for each in found.values()] == ["measured", "measured"]
    assert found["second"]["figures"] == {"quick": True, "seconds": 54.0}


def test_a_section_that_fails_keeps_its_figures_and_the_reason(run):
    found = run(bad=FAILING, good=GOOD)
    assert (found["bad"]["status"], found["bad"]["figures"]) == ("failed", {"half": 1})
    assert "the other half is not to be had" in found["bad"]["reason"]
    assert found["good"]["status"] == "measured"


def test_the_next_section_runs_after_one_that_crashes(run):
    found = run(bad=DYING, good=GOOD)
    assert (found["bad"]["status"], found["bad"]["figures"]) == ("failed", {"half": 1})
    assert "SIGSEGV" in found["bad"]["reason"]
    assert found["good"]["status"] == "measured"


def test_a_section_that_hangs_is_ended(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hangs = tmp_path / "hangs"
    os.mkfifo(hangs)
    monkeypatch.setenv("HANGS", str(hangs))

    class TimeIsOver(subprocess.Popen):
        """Its time is over as soon as it hangs."""

        def communicate(self, input: None = None, timeout: float | None = None) -> tuple[None, None]:
            if timeout == 60.0:
                hangs.read_text()  # returns when the section has opened it
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().communicate(input, timeout)

    monkeypatch.setattr(subprocess, "Popen", TimeIsOver)
    found = run(bad=HANGING)
    assert (found["bad"]["status"], found["bad"]["figures"]) == ("cut short", {"half": 1})


def test_a_section_with_a_part_missing_does_not_count_as_measured(run):
    found = run(bad=IN_PART)
    assert found["bad"]["status"] == "in part"
    assert found["bad"]["figures"] == {"half": 1, "failures": {"the other half": "ValueError: gone"}}


def test_a_section_that_ran_out_of_time_by_itself_is_run_again_on_resuming(run):
    before = run(slow="def measure(stage, figures):\n    figures.note(half=1, cut_short='no time left')\n")
    assert before["slow"]["status"] == "in part"
    after = run(resume=True, slow=GOOD)
    assert after["slow"]["status"] == "measured"


def test_no_section_is_begun_when_the_budget_is_spent(run):
    found = run(budget_seconds=1.0, good=GOOD)
    assert (found["good"]["status"], found["good"]["reason"]) == ("left out", "no time was left")


def test_resuming_runs_what_is_missing_only(run):
    before = run(first=GOOD, second=FAILING)
    after = run(resume=True, first=FAILING, second=GOOD)
    assert after["first"] == before["first"]
    assert after["second"]["status"] == "measured"


def test_all_missing_figures_are_listed_with_the_reason(run):
    held = run(parity=FAILING, isolation=IN_PART)
    text = "\n".join(summary.missing(held))
    assert "- parity: failed: ValueError: the other half is not to be had" in text
    assert "- isolation, the other half: ValueError: gone" in text
    assert "- throughput: not asked for" in text

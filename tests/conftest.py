"""What holds for every test."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes to draw says more of the machine than of the strategy.
settings.register_profile("lengthwise", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lengthwise")

# A worker runs for each core: threads of torch and of NumPy beside it would only wait for each other.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Keras reads it when it is imported, and without it looks for TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "torch")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs with SIGINT ignored, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of each module that starts servers."""
    for item in items:
        module = getattr(item, "module", None)
        if any(hasattr(module, name) for name in ("ServerProcess", "exit_of", "started")):
            item.add_marker(pytest.mark.process)


def pytest_collection_finish() -> None:
    """Leaves the modules that are imported by now out of every later round of the garbage collector."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Keeps absl from closing pytest's own capture of stderr, where a test has imported Keras by itself."""
    if "absl.logging" in sys.modules:
        from lengthwise_export.keras_models.backend import leave_stderr_open

        leave_stderr_open()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says at the end that nothing was seen on a GPU, and why: a green run alone would not tell."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if report.nodeid.startswith("tests/gpu/")]
    if skipped:
        reason = skipped[0].longrepr[2].removeprefix("Skipped: ")
        terminalreporter.write_line(f"tests/gpu: {len(skipped)} tests skipped, nothing was seen on a GPU: {reason}")

"""What holds for every test."""

import gc
import importlib
import os
import random
import shutil
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from lengthwise.decoding import fast_json
from lengthwise.runtime import recurrent_kernels
from tests.support import prepared, torch_operators

prepared.stand_in()

# Looking through all objects of torch and of what it traced for cycles took a thirteenth of the run.
gc.set_threshold(50_000, 10, 10)

# How long an example takes to draw says more of the machine than of the strategy.
settings.register_profile("lengthwise", max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", settings.get_profile("lengthwise"), max_examples=400)
settings.load_profile("lengthwise")

# A worker runs for each core: threads of torch and of NumPy beside it would only wait for each other.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# A server of the tests is one process, unless it is about several; `make test-workers` says otherwise.
os.environ.setdefault("LENGTHWISE_WORKERS", "1")

# Keras reads it when it is imported, and without it looks for TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "torch")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs with SIGINT ignored, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """Refuses sources whose modules in C were not built, as after a change of branch: many tests would be skipped."""
    built = fast_json.COMPILED and recurrent_kernels.COMPILED
    if not built and shutil.which("cc") and "LENGTHWISE_PURE" not in os.environ:
        raise pytest.UsageError(
            "the modules in C are not built: run 'python setup.py build_ext --inplace', or set LENGTHWISE_PURE=1"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process for each core.

    Each imports torch and Keras, and collects all tests, which takes some twenty seconds of processor time: more than
    eight are not worth it by day. `make gallery PARALLEL="--numprocesses 64 --dist worksteal"` has more.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="N/M", help="run the share N (from 0) of M shares of the chosen tests")


def pytest_collection(session: pytest.Session) -> None:
    """Has each of several processes begin its imports elsewhere: what one has compiled, the others read.

    They collect in one order, and in a new checkout each would compile every file. What cannot be imported is
    reported when it is collected.
    """
    worker, tests = getattr(session.config, "workerinput", None), Path(__file__).parent
    if worker is None or tests not in map(Path.absolute, map(Path, session.config.args)):
        return
    files = [*(tests / "model_export").glob("test_*.py"), *(tests / "service").glob("test_*.py")]
    first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in [*files[first:], *files[:first]]:
        with suppress(Exception, pytest.skip.Exception):  # its collection imports it again, and says what is wrong
            importlib.import_module(f"tests.{file.parent.name}.{file.stem}")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of other shares.

    Of a test marked `sampled(n)`, all but each n-th case are left to `make gallery`.
    """
    seen: Counter[str] = Counter()
    for item in items:
        if sampled := item.get_closest_marker("sampled"):
            test = item.nodeid.partition("[")[0]
            if seen[test] % sampled.args[0]:
                item.add_marker(pytest.mark.gallery)
            seen[test] += 1
    if share := config.getoption("--share"):
        number, shares = map(int, share.split("/"))
        if not 0 <= number < shares:
            raise pytest.UsageError(f"--share {share} has no tests: N/M counts N from 0 to M - 1")
        others = [item for item in items if zlib.crc32(item.nodeid.encode()) % shares != number]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % shares == number]


def pytest_collection_finish() -> None:
    """Sets aside what is imported by now: no later round of the garbage collector looks through the modules again."""
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Gives each test the same random weights, one thread of torch, and the stderr that absl would close."""
    random.seed(0)  # Keras takes its seeds from it
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)  # those of devices take a hundred times as long
        sys.modules["torch"].set_num_threads(1)
    if "torch.onnx._internal.exporter._registration" in sys.modules:
        torch_operators.keep()
    if "absl.logging" in sys.modules:
        from lengthwise_export.keras_models.backend import leave_stderr_open

        leave_stderr_open()


@pytest.fixture(scope="module")
def quick_costs() -> Iterator[None]:
    """Has the costs of models that tests of a module load measured in no time; for what is about their answers."""
    from tests.support import model_directories

    with pytest.MonkeyPatch.context() as patch:
        model_directories.measure_costs_quickly(patch)
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says at the end that nothing was seen on a GPU, and why: a green run alone would not tell."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if report.nodeid.startswith("tests/gpu/")]
    if skipped:
        reason = skipped[0].longrepr[2].removeprefix("Skipped: ")
        terminalreporter.write_line(f"tests/gpu: {len(skipped)} tests skipped, nothing was seen on a GPU: {reason}")

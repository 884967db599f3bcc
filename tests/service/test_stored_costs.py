"""Cost tables that outlive the process that measured them."""

import errno
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lengthwise import files
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.repository import loading, stored_measurements, verifier
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import CPU_DEVICE
from lengthwise.runtime.session import Session
from lengthwise.settings import bundled_models
from lengthwise.verification import promises

TABLE = CostTable([1, 8], [4, 16], np.array([[1.0, 3.0], [4.0, 9.0]]))
UNDER: dict[str, str | int] = {"processor": "one", "max_batch_rows": 8}
SPOILT = b'{"conditions": {"processor": "one", "max_batch_rows": 8}, "table": {"rows": [1], "widths": [4]}}'


def write(directory: Path, under: dict[str, str | int]) -> None:
    stored_measurements.write(directory / stored_measurements.COSTS_FILE, under, table=TABLE.to_json())


def read(directory: Path, wanted: dict[str, str | int]) -> CostTable | None:
    content = files.read_if_any(directory / stored_measurements.COSTS_FILE, promises.MOST_BYTES)
    return stored_measurements.read(
        content, wanted, lambda found: CostTable.from_json(found["table"]), stored_measurements.COSTS_FILE
    )


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the bundled model in it."""
    shutil.copytree(bundled_models(), tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("other", "holds"), [({}, True), ({"processor": "another"}, False), ({"max_batch_rows": 16}, False)]
)
def test_a_table_is_read_under_the_conditions_that_it_was_kept_under(
    tmp_path: Path, other: dict[str, str | int], holds: bool
) -> None:
    assert read(tmp_path, UNDER) is None
    write(tmp_path, UNDER)
    found = read(tmp_path, UNDER | other)
    assert (found and found.to_json()) == (TABLE.to_json() if holds else None)


def test_a_table_of_a_gpu_holds_for_that_gpu_in_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(bundled_models() / "japanese-vowels" / "1")

    def under(provider: str, processor: str, kernels: str = "onnxruntime") -> dict[str, str | int]:
        monkeypatch.setattr(stored_measurements, "processor", lambda: processor)
        session = cast(Session, SimpleNamespace(provider=provider, kernels=kernels))
        return stored_measurements.cost_conditions(manifest, session, BatchLimits())

    gpu = "CUDAExecutionProvider, NVIDIA H200"
    assert under(gpu, "one") == under(gpu, "another")
    assert under(gpu, "one") != under("CUDAExecutionProvider, NVIDIA L4", "one")
    assert under(CPU_DEVICE.label, "one") != under(CPU_DEVICE.label, "another")
    assert under(CPU_DEVICE.label, "one") != under(CPU_DEVICE.label, "one", "avx2")


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", SPOILT], ids=["empty", "no UTF-8", "no table", "no seconds"])
def test_a_spoilt_file_is_passed_over_with_a_word(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / stored_measurements.COSTS_FILE).write_bytes(content)
    assert read(tmp_path, UNDER) is None
    assert "is ignored" in caplog.text


def test_a_load_plans_with_the_table_that_the_one_before_kept_and_writes_none(models: Path) -> None:
    directory = models / "japanese-vowels" / "1"
    costs = directory / stored_measurements.COSTS_FILE
    costs.unlink(missing_ok=True)
    limits = BatchLimits(rows=8, padded_steps=64)
    measured = loading.load(directory, limits, budget_seconds=0.1)
    written = costs.stat().st_mtime_ns
    assert loading.load(directory, limits).cost.to_json() == measured.cost.to_json()
    assert costs.stat().st_mtime_ns == written


@pytest.mark.long
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_kept_table_that_is_far_from_what_runs_take_is_measured_again_and_replaced(
    models: Path, factor: float
) -> None:
    directory = models / "japanese-vowels" / "1"
    costs = directory / stored_measurements.COSTS_FILE
    costs.unlink(missing_ok=True)
    limits = BatchLimits(rows=8, padded_steps=64)
    right = loading.load(directory, limits, budget_seconds=0.1).cost
    kept = json.loads(costs.read_bytes())
    kept["table"]["seconds"] = (factor * right.seconds).tolist()
    costs.write_text(json.dumps(kept))
    again = loading.load(directory, limits, budget_seconds=0.1).cost
    assert 0.1 < again.predict(4, 16) / right.predict(4, 16) < 10
    assert CostTable.from_json(json.loads(costs.read_bytes())["table"]).to_json() == again.to_json()


@pytest.mark.long
def test_a_directory_that_cannot_be_written_is_served_with_one_warning(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def replace(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    directory = models / "japanese-vowels" / "1"
    for name in verifier.STORED_FILES:
        (directory / name).unlink(missing_ok=True)
    monkeypatch.setattr(files, "replace", replace)
    caplog.set_level("INFO")
    assert loading.load(directory, BatchLimits(rows=8, padded_steps=64), budget_seconds=0.01).manifest.version == 1
    (line,) = [line for line in caplog.messages if "cannot be written" in line]
    assert line.startswith(
        f"{directory} cannot be written (Read-only file system): every start verifies and measures it"
    )
    assert re.search(r"which took \d+\.\d s; one start that may write there keeps the results$", line)


@pytest.mark.parametrize(
    ("longest", "budget", "seconds"), [(0.001, 1.0, 0.3), (0.2, 1.0, 0.5), (9.0, 1.0, 1.0), (0.001, 0.1, 0.1)]
)
def test_a_fast_model_is_measured_for_a_part_of_the_budget(longest: float, budget: float, seconds: float) -> None:
    on_processor, on_device = (cast(Session, SimpleNamespace(bound=bound)) for bound in (False, True))
    assert verifier.measuring_seconds(on_processor, longest, budget) == seconds
    assert verifier.measuring_seconds(on_device, longest, budget) == budget

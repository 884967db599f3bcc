"""How many workers serve where nobody says."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import httpx2
import pytest

from lengthwise.application.app import make_app
from lengthwise.errors import ConfigurationError
from lengthwise.files import available_cores
from lengthwise.processes import worker_count
from lengthwise.processes.worker_count import count_workers
from lengthwise.runtime.provider import PROVIDERS, Device, DeviceChoice
from lengthwise.settings import Settings, bundled_models
from tests.support.server_process import started
from tests.support.workers import GOOD, Workers

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve cores, much memory, and no option from the environment."""
    monkeypatch.delenv("LENGTHWISE_WORKERS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(12)), raising=False)
    monkeypatch.setattr("lengthwise.files.cgroup_quota", lambda _root: None)
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(sys, "platform", "linux")


def test_by_default_there_is_one_for_each_core() -> None:
    assert count_workers(Settings()) == (12, "one for each core")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the bundled model, as version 1."""
    (version,) = bundled_models().glob("*/1")
    shutil.copytree(version, tmp_path / "first" / "1")
    return tmp_path


def grow(version: Path, size: int) -> None:
    """Gives a version a graph of `size` bytes, most of them a hole that takes no room."""
    with (version / "model.onnx").open("ab") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    ("cores", "mebibytes", "number"),
    [
        (1, 20, 1),
        (4, 20, 4),
        (7, 20, 7),
        (8, 20, 4),
        (11, 20, 5),
        (12, 3, 12),
        (12, 4, 6),
        (12, 20, 4),
        (16, 8, 5),
        (16, 20, 4),
        (64, 500, 16),
    ],
)
def test_on_many_cores_large_models_have_workers_of_several_runners(
    cores: int, mebibytes: int, number: int, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    grow(repository / "first" / "1", mebibytes * 2**20)
    count = count_workers(Settings(models=repository))
    runners = cores // number
    reason = (
        "one for each core" if runners == 1 else f"one for every {runners} of {cores} cores, as the models are large"
    )
    assert count == (number, reason)


def test_beside_a_small_model_a_large_one_leaves_a_worker_for_each_core(repository: Path) -> None:
    shutil.copytree(repository / "first", repository / "second")
    grow(repository / "second" / "1", 20 * 2**20)
    assert count_workers(Settings(models=repository)).number == 12


def test_a_repository_without_models_has_a_worker_for_each_core(tmp_path: Path) -> None:
    assert count_workers(Settings(models=tmp_path)).number == 12


@pytest.mark.parametrize(("quota", "number"), [(1.0, 1), (0.5, 1), (3.7, 3)])
def test_the_quota_of_a_container_counts(quota: float, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lengthwise.files.cgroup_quota", lambda _root: quota)
    assert count_workers(Settings()).number == number


@pytest.mark.parametrize(("runners", "number"), [(1, 12), (4, 3), (5, 2), (12, 1), (64, 1)])
def test_the_cores_are_divided_by_the_runners_that_each_is_to_have(runners: int, number: int) -> None:
    assert count_workers(Settings(runners=runners)) == (number, f"12 cores, for {runners} runners each")


@pytest.mark.parametrize(("fit", "number"), [(1, 1), (5, 4), (7, 6), (11, 6), (12, 12)])
def test_where_memory_is_short_every_core_has_a_runner(fit: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: fit * GIB // 4 + GIB // 8)
    assert count_workers(Settings()).number == number


@pytest.mark.parametrize("number", [1, 3, 200])
def test_a_number_that_is_given_stays(number: int) -> None:
    assert count_workers(Settings(workers=number)).number == number


def test_auto_is_the_default_in_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().workers is Settings(workers="auto").workers is Settings.load(workers="auto").workers is None
    file = tmp_path / "lengthwise.toml"
    file.write_text('workers = "auto"\n')
    monkeypatch.setenv("LENGTHWISE_CONFIG", str(file))
    assert Settings.load().workers is None
    monkeypatch.setenv("LENGTHWISE_WORKERS", "3")
    assert Settings.load().workers == 3
    monkeypatch.setenv("LENGTHWISE_WORKERS", "auto")
    assert Settings.load().workers is None


@pytest.mark.parametrize("text", ["", "AUTO", "all", "1.5", "None"])
def test_a_text_that_is_no_number_of_workers_is_told_of_auto(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENGTHWISE_WORKERS", text)
    with pytest.raises(ConfigurationError, match=f"LENGTHWISE_WORKERS: must be auto or a whole number, got '{text}'"):
        Settings.load()


def test_there_are_no_more_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: GIB)
    number, reason = count_workers(Settings())
    assert (number, reason[:27]) == (3, "12 cores, but memory for 3,")
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: 0)
    assert count_workers(Settings()).number == 1


def test_large_models_leave_room_for_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (version,) = bundled_models().glob("*/1")
    for number in (1, 2):
        shutil.copytree(version, tmp_path / version.parent.name / str(number))
    with (tmp_path / version.parent.name / "2" / "model.onnx").open("ab") as file:
        file.truncate(GIB)  # a file with a hole: it takes no room
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: 9 * GIB)
    assert count_workers(Settings(models=tmp_path)).number == 4  # (0.25 + 2 * 1) GiB each
    named = Settings(models=tmp_path, versions=f"{version.parent.name}/1")
    assert count_workers(named).number == 12  # the large version is not served


def test_a_limit_of_all_graphs_leaves_each_worker_room_for_those_that_are_served(tmp_path: Path) -> None:
    (version,) = bundled_models().glob("*/1")
    shutil.copytree(version, tmp_path / version.parent.name / "1")
    graph = (tmp_path / version.parent.name / "1" / "model.onnx").stat().st_size
    for most, number in ((100 * graph, 12), (10 * graph, 4), (7 * graph, 3), (graph, 1), (graph // 2, 1)):
        settings = Settings(models=tmp_path, max_model_bytes=most)
        count = count_workers(settings)
        assert (count.number, "max_model_bytes" in count.reason) == (number, number < 12)
        assert settings.of_worker(number)["max_model_bytes"] >= min(most, 2 * graph)


def test_without_a_limit_half_of_the_memory_of_the_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: None)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert count_workers(Settings()).number == 6  # memory for 7 of 4 GiB


@pytest.mark.parametrize(
    ("cores", "gib", "number"),
    [
        (16, 140, 4),
        (12, 140, 4),
        (11, 140, 3),
        (6, 140, 2),
        (1, 140, 1),
        (16, 80, 4),
        (16, 40, 2),
        (16, 24, 1),
        (16, 0, 1),
    ],
)
def test_on_a_gpu_by_its_memory_and_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, gib: int, number: int
) -> None:
    gpu = Device(PROVIDERS["cuda"], name="NVIDIA H100", memory_bytes=gib << 30)
    monkeypatch.setattr(worker_count, "choose", lambda _wanted: DeviceChoice((gpu,)))
    monkeypatch.setattr(worker_count, "available_cores", lambda: cores)
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: 64 << 30)
    found = count_workers(Settings(provider="cuda"))
    assert (found.number, "GPU" in found.reason) == (number, True)
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: 5 << 30)
    assert count_workers(Settings(provider="cuda")).number == min(number, 2)
    assert count_workers(Settings(provider="cuda", workers=5)).number == 5
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: 64 << 30)
    assert count_workers(Settings(provider="cuda", gpu_memory_bytes=33 << 30)).number == min(number, 2)
    assert count_workers(Settings(provider="cuda", gpu_memory_bytes=4 << 30)).number == 1


def test_the_smallest_gpu_and_large_models_count(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = tuple(Device(PROVIDERS["cuda"], index, "NVIDIA H100", gib << 30) for index, gib in enumerate((140, 80)))
    monkeypatch.setattr(worker_count, "choose", lambda _wanted: DeviceChoice(gpus))
    monkeypatch.setattr(worker_count, "available_cores", lambda: 16)
    monkeypatch.setattr(worker_count, "memory_left_bytes", lambda: 64 << 30)
    monkeypatch.setattr(worker_count, "_graph_sizes", lambda _settings: [3 << 30, 1 << 30])
    assert count_workers(Settings(provider="cuda")).number == 80 // (16 + 8)


def test_a_provider_that_is_missing_is_said_before_any_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="--provider cuda is not available"):
        count_workers(Settings(provider="cuda"))


def test_elsewhere_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert count_workers(Settings()).number == 1


async def test_an_application_of_python_is_one_process() -> None:
    application = httpx2.ASGITransport(make_app(Settings(runners=1)))
    async with httpx2.AsyncClient(transport=application, base_url="http://x") as client:
        health = (await client.get("/healthz")).json()
    assert (len(health["workers"]), health["workers_reason"]) == (1, "one process")


@pytest.mark.long
@pytest.mark.process
def test_serve_has_as_many_as_there_are_cores_and_says_why_and_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cores = available_cores()
    with started("--workers", "auto") as server:
        assert len(Workers(server).ready()) == cores
        assert server.get("/healthz").json()["workers_reason"] == "one for each core"
        assert server.predict(GOOD).status_code == 200
        server.wait_for(rf"{cores} workers? \(one for each core\)")
        if cores > 1:
            server.wait_for(rf"all {cores} workers are ready; each has \d+ MiB in memory")

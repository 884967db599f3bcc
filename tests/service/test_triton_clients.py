"""Triton's own clients, unmodified, over both protocols: configuration, statistics, classification, readiness."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.bench.launch import free_port
from tests.support.server_process import started

pytestmark = pytest.mark.process

CLIENT = Path(__file__).parents[1] / "support" / "triton_client.py"


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    port = free_port()
    with started("--grpc-port", str(port), "--workers", "2") as server:
        yield {"http": server.url.removeprefix("http://"), "grpc": f"127.0.0.1:{port}"}


@pytest.fixture(scope="module", params=["http", "grpc"])
def found(request: pytest.FixtureRequest, addresses: dict[str, str]) -> dict[str, Any]:
    """What every call of `triton_client.py` gave."""
    command = [sys.executable, CLIENT, request.param, addresses[request.param]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_what_is_served_is_ready_and_nothing_else(found: dict[str, Any]) -> None:
    assert found["ready"] == [True, True, True]
    assert found["not ready"] == [False, False]


def test_it_knows_the_extensions_and_what_the_model_takes(found: dict[str, Any]) -> None:
    assert {"classification", "model_configuration", "statistics"} <= set(found["extensions"])
    inputs = {tensor["name"]: [int(size) for size in tensor["shape"]] for tensor in found["metadata"]["inputs"]}
    assert inputs == {"values": [-1, -1, 12], "lengths": [-1, 1]}
    config = found["config"].get("config", found["config"])
    assert config["max_batch_size"] == 1024
    assert [int(size) for size in config["input"][0]["dims"]] == [-1, 12]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][1]["optional"] is True
    assert config["version_policy"] == {"latest": {"num_versions": 1}}


def test_it_counts_what_was_answered(found: dict[str, Any]) -> None:
    (one,) = found["statistics"]["model_stats"]
    assert (one["name"], one["version"]) == ("japanese-vowels", "1")
    assert int(one["inference_count"]) >= 8
    success = one["inference_stats"]["success"]
    assert int(success["count"]) >= 4
    assert int(success["ns"]) > int(one["inference_stats"]["compute_infer"]["ns"]) > 0
    assert int(one["last_inference"]) > 1_600_000_000_000
    assert sum(int(batch["compute_infer"]["count"]) for batch in one["batch_stats"]) == int(one["execution_count"])
    assert [other["name"] for other in found["all statistics"]["model_stats"]] == ["japanese-vowels"]


def test_float64_and_a_column_of_lengths_get_the_same_bits(found: dict[str, Any]) -> None:
    assert found["same bits"] == [True, True]


def test_the_best_classes_are_those_of_the_probabilities(found: dict[str, Any]) -> None:
    for row, best in zip(found["probabilities"], found["best"], strict=True):
        ranked = sorted(range(9), key=lambda index: -row[index])[:3]
        assert best == [f"{row[index]:f}:{index}:{index + 1}" for index in ranked]
    assert found["clipped"] == [2, 9]


def test_what_is_not_done_is_refused_by_name(found: dict[str, Any]) -> None:
    assert "/parameters/sequence_id: nothing is kept" in found["a sequence of requests"]
    assert "/outputs/0/parameters/shared_memory_region: no memory is shared" in found["shared memory"]


def test_it_streams_requests_and_gets_each_answer_with_its_id(found: dict[str, Any]) -> None:
    if found["streamed"] is None:
        pytest.skip("over HTTP there are no streams")
    good = [str(number) for number in range(20) if number % 3]
    assert found["streamed"] == {"answered": good, "refused": 20 - len(good), "same": True}

"""KServe's own client, in an environment of its own: its packages and those of gRPC here do not go together.

`make clients` runs this. The environment is made once, in `runs/clients/kserve`, with the newest release.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.bench.launch import free_port
from tests.support.server_process import started

ROOT = Path(__file__).parents[2]
HOME = ROOT / "runs" / "clients" / "kserve"
MODEL = "japanese-vowels"

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What every call of `kserve_client.py` gave, in an environment that has the client."""
    python, port = HOME / "bin" / "python", free_port()
    if not (HOME / "installed").exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, HOME], check=True)
        subprocess.run([*uv, "pip", "install", "--python", python, "kserve"], check=True)
        (HOME / "installed").touch()
    with started("--grpc-port", str(port)) as server:
        command = [python, Path(__file__).with_name("kserve_client.py"), server.url, f"127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_it_finds_the_service_and_its_model_ready(found: dict[str, Any]) -> None:
    names = [name for name in found if name.endswith(("live", "ready"))]
    assert len(names) == 8
    assert {name for name in names if not found[name]} == {"v2 other ready"}


def test_it_is_told_what_the_model_takes(found: dict[str, Any]) -> None:
    assert found["grpc server"] == "lengthwise"
    assert found["grpc metadata"] == {"values": [-1, -1, 12], "lengths": [-1, 1]}


def test_every_way_to_ask_gets_the_same_bits(found: dict[str, Any]) -> None:
    first, *others = (found[name] for name in ("v2 json", "v2 binary", "grpc typed", "grpc raw"))
    assert all(answer == first for answer in others)
    assert (first["id"], first["model"]) == ("mine", MODEL)
    predictions = found["v1"]
    assert [prediction["label"] for prediction in predictions] == first["labels"]
    assert np.float32([prediction["probabilities"] for prediction in predictions]).tobytes().hex() == first["bits"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("v1 wrong", ("400 Bad Request", "/instances/0: a sequence has at least one step")),
        ("v2 wrong", ("400 Bad Request", "2 rows need 'lengths'")),
        ("v2 none", ("404 Not Found", "no such model is served")),
        ("grpc wrong", ("INVALID_ARGUMENT", "2 rows need 'lengths'")),
        ("grpc none", ("NOT_FOUND", "no such model is served")),
    ],
)
def test_it_tells_its_user_what_is_wrong(found: dict[str, Any], call: str, words: tuple[str, ...]) -> None:
    assert all(word in found[call] for word in words)

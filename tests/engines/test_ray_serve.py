"""Ray Serve: two replicas answer requests; one is killed under load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest

import lengthwise
from lengthwise.bench.launch import free_port

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make engines installs it")

CALLERS = 8
CALLS = 150


@pytest.fixture(params=["proxy in Python", "HAProxy"])
def service(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[int]]]:
    """Its address, and the processes of its replicas."""
    port = free_port()
    known = os.environ | {"RAY_SERVE_ENABLE_HA_PROXY": str(int(request.param == "HAProxy"))}
    command = [sys.executable, "-m", "tests.support.ray_service", str(port)]
    with subprocess.Popen(command, env=known, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        yield f"http://127.0.0.1:{port}", pids
        process.communicate(timeout=300)


@pytest.mark.process
def test_a_killed_replica_costs_its_own_calls_and_no_answer_is_wrong(service: tuple[str, list[int]]) -> None:
    address, pids = service
    assert len(pids) == 2
    random = np.random.default_rng(0)
    sequences = [random.normal(size=(length, 12)).astype(np.float32) for length in random.integers(1, 40, CALLS)]
    right = [one.label for one in lengthwise.load().predict(sequences)]
    seen: Counter[object] = Counter()
    wrong: list[int] = []
    began = threading.Barrier(CALLERS + 1)

    def call() -> None:
        with httpx2.Client(base_url=address, timeout=60) as client:
            for number, steps in enumerate(sequences):
                if number == CALLS // 4:
                    began.wait()
                for _ in range(200):
                    try:
                        answered = client.post("/predict", json={"sequences": [steps.tolist()]})
                    except httpx2.TransportError as error:
                        seen[type(error)] += 1
                        continue
                    seen[answered.status_code] += 1
                    if answered.status_code == 200:
                        if answered.json()["predictions"][0]["label"] != right[number]:
                            wrong.append(number)
                        break

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    began.wait()
    os.kill(pids[0], signal.SIGKILL)
    for caller in callers:
        caller.join()
    print(dict(seen))
    assert wrong == []
    assert seen[200] == CALLERS * CALLS
    assert sum(seen.values()) - seen[200] <= 3 * CALLERS  # what the replica held, and what came before Ray knew

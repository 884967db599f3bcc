"""Two instances behind nginx and behind Envoy, with the shipped configurations, checked and tried."""

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from lengthwise.bench.launch import free_port, serve_command
from tests.deploy.live import started, until
from tests.deploy.tools import DEPLOY, PIP, program, run
from tests.support.numpy_models import samples
from tests.support.waiting import answers

CONNECTIONS = 16
BODIES = [json.dumps({"sequences": [[[0.1] * 12] * length]}).encode() for length in (3, 9, 17, 40, 120)]


def _nginx(folder: Path, ports: list[int], port: int) -> list[str | Path]:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    text = text.replace("/tmp/", f"{folder}/").replace("listen 8080", f"listen 127.0.0.1:{port}")
    for number, of_instance in enumerate(ports, 1):
        text = text.replace(f"lengthwise-{number}:8000", f"127.0.0.1:{of_instance}")
    (folder / "nginx.conf").write_text(text)
    folder.chmod(0o755)
    nginx = program("nginx", "apt-get install nginx-light")
    return [nginx, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"]


def _envoy(folder: Path, ports: list[int], port: int) -> list[str | Path]:
    text = (DEPLOY / "envoy" / "envoy.yaml").read_text()
    text = text.replace("address: 0.0.0.0, port_value: 8080", f"address: 127.0.0.1, port_value: {port}")
    for number, of_instance in enumerate(ports, 1):
        text = text.replace(f"lengthwise-{number}, port_value: 8000", f"127.0.0.1, port_value: {of_instance}")
    (folder / "envoy.yaml").write_text(text)
    options = ["-c", folder / "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
    return [program("envoy", PIP), *options]


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    said = run([*_nginx(tmp_path, [8001, 8002], 8080)[:-2], "-t"])
    assert "test is successful" in said


def test_envoy_accepts_its_configuration() -> None:
    run([program("envoy", PIP), "--mode", "validate", "-c", DEPLOY / "envoy" / "envoy.yaml"])


class Instances:
    """Two services that can be restarted one after the other."""

    def __init__(self, folder: Path) -> None:
        self.ports = [free_port(), free_port()]
        self._folder = folder
        self._processes = [self._start(port) for port in self.ports]
        for port in self.ports:
            until("an instance is ready", 60, lambda port=port: answers(port, "/readyz"))

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        with (self._folder / f"{port}.log").open("ab") as log:
            return subprocess.Popen(serve_command(None, port, {"runners": "1"}), stdout=log, stderr=subprocess.STDOUT)

    async def restart(self) -> list[int]:
        """Restarts both, each once the other one is ready and has answered calls of the load; their exit codes."""
        codes = []
        for number, port in enumerate(self.ports):
            self._processes[number].send_signal(signal.SIGTERM)
            codes.append(await asyncio.to_thread(self._processes[number].wait, 40))
            self._processes[number] = self._start(port)
            await asyncio.to_thread(until, "an instance is ready again", 60, lambda port=port: answers(port, "/readyz"))
            await asyncio.to_thread(until, "it has calls again", 60, lambda number=number: self.answered()[number] > 0)
        return codes

    def answered(self) -> list[float]:
        """How many calls each answered with 200 since it was started."""
        pages = [httpx2.get(f"http://127.0.0.1:{port}/metrics").text for port in self.ports]
        first = 'lengthwise_requests_total{code="200",'
        return [sum(value for name, value in samples(page).items() if name.startswith(first)) for page in pages]

    def stop(self) -> None:
        """Ends both."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(40)


@dataclass(frozen=True)
class Balanced:
    """Two instances and the port of the balancer before them."""

    instances: Instances
    port: int

    async def load(self, least: int, meanwhile: Callable[[], object] | None = None) -> Counter[str]:
        """At least so many calls, and until what happens meanwhile is over: how each ended."""
        ends: Counter[str] = Counter()
        going = True
        limits = httpx2.Limits(max_connections=CONNECTIONS)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", limits=limits, timeout=40) as client:

            async def calls(first: int) -> None:
                turn = first
                while going or ends.total() < least:
                    turn += 1
                    try:
                        answer = await client.post("/predict", content=BODIES[turn % len(BODIES)])
                        ends["200" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"] += 1
                    except httpx2.HTTPError as error:
                        ends[type(error).__name__] += 1

            tasks = [asyncio.create_task(calls(first)) for first in range(CONNECTIONS)]
            if meanwhile is not None:
                ends_with = await meanwhile()  # type: ignore[misc]
                assert ends_with == [0, 0], "an instance did not end well"
            going = False
            await asyncio.gather(*tasks)
        return ends


@contextmanager
def _balanced(kind: str, folder: Path) -> Iterator[Balanced]:
    port = free_port()
    with ExitStack() as stack:
        instances = Instances(folder)
        stack.callback(instances.stop)
        command = {"nginx": _nginx, "envoy": _envoy}[kind](folder, instances.ports, port)
        stack.enter_context(started(command, folder / f"{kind}.log"))
        until(f"{kind} answers", 20, lambda: answers(port, "/readyz"))
        yield Balanced(instances, port)


@pytest.mark.deploy
@pytest.mark.parametrize("kind", ["nginx", "envoy"])
def test_both_instances_share_the_load(kind: str, tmp_path: Path) -> None:
    with _balanced(kind, tmp_path) as balanced:
        ends = asyncio.run(balanced.load(2000))
        assert ends == {"200": ends.total()}
        counts = balanced.instances.answered()
        assert min(counts) > 0.3 * sum(counts), counts


@pytest.mark.deploy
@pytest.mark.parametrize("kind", ["nginx", "envoy"])
def test_a_rolling_restart_under_load_fails_no_request(kind: str, tmp_path: Path) -> None:
    with _balanced(kind, tmp_path) as balanced:
        ends = asyncio.run(balanced.load(30_000, balanced.instances.restart))
        print(f"{kind}: {ends.total()} calls, {dict(ends)}")
        assert ends.total() >= 30_000
        assert ends == {"200": ends.total()}

"""Real programs for a while: Prometheus, nginx, Envoy, and load on the service."""

import contextlib
import functools
import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.deploy.tools import DEPLOY, RULES, loaded, program
from tests.support.model_directories import place
from tests.support.waiting import answers, wait_until


@functools.cache
def picture() -> ModuleType:
    """The program that draws the dashboard; it imports matplotlib."""
    return loaded(DEPLOY / "grafana" / "picture.py")


def asked(prometheus: str, path: str, fields: Mapping[str, str | float]) -> Any:
    """What Prometheus answers to a request of its API, as the picture asks it."""
    return picture().asked(prometheus, path, fields)


def until(what: str, seconds: float, holds: Callable[[], bool], logs: Callable[[], str] = str) -> None:
    """Waits until something outside holds, which tells of it by no event; where it does not, its logs are shown."""
    wait_until(holds, lambda: f"not within {seconds} s: {what}\n{logs()}", seconds)


@contextlib.contextmanager
def started(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program while the block runs; its log is shown when it ended by itself."""
    with log.open("wb") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
        assert process.poll() is None, f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-2000:]}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def prometheus(folder: Path, port: int, target: str) -> Iterator[str]:
    """A Prometheus with the shipped rules that scrapes a service each second, as in a pod, once it has; its URL."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES / "*.yml")]
    config["scrape_configs"][0]["static_configs"] = [
        {"targets": [target], "labels": {"namespace": "demo", "pod": "lengthwise-0"}}
    ]
    data = folder / "data"
    data.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={data}"]
    command = [program("prometheus", "apt-get install prometheus"), *options, f"--web.listen-address=127.0.0.1:{port}"]
    with started(command, folder / "prometheus.log"):
        until("Prometheus is ready", 20, lambda: answers(port, "/-/ready"))
        url, up = f"http://127.0.0.1:{port}", {"query": 'up{job="lengthwise"} == 1'}
        until("the target is up", 60, lambda: found(asked(url, "query", up)["result"]))
        yield url


def monitored(folder: Path) -> tuple[Path, dict[str, str]]:
    """A repository of two versions, and the options that watch them all.

    With these, every metric of the service has values, and so has every panel of the dashboard.
    """
    for version in (1, 2):
        place(folder / "models", "japanese-vowels", version)
    watched = {"verify_share": "0.2", "record": str(folder / "records"), "record_share": "0.2", "versions": "all"}
    return folder / "models", watched


def body(*lengths: int, **options: object) -> bytes:
    """A call with sequences of these lengths for the bundled model."""
    return json.dumps({"sequences": [[[0.5] * 12] * length for length in lengths], **options}).encode()


def value(url: str, query: str) -> list[float]:
    """The values of an instant query, one for each series."""
    return [float(one["value"][1]) for one in asked(url, "query", {"query": query})["result"]]


def found(result: Any) -> bool:
    """Whether a query's result has at least one finite value."""
    return any(one["value"][1] not in ("NaN", "+Inf", "-Inf") for one in result)

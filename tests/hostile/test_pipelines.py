"""Thousands of mutated pipelines: each request in one gets what it gets on a connection of its own, in its turn."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.hostile.pipelines import KEY, Report, parsed, run
from tests.hostile.watched import until
from tests.support import proc
from tests.support.server_process import ServerProcess, started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_bytes(KEY + b"\n")
    with started("--api-keys-file", str(keys)) as process:
        yield process


def compared(server: ServerProcess, seed: int, pieces: int, pipelines: int) -> Report:
    pid, began = server.process.pid, time.process_time()
    files, used = proc.open_files(pid), proc.processor_seconds(pid)
    report = asyncio.run(run(server.port, seed, pieces=pieces, pipelines=pipelines))
    print(
        f"{report.pipelines} pipelines of {pieces} pieces: server {proc.processor_seconds(pid) - used:.1f} s, "
        f"client {time.process_time() - began:.1f} s of processor; {dict(report.statuses.most_common())}"
    )
    assert report.failures == []
    assert report.pipelines == pipelines
    assert {200, 400, 401, 404, 405, 415, 422} <= set(report.statuses)  # it did meet them all
    until(lambda: proc.open_files(pid) <= files, "files stay open")
    return report


def test_some_hundred_pipelines_get_what_their_requests_get_alone(server: ServerProcess) -> None:
    compared(server, seed=1, pieces=250, pipelines=400)


@pytest.mark.long
def test_twenty_thousand_pipelines_get_what_their_requests_get_alone(server: ServerProcess) -> None:
    compared(server, seed=2, pieces=6000, pipelines=20_000)


def test_answers_are_told_apart_however_they_arrive() -> None:
    one = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ndate: now\r\n\r\nok"
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    answers, rest = parsed(interim + one + one[:-1])
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"ok")]
    assert rest == one[:-1]

"""Workers that hang, end in the middle of a word, or cannot start: what is well goes on, and nobody is waited for."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from lengthwise.processes.channel import Channel
from tests.support import proc
from tests.support.model_directories import place
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, request, started
from tests.support.waiting import wait_until
from tests.support.workers import GOOD, Workers, until_said

pytestmark = pytest.mark.process

HUNG_SECONDS = 3
MODEL = "/v2/repository/models/japanese-vowels/"


@contextmanager
def serving(*options: str, hung_seconds: float = HUNG_SECONDS) -> Iterator[Workers]:
    """Two workers, both of them ready."""
    with started("--workers", "2", "--hung-seconds", str(hung_seconds), *options) as server:
        found = Workers(server)
        found.ready()
        yield found


def stop(workers: Workers, number: int) -> int:
    """Stops a worker, which then hangs: its process id."""
    pid: int = workers.ready()[number]["pid"]
    os.kill(pid, signal.SIGSTOP)
    return pid


def restarts(server: ServerProcess) -> float:
    return server.figures()["lengthwise_worker_restarts_total"]


def test_one_that_hangs_is_killed_logged_counted_and_replaced() -> None:
    with serving() as workers:
        hung = stop(workers, 0)
        workers.replaced(hung)
        assert re.search(rf"worker 0 \(pid {hung}\) hangs: its event loop has not run for [3-9]", workers.server.text)
        assert restarts(workers.server) == 1
        assert {workers.server.predict(GOOD).status_code for _ in range(8)} == {200}


@pytest.mark.long  # 30 s that an admin call waits for the worker that hangs
def test_while_one_hangs_new_connections_are_answered_whatever_the_others_state() -> None:
    with serving("--admin-calls", hung_seconds=600) as workers:
        server = workers.server
        hung = stop(workers, 0)
        try:
            with ThreadPoolExecutor() as pool:
                unloading = pool.submit(server.client.post, f"{MODEL}unload")
                until_said(server, "is unloaded", 1)  # the healthy one is not ready from now on
                assert {
                    httpx2.get(f"{server.url}/livez", timeout=60, trust_env=False).status_code for _ in range(4)
                } == {200}
                told = unloading.result()
            assert told.status_code == 500
            assert f"worker {hung} failed (it has not answered within 30 s)" in told.text
            began = time.monotonic()
            later = server.client.post(f"{MODEL}load")  # it does not wait for that one again
            assert time.monotonic() - began < 25
            assert (later.status_code, str(hung) in later.text) == (500, True)
            healthy = [one for one in workers() if one["pid"] != hung]
            assert [one["ready"] for one in healthy] == [True]
            assert [one["ready"] for one in workers() if one["pid"] == hung] == [False]
        finally:
            os.kill(hung, signal.SIGCONT)
        workers.ready()  # it has made both changes, in their order
        assert server.client.post(f"{MODEL}load").status_code == 200
        assert {server.predict(GOOD).status_code for _ in range(8)} == {200}


@pytest.mark.long
def test_a_stop_of_all_of_them_kills_none() -> None:
    with serving(hung_seconds=1) as workers:
        pids = [one["pid"] for one in workers()]
        everyone = [*pids, workers.server.process.pid]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in everyone:
                os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(6)  # what a suspended machine is: longer than any worker may hang
        for _ in range(8):
            assert workers.server.predict(GOOD).status_code == 200
        assert [one["pid"] for one in workers.ready()] == pids
        assert "hangs" not in workers.server.text


@pytest.mark.long
@pytest.mark.parametrize("in_hand", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_drain_does_not_wait_for_one_that_hangs(in_hand: bool) -> None:
    with serving("--drain-seconds", "8", hung_seconds=600) as workers, workers.server.connect() as wire:
        server = workers.server
        if in_hand:
            wire.send(request(GOOD)[:-10])  # a call that has come in part
            wait_until(lambda: server.figures()["lengthwise_inflight_bytes"] > 0)
        holds = [one["pid"] for one in workers() if proc.connections(one["pid"], server.port)]
        number = next((n for n, one in enumerate(workers()) if one["pid"] in holds), 0)
        stop(workers, number)
        began = time.monotonic()
        server.terminate()
        assert server.end() == int(in_hand), server.text
        assert time.monotonic() - began < 60


def test_a_line_that_was_cut_or_is_none_ends_only_who_wrote_it() -> None:
    heard: list[str] = []

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        channel = await Channel.open(ours, {"hear": heard.append, "fail": lambda: 1 / 0})
        with closing(theirs):
            for line in (b"\xff\n", b"[1]\n", b"{}\n", b'{"kind": "nobody", "content": []}\n', b"7\n", b"\n"):
                theirs.sendall(line)
            theirs.sendall(b'{"kind": "fail", "content": []}\n{"kind": "hear", "content": ["well"]}\n{"kind": "hea')
        await asyncio.wait_for(channel.receive(), PATIENCE_SECONDS)
        channel.close()

    asyncio.run(talk())
    assert heard == ["well"]


@pytest.mark.long
def test_one_that_is_killed_in_the_middle_of_a_line_is_replaced(tmp_path: Path) -> None:
    for number in range(24):  # its metrics are one line, which is longer than what the socket holds
        place(tmp_path / "models", f"copy-{number}", timed=True)
    with started(str(tmp_path / "models"), "--workers", "2") as server:
        workers = Workers(server)
        pids = [one["pid"] for one in workers.ready()]
        with ThreadPoolExecutor(8) as pool:
            os.kill(server.process.pid, signal.SIGSTOP)  # nobody reads it
            asked = [pool.submit(server.get, "/metrics") for _ in range(8)]
            wait_until(lambda: sum(proc.connections(pid, server.port) for pid in pids) == 8)
            assert {server.predict(GOOD | {"model": "copy-0"}).status_code for _ in range(8)} == {200}
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            os.kill(server.process.pid, signal.SIGCONT)
            assert all(isinstance(one.exception(), httpx2.TransportError) for one in asked)
        workers.when(lambda found: all(one["ready"] and one["restarts"] == 1 for one in found))
        server.terminate()
        assert server.end() == 0, server.text

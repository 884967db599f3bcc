"""The channel between the parent of several workers and one of them: messages, their answers, and the first one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.processes.channel import Channel, receive_start, send_descriptors
from lengthwise.settings import Settings
from tests.support import proc
from tests.support.server_process import PATIENCE_SECONDS, started
from tests.support.workers import Workers


@asynccontextmanager
async def channels(**handlers: Any) -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends of a channel; the second one has the handlers."""
    one, other = [
        await Channel.open(end, which) for end, which in zip(socket.socketpair(), ({}, handlers), strict=True)
    ]
    receiving = [asyncio.ensure_future(end.receive()) for end in (one, other)]
    yield one, other
    other.close()
    one.close()
    await asyncio.wait_for(asyncio.gather(*receiving), PATIENCE_SECONDS)


async def test_a_call_gets_what_its_handler_returns_or_awaits_or_the_text_of_its_error() -> None:
    async def later(number: int) -> list[int]:
        await asyncio.sleep(0)
        return [number, number]

    async with channels(now=lambda number: {"number": number}, later=later, fails=lambda: 1 / 0) as (one, _):
        calls = [one.call("later", 7), one.call("now", 8), one.call("fails"), one.call("nobody")]
        answers = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_SECONDS)
    assert answers[:2] == [[7, 7], {"number": 8}]
    assert [answer["error"].partition(":")[0] for answer in answers[2:]] == ["ZeroDivisionError", "KeyError"]


async def test_messages_are_handled_in_order_and_a_later_call_sees_their_effect() -> None:
    seen: list[int] = []
    async with channels(note=seen.append, count=lambda: len(seen)) as (one, _):
        for number in range(100):
            one.send("note", number)
        assert await asyncio.wait_for(one.call("count"), PATIENCE_SECONDS) == 100
    assert seen == [*range(100)]


async def test_a_call_whose_other_end_is_gone_gets_none() -> None:
    waits = asyncio.Event()

    async def never() -> None:
        waits.set()
        await asyncio.Event().wait()

    async with channels(never=never) as (one, _):
        call = asyncio.ensure_future(one.call("never"))
        await asyncio.wait_for(waits.wait(), PATIENCE_SECONDS)
        one.close()
        assert await asyncio.wait_for(call, PATIENCE_SECONDS) is None
        one.send("never")  # nobody hears it


async def test_a_call_that_begins_when_its_channel_is_closed_gets_none() -> None:
    async with channels(never=asyncio.Event().wait) as (one, _):
        call = asyncio.ensure_future(one.call("never"))
        one.close()  # the worker has ended, before that task had its turn
        assert await asyncio.wait_for(call, PATIENCE_SECONDS) is None


async def test_the_first_message_comes_whole_with_its_descriptors_however_long_it_is(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, (tmp_path / "shared").open("w+b") as file:
        file.write(b"shared")
        file.flush()
        channel = await Channel.open(ours, {})
        send_descriptors(ours, [file.fileno()])
        start = {"settings": {"cors_origins": ["https://a.example"] * 100_000}}
        channel.send("start", start)
        content, descriptors = await asyncio.wait_for(asyncio.to_thread(receive_start, theirs), PATIENCE_SECONDS)
        channel.close()
    assert content == start
    assert [os.pread(descriptor, 6, 0) for descriptor in descriptors] == [b"shared"]
    os.close(descriptors[0])


def test_a_worker_whose_parent_is_gone_before_its_first_message_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(b' {"kind": "start"')
        ours.close()
        with pytest.raises(SystemExit) as ended:
            receive_start(theirs)
    assert ended.value.code == 1


@pytest.mark.long
@pytest.mark.process
def test_a_worker_gets_its_options_on_its_channel_and_not_in_its_environment(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-many-characters")
    with started("--workers", "2", LENGTHWISE_MAX_SEQUENCES="77", LENGTHWISE_API_KEYS_FILE=str(keys)) as server:
        server.client.headers["authorization"] = "Bearer a-key-of-many-characters"
        workers = Workers(server)
        pids = [one["pid"] for one in workers.ready()]
        assert server.client.get("/").json()["limits"]["max_sequences"] == 77
        for pid in pids:
            names = [name for name in proc.environment(pid) if name.startswith("LENGTHWISE_")]
            assert names == ["LENGTHWISE_WORKER_CHANNEL"]


def test_a_variable_that_is_nearly_an_option_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LENGTHWISE_WORKERS", raising=False)
    monkeypatch.setenv("LENGTHWISE_WORKER", "2")
    with pytest.raises(ConfigurationError, match=r"LENGTHWISE_WORKER\b.*LENGTHWISE_WORKERS"):
        Settings.load()


async def test_an_answer_that_is_no_json_is_an_error_for_who_waits_for_it() -> None:
    async with channels(read=lambda: {1, 2}) as (one, _):
        answer = await asyncio.wait_for(one.call("read"), PATIENCE_SECONDS)
        assert "not JSON serializable" in answer["error"]

import asyncio
import gc
import os
import random
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
import uvicorn
from click.testing import CliRunner

from lengthwise.application.app import Application
from lengthwise.bench.launch import free_port
from lengthwise.commands.cli import main as commands
from lengthwise.connections.listener import Listener
from lengthwise.datasets import dataset
from lengthwise.errors import ConfigurationError
from lengthwise.processes.server import Server, serve
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support.server_process import ServerProcess, request, started, well_afterwards
from tests.support.waiting import answers, wait_until

STEP = [0.5] * 12
GOOD = {"sequences": [[STEP, STEP, STEP]]}
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One process with the bundled model, for all tests that leave it as it was."""
    variables = {"LENGTHWISE_LOG_FORMAT": "json", "LENGTHWISE_PORT": "1"}
    with started("--runners", "1", "--max-queue-seconds", "3600", **variables) as process:  # a busy machine is slow
        yield process


@pytest.fixture(autouse=True)
def _well_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from well_afterwards(request, GOOD)


def records() -> list[Any]:
    """The 370 test recordings of JapaneseVowels."""
    return list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST")))


async def post(server: ServerProcess, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a request that closes its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


@pytest.mark.process
def test_every_recording_gets_the_same_bits_alone_at_once_and_in_one_request(server: ServerProcess) -> None:
    recordings = records()
    sequences = [recording.steps.tolist() for recording in recordings]
    sent = [request({"sequences": [steps]}, close=True) for steps in sequences]

    async def one_by_one() -> list[tuple[int, bytes]]:
        return [await post(server, one) for one in sent]

    async def at_once() -> list[tuple[int, bytes]]:
        return await asyncio.gather(*[post(server, one) for one in sent])

    alone, together = (
        [orjson.loads(body)["predictions"][0] for _, body in asyncio.run(way())] for way in (one_by_one, at_once)
    )
    order = list(range(len(sequences)))
    random.Random(1).shuffle(order)
    shuffled = server.predict({"sequences": [sequences[i] for i in order]}).json()["predictions"]
    in_one = [shuffled[order.index(i)] for i in range(len(order))]
    assert alone == together == in_one
    right = [prediction["label"] == recording.label for prediction, recording in zip(alone, recordings, strict=True)]
    assert len(right) == 370
    assert np.mean(right) >= 0.97


def codes(server: ServerProcess) -> Counter[int]:
    """Inference calls by status, over all models."""
    counted: Counter[int] = Counter()
    for name, value in server.figures().items():
        if found := re.match(r'lengthwise_requests_total\{code="(\d+)"', name):
            counted[int(found[1])] += int(value)
    return counted


@pytest.mark.process
def test_a_body_of_a_gigabyte_in_chunks_is_cut_off_at_the_limit_in_bounded_memory(server: ServerProcess) -> None:
    before = server.peak_bytes()
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with server.connect() as wire:
        wire.send(request(b"", content_length="", transfer_encoding="chunked"))
        sent = 0
        try:
            while sent < 1024 * MEBIBYTE:
                wire.send(chunk)
                sent += 65536
        except ConnectionError:
            pass
        status, headers, _ = wire.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert sent < 64 * MEBIBYTE
    assert server.peak_bytes() - before < 64 * MEBIBYTE


@pytest.mark.process
def test_a_length_past_the_limit_is_refused_without_waiting_for_the_body(server: ServerProcess) -> None:
    with server.connect() as wire:
        wire.send(request(b"{", content_length=str(17 * MEBIBYTE)))
        status, headers, body = wire.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert orjson.loads(body)["status"] == 413


@pytest.mark.process
def test_a_body_that_ends_before_its_length_is_a_client_that_left(server: ServerProcess) -> None:
    before = codes(server)[499]
    with server.connect() as wire:
        wire.send(request(b'{"sequences"', content_length="500"))
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.answer()[0] == 0
    assert codes(server)[499] == before + 1


@pytest.mark.process
def test_bytes_past_the_length_are_no_part_of_the_body(server: ServerProcess) -> None:
    with server.connect() as wire:
        wire.send(request(GOOD))
        assert wire.answer()[0] == 200
        wire.send(request(GOOD, content_length="5"))
        assert [wire.answer()[0] for _ in range(3)] in ([422, 400, 0], [400, 0, 0])


@pytest.mark.process
def test_an_answer_names_no_software_and_no_path(server: ServerProcess) -> None:
    answer = server.predict({"sequences": [[["x"]]]})
    assert "server" not in answer.headers
    assert str(Path.cwd()) not in answer.text + server.get("/healthz").text


def accepted(server: ServerProcess, sequences: int) -> None:
    """Returns once so many sequences were read from requests."""
    name = 'lengthwise_sequences_total{model="japanese-vowels",version="1"}'
    wait_until(lambda: server.figures().get(name, 0) >= sequences, server.figures)


@pytest.mark.long
@pytest.mark.process
def test_a_signal_under_load_finishes_what_was_accepted_refuses_the_rest_and_exits_0() -> None:
    # 16 of these sequences fill a batch: six are left, which wait for company until the signal.
    options = ("--runners", "1", "--drain-seconds", "600", "--max-wait-ms", "60000")  # a busy machine drains it slowly
    with started(*options) as server, ThreadPoolExecutor(6) as callers:
        with server.connect() as late, server.connect() as poller:
            body = request(GOOD)
            calls = [callers.submit(server.predict, {"sequences": [[STEP] * 1024] * 41}) for _ in range(6)]
            accepted(server, 6 * 41)
            late.send(body[:-10])  # its request has begun, and is not accepted
            poller.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert poller.answer()[0] == 200
            server.terminate()
            assert poller.answer()[0] == 0  # a kept-alive connection is ended, and does not hold the exit
            late.send(body[-10:])
            status, headers, _ = late.answer()
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
            answers = [call.result() for call in calls]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert "close" in {answer.headers.get("connection") for answer in answers}  # those before may have been quicker
        assert server.end() == 0
        assert "Traceback" not in server.text


@pytest.mark.long
@pytest.mark.process
def test_a_drain_has_an_end() -> None:
    with started("--drain-seconds", "0.2") as server, server.connect() as held:
        held.send(request(GOOD)[:-10])
        accepted(server, 0)
        server.terminate()
        assert server.end() == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--max-batch-rows", "0"], {}, "--max-batch-rows"),
        (["--max-wait-ms", "soon"], {}, "--max-wait-ms"),
        (["--max-wait-ms", "nan"], {}, "--max-wait-ms"),
        (["--no-such-option"], {}, "--no-such-option"),
        (["--port", "65536"], {}, "--port"),
        (["--log-format", "xml"], {}, "--log-format"),
        ([], {"LENGTHWISE_MAX_BATCH_ROWS": "many"}, "LENGTHWISE_MAX_BATCH_ROWS"),
        ([], {"LENGTHWISE_MAX_WAIT_MS": "false"}, "LENGTHWISE_MAX_WAIT_MS"),
        ([], {"LENGTHWISE_MAX_BATCH_ROW": "8"}, "LENGTHWISE_MAX_BATCH_ROW"),
        ([], {"LENGTHWISE_CONFIG": "nowhere.toml"}, "nowhere.toml"),
    ],
    ids=["bound", "kind", "NaN", "unknown", "port", "choice", "variable", "false", "misspelt", "file"],
)
def test_a_wrong_option_is_one_line_and_exit_2(arguments: list[str], variables: dict[str, str], words: str) -> None:
    done = CliRunner().invoke(commands, ["serve", *arguments], env=variables)
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_repository_that_is_not_there_is_one_line_and_exit_2() -> None:
    done = CliRunner().invoke(commands, ["serve", "nowhere"])
    assert done.exit_code == 2
    assert done.output == "error: the model repository nowhere cannot be read: No such file or directory\n"


def test_a_file_in_the_place_of_a_repository_is_told_what_makes_one(tmp_path: Path) -> None:
    (tmp_path / "mymodels.py").touch()
    done = CliRunner().invoke(commands, ["serve", str(tmp_path / "mymodels.py")])
    assert done.exit_code == 2
    assert done.output.endswith("cannot be read: Not a directory; 'lengthwise export' makes NAME/VERSION in a folder\n")


@pytest.fixture
def _interpreter() -> Iterator[None]:
    """Takes back what `serve` sets for the whole process."""
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    gc.unfreeze()


@pytest.mark.usefixtures("_interpreter")
def test_a_signal_ends_both_ports_and_the_traces_and_leaves_the_signals_as_they_were(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    port, admin_port = free_port(), free_port()

    def call_and_end() -> list[int]:
        try:
            with httpx2.Client(trust_env=False) as client:
                wait_until(lambda: answers(admin_port, "/readyz"))
                answered = client.post(f"http://127.0.0.1:{port}/predict", json=GOOD)
                return [answered.status_code, client.get(f"http://127.0.0.1:{admin_port}/metrics").status_code]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as caller:
        called = caller.submit(call_and_end)
        serve(Settings(port=port, admin_port=admin_port, runners=1, workers=1))
    assert called.result() == [200, 200]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert '"name": "POST /predict"' in capsys.readouterr().out
    for ended in (port, admin_port):
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger, no listener
            free.bind(("127.0.0.1", ended))


@pytest.mark.process
def test_the_first_signal_drains_and_the_second_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    serving = Serving(Settings())
    with socket.socket() as unused:
        listener = Listener(unused, max_connections=1, tls=None, handshake_seconds=1)
        server = Server(uvicorn.Config(Application(serving)), listener, serving)
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, serving.batcher.draining, ended) == (True, True, [])
    server.handle_exit(signal.SIGINT, None)
    assert ended == [130]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "::ffff:zz"])
def test_an_address_that_cannot_be_had_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        serve(Settings(host=host))
    assert "--host must be an address of this machine" in str(told.value)
    assert "--port" not in str(told.value)


def test_a_port_that_is_taken_is_exit_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = CliRunner().invoke(commands, ["serve", "--port", str(taken.getsockname()[1])])
    assert done.exit_code == 2
    assert "another --port may be free" in done.output


@pytest.mark.process
def test_a_variable_is_an_option_and_a_flag_beats_it(server: ServerProcess) -> None:
    assert server.get("/livez").status_code == 200  # though a variable has another port
    assert all(orjson.loads(line)["level"] for line in server.said)


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("_interpreter")
@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [("127.0.0.1", False, ""), ("0.0.0.0", False, "0.0.0.0:"), ("0.0.0.0", True, ""), ("::", False, r"\[::\]:")],
)
def test_the_log_warns_where_anybody_may_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    host: str,
    keys: bool,
    warns: str,
) -> None:
    (tmp_path / "keys").write_text("a-key-of-sixteen-or-more\n")
    monkeypatch.setattr(Server, "run", lambda self: None)
    keys_file = tmp_path / "keys" if keys else None
    serve(Settings(host=host, port=free_port(), models=tmp_path, api_keys_file=keys_file, workers=1))
    assert bool(re.search(f"anybody who reaches {warns}", caplog.text)) is bool(warns)

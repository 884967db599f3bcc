"""What a signal to stop does to those who call at that moment: nobody's connection is reset, everybody is told."""

import asyncio
import os
import signal
import ssl
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import orjson
import pytest
import trustme

from lengthwise.bench.launch import free_port
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import INFER
from tests.support.server_process import ServerProcess, started
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "examples" / "japanese-vowels.json").read_bytes()


def asked(path: str, body: bytes, *, version: str = "1.1", keep: bool = False) -> bytes:
    """The bytes of one request."""
    connection = "keep-alive" if keep else "close"
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: {connection}\r\n\r\n"
    return head.encode() + body


V2 = orjson.dumps({"inputs": [{"name": "values", "shape": [1, 3, 12], "datatype": "FP32", "data": [0.5] * 36}]})
ORDINARY = asked("/predict", EXAMPLE).replace(b"connection: close\r\n", b"")
REQUESTS = {
    "predict": ORDINARY,
    "predict, told to close": asked("/predict", EXAMPLE),
    "HTTP/1.0": asked("/predict", EXAMPLE, version="1.0"),
    "v2": asked("/v2/models/japanese-vowels/infer", V2),
    "kept alive": asked("/predict", EXAMPLE, keep=True),
}


@dataclass
class Outcomes:
    """What became of each attempt, by whether it began before the signal."""

    signalled: float = float("inf")
    counted: dict[str, Counter[str]] = field(default_factory=lambda: {"before": Counter(), "after": Counter()})

    def note(self, began: float, outcome: str) -> None:
        self.counted["before" if began < self.signalled else "after"][outcome] += 1


async def answered(reader: asyncio.StreamReader) -> tuple[str, bool]:
    """The status of one answer and whether its connection ends with it; or what came in its place."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        return ("torn" if error.partial else "no answer"), True
    return head[9:12].decode(), b"connection: close" in head.lower()


async def call(server: ServerProcess, sent: bytes, outcomes: Outcomes, tls: ssl.SSLContext | None) -> None:
    """Calls on new connections until nobody listens any more, one request each, or more while the server lets it."""
    keep = b"connection: keep-alive" in sent
    while True:
        began = time.monotonic()
        try:
            name = "localhost" if tls else None
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls, server_hostname=name)
        except ConnectionRefusedError:
            outcomes.note(began, "refused")
            return
        except OSError:
            outcomes.note(began, "reset")
            continue
        try:
            ends = False
            while not ends:
                began = time.monotonic()
                writer.write(sent)
                status, ends = await answered(reader)
                outcomes.note(began, status)
                ends = ends or not keep
        except OSError:
            outcomes.note(began, "reset")
        finally:
            writer.close()


async def round_of(
    server: ServerProcess, sent: bytes, clients: int, answers: int, tls: ssl.SSLContext | None = None
) -> None:
    """Many clients, and a signal when so many answers were there.

    Every attempt is answered, refused in words, or not let in because nobody listens any more.
    """
    outcomes = Outcomes()

    async def signal_amid() -> None:
        while outcomes.counted["before"]["200"] < answers:
            await asyncio.sleep(0)
        outcomes.signalled = time.monotonic()
        server.terminate()

    async with asyncio.timeout(180), asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(call(server, sent, outcomes, tls))
        group.create_task(signal_amid())
    assert outcomes.counted["before"].keys() <= {"200", "503"}, outcomes.counted
    assert outcomes.counted["after"].keys() <= {"200", "503", "refused"}, outcomes.counted


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("workers", "answers"), [(1, 300), (2, 150)])  # of two, one still starts, and hangs
def test_nobody_is_reset_at_a_signal(workers: int, answers: int) -> None:
    with started("--workers", str(workers), "--runners", "1", "--drain-seconds", "10") as server:
        if workers == 2:
            os.kill(killed := server.get("/healthz").json()["workers"][1]["pid"], signal.SIGKILL)
            wait_until(lambda: server.get("/healthz").json()["workers"][1]["pid"] not in (0, killed))
            os.kill(starts := server.get("/healthz").json()["workers"][1]["pid"], signal.SIGSTOP)
            threading.Timer(4, os.kill, (starts, signal.SIGCONT)).start()
        asyncio.run(round_of(server, ORDINARY, 50, answers))
        assert server.end() == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", [*REQUESTS, "TLS"])
def test_two_hundred_clients_many_times(kind: str, tmp_path: Path) -> None:
    options, trusting = ["--drain-seconds", "10"], None
    if kind == "TLS":
        authority, trusting = trustme.CA(), ssl.create_default_context()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
        authority.configure_trust(trusting)
        options += ["--tls-cert-file", str(tmp_path / "server.pem")]
    for _ in range(10 if kind == "predict" else 3):
        with started(*options, verify=trusting) as server:
            asyncio.run(round_of(server, REQUESTS.get(kind, ORDINARY), 200, 1000, trusting))
            assert server.end() == 0


@pytest.mark.long
async def test_grpc_calls_are_answered_or_told() -> None:
    port = free_port()
    message = pb.ModelInferRequest(
        model_name="japanese-vowels",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="values", datatype="FP32", shape=[1, 3, 12])],
    )
    message.inputs[0].contents.fp32_contents.extend([0.5] * 36)
    outcomes: Counter[str] = Counter()
    signalled = asyncio.Event()

    async def calls(channel: grpc.aio.Channel) -> None:
        infer = channel.unary_unary(f"/{INFER}")
        while True:
            try:
                await infer(message.SerializeToString(), timeout=180)
                outcomes["OK"] += 1
                if outcomes["OK"] == 200:
                    signalled.set()
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1
                return

    with started("--grpc-port", str(port), "--runners", "1", "--drain-seconds", "10") as server:
        async with asyncio.timeout(180), AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for _ in range(20):
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
                group.create_task(calls(channel))
            await signalled.wait()
            server.terminate()
        assert await asyncio.to_thread(server.end) == 0
    assert outcomes.pop("OK") >= 200
    assert outcomes == {"UNAVAILABLE": 20}  # each client ends with it

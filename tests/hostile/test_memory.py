"""Memory under many bodies at once: what is sent, inflated, waiting or left unread is bound for all callers together.

Each attack would take most of a gigabyte if every body had only its own limit. The server may hold 32 MiB of bodies,
and what its reader, its runtime and the allocator take beside that is allowed for.
"""

import contextlib
import gzip
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import orjson
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from tests.hostile.watched import MEBIBYTE, STEP
from tests.support import proc
from tests.support.numpy_models import idle
from tests.support.server_process import ServerProcess, Wire, started
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.process]

BODY_BYTES = 4 * MEBIBYTE
BOUND_BYTES = 32 * MEBIBYTE
BESIDE_BYTES = 160 * MEBIBYTE
"""What two large bodies take while they are read, what the kernel and the parser read ahead, what is not given back."""
MANY = 200
SMALL = {"sequences": [[STEP]], "timeout_ms": 1000}
"""Its deadline ends its wait for company where there is one."""
GOOD = orjson.dumps({"sequences": [[STEP]]})
WHOLE = GOOD + b" " * (BODY_BYTES - len(GOOD))


class Attacked:
    """A server, what it held before the attack, and its gRPC port."""

    def __init__(self, server: ServerProcess, grpc_port: int) -> None:
        self.server = server
        self.grpc_port = grpc_port
        wait_until(self.answers, "it does not answer", 60)
        self.before = proc.resident_bytes(server.process.pid)

    def stays_within_the_bound(self) -> None:
        """Its peak was near the bound, it answers, and in the end nothing is in hand."""
        assert self.server.peak_bytes() - self.before < BOUND_BYTES + BESIDE_BYTES
        wait_until(lambda: idle(self.server.figures()), "something waits", 60)
        wait_until(lambda: self.server.figures()["lengthwise_inflight_bytes"] == 0, "bytes are in hand", 60)
        wait_until(self.answers, "it does not answer", 60)

    def answers(self) -> bool:
        """Whether a small call is answered; on a busy machine one may miss its deadline, which ended its wait."""
        return self.server.predict(SMALL).status_code == 200


@pytest.fixture
def attacked(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    options = list(getattr(request, "param", ()))
    port = free_port()
    bounds = ["--max-body-bytes", str(BODY_BYTES), "--max-inflight-bytes", str(BOUND_BYTES), "--grpc-port", str(port)]
    with started("--runners", "1", *bounds, *options) as server:
        yield Attacked(server, port)


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %s HTTP/1.1" % path, b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def at_once(count: int, action: Callable[[], int]) -> list[int]:
    """What so many threads come to that do the same at once."""
    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(lambda _: action(), range(count))]


def asked(server: ServerProcess, request: bytes) -> int:
    """The status of a request on a connection of its own; 0 where it ended without an answer."""
    with server.connect() as wire, contextlib.suppress(ConnectionError):
        wire.socket.settimeout(120)
        wire.send(request)
        return wire.answer()[0]
    return 0


def test_bodies_that_inflate_take_turns(attacked: Attacked) -> None:
    request = post(b"/predict", gzip.compress(WHOLE), b"content-encoding: gzip")
    assert len(request) < 10_000
    statuses = at_once(MANY, lambda: asked(attacked.server, request))
    assert set(statuses) <= {200, 503, 504}
    assert 200 in statuses
    attacked.stays_within_the_bound()


@pytest.mark.parametrize(
    "path", [b"/predict", b"/v1/models/japanese-vowels:predict", b"/v2/models/japanese-vowels/infer"]
)
def test_bodies_that_come_at_once_are_refused_past_the_bound(attacked: Attacked, path: bytes) -> None:
    statuses = at_once(MANY, lambda: asked(attacked.server, post(path, WHOLE)))
    assert set(statuses) <= {0, 200, 400, 422, 503, 504}
    attacked.stays_within_the_bound()


def test_bodies_that_never_end_are_refused_past_the_bound_and_others_are_answered(attacked: Attacked) -> None:
    wires: list[Wire] = []
    for _ in range(MANY):
        wires.append(attacked.server.connect())
        with contextlib.suppress(OSError):
            wires[-1].socket.settimeout(5)
            wires[-1].send(post(b"/predict", WHOLE)[:-MEBIBYTE])
    figures = attacked.server.figures()
    assert figures["lengthwise_inflight_bytes"] <= BOUND_BYTES
    assert figures['lengthwise_rejected_total{model="",reason="inflight_full",version=""}'] > MANY // 2
    for wire in wires:
        wire.__exit__()
    attacked.stays_within_the_bound()


@pytest.mark.parametrize("attacked", [("--max-wait-ms", "60000")], indirect=True)
def test_a_waiting_sequence_keeps_only_its_own_bytes_and_frees_them_with_its_caller(attacked: Attacked) -> None:
    values = np.zeros((1, 1024, 12), dtype="<f4")
    tensors = [
        {
            "name": "values",
            "datatype": "FP32",
            "shape": values.shape,
            "parameters": {"binary_data_size": values.nbytes},
        },
        {"name": "lengths", "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4}},
    ]
    head = orjson.dumps({"inputs": tensors})
    head += b" " * (3 * MEBIBYTE - len(head))  # what is kept of such a body is a thousandth
    body = head + values.tobytes() + (1).to_bytes(4, "little")
    request = post(b"/v2/models/japanese-vowels/infer", body, b"inference-header-content-length: %d" % len(head))
    wires = [attacked.server.connect() for _ in range(60)]
    waiting = 'lengthwise_queue_sequences{model="japanese-vowels",version="1"}'
    for number, wire in enumerate(wires, 1):
        wire.send(request)
        wait_until(lambda number=number: attacked.server.figures()[waiting] >= number, "it does not wait", 60)
    assert attacked.server.figures()["lengthwise_inflight_bytes"] < 60 * 32_768  # with room for the answers
    for wire in wires:
        wire.__exit__()
    attacked.stays_within_the_bound()


def test_messages_over_grpc_take_turns(attacked: Attacked) -> None:
    steps = (BODY_BYTES - 1000) // 48
    message = pb.ModelInferRequest(
        model_name="japanese-vowels",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="values", datatype="FP32", shape=[1, steps, 12])],
        raw_input_contents=[bytes(steps * 48)],
    ).SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{attacked.grpc_port}", options=options) for _ in range(4)]
    calls = [channel.unary_unary(f"/{SERVICE}/ModelInfer") for channel in channels]
    futures = [calls[i % 4].future(message, timeout=60) for i in range(MANY)]
    codes = {future.code() for future in futures}
    assert codes <= {
        grpc.StatusCode.INVALID_ARGUMENT,  # more steps than the model takes
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    for channel in channels:
        channel.close()
    attacked.stays_within_the_bound()

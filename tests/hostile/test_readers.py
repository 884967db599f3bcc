"""Clients that do not read what they asked for, over HTTP and gRPC: they are given up, and nobody else is harmed."""

import signal
import socket
import struct
import time
from contextlib import ExitStack

import numpy as np
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.connections.draining import UNREAD_SECONDS
from lengthwise.connections.unread import PATIENCE_SECONDS as UNREAD_PATIENCE_SECONDS
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from tests.hostile.watched import GOOD, MEBIBYTE, STEP, narrow, stuff, unharmed
from tests.support import http2, proc
from tests.support.server_process import PATIENCE_SECONDS, request, started
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.process]

CALLS = 8
ROWS = 1024


def test_whoever_does_not_read_does_not_hold_the_exit() -> None:
    with started() as server, ExitStack() as stack:
        for _ in range(5):
            stuff(stack.enter_context(narrow(server.port)), request(GOOD))
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        print(f"ended after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 7 * UNREAD_SECONDS


def test_the_memory_of_large_answers_that_nobody_reads_is_let_go_of() -> None:
    large = {"sequences": [[STEP]] * ROWS, "outputs": ["attention"]}
    with started() as server, unharmed(server, growth_bytes=128 * MEBIBYTE, longest_seconds=20), ExitStack() as stack:
        wires = [stack.enter_context(narrow(server.port)) for _ in range(20)]
        before = proc.resident_bytes(server.process.pid)
        for wire in wires:
            stuff(wire, request(large))
        held = proc.resident_bytes(server.process.pid)
        print(f"held {(held - before) / MEBIBYTE:.1f} MiB")
        for wire in wires:  # each is cut off: what it has not read does not come
            wait_until(lambda wire=wire: ended(wire.socket), "the connection stays", 3 * UNREAD_PATIENCE_SECONDS + 30)


def ended(connection: socket.socket) -> bool:
    """Whether the peer has ended a connection of which nothing is read."""
    established = 1  # the first byte of TCP_INFO is the state
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != established


def question() -> bytes:
    """A call of many rows; its answer is larger than any buffer of the transport."""
    request = pb.ModelInferRequest(model_name="japanese-vowels")
    values, lengths = np.zeros((ROWS, 1, 12), "<f4"), np.ones((ROWS, 1), "<i4")
    for name, datatype, array in (("values", "FP32", values), ("lengths", "INT32", lengths)):
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return http2.message(request.SerializeToString())


def ask_without_reading(port: int) -> socket.socket:
    """A connection that makes a call and takes no byte of its answer."""
    no_window = struct.pack(">HI", 0x4, 0)
    connection = http2.Connection(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS), no_window)
    body = question()
    assert len(body) < 65_535  # the window that every client has at first
    connection.begin(f"/{SERVICE}/ModelInfer", body)
    return connection.wire


def test_answers_over_grpc_that_nobody_reads_are_counted_and_given_up() -> None:
    port = free_port()
    name = 'lengthwise_requests_total{code="200",key="-",model="japanese-vowels",version="1"}'
    with started("--grpc-port", str(port)) as server:

        def in_hand() -> bool:
            return server.figures()["lengthwise_inflight_bytes"] > 0

        def answered(count: int) -> None:
            wait_until(lambda: server.figures().get(name, 0) >= count, "they are not answered", 3 * PATIENCE_SECONDS)

        deaf = [ask_without_reading(port) for _ in range(CALLS)]
        answered(CALLS)
        wait_until(in_hand, "no answer is in hand", 1)
        wait_until(lambda: not in_hand(), "they stay in hand", 3 * PATIENCE_SECONDS)
        again = ask_without_reading(port)
        answered(CALLS + 1)
        assert "Traceback" not in server.text
        for connection in (*deaf, again):
            connection.close()
        wait_until(lambda: not in_hand(), "the last one stays", PATIENCE_SECONDS)

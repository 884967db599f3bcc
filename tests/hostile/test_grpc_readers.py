"""gRPC's answers that nobody reads: HTTP/2 by hand, with a window of no bytes."""

import socket
import struct

import numpy as np
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from tests.hostile.watched import until
from tests.support import http2
from tests.support.server_process import PATIENCE_SECONDS, started

CALLS = 8
ROWS = 1024


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


@pytest.mark.long
def test_answers_over_grpc_that_nobody_reads_are_counted_and_given_up() -> None:
    port = free_port()
    name = 'lengthwise_requests_total{code="200",model="japanese-vowels",version="1"}'
    with started("--grpc-port", str(port)) as server:

        def in_hand() -> bool:
            return server.figures()["lengthwise_inflight_bytes"] > 0

        def answered(count: int) -> None:
            until(lambda: server.figures().get(name, 0) >= count, "they are not answered", 3 * PATIENCE_SECONDS)

        deaf = [ask_without_reading(port) for _ in range(CALLS)]
        answered(CALLS)
        until(in_hand, "no answer is in hand", 1)
        until(lambda: not in_hand(), "they stay in hand", 3 * PATIENCE_SECONDS)
        again = ask_without_reading(port)
        answered(CALLS + 1)
        assert "Traceback" not in server.text
        for connection in (*deaf, again):
            connection.close()
        until(lambda: not in_hand(), "the last one stays", PATIENCE_SECONDS)

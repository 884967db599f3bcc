"""gRPC's answers that nobody reads: HTTP/2 by hand, with a window of no bytes."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping

import numpy as np
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.protocols.grpc_infer import SERVICE
from lengthwise.protocols.open_inference import open_inference_pb2 as pb
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, started

CALLS = 8
ROWS = 1024


def message() -> bytes:
    """A call of many rows, as gRPC frames it; its answer is larger than any buffer of the transport."""
    request = pb.ModelInferRequest(model_name="japanese-vowels")
    values, lengths = np.zeros((ROWS, 1, 12), "<f4"), np.ones((ROWS, 1), "<i4")
    for name, datatype, array in (("values", "FP32", values), ("lengths", "INT32", lengths)):
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    packed = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(packed)) + packed


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(fields: Mapping[str, str]) -> bytes:
    """Fields as literals that nobody indexes (RFC 7541, 6.2.3)."""
    return b"".join(
        b"\x10" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def ask_without_reading(port: int) -> socket.socket:
    """A connection that makes a call and takes no byte of its answer."""
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    no_window = struct.pack(">HI", 0x4, 0)
    call = headers(
        {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/{SERVICE}/ModelInfer",
            ":authority": "x",
            "content-type": "application/grpc",
            "te": "trailers",
        }
    )
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(0x4, 0, 0, no_window) + frame(0x1, 0x4, 1, call))
    body = message()
    assert len(body) < 65_535  # the window that every client has at first
    for at in range(0, len(body), 16_384):
        connection.sendall(frame(0x0, at + 16_384 >= len(body), 1, body[at : at + 16_384]))
    return connection


def wait_until(server: ServerProcess, inflight: str, seconds: float) -> None:
    """Returns once answers are in hand, or none is."""
    deadline = time.monotonic() + seconds
    while (server.figures()["lengthwise_inflight_bytes"] > 0) != (inflight == "some"):
        assert time.monotonic() < deadline, server.figures()["lengthwise_inflight_bytes"]
        time.sleep(0.02)


@pytest.mark.long
def test_answers_over_grpc_that_nobody_reads_are_counted_and_given_up() -> None:
    port = free_port()
    name = 'lengthwise_requests_total{code="200",model="japanese-vowels",version="1"}'
    with started("--grpc-port", str(port)) as server:
        deaf = [ask_without_reading(port) for _ in range(CALLS)]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while server.figures().get(name, 0) < CALLS:
            assert time.monotonic() < deadline
        wait_until(server, "some", 1)  # all are answered, and the answers are still in hand
        wait_until(server, "none", 3 * PATIENCE_SECONDS)
        again = ask_without_reading(port)
        while server.figures()[name] < CALLS + 1:
            assert time.monotonic() < deadline + 3 * PATIENCE_SECONDS
        assert "Traceback" not in server.text
        for connection in (*deaf, again):
            connection.close()
        wait_until(server, "none", PATIENCE_SECONDS)

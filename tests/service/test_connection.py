"""One connection of the client, against a peer that behaves badly."""

import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from lengthwise.bench.connection import ConnectionLostError, LoadConnection, ServerAddress


@pytest.fixture
def pair() -> Iterator[tuple[LoadConnection, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = LoadConnection(ServerAddress(*listener.getsockname()))
        peer, _ = listener.accept()
        with peer, connection.socket:
            yield connection, peer


@pytest.mark.parametrize("act", [LoadConnection.receive, lambda connection: connection.send(b"x")])
def test_a_reset_connection_is_lost(
    pair: tuple[LoadConnection, socket.socket], act: Callable[[LoadConnection], object]
):
    connection, peer = pair
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets at once
    peer.close()
    with pytest.raises(ConnectionLostError):
        act(connection)


def test_what_a_full_socket_does_not_take_stays_unsent(pair: tuple[LoadConnection, socket.socket]):
    connection, _ = pair
    request = b"x" * 50_000_000
    connection.send(request)
    rest = connection.unsent
    assert 0 < len(rest) < len(request)
    connection.send(rest)
    assert len(connection.unsent) == len(rest)


def test_nothing_there_yet_is_no_answer(pair: tuple[LoadConnection, socket.socket]):
    connection, _ = pair
    assert connection.receive() is None


def test_an_answer_split_within_its_head_is_read_whole(pair: tuple[LoadConnection, socket.socket]):
    connection, peer = pair
    connection.socket.setblocking(True)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
    assert connection.receive() is None
    peer.sendall(b"ngth: 2\r\nConnection: close\r\n\r\nok")
    answer = connection.receive()
    assert answer == (200, b"http/1.1 200 ok\r\ncontent-length: 2\r\nconnection: close\r\n", b"ok")

"""The connections of a port that another library accepted, found among this process's own files."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lengthwise.grpc.connections import AcceptedConnections

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1", "::"], ids=["IPv4", "IPv6", "IPv4 on a socket of IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[AcceptedConnections, Pair]]:
    """A port, and a connection to it: the client's side and the other one."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        if request.param == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((request.param, 0))
        listener.listen()
        port = listener.getsockname()[1]
        client = stack.enter_context(
            socket.create_connection(("127.0.0.1" if request.param == "::" else request.param, port))
        )
        accepted = stack.enter_context(listener.accept()[0])
        yield AcceptedConnections(port), (client, accepted)


def name_of(client: socket.socket) -> str:
    return "{}:{}".format(*client.getsockname()[:2])


def test_a_connection_is_found_by_its_client(pair: tuple[AcceptedConnections, Pair]) -> None:
    connections, (client, accepted) = pair
    assert connections.look() == [name_of(client)]
    accepted.close()
    assert connections.look() == []


def test_what_arrived_is_counted_where_the_system_says_it(pair: tuple[AcceptedConnections, Pair]) -> None:
    connections, (client, accepted) = pair
    assert connections.received_bytes(name_of(client)) is None  # nobody has looked
    connections.look()
    if connections.received_bytes(name_of(client)) is None:
        pytest.skip("this system does not say how many bytes arrived")
    assert connections.received_bytes(name_of(client)) == 0
    client.sendall(b"a" * 1000)
    assert accepted.recv(2000) == b"a" * 1000
    assert connections.received_bytes(name_of(client)) == 1000
    assert connections.received_bytes("192.0.2.1:1") is None


def test_a_connection_is_ended_for_both_sides(pair: tuple[AcceptedConnections, Pair]) -> None:
    connections, (client, accepted) = pair
    connections.look()
    connections.end(name_of(client))
    assert client.recv(1) == accepted.recv(1) == b""
    connections.end(name_of(client))  # it has ended, which is no error
    accepted.close()
    connections.end(name_of(client))

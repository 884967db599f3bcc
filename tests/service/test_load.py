"""The client: when requests go out, what counts as an answer, and what a latency is."""

import socket
import threading
from collections.abc import Callable

import pytest

from lengthwise.bench import load as load_module
from lengthwise.bench.connection import ConnectionLostError, LoadConnection, ServerAddress
from lengthwise.bench.load import Load, Measurement, Schedule, ask_each
from lengthwise.errors import ConfigurationError
from tests.support.small_server import Reply, SmallServer, serving


def requests_for(target: ServerAddress, count: int, *, size: int = 1) -> list[bytes]:
    bodies = [b'{"sequences": [[[%d, 1]%s]]}' % (number, b", [0, 0]" * size) for number in range(count)]
    return [target.request("/predict", body, {"content-type": "application/json"}) for body in bodies]


def load(
    behave: Callable[[int, Reply], Reply] = lambda _number, reply: reply,
    schedule: Schedule | None = None,
    *,
    connections: int = 2,
    distinct: int = 3,
    **options: object,
) -> tuple[SmallServer, Measurement]:
    server = SmallServer(behave=behave)
    with serving(server) as target:
        requests = requests_for(target, distinct)
        schedule = schedule or Schedule(seconds=30.0, count=20)
        return server, Load(target, requests, schedule, **options).run(connections)


def test_a_closed_loop_sends_as_many_requests_as_it_is_told_and_times_each():
    server, seen = load()
    assert len(server.bodies) == len(seen.status) == 20
    assert set(seen.status) == {200}
    assert (seen.latency > 0).all()
    assert (seen.due == seen.sent).all()
    assert (seen.unanswered, seen.broken, seen.wrong) == (0, 0, 0)
    assert 0 < seen.cpu_seconds <= seen.seconds * 1.5


def test_a_closed_loop_ends_when_its_time_is_over():
    _, seen = load(schedule=Schedule(seconds=0.05))
    assert seen.sent.max() < 0.05


def test_requests_go_round_in_their_order():
    server, _ = load(connections=1, schedule=Schedule(count=7))
    assert server.bodies == [server.bodies[number % 3] for number in range(7)]
    assert len(set(server.bodies)) == 3


def test_a_closed_loop_keeps_as_many_requests_on_their_way_as_it_has_connections():
    together = threading.Barrier(3, timeout=180)

    def wait_for_the_others(_number: int, reply: Reply) -> Reply:
        together.wait()
        return reply

    _, seen = load(wait_for_the_others, Schedule(count=6), connections=3)
    assert len(seen.status) == 6


def test_an_open_loop_sends_each_request_at_its_moment():
    moments = [0.0, 0.03, 0.03, 0.06]
    _, seen = load(schedule=Schedule(moments))
    assert sorted(seen.due) == moments
    assert (seen.sent >= seen.due).all()
    assert seen.seconds >= 0.06


def test_a_latency_counts_from_the_moment_due_when_the_server_stalls():
    released = threading.Event()

    def stall_first(number: int, reply: Reply) -> Reply:
        if number == 0:
            released.wait(0.1)
        return reply

    _, seen = load(stall_first, Schedule([0.0, 0.01, 0.02]), connections=1)
    # The second and third found the only connection taken; they were due long before they could be sent.
    assert (seen.latency[1:] > 0.07).all()
    assert (seen.sent[1:] - seen.due[1:] > 0.07).all()


def test_a_server_too_far_behind_is_given_up_and_the_unsent_are_counted():
    def dawdle(_number: int, reply: Reply) -> Reply:
        threading.Event().wait(0.05)
        return reply

    _, seen = load(dawdle, Schedule([0.0] * 50), connections=1, limit_seconds=0.2)
    assert 1 <= len(seen.status) < 10
    assert seen.unsent == 50 - len(seen.status)


def test_an_answer_that_the_check_does_not_accept_is_wrong():
    _, seen = load(check=lambda place, _body: place != 1, schedule=Schedule(count=6))
    assert seen.wrong == 2


def test_a_refusal_is_an_answer_and_is_not_checked():
    _, seen = load(lambda _number, _reply: Reply(429, b"{}"), check=lambda _place, _body: False)
    assert set(seen.status) == {429}
    assert seen.wrong == 0


def test_a_request_whose_connection_breaks_is_counted_and_the_load_goes_on():
    def break_every_fifth(number: int, reply: Reply) -> Reply:
        return Reply(0, b"", close=True) if number % 5 == 4 else reply

    _, seen = load(break_every_fifth)
    assert seen.broken == 4
    assert len(seen.status) == 16


def test_a_connection_that_is_lost_while_sending_is_replaced(monkeypatch: pytest.MonkeyPatch):
    send = LoadConnection.send
    calls: list[bytes | memoryview] = []

    def fail_third(connection: LoadConnection, request: bytes | memoryview) -> None:
        calls.append(request)
        if len(calls) == 3:
            raise ConnectionLostError
        send(connection, request)

    monkeypatch.setattr(LoadConnection, "send", fail_third)
    _, seen = load()
    assert (len(seen.status), seen.broken) == (19, 1)


def test_a_connection_that_the_server_will_close_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
):
    wait = load_module.wait_for_events
    # An event that comes twice finds its connection closed by the first.
    monkeypatch.setattr(load_module, "wait_for_events", lambda *waited, **how: wait(*waited, **how) * 2)
    _, seen = load(lambda _number, reply: Reply(200, reply.body, close=True, head=(("Connection", "close"),)))
    assert (len(seen.status), seen.broken) == (20, 0)


def test_a_connection_that_is_closed_while_idle_is_replaced():
    server = SmallServer(behave=lambda _number, reply: Reply(200, reply.body, close=True))
    with serving(server) as target:
        seen = Load(target, requests_for(target, 1), Schedule([0.0, 0.05, 0.1])).run(1)
    assert set(seen.status) == {200}
    assert (len(seen.status), seen.broken) == (3, 0)


def test_an_answer_that_never_comes_is_given_up():
    released = threading.Event()

    def hold(number: int, reply: Reply) -> Reply:
        if number == 1:
            released.wait(5)
        return reply

    server = SmallServer(behave=hold)
    with serving(server) as target:
        seen = Load(target, requests_for(target, 2), Schedule(count=2), patience_seconds=0.05).run(2)
        released.set()
    assert seen.unanswered == 1
    assert len(seen.status) == 1


@pytest.mark.long
def test_a_request_larger_than_the_sockets_buffers_arrives_whole():
    server = SmallServer()
    with serving(server) as target:
        (request,) = requests_for(target, 1, size=1_500_000)
        seen = Load(target, [request], Schedule(count=1), patience_seconds=60).run(1)
    assert set(seen.status) == {200}
    assert len(server.bodies[0]) > 10_000_000


def test_an_answer_in_many_pieces_is_read_whole():
    long = b'{"predictions": [' + b" " * 3_000_000 + b"]}"
    server = SmallServer(behave=lambda _number, _reply: Reply(200, long))
    with serving(server) as target:
        assert ask_each(target, requests_for(target, 2)) == [long, long]


def test_an_answer_without_its_length_is_refused_by_name():
    with pytest.raises(ConfigurationError):
        load(lambda _number, reply: Reply(200, reply.body, content_length=False))


def test_nobody_listening_is_said_with_the_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = ServerAddress(*taken.getsockname())
        with pytest.raises(ConfigurationError, match=target.url):
            Load(target, [b"x"], Schedule(seconds=1)).run(1)


def test_asking_one_by_one_gives_the_bodies_in_order():
    server = SmallServer()
    with serving(server) as target:
        bodies = ask_each(target, requests_for(target, 3))
    assert [b"[%d.0" % (number + 1) in body for number, body in enumerate(bodies)] == [True] * 3


def test_asking_one_by_one_says_what_was_answered_instead():
    server = SmallServer(behave=lambda _number, _reply: Reply(503, b""))
    with serving(server) as target, pytest.raises(ConfigurationError):
        ask_each(target, requests_for(target, 3))


def test_a_progress_bar_is_told_what_was_sent():
    told: list[tuple[int, float]] = []
    load(tick=lambda sent, passed: told.append((sent, passed)))
    assert told[0][0] > 0
    assert told[0][1] >= 0


@pytest.mark.parametrize("url", ["https://a:1", "a:1", "http://a:1/predict", "http://a:x", "http://"])
def test_a_url_of_another_form_is_refused(url: str):
    with pytest.raises(ConfigurationError):
        ServerAddress.parse(url)


def test_a_url_without_a_port_means_port_80():
    assert ServerAddress.parse("http://localhost/") == ServerAddress("localhost", 80)


def test_an_ipv6_address_stands_in_brackets():
    target = ServerAddress.parse("http://[::1]:8000")
    assert target == ServerAddress("::1", 8000)
    assert b"host: [::1]:8000\r\n" in target.request("/predict", b"", {})
    assert target.url == "http://[::1]:8000"

"""What a client is behind: proxies, ports that speak something else, paths that lead away, and versions that change."""

import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
import trustme

import lengthwise
from lengthwise import errors
from lengthwise.bench import remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.launch import free_port
from lengthwise.client.proxies import is_loopback, proxy_of

STEPS = np.ones((3, 2), dtype=np.float32)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Handler(socketserver.BaseRequestHandler):
    """Answers one request with what the server was given, or with nothing."""

    def handle(self) -> None:
        self.request.settimeout(10)
        try:
            self.server.seen.append(self.request.recv(65536))  # type: ignore[attr-defined]
            self.request.sendall(self.server.reply)  # type: ignore[attr-defined]
        except OSError:
            pass


@contextmanager
def listening(reply: bytes, context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers everything so: its port, and what it has read."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Prints nothing where a client goes away."""

    with Server(("127.0.0.1", 0), Handler) as server:
        server.seen, server.reply = [], reply  # type: ignore[attr-defined]
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], server.seen  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
BAD_GATEWAY = (
    b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: 4\r\nconnection: close\r\n\r\nsqd!"
)


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_no_proxy_leads_to_this_machine(monkeypatch: pytest.MonkeyPatch, variable: str, host: str) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    with listening(OK) as (port, _), lengthwise.Client(f"http://{host}:{port}", retries=0) as client:
        assert client.get("/healthz") == {}


def test_an_error_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    client = lengthwise.Client("http://models.invalid", retries=0)
    with client, pytest.raises(errors.ServerUnreachable) as told:
        client.get("/healthz")
    assert f"http_proxy (127.0.0.1:{port})" in str(told.value)
    assert "secret" not in str(told.value)
    with listening(BAD_GATEWAY) as (proxy, seen):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        client = lengthwise.Client("http://models.invalid", retries=0)
        with client, pytest.raises(errors.RequestError) as refused:
            client.get("/healthz")
    assert seen
    assert f"http_proxy (127.0.0.1:{proxy})" in str(refused.value)


def test_a_load_says_that_it_goes_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    with pytest.raises(errors.ConfigurationError, match=r"http_proxy \(proxy.invalid:3128\)"):
        remote.get(ServerAddress("models.invalid", 80), "/")


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("http://a.example", {}, ""),
        ("http://a.example", {"http_proxy": "p:1"}, "http_proxy (p:1)"),
        ("https://a.example", {"http_proxy": "p:1"}, ""),
        ("https://a.example", {"all_proxy": "socks5://u:k@p:1"}, "all_proxy (p:1)"),
        ("http://a.example", {"http_proxy": "p:1", "no_proxy": "a.example"}, ""),
        ("http://[::1]:80", {"http_proxy": "p:1"}, ""),
        ("http://dev.localhost:80", {"http_proxy": "p:1"}, ""),
    ],
)
def test_the_proxy_of_an_address(
    monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == expected


def test_loopback_hosts() -> None:
    assert all(map(is_loopback, ("localhost", "LOCALHOST.", "127.9.9.9", "::1", "[::1]", "a.localhost")))
    assert not any(map(is_loopback, ("localhost.example", "10.0.0.1", "127.example", "")))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "path", ["http://elsewhere.invalid/healthz", "//elsewhere.invalid/healthz", "healthz", "", " //elsewhere.invalid/"]
)
async def test_a_path_leads_to_the_server_or_nowhere(path: str, is_async: bool) -> None:
    sent: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200, json={})

    transport = httpx2.MockTransport(answer)
    for method in ("get", "post"):
        if is_async:
            async with lengthwise.AsyncClient(key="secret", transport=transport) as client:
                with pytest.raises(errors.ConfigurationError):
                    await getattr(client, method)(path)
        else:
            plain = lengthwise.Client(key="secret", transport=transport)
            with plain, pytest.raises(errors.ConfigurationError):
                getattr(plain, method)(path)
    assert sent == []


# Ports that speak something else.


def context_of(authority: trustme.CA, *, client_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    if client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


@pytest.mark.parametrize(
    ("scheme", "of_server", "said"),
    [
        ("http", "tls", "https://"),
        ("https", "plain", "http://"),
        ("https", "client certificate", "load_cert_chain"),
        ("https", "unknown authority", "cafile"),
    ],
)
def test_a_port_that_speaks_something_else_is_told(scheme: str, of_server: str, said: str) -> None:
    authority = trustme.CA()
    trusted = ssl.create_default_context()
    if of_server != "unknown authority":
        authority.configure_trust(trusted)
    context = None if of_server == "plain" else context_of(authority, client_certificate=of_server.startswith("client"))
    with listening(b"" if context else BAD_GATEWAY, context) as (port, _):
        client = lengthwise.Client(f"{scheme}://localhost:{port}", retries=0, verify=trusted)
        with client, pytest.raises(errors.ServerUnreachable) as told:
            client.get("/healthz")
    assert said in str(told.value).partition("; ")[2]


def test_a_certificate_of_an_authority_that_is_trusted_is_taken() -> None:
    authority, trusted = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trusted)
    with (
        listening(OK, context_of(authority)) as (port, _),
        lengthwise.Client(f"https://localhost:{port}", retries=0, verify=trusted) as client,
    ):
        assert client.get("/healthz") == {}


# Versions.


def split_call(answers: Callable[[str | None], httpx2.Response]) -> tuple[Any, list[str | None]]:
    """The predictions of a call of three requests, and the versions that they asked for."""
    asked: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(200, json={"limits": {"max_sequences": 1}})
        asked.append(orjson.loads(request.content).get("version"))
        return answers(asked[-1])

    with lengthwise.Client(transport=httpx2.MockTransport(answer), retries=0) as client:
        return client.predict([STEPS] * 3), asked


def predicted(version: str) -> httpx2.Response:
    entry = {"label": "a", "score": 0.5, "probabilities": [0.5, 0.5], "length": 3}
    return httpx2.Response(200, json={"model": "m", "version": version, "labels": ["a", "b"], "predictions": [entry]})


def test_the_parts_of_a_call_ask_for_the_version_of_the_first() -> None:
    newest = iter(["1", "2", "3"])
    found, asked = split_call(lambda version: predicted(next(newest) if version is None else version))
    assert asked == [None, "1", "1"]
    assert (found.version, [one.version for one in found]) == ("1", ["1", "1", "1"])


def test_each_prediction_says_its_version_where_the_first_is_gone() -> None:
    newest = iter(["1", "2", "3"])
    gone = httpx2.Response(404, json={"title": errors.ModelNotFound.title, "detail": "no version 1"})
    found, asked = split_call(lambda version: predicted(next(newest)) if version is None else gone)
    assert asked == [None, "1", None, "1", None]
    assert [one.version for one in found] == ["1", "2", "3"]


def test_a_prediction_shows_what_is_set() -> None:
    found, _ = split_call(lambda _: predicted("1"))
    assert repr(found[0]) == (
        "Prediction(probabilities=array([0.5, 0.5], dtype=float32), length=3, label='a', score=0.5, version='1')"
    )


def test_many_sequences_with_one_cause_are_one_line() -> None:
    problems = [errors.Problem(f"/sequences/{place}", f"takes 2 features, this has {place}") for place in range(200)]
    said = str(errors.InvalidSequences(problems))
    assert len(said) < 200
    assert "199 more" in said
    assert errors.InvalidSequences(problems).indices == tuple(range(200))

"""A head is known again only where the parser would make the same of it."""

from types import SimpleNamespace
from typing import Any, cast

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lengthwise.http.fast_path import MAX_KNOWN_FIELDS, FastPath
from lengthwise.protocols.endpoint import LONGEST_KEY_BYTES

HEADERS = {b"host": b"x", b"content-type": b"application/json", b"content-length": b"4"}
FIRST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nbody"


class Head:
    """What a fast path makes of requests after one, whose headers the parser read."""

    def __init__(self, request: bytes, headers: dict[bytes, bytes], max_bytes: int = 65_536) -> None:
        serving: Any = SimpleNamespace(inflight=None, request_limits=SimpleNamespace(body_bytes=max_bytes))
        self._path = FastPath([cast("Any", SimpleNamespace(serving=serving))])
        self._path.remember(request, cast("Any", SimpleNamespace(headers=headers, endpoint=None, scope={})))
        self.is_kept = self._path.known(request) is not None

    def body(self, request: bytes) -> bytes | None:
        known = self._path.known(request)
        return None if known is None else known[-1]

    def headers(self, request: bytes) -> dict[bytes, bytes]:
        known = self._path.known(request)
        assert known is not None
        return known[1]


@pytest.mark.parametrize("first", [FIRST, b"POST / HTTP/1.1\r\ncontent-length: 4\r\nhost: x\r\n\r\nbody"])
@pytest.mark.parametrize("body", [b"", b"x", b"body", b"b" * 12_345])
def test_the_same_head_with_another_length_is_known_up_to_the_limit(first: bytes, body: bytes):
    request = first.replace(b": 4", b": %d" % len(body))[:-4] + body
    assert Head(first, HEADERS, len(body)).body(request) == body
    assert Head(first, HEADERS, len(body) - 1).body(request) is None
    # all but the length
    assert Head(first, HEADERS).headers(request) == {b"host": b"x", b"content-type": b"application/json"}


@pytest.mark.parametrize(
    "request_",
    [
        FIRST[:-1],
        FIRST + b"P",
        FIRST.replace(b"Host: x", b"Host: y"),
        FIRST.replace(b"Host", b"host"),
        FIRST.replace(b"/predict", b"/predicts"),
        FIRST.replace(b": 4", b": 04 "),
        FIRST.replace(b": 4", b": +4"),
        FIRST.replace(b": 4", b": "),
        FIRST.replace(b": 4", b": 4\r\nContent-Length: 4"),
        FIRST.replace(b": 4", b": 4\r\nTransfer-Encoding: chunked"),
        FIRST.replace(b": 4", b": 4;"),
        FIRST.replace(b": 4", b": 00000004"),
        FIRST.replace(b"\r\n\r\n", b"\n\n"),
        FIRST.replace(b": 4", ": ٤".encode()),  # a digit of another script
        b"",
    ],
)
def test_any_other_request_is_for_the_parser(request_: bytes):
    assert Head(FIRST, HEADERS).is_kept
    assert Head(FIRST, HEADERS).body(request_) is None


@pytest.mark.parametrize(
    ("first", "headers"),
    [
        (b"POST / HTTP/1.1\r\nhost: x\r\n\r\n", {b"host": b"x"}),
        (b"POST / HTTP/1.1\r\ncontent-length:4\r\n\r\nbody", {b"content-length": b"4"}),
        (b"POST / HTTP/1.1\r\na: \r\n\r\ncontent-length: 4\r\n\r\nbody", {b"content-length": b"4"}),
        (b"POST / HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nbody", {b"content-length": b"4"}),
        (b"POST / HTTP/1.1\r\ncontent-length: 4\r\n 4\r\n\r\nbody", {b"content-length": b"4 4"}),
        (b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbod", {b"content-length": b"4"}),
    ],
    ids=["no length", "no space", "in the body", "twice", "folded", "incomplete"],
)
def test_a_head_whose_length_does_not_stand_in_it_plainly_is_not_kept(first: bytes, headers: dict[bytes, bytes]):
    assert not Head(first, headers).is_kept


def test_a_large_head_is_not_kept():
    def is_kept(fields: int, size: int) -> bool:
        more = [(b"x%d" % number, b"v" * size) for number in range(fields - len(HEADERS))]
        lines = b"".join(b"%s: %s\r\n" % field for field in more)
        return Head(FIRST.replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n"), HEADERS | dict(more)).is_kept

    assert is_kept(MAX_KNOWN_FIELDS, 10)
    assert not is_kept(MAX_KNOWN_FIELDS + 1, 10)
    assert not is_kept(10, LONGEST_KEY_BYTES // 7)


class Parsed:
    """What the parser makes of some bytes: whole requests, each with its headers and body."""

    def __init__(self, data: bytes) -> None:
        self.requests: list[tuple[list[tuple[bytes, bytes]], bytes]] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = b""
        httptools.HttpRequestParser(self).feed_data(data)

    def on_message_begin(self) -> None:
        self._headers, self._body = [], b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.requests.append((self._headers, self._body))


_PIECES = st.sampled_from(
    [b"host: x", b"Content-Length: 3", b"content-length: 12", b"content-length:3", b"a: content-length: 3", b"a: b",
     b"Content-Length: 03", b" folded", b"transfer-encoding: chunked", b"content-type: application/json"]
)  # fmt: skip
_REQUESTS = st.builds(
    lambda pieces, body: b"POST /predict HTTP/1.1\r\n" + b"".join(piece + b"\r\n" for piece in pieces) + b"\r\n" + body,
    st.lists(_PIECES, max_size=4),
    st.sampled_from([b"abc", b"ab", b"abcdefghijkl", b"0\r\n\r\n", b"abcPOST / HTTP/1.1\r\n\r\n"]),
)


@given(_REQUESTS, _REQUESTS)
@example(FIRST, FIRST)
def test_what_is_known_is_what_the_parser_reads(first: bytes, second: bytes):
    try:
        (headers, body), *others = Parsed(first).requests
    except (httptools.HttpParserError, ValueError):
        return
    head = Head(first, dict(headers))
    if others or not head.is_kept:
        return
    assert head.body(first) == body
    found = head.body(second)
    if found is not None:
        ((read, read_body),) = Parsed(second).requests
        assert found == read_body
        assert head.headers(second) == {name: value for name, value in read if name != b"content-length"}

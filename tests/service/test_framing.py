"""Which heads are refused because two programs could read them differently, and what the log says about it."""

import logging

import pytest

from lengthwise.http import framing
from lengthwise.http.framing import GIVEN_ONCE, MalformedLog, fault

HOST = (b"host", b"x")
TAKEN = {
    "a host": ("1.1", [HOST]),
    "an empty host": ("1.1", [(b"host", b"")]),
    "a host with a port": ("1.1", [(b"host", b"[::1]:8000")]),
    "no host in HTTP/1.0": ("1.0", []),
    "chunks": ("1.1", [HOST, (b"transfer-encoding", b"chunked")]),
    "blanks around": ("1.1", [(b"host", b"x \t"), (b"transfer-encoding", b" chunked ")]),
    "chunks in capitals": ("1.1", [HOST, (b"transfer-encoding", b"Chunked")]),
    "another header twice": ("1.1", [HOST, (b"accept", b"a"), (b"accept", b"b")]),
}
REFUSED = {
    "no host": ("1.1", []),
    "HTTP/2.0": ("2.0", [HOST]),
    "HTTP/0.9": ("0.9", [HOST]),
    "two hosts": ("1.1", [HOST, HOST]),
    "two hosts in HTTP/1.0": ("1.0", [HOST, (b"host", b"y")]),
    "a host with a space": ("1.1", [(b"host", b"a b")]),
    "a host with a path": ("1.1", [(b"host", b"a/b")]),
    "a host with a user": ("1.1", [(b"host", b"a@b")]),
    "a coding beside chunks": ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")]),
    "another coding": ("1.1", [HOST, (b"transfer-encoding", b"gzip")]),
    "identity": ("1.1", [HOST, (b"transfer-encoding", b"identity")]),
    "an empty coding": ("1.1", [HOST, (b"transfer-encoding", b"")]),
    "chunks in HTTP/1.0": ("1.0", [(b"transfer-encoding", b"chunked")]),
    "a length and chunks": ("1.1", [HOST, (b"content-length", b"5"), (b"transfer-encoding", b"chunked")]),
}


@pytest.mark.parametrize("what", [*TAKEN, *REFUSED])
def test_a_plain_head_is_taken_and_an_ambiguous_one_refused(what: str) -> None:
    assert (fault(*(TAKEN | REFUSED)[what]) is None) == (what in TAKEN)


@pytest.mark.parametrize("name", sorted(GIVEN_ONCE))
def test_what_decides_who_calls_or_how_a_body_is_read_is_given_once(name: bytes) -> None:
    value = b"chunked" if name == b"transfer-encoding" else b"1"
    host = [] if name == b"host" else [HOST]
    assert fault("1.1", [*host, (name, value)]) is None
    why = fault("1.1", [*host, (name, value), (name, value)])
    assert why is not None
    assert name.decode() in why


def test_of_many_malformed_requests_one_line_a_second_is_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(framing.time, "monotonic", lambda: now[0])
    malformed = MalformedLog()
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            malformed.note("host is missing", "10.0.0.1")
        assert len(caplog.records) == 1
        now[0] += 1
        malformed.note("host was given twice", "10.0.0.2")
    assert [record.getMessage() for record in caplog.records] == [
        "a malformed request from 10.0.0.1 was refused: host is missing",
        "a malformed request from 10.0.0.2 was refused: host was given twice (999 more since the last such line)",
    ]

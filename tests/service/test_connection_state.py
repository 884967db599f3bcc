"""The states of a connection: only the transitions of its module's table happen, and each of them does."""

from collections.abc import Iterator
from typing import Any

import pytest

from lengthwise.http import states
from lengthwise.http.connection import Connection
from lengthwise.http.states import BODY, BROKEN, ENDED, TRANSITIONS, Event, State
from tests.support.http_lines import CHUNKED, UPGRADE, chunked, net, request, rest_of
from tests.support.numpy_models import Service
from tests.support.waiting import until

Transitions = set[tuple[State, State]]

LIVEZ = b"GET /livez HTTP/1.1\r\nhost: x\r\n%s\r\n"
SENT = {
    "answers": request("direct") * 2 + request("asgi") + LIVEZ % b"connection: close\r\n",
    "an offer of another protocol": LIVEZ % "".join(f"{line}\r\n" for line in UPGRADE).encode() + LIVEZ % b"",
    "trailers": chunked("asgi", b"a: b\r\n"),
    "no request": b"nonsense\r\n\r\n",
    "no request behind one": request("asgi") + b"nonsense\r\n\r\n",
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a large header block": b"GET /livez HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 40_000 + b"\r\n\r\n",
    "a malformed chunk": CHUNKED % b"/predict" + b"ZZ\r\n",
    "a malformed chunk behind a request": request("asgi") + CHUNKED % b"/predict" + b"ZZ\r\n",
    "nothing": b"",
    "a part of a header block": b"GET /livez HT",
    "a part of a body": request("direct")[:-3],
}
"""What a client sends before it ends its side."""


def rows() -> dict[Event, dict[State, State]]:
    """The table of the module `states`."""
    found: dict[Event, dict[State, State]] = {}
    for line in (states.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[2] in State.__members__:
            before = list(State) if cells[0] == "any" else [State[name] for name in cells[0].split(", ")]
            found[Event(cells[1])] = dict.fromkeys(before, State[cells[2]])
    return found


def table() -> Transitions:
    """The transitions of the table; where the state stays the same, there is none."""
    return {pair for pairs in TRANSITIONS.values() for pair in pairs.items() if pair[0] is not pair[1]}


def test_the_table_that_people_read_is_the_one_that_the_code_follows() -> None:
    assert rows() == TRANSITIONS


@pytest.fixture
def transitions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Transitions]:
    """The transitions of every connection; each event that is reported has a row for the state, so none is lost."""
    seen: Transitions = set()
    lost: set[tuple[State, Event]] = set()
    enter = Connection.enter

    def note(self: Any, name: str, value: Any) -> None:
        if name == "state" and getattr(self, "state", value) is not value:
            seen.add((self.state, value))
        object.__setattr__(self, name, value)

    def enter_by_a_row(self: Connection, event: Event) -> None:
        if self.state not in TRANSITIONS[event]:
            lost.add((self.state, event))
        enter(self, event)

    monkeypatch.setattr(Connection, "__setattr__", note, raising=False)
    monkeypatch.setattr(Connection, "enter", enter_by_a_row)
    yield seen
    assert lost == set()


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "by ASGI"])
async def test_connections_make_the_transitions_of_the_table_and_no_others(
    service: Service, transitions: Transitions, direct: bool
) -> None:
    async with net(service, direct=direct) as made:
        lines = [await made.line() for _ in SENT]
        for line, sent in zip(lines, SENT.values(), strict=True):  # beside each other, as some end by a clock
            line.writer.write(sent)
            line.writer.write_eof()
        for line in lines:
            await rest_of(line)
        await until(lambda: not made.state.connections)
        assert transitions - table() == set()
    certain = {(before, after) for before, after in table() if after not in ENDED} | {(BODY, BROKEN)}
    assert certain <= transitions
    assert {after for _, after in transitions} == {after for _, after in table()}

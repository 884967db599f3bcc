"""A quick look at Arrow streams, some of them damaged; `make fuzz` sends ten thousand."""

from __future__ import annotations

from tests.fuzz.arrow_streams import fuzz

BODIES = 300


def test_no_stream_ends_the_process_or_is_answered_with_a_5xx() -> None:
    found = fuzz(BODIES, 1)
    assert found["failures"] == []
    assert sum(found["answers"].values()) == BODIES
    assert found["answers"]["200"] > BODIES / 10
    assert found["answers"]["422"] > BODIES / 10

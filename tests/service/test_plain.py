"""The plainest body: what it is, and what is not taken for it. `test_wire` holds it against the careful way."""

from __future__ import annotations

import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import plain


def skeleton(body: bytes) -> bytes:
    return body.translate(None, plain.NUMERIC)


@given(st.integers(1, 300), st.integers(1, 20))
def test_a_sequence_has_as_many_steps_as_its_skeleton_says(length: int, features: int):
    body = orjson.dumps({"sequences": [[[1.5] * features] * length]})
    assert plain.length_of(skeleton(body), "sequences", features) == length


@given(st.integers(1, 300))
def test_bare_steps_are_counted_too(length: int):
    body = orjson.dumps({"instances": [[7] * length]})
    assert plain.length_of(skeleton(body), "instances", None) == length


@pytest.mark.parametrize(
    "body",
    [
        b'{"sequences":[]}',
        b'{"sequences":[[]]}',
        b'{"sequences":[[[1,2]],[[1,2]]]}',
        b'{"sequences":[[[1,2],[3]]]}',
        b'{"sequences":[[[1,2,3],[4]]]}',
        b'{"sequences":[[[1,2],[3,4]]],"priority":1}',
        b'{"sequences":[[[1,2],[3,null]]]}',
        b'{"sequences":[[[1,2],[[3],4]]]}',
        b'{"sequences":[{"steps":[[1,2]]}]}',
        b'{"sequence":[[[1,2]]]}',
        b"[[[1,2]]]",
        b"",
    ],
)
def test_any_other_body_is_not_taken_for_one(body: bytes):
    assert plain.length_of(skeleton(body), "sequences", 2) == 0


def test_large_bodies_of_ever_other_sizes_leave_nothing_behind():
    def ask(steps: int) -> int:
        body = b'{"sequences":[[' + b",".join([b"[1,2]"] * steps) + b"]]}"
        return plain.length_of(skeleton(body), "sequences", 2)

    assert ask(16_000) == 16_000
    tracemalloc.start()
    try:
        assert {ask(20_000 + number) for number in range(50)} == {0}
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()

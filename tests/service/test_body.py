import asyncio
import contextlib
import gzip
import time
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, InvalidRequest, TooLarge, UnsupportedMedia
from lengthwise.protocols import body

MEBIBYTE = 1 << 20


class Arriving:
    """ASGI's `receive` for a body that arrives in parts; says the client left where a part is None."""

    def __init__(self, parts: Iterable[bytes | None]) -> None:
        self._parts = iter(parts)
        self.taken = 0

    async def __call__(self) -> Any:
        part = next(self._parts, b"")
        if part is None:
            return {"type": "http.disconnect"}
        self.taken += len(part)
        return {"type": "http.request", "body": part, "more_body": part != b""}


async def read(*parts: bytes | None, limit: int = 1000, **headers: str) -> bytes:
    named = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
    return await body.read_body(Arriving(parts), named, limit, hold())


def hold(most: int = 100 * MEBIBYTE) -> Hold:
    """What one call holds, of so many bytes for all."""
    return Hold(Inflight(most))


def inflate(packed: bytes, limit: int) -> bytes:
    """The inflated body, made by pieces."""
    inflating = body.Inflating(packed, limit, hold())
    assert asyncio.run(inflating.fits(limit))
    return inflating.content()


async def test_a_body_is_put_together_and_one_as_large_as_the_limit_is_read() -> None:
    assert await read(b"ab", b"c", b"def") == b"abcdef"
    assert await read(b"x" * 999, b"y") == b"x" * 999 + b"y"
    with pytest.raises(TooLarge):
        await read(b"x" * 999, b"yz")

    async def one_message() -> Any:
        return {"type": "http.request", "body": b"abc"}

    assert await body.read_body(one_message, {}, 3, hold()) == b"abc"


@pytest.mark.parametrize("announced", ["1001", "9" * 5000, "0001001"])
async def test_a_length_past_the_limit_is_refused_before_the_body_is_read(announced: str) -> None:
    arriving = Arriving([b"x"])
    with pytest.raises(TooLarge):
        await body.read_body(arriving, {b"content-length": announced.encode()}, 1000, hold())
    assert arriving.taken == 0


async def test_a_body_without_end_is_refused_at_the_limit() -> None:
    arriving = Arriving(b"x" * 600 for _ in range(10**9))
    with pytest.raises(TooLarge):
        await body.read_body(arriving, {}, 1000, hold())
    assert arriving.taken == 1200


async def test_a_body_that_trickles_in_takes_no_more_memory_than_it_has_bytes() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        arriving = Arriving(bytes([i % 7, 1]) for i in range(30_000))
        assert len(await body.read_body(arriving, {}, MEBIBYTE, hold())) == 60_000
        assert tracemalloc.get_traced_memory()[1] - before < MEBIBYTE // 2
    finally:
        tracemalloc.stop()


async def test_a_client_that_leaves_before_its_body_ends_is_noticed() -> None:
    with pytest.raises(body.ClientLeft):
        await read(b"ab", None)


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "x-gzip"])
async def test_another_encoding_than_gzip_is_unsupported_and_none_is_left_alone(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia):
        await read(b"ab", content_encoding=encoding)
    for none in ("", "identity", "Identity"):
        assert await read(b"ab", content_encoding=none) == b"ab"


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_gzip_members_inflate_to_what_they_hold(members: list[bytes]) -> None:
    assert inflate(b"".join(map(gzip.compress, members)), 1200) == b"".join(members)


def test_a_packed_body_is_known_by_its_header() -> None:
    assert body.is_packed({b"content-encoding": b" GZIP"})
    assert not body.is_packed({b"content-encoding": b"identity"})
    assert not body.is_packed({})


@pytest.mark.parametrize(("size", "at_once"), [(0, True), (1, True), (60_000, True), (65_537, False), (10**6, False)])
def test_a_gzip_body_of_one_piece_is_inflated_at_once_and_a_larger_one_in_a_thread(size: int, at_once: bool) -> None:
    held = hold()
    inflating = body.Inflating(gzip.compress(bytes(size)), 10**6, held)
    assert inflating.at_once() == (bytes(size) if at_once else None)
    if not at_once:
        assert asyncio.run(inflating.fits(10**6))
        assert inflating.content() == bytes(size)


def test_a_gzip_body_holds_what_it_inflates_to_before_it_does() -> None:
    held = hold(8 * MEBIBYTE)
    inflating = body.Inflating(gzip.compress(bytes(20 * MEBIBYTE)), 100 * MEBIBYTE, held)
    held.inflight.bytes += 2 * MEBIBYTE  # of other calls
    with pytest.raises(InflightFull):
        asyncio.run(inflating.fits(100 * MEBIBYTE))
    assert 4 * MEBIBYTE < held.size <= 6 * MEBIBYTE
    assert inflating.size <= held.size


@pytest.mark.parametrize("size", [100_000, 200_000, 999_999, 10**6])
async def test_a_gzip_body_with_more_bytes_than_a_size_is_inflated_not_much_further(size: int) -> None:
    inflating = body.Inflating(gzip.compress(bytes(10**6)), 10**7, hold())
    assert inflating.at_once() is None
    assert await inflating.fits(size) == (size == 10**6)
    assert inflating.size <= max(size, 2 * body.PIECE_BYTES) + body.PIECE_BYTES


async def test_a_body_is_counted_as_it_comes_and_refused_where_there_is_no_room() -> None:
    held = hold(1000)
    seen: list[int] = []

    class Watched(Arriving):
        async def __call__(self) -> Any:
            seen.append(held.size)
            return await super().__call__()

    assert len(await body.read_body(Watched([b"x" * 300] * 2), {}, 900, held)) == 600
    assert seen == [0, 300, 600]
    held.inflight.bytes += 300
    with pytest.raises(InflightFull):
        await body.read_body(Watched([b"x" * 300]), {}, 900, held)
    assert held.size == 600


@pytest.mark.parametrize(("others", "late"), [(0, False), (600, True)])
async def test_a_late_body_is_read_on_where_there_is_room_and_not_where_others_need_it(others: int, late: bool) -> None:
    held = hold(1000)
    held.inflight.bytes += others
    arriving = Arriving([b"ab", b"cd"])
    if late:
        with pytest.raises(DeadlineExceeded):
            await body.read_body(arriving, {}, 900, held, late_at=time.monotonic() - 1)
    else:
        assert await body.read_body(arriving, {}, 900, held, late_at=time.monotonic() - 1) == b"abcd"


NOISE = bytes((i * i * 2_654_435_761 >> 16) & 255 for i in range(200_000))


@pytest.mark.parametrize(("member", "count"), [(NOISE, 2), (b"a", body.MAX_GZIP_MEMBERS)], ids=["large", "many"])
def test_large_members_and_as_many_as_the_limit_are_read(member: bytes, count: int) -> None:
    assert inflate(gzip.compress(member) * count, 400_000) == member * count


def test_the_inflated_size_counts_against_the_limit_of_all_members_together() -> None:
    assert len(inflate(gzip.compress(bytes(1000)), 1000)) == 1000
    for packed in (gzip.compress(bytes(1001)), gzip.compress(bytes(600)) * 2):
        with pytest.raises(TooLarge):
            inflate(packed, 1000)


def test_a_bomb_is_refused_without_being_held() -> None:
    packed = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packed.compress(bytes(MEBIBYTE)) for _ in range(300)) + packed.flush()
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            inflate(bomb, MEBIBYTE)
        assert tracemalloc.get_traced_memory()[1] < 5 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_a_body_of_empty_members_costs_no_more_than_another() -> None:
    begun = time.process_time()
    with pytest.raises(InvalidRequest):
        inflate(gzip.compress(b"") * 200_000, MEBIBYTE)
    assert time.process_time() - begun < 1  # quadratic, it was five


@pytest.mark.parametrize(
    "packed",
    [
        *(b"", b"\x1f\x8b", gzip.compress(b"abc", mtime=0)[:-1], gzip.compress(b"abc", mtime=0)[:12]),
        *(gzip.compress(b"abc", mtime=0) + gzip.compress(b"d", mtime=0)[:5], b'{"sequences": []}'),
        *(zlib.compress(b"abc"), gzip.compress(b"abc", mtime=0) + b"junk"),
        *(gzip.compress(b"abc", mtime=0) + bytes(8), gzip.compress(b"abc", mtime=0)[:-8] + bytes(8)),
    ],
)
def test_a_damaged_gzip_body_is_invalid(packed: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        inflate(packed, 1000)
    assert [problem.pointer for problem in caught.value.problems] == [""]


@given(st.binary(max_size=100))
def test_any_bytes_are_inflated_or_refused(packed: bytes) -> None:
    with contextlib.suppress(InvalidRequest, TooLarge):
        assert len(inflate(packed, 1000)) <= 1000

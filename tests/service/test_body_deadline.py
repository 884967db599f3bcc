"""The deadline of a body that is not read yet: the one that its reader takes, or none is known."""

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.decoding import json_body
from lengthwise.protocols.body_deadline import EDGE_BYTES, OptionsText, read_timeout
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES
from tests.support.http_lines import Net, net
from tests.support.numpy_models import manifest, model, serving

SPACE = b" " * LARGE_BODY_BYTES
LARGE = b'"sequences": [[[1, 3]], [[1, 3]%b]]' % (b", [1, 3]" * 10_000)
V2 = ("parameters",)
NOT_KNOWN = (60.0, False)
DEFAULT = (1.0, False)


def seen(document: bytes, *within: str, **more: Any) -> tuple[float, bool]:
    """What is known of a body whose default is a second."""
    return read_timeout(OptionsText(document=document, within=within, **more), 1.0)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"sequences": []}', DEFAULT),
        (b'{"timeout_ms": 2500}', (2.5, True)),
        (b'{"timeout_ms"\n:\t2500.5 }', (2.5005, True)),
        (b'{"timeout_ms": 25e2}', (2.5, True)),
        (b'{"model": "m", "outputs": ["attention"], "timeout_ms": 2500, %b}' % LARGE, (2.5, True)),
        (b'{"model": "m", %b, "timeout_ms": 2500, "outputs": ["attention"]} \n' % LARGE, (2.5, True)),
        (b'{"id": "\\"timeout_ms\\": 5", "timeout_ms": 7, %b}' % LARGE, (0.007, True)),
        (b'{%b}' % LARGE, DEFAULT),
        # What the reader refuses has no deadline.
        (b'{"timeout_ms": 0}', NOT_KNOWN),
        (b'{"timeout_ms": -1}', NOT_KNOWN),
        (b'{"timeout_ms": 1e999}', NOT_KNOWN),
        (b'{"timeout_ms": "1"}', NOT_KNOWN),
        (b'{"timeout_ms": 1, "timeout_ms": 2}', NOT_KNOWN),
        (b'{"timeout_ms": 1, %b, "timeout_ms": 2}' % LARGE, NOT_KNOWN),
        (b'["timeout_ms", 5]', NOT_KNOWN),
        # The key is not one of the options.
        (b'{"sequences": [{"timeout_ms": 5, "steps": []}]}', NOT_KNOWN),
        (b'{"sequences": [{"timeout_ms": 5, %b}]}' % LARGE, NOT_KNOWN),
        (b'{%b, "more": [{"timeout_ms": 5}]}' % LARGE, NOT_KNOWN),
        (b'{"parameters": {"timeout_ms": 5}, %b}' % LARGE, NOT_KNOWN),
        (b'{%b, "parameters": {"timeout_ms": 5}}' % LARGE, NOT_KNOWN),
        (b'{"id": "\\"timeout_ms\\": 5"}', NOT_KNOWN),
        (b'{"a\\"timeout_ms": 5}', NOT_KNOWN),
        (b'{"id": "timeout_ms", %b}' % LARGE, NOT_KNOWN),
        # It stands in the middle, or its letters are hidden.
        (b'{%b, "timeout_ms": 5, %b}' % (LARGE, LARGE.replace(b"sequences", b"others")), NOT_KNOWN),
        (b'{"\\u0074imeout_ms": 5}', NOT_KNOWN),
        (b'{"timeout\\u005fms": 5}', NOT_KNOWN),
    ],
)  # fmt: skip
def test_a_deadline_is_known_where_the_key_is_one_of_the_options(body: bytes, expected: tuple[float, bool]) -> None:
    assert seen(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"id": "a", "parameters": {"priority": 1, "timeout_ms": 2500}, %b}' % LARGE, (2.5, True)),
        (b'{%b, "parameters": {"timeout_ms": 2500, "priority": 1}, "outputs": [{"name": "x"}]}' % LARGE, (2.5, True)),
        (b'{%b, "outputs": [{"name": "x", "parameters": {"timeout_ms": 5}}]}' % LARGE, NOT_KNOWN),
        (b'{"inputs": [{"parameters": {"timeout_ms": 5}, %b}]}' % LARGE, NOT_KNOWN),
        (b'{"timeout_ms": 5, %b}' % LARGE, NOT_KNOWN),
        (b'{%b, "timeout_ms": 5}' % LARGE, NOT_KNOWN),
        (b'{"parameters": [{"timeout_ms": 5}], %b}' % LARGE, NOT_KNOWN),
        (b'{"parameters": {"x": {"timeout_ms": 5}}, %b}' % LARGE, NOT_KNOWN),
        # `timeout` is in microseconds, and counts where there is no `timeout_ms`.
        (b'{"parameters": {"timeout": 2500000, "priority": 1}, %b}' % LARGE, (2.5, True)),
        (b'{%b, "parameters": {"timeout": 2500000}, "outputs": []}' % LARGE, (2.5, True)),
        (b'{"parameters": {"timeout": 5, "timeout_ms": 2500}, %b}' % LARGE, (2.5, True)),
        (b'{"parameters": {"timeout": 5}, %b, "parameters": {"timeout_ms": 2500}}' % LARGE, (2.5, True)),
        (b'{"parameters": {"timeout": 5}, %b, "id": "\\u0074"}' % LARGE, NOT_KNOWN),
        (b'{"parameters": {"timeout": 5}, "timeout": 7, %b}' % LARGE, NOT_KNOWN),
        (b'{"parameters": {"timeout": 2.5}, %b}' % LARGE, NOT_KNOWN),
        (b'{"parameters": {"timeout": 0}, %b}' % LARGE, NOT_KNOWN),
        (b'{"timeout": 5, %b}' % LARGE, NOT_KNOWN),
        (b'{%b}' % LARGE, DEFAULT),
    ],
)  # fmt: skip
def test_the_options_of_v2_are_its_parameters(body: bytes, expected: tuple[float, bool]) -> None:
    assert seen(body, *V2) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"timeout_ms=700&model=x", (0.7, True)),
        (b"model=x&timeout_ms=99999999999", (86_400.0, True)),
        (b"timeout_ms=1&timeout_ms=2", NOT_KNOWN),
        (b"timeout_ms=x", NOT_KNOWN),
        (b"model=x", DEFAULT),
    ],
)
def test_the_options_of_a_binary_body_are_in_the_query(query: bytes, expected: tuple[float, bool]) -> None:
    assert read_timeout(OptionsText(query=query), 1.0) == expected


def test_of_the_beginning_of_a_body_only_that_is_read() -> None:
    assert seen(b'{"parameters": {"timeout": 5}, "inputs": [', *V2, whole=False) == NOT_KNOWN  # `timeout_ms` may come
    assert seen(b'{"timeout_ms": 2500, "sequences": [[[1', whole=False) == (2.5, True)
    assert seen(b'{"sequences": [[[1, 2]]', whole=False) == NOT_KNOWN
    assert seen(b'{"sequences": [], "timeout_ms": 25', whole=False) == NOT_KNOWN  # and 00
    assert seen(b'{%b, "timeout_ms": 5}' % LARGE, whole=False) == NOT_KNOWN


@given(st.integers(1, 10**12), st.text(max_size=20))
def test_what_stands_in_a_text_is_no_timeout(number: int, text: str) -> None:
    within = orjson.dumps({"id": f'{text}"timeout_ms": {number},'})
    assert seen(within) == NOT_KNOWN
    beside = orjson.dumps({"id": text, "timeout_ms": number})
    assert seen(beside) == (min(number / 1000, 86_400.0), True)


_NAMES = st.sampled_from(["timeout_ms", "timeout", "id", "parameters", "steps", 'a"timeout_ms', "x"])
_TEXTS = st.sampled_from(['"timeout_ms": 5,', "timeout_ms", ', "timeout_ms": 7}', "x"])
_VALUES = st.recursive(
    st.one_of(st.integers(-1, 3000), _TEXTS, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(_NAMES, _VALUES, max_size=4), st.dictionaries(_NAMES, _VALUES, max_size=3), st.booleans())
def test_a_known_deadline_is_that_of_the_document(first: dict[str, Any], last: dict[str, Any], far: bool) -> None:
    document = {**first, "sequences": "x" * (2 * EDGE_BYTES if far else 1), **last}
    body = orjson.dumps(document)
    for within, options in (((), document), (V2, document.get("parameters"))):
        seconds, certain = seen(body, *within)
        if certain:
            assert isinstance(options, dict)
            assert options["timeout_ms"] == pytest.approx(seconds * 1000)


# In front of a real server.


@asynccontextmanager
async def behind_large_bodies(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    """A server that has read no body yet, reads two large ones until the block ends, and has 58 more to read."""
    release, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    decode = json_body.decode

    def held(*given: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        release.wait(180)
        return decode(*given, **options)

    monkeypatch.setattr(json_body, "decode", held)
    plain = b'{"sequences": [[[1, 3]]]' + SPACE + b"}"
    async with serving(model(manifest())) as service, net(service) as made:
        turns = service.app.predict.large_bodies
        lines = [await made.line() for _ in range(60)]
        for line in lines:
            line.send(plain)
        while turns.waiting < len(lines) - 2:
            await begun.wait()
            await asyncio.sleep(0)
        try:
            yield made
        finally:
            release.set()
        assert [(await line.answer())[0] for line in lines] == [200] * len(lines)


TENSOR = b'"inputs": [{"name": "values", "shape": [1, 1, 2], "datatype": "FP32", "data": [1, 3]}]'
NAMED = {
    "the first bytes": ("/predict", b'{"timeout_ms": 1000, "sequences": [[[1, 3]]]%b}' % SPACE),
    "the last bytes": ("/predict", b'{"sequences": [[[1, 3]]]%b, "timeout_ms": 1000}' % SPACE),
    "the first bytes, gzip": ("/predict", b'{"timeout_ms": 1000, "sequences": [[[1, 3]]]%b}' % (4 * SPACE)),
    "v1": ("/v1/models/sums:predict", b'{"instances": [[[1, 3]]]%b, "timeout_ms": 1000}' % SPACE),
    "v2": ("/v2/models/sums/infer", b'{%b%b, "parameters": {"timeout_ms": 1000}}' % (TENSOR, SPACE)),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("path", "body"), NAMED.values(), ids=NAMED.keys())
async def test_a_hopeless_deadline_is_told_while_the_body_waits_to_be_read(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, path: str, body: bytes
) -> None:
    headers = ["x-request-id: hopeless"]
    if "gzip" in request.node.callspec.id:
        body = gzip.compress(body)
        headers.append("content-encoding: gzip")
    async with behind_large_bodies(monkeypatch) as made:
        lines = [await made.line() for _ in range(16)]
        for line in lines:
            line.send(body, *headers, path=path)
        for line in lines:
            status, _, told = await line.answer()
            assert status == 504
            assert b"cannot be met" in told

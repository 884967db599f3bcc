"""The reader in C: what it reads, what it leaves to the one in Python, and every number as Python rounds it."""

import json
import random
import sys
import threading
import time
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, json_body, json_text, validation
from lengthwise.decoding.calls import Call
from lengthwise.decoding.validation import PREDICT, BodyLayout
from lengthwise.errors import InvalidRequest
from tests.support.numpy_models import MANIFESTS, OneModel

native = pytest.importorskip(
    "lengthwise.decoding._fast_json", reason="it is optional: this installation had no C compiler"
)

TWO = OneModel(MANIFESTS["refuses missing"])
FLOAT32_MAX = float(np.finfo(np.float32).max)


def values(body: bytes, features: int = 2, most_steps: int = 10_000) -> list[Any] | None:
    """The numbers of a body that is one sequence and nothing else, token ids without features; None of any other."""
    place = native.locate(body, b"sequences")
    if place is None or not place[2]:
        return None
    found = native.read(body, *place[:2], 1, features, 10, 1, most_steps, False, False)
    return np.frombuffer(found, np.float32 if features else np.int64).tolist() if isinstance(found, bytes) else None


def read(body: bytes, catalog: OneModel, layout: BodyLayout = PREDICT, max_sequences: int = 1) -> Call | None:
    return fast_json.read(body, catalog.find, max_sequences=max_sequences, layout=layout)


JSON_NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


@settings(max_examples=30 * settings.default.max_examples)
@given(
    st.one_of(
        JSON_NUMBER,
        st.floats(allow_nan=False, allow_infinity=False).map(repr),
        st.builds("{}{}e{}".format, st.sampled_from(["", "-"]), st.integers(1, 10**19 - 1), st.integers(-64, 38)),
    )
)
@example(f"{2**63}e-19")
@example(f"{(1 << 63) + (1 << 10)}e0")  # a tie between two doubles
@example("-9007199254740993.0e1")
@example(f"{5 * (2**60 + 2**6)}e-1")
@example("9999999999999999")
@example("9007199254740993.0")
@example("9007199254740992e22")
@example("1.00000017881393432617187499")
@example("0.1e-45")
@example("3.4028235677973365e38")
@example("3.4028234663852887e38")
@example("-0.0")
@example("1e23")
def test_a_number_is_rounded_as_python_rounds_it_or_left_to_the_reader_in_python(text: str):
    found = values(b'{"sequences":[[[%s,1]]]}' % text.encode())
    if found is not None:
        number: Any = json.loads(text)
        assert np.float32(found[0]).tobytes() == np.float32(float(number)).tobytes()
    else:
        assert abs(float(text)) > FLOAT32_MAX  # which may round to infinity


@pytest.mark.parametrize("size", range(1, 41))
def test_a_fraction_of_any_size_is_read_wherever_it_ends(size: int):
    """Eight digits are read at once, where as many bytes are left of the text."""
    rng = random.Random(size)
    for behind in range(10):
        digits = "".join(rng.choices("0123456789", k=size))
        texts = (f"-0.{digits}", f"31.{digits}", f"0.{'0' * behind}{digits}", f"0.{digits}e-{behind}", f"-{size}.0")
        for text in texts:
            body = b'{"sequences":[[[1,%s%s]]]}' % (text.encode(), b" " * behind)
            assert values(body) == [1, np.float32(float(text))]
            assert values(b'{"sequences":[[[%s,1]]]}' % text.encode()) == [np.float32(float(text)), 1]


@pytest.mark.parametrize(
    "text", ["0.12345678a", "0.1234567:9", "0.123/5678", "0.\x7f", "0.1\xb12345678", "0.12345678.1"]
)
def test_what_is_no_digit_ends_a_fraction(text: str):
    assert values(b'{"sequences":[[[1,%s]]]}' % text.encode("latin-1")) is None


def test_a_very_long_number_is_left_to_the_reader_in_python():
    assert values(b'{"sequences":[[[0.%s1e1000,1]]]}' % (b"0" * 1000)) is None


def test_no_more_steps_are_read_than_are_wanted():
    body = b'{"sequences":[[' + b",".join([b"[1,2]"] * 8) + b"]]}"
    assert values(body, most_steps=8) == [1, 2] * 8
    assert values(body, most_steps=7) is None
    assert values(body, features=2**62, most_steps=2**62) is None
    assert values(b'{"sequences":[[1,2,3]]}', 0, 3) == [1, 2, 3]
    assert values(b'{"sequences":[[1,2,3]]}', 0, 2) is None


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (-1, 0)])
def test_a_place_that_is_not_in_the_body_is_refused(place: tuple[int, int]):
    with pytest.raises(ValueError, match="the place is not in the body"):
        native.read(b"", *place, 1, 1, 1, 1, 1, True, False)
    with pytest.raises(ValueError, match="the place is not in the body"):
        native.read_flat(b"", *place)


def test_every_power_of_ten_rounds_as_python_does():
    rng = random.Random(0)
    texts = [
        f"{rng.randint(2**53, 10 ** min(19, 38 - power) - 1)}e{power}" for power in range(-64, 22) for _ in range(200)
    ]
    found = values(b'{"sequences":[[%s]]}' % ",".join(texts).encode(), features=1, most_steps=len(texts))
    assert found == [np.float32(float(text)) for text in texts]


def test_other_threads_run_while_a_long_body_is_read():
    one = b"[" + b",".join([b"[1.25,-2.5e-3]"] * 50_000) + b"]"
    body = b'{"sequences":[' + b",".join([one] * 40) + b"]}"
    place, turns, done = native.locate(body, b"sequences"), 0, threading.Event()

    def read_it() -> None:
        native.read(body, *place[:2], 40, 2, 1, 1, 50_000, False, False)
        done.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(100)  # a thread that does not release the lock keeps it for so many seconds
    try:
        reader = threading.Thread(target=read_it)
        reader.start()
        while not done.is_set():
            turns += 1
            time.sleep(0)
        reader.join()
    finally:
        sys.setswitchinterval(before)
    assert turns > 10


def test_ids_and_steps_stay_together_in_many_sequences():
    count = 1000  # more than the reader has room for at first
    steps = [[[i, j] for j in range(1 + i % 3)] for i in range(count)]
    ids = [str(i) if i % 2 else None for i in range(count)]
    entries: list[Any] = [
        {"steps": one} if id is None else {"id": id, "steps": one} for one, id in zip(steps, ids, strict=True)
    ]
    entries[::5] = steps[::5]
    ids[::5] = [None] * len(ids[::5])
    body = orjson.dumps({"sequences": entries})
    call = read(body, TWO, max_sequences=count)
    assert call is not None
    assert [item.steps.tolist() for item in call.items] == steps
    assert [item.id for item in call.items] == ids
    assert read(body, TWO, max_sequences=count - 1) is None


@pytest.mark.parametrize(
    ("body", "place"),
    [
        *((b'{"a":[[1]]}', (5, 10, True)), (b' { "a" : [[1]] } ', (9, 14, True))),
        *((b'{"b":1,"a":[[1]]}', (11, 16, False)), (b'{"a":[[1]],"b":1}', (5, 10, False))),
        *((b'{"b":"\\"]}","a":[[1]],"c":[]}', (16, 21, False)), (b'{"b":{"a":[[2]]},"a":[[1]]}', (21, 26, False))),
        *((b'{"b":{"a":[[2]]}}', None), (b'{"b":"a","c":"\\"a\\":[[1]]"}', None), (b'{"a":1}', None)),
        *((b'{"a":[[1]', None), (b'{"a":', None), (b'{"b":}', None), (b'{"b":]}', None), (b'{"b":"', None)),
        *((b'{"b":"\\', None), (b'{"b', None), (b"{" * 100_000, None), (b'{"b":' + b"[" * 100_000, None)),
    ],
)
def test_sequences_are_found_between_other_fields(body: bytes, place: tuple[int, int, bool] | None):
    assert native.locate(body, b"a") == place


def test_without_the_compiled_module_the_same_is_read(monkeypatch: pytest.MonkeyPatch):
    body = b'{"sequences":[[[1,2.5],[-3e2,4]]]}'
    (compiled,) = json_body.decode(body, TWO.find, max_sequences=1).items
    monkeypatch.setattr(fast_json, "COMPILED", False)
    (other,) = json_body.decode(body, TWO.find, max_sequences=1).items
    assert other.steps.tobytes() == compiled.steps.tobytes()


def outcome(read_it: Any, body: bytes) -> Any:
    with pytest.raises(InvalidRequest) as error:
        read_it(body, TWO.find, max_sequences=3, layout=PREDICT)
    return error.value.problems, error.value.total


@pytest.mark.parametrize(
    "step",
    [b"[" + b"0," * 50_000 + b"0]", b'"' + b"x" * 5000 + b'"', b'{"a": ' + b"[" * 20 + b"]" * 20 + b" " * 9999 + b"}"],
)
def test_a_long_wrong_step_of_a_long_body_is_named_by_its_kind_and_size(step: bytes):
    """All else that is said of a long wrong body is compared by `tests.fuzz.json_readers`."""
    body = b'{"sequences": [%s[[1, 2], %s]]}' % (b" " * 66_000, step)
    assert outcome(fast_json.explain, body) == outcome(validation.read, body)


def test_ids_with_escapes_are_parsed_at_once_and_stay_with_their_sequences(monkeypatch: pytest.MonkeyPatch):
    """One by one, they would block the event loop for milliseconds."""
    parsed, parse = list[bytes](), json_text.parse
    monkeypatch.setattr(json_text, "parse", lambda body: parsed.append(body) or parse(body))
    items = [
        {"steps": [[1, 2]]} | ({} if i % 3 == 0 else {"id": f"plain{i}" if i % 3 == 1 else f'"\xe9,{i}]'})
        for i in range(300)
    ]
    call = read(json.dumps({"sequences": items}).encode(), TWO, max_sequences=300)
    assert call is not None
    assert [item.id for item in call.items] == [item.get("id") for item in items]
    assert len(parsed) == 1


def test_one_id_that_is_wrong_leaves_the_body_to_the_reader_in_python():
    items = [json.dumps({"id": "\xe9", "steps": [[1, 2]]}), '{"id": "\\ud800", "steps": [[1, 2]]}']
    assert read(f'{{"sequences": [{items[0]}]}}'.encode(), TWO, max_sequences=2) is not None
    assert read(f'{{"sequences": [{",".join(items)}]}}'.encode(), TWO, max_sequences=2) is None

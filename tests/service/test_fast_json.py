"""The plainest body, read in C: what is taken, what is left to other readers, and every number as Python reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, json_body, validation
from lengthwise.decoding.validation import PREDICT
from lengthwise.errors import ModelNotFound
from lengthwise.protocols.v1 import INSTANCES
from tests.support.numpy_models import MANIFESTS, OneModel, manifest

native = pytest.importorskip(
    "lengthwise.decoding._fast_json", reason="it is optional: this installation had no C compiler"
)

TWO = OneModel(MANIFESTS["refuses missing"])


def values(body: bytes, features: int = 2, most_steps: int = 10_000) -> list[float] | None:
    found = native.read_values(body, b"sequences", features, most_steps)
    return None if found is None else np.frombuffer(found, np.float32).tolist()


def tokens(body: bytes, vocabulary: int = 10, most_steps: int = 10_000) -> list[int] | None:
    found = native.read_tokens(body, b"sequences", vocabulary, most_steps)
    return None if found is None else np.frombuffer(found, np.int64).tolist()


@given(st.integers(1, 300), st.integers(1, 20))
def test_a_sequence_is_read_as_what_was_written(length: int, features: int):
    steps = np.random.default_rng(length).normal(0, 10, (length, features)).astype(np.float32)
    body = orjson.dumps({"sequences": [steps]}, option=orjson.OPT_SERIALIZE_NUMPY)
    catalog = OneModel(manifest(features=features, max_length=300))
    call = fast_json.read(body, catalog, PREDICT)
    assert call is not None
    (item,) = call.items
    assert (item.steps.dtype, item.steps.shape, item.sent) == (np.float32, (length, features), length)
    assert item.steps.tobytes() == steps.tobytes()


@pytest.mark.parametrize("form", [PREDICT, INSTANCES])
def test_bare_steps_are_read_too(form: Any):
    body = b'{"%s": [[1, 2.5, 3]]}' % form.key
    for catalog, kind in ((OneModel(manifest(features=1)), np.float32), (OneModel(manifest(vocabulary=10)), np.int64)):
        call = fast_json.read(body.replace(b".5", b"") if kind is np.int64 else body, catalog, form)
        assert call is not None
        assert call.pointer == f"/{form.root}/{{}}"
        assert (call.items[0].steps.dtype, len(call.items[0].steps)) == (kind, 3)


def test_white_space_may_stand_between_any_two_tokens():
    spread = b' { "sequences" :\t[\r\n[ [ 1 , 2 ] ,\n[ 3 , 4 ] ] ] } '
    assert values(spread) == [1, 2, 3, 4]
    assert tokens(b'\n{\t"sequences"\r:[ [ 1 , 2 ] ] }\n') == [1, 2]


@pytest.mark.parametrize(
    "body",
    [
        b'{"sequences":[]}',
        b'{"sequences":[[]]}',
        b'{"sequences":[[[]]]}',
        b'{"sequences":[[1,2]]}',
        b'{"sequences":[[[1,2]],[[1,2]]]}',
        b'{"sequences":[[[1,2],[3]]]}',
        b'{"sequences":[[[1,2,3],[4]]]}',
        b'{"sequences":[[[1,2],[3,4]]],"priority":1}',
        b'{"sequences":[[[1,2],[3,null]]]}',
        b'{"sequences":[[[1,2],[[3],4]]]}',
        b'{"sequences":[[[1,2],]]}',
        b'{"sequences":[[[1,2]]]}}',
        b'{"sequences":[[[1,2]]]} x',
        b'{"sequences":[[[1,2]]]}\x00',
        b'{"sequences":[[[1,2\x00]]]}',
        b'{"sequences":[[[1 2,3]]]}',
        b'{"sequences":[{"steps":[[1,2]]}]}',
        b'{"sequence":[[[1,2]]]}',
        b'{"sequencess":[[[1,2]]]}',
        b'{"sequ\\u0065nces":[[[1,2]]]}',
        b'\xef\xbb\xbf{"sequences":[[[1,2]]]}',
        b"[[[1,2]]]",
        b'{"sequences',
        b"{",
        b"",
    ],
)
def test_any_other_body_is_left_to_the_other_readers(body: bytes):
    assert values(body) is None
    assert tokens(body) is None or body == b'{"sequences":[[1,2]]}'


@pytest.mark.parametrize("end", range(len(b'{"sequences":[[[1.5e3,-2]]]}')))
def test_a_body_that_is_cut_off_is_left_to_them(end: int):
    assert values(b'{"sequences":[[[1.5e3,-2]]]}'[:end]) is None


JSON_NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


@settings(max_examples=500)
@given(st.one_of(JSON_NUMBER, st.floats(allow_nan=False, allow_infinity=False).map(repr)))
@example("9999999999999999")
@example("9007199254740993.0")
@example("9007199254740992e22")
@example("1.00000017881393432617187499")
@example("0.1e-45")
@example("3.4028235677973365e38")
@example("3.4028234663852887e38")
@example("-0.0")
@example("1e23")
def test_a_number_is_rounded_as_python_rounds_it_or_left_to_the_careful_reader(text: str):
    found = values(b'{"sequences":[[[%s,1]]]}' % text.encode())
    if found is not None:
        number: Any = orjson.loads(text)
        assert np.float32(found[0]).tobytes() == np.float32(number).tobytes()
    elif abs(float(text)) <= validation.FLOAT32_MAX:
        # Only integers past 53 bits, and what has too many characters to be worth it.
        assert len(text) >= 16


@pytest.mark.parametrize("text", ["01", "-01", "1.", ".5", "+1", "-", "1e", "1e+", "--1", "0x1", "1_0", "NaN", "1e40"])
def test_what_is_no_number_or_no_float_is_left_to_the_careful_reader(text: str):
    assert values(b'{"sequences":[[[%s,1]]]}' % text.encode()) is None


@pytest.mark.parametrize("text", ["10", "-1", "-0", "01", "1.0", "1e0", "18446744073709551616", "9" * 400, "a", ""])
def test_what_is_no_token_of_the_vocabulary_is_left_to_the_careful_reader(text: str):
    assert tokens(b'{"sequences":[[1,%s]]}' % text.encode()) is None
    assert tokens(b'{"sequences":[[9]]}') == [9]


def test_no_more_steps_are_read_than_are_wanted():
    body = b'{"sequences":[[' + b",".join([b"[1,2]"] * 8) + b"]]}"
    assert values(body, most_steps=8) == [1, 2] * 8
    assert values(body, most_steps=7) is None
    assert values(body, features=2**62, most_steps=2**62) is None
    assert tokens(b'{"sequences":[[1,2,3]]}', most_steps=3) == [1, 2, 3]
    assert tokens(b'{"sequences":[[1,2,3]]}', most_steps=2) is None


@pytest.mark.parametrize(
    "arguments",
    [(), (b"", b"", 1), ("", b"", 1, 1), (b"", "", 1, 1), (b"", b"", 0, 1), (b"", b"", 1, -1), (b"", b"", 1.5, 1)],
)
def test_a_wrong_call_is_refused(arguments: tuple[Any, ...]):
    for read in (native.read_values, native.read_tokens):
        with pytest.raises((TypeError, ValueError)):
            read(*arguments)


def test_a_long_body_holds_up_nobody(monkeypatch: pytest.MonkeyPatch):
    body = b'{"sequences":[[[1,2]]]}'
    assert fast_json.read(body + b" " * (fast_json.MOST_BYTES - len(body)), TWO, PREDICT) is not None
    assert fast_json.read(body + b" " * (fast_json.MOST_BYTES - len(body) + 1), TWO, PREDICT) is None


class SeveralModels(OneModel):
    """A catalog of which nobody can mean the default."""

    def find(self, name: str | None, version: str | None) -> OneModel:
        if name is None:
            raise ModelNotFound("say which 'model'")
        return self


@pytest.mark.parametrize("body", [b'{"model":"a","sequences":[[[1,2]]]}', b'{"sequences":[[[1,2]]],"model":"a"}'])
def test_who_names_one_of_several_models_is_read_fast_too(body: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(validation, "read", None)
    call = json_body.decode(body, SeveralModels(MANIFESTS["refuses missing"]), max_sequences=1)
    assert len(call.items[0].steps) == 1


def test_without_the_compiled_module_the_same_is_read(monkeypatch: pytest.MonkeyPatch):
    body = b'{"sequences":[[[1,2.5],[-3e2,4]]]}'
    (compiled,) = json_body.decode(body, TWO, max_sequences=1).items
    monkeypatch.setattr(fast_json, "COMPILED", False)
    monkeypatch.setattr(validation, "read", None)
    (other,) = json_body.decode(body, TWO, max_sequences=1).items
    assert other.steps.tobytes() == compiled.steps.tobytes()

import json
import sys
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, json_body, json_text, validation
from lengthwise.decoding.calls import Call, Item
from lengthwise.errors import InvalidRequest
from lengthwise.protocols import predict
from lengthwise.runtime.answers import Answer
from tests.fuzz.json_readers import outcome
from tests.support.numpy_models import MANIFESTS, OneModel, manifest

compiled = pytest.mark.skipif(
    not fast_json.COMPILED, reason="lengthwise.decoding._fast_json is optional: this installation had no C compiler"
)


IMITATIONS = [
    # another key that looks like the right one once its digits are gone
    b'{"sequ1ences":[[[1,2]]],"sequences":[[[1,2],[3]]]}',
    b'{"sequences":[[[1,2]],{"sequences":[[[1,2]],[[1,2]]]}]}',
    b'{"sequences":[[{"sequences":[[[1,2]]]}]]}',
    b'{"sequ\\u0065nces":[[[1,2,3]]],"sequences":[[[1,2]]]}',
    b'{"sequences":[{"st\\u0065ps":[{"steps":[[1,2]]}]}]}',
    b'{"sequences":[{"st\\u0065ps":[[1],[2,3]]},{"steps":[[1,2]]}]}',
    b'{"sequences":[{"1steps":[[1,2]]}]}',
    b'{"sequences":[{"steps":[[1,2]],"steps":[[1,2]]}]}',
    # text that looks like structure
    b'{"sequences":[{"id":"\\"steps\\":[[1,2]]","steps":[[1],[2,3]]}]}',
    b'{"model":"\\"sequences\\":[[[1,2]]]","sequences":[[[1],[2,3]]]}',
    # numbers that look like missing values, and missing values where none may be
    b'{"sequences":[{"id":"null","steps":[[1e300,2]]}]}',
    b'{"sequences":[{"id":" 1e300 ","steps":[[1e300,null]]}]}',
    b'{"sequences":[[[1e300,2]]],"timeout_ms":null}',
    b'{"sequences":[[[1.00000000000000000000000null,2]]]}',
    b'{"sequences":[[[10e299,2]]],"model":"null"}',
    b'{"sequences":[[null]]}',
    b'{"sequences":[null]}',
    b'{"sequences":null}',
    # nesting that flattens to the right count
    b'{"sequences":[[[1],[2]]]}',
    b'{"sequences":[[[1],[2,3,4]]]}',
    b'{"sequences":[[[[1,2]]]]}',
    b'{"sequences":[[[1,[2]]]]}',
    b'{"sequences":[[[1,2],[]],[[3,4]]]}',
    b'{"sequences":[[1,2],[[1,2]]]}',
    b'{"sequences":[5,[[1,2,3]]]}',
    b'{"sequences":[[[1]]]}',
    b'{"sequences":[[[]]]}',
    b'{"sequences":[[],[[1,2]]]}',
    b'{"sequences":[]}',
    # other kinds of value in every place
    b'{"sequences":["a"]}',
    b'{"sequences":"abc"}',
    b'{"sequences":{"a":1}}',
    b'{"sequences":[{"steps":[[1,2]]},[[1,2]]]}',
    b'{"sequences":[{"steps":{"a":[[1,2]]}}]}',
    b'{"sequences":[[[1,2]]],"outputs":null}',
    b'{"sequences":[[[1,2]]],"outputs":"attention"}',
    b'{"sequences":[[[1,2]]],"outputs":{"attention":1}}',
    b"[[[1,2]]]",
    b"5",
    b'"sequences"',
    b"",
    # around the document
    b'\xef\xbb\xbf{"sequences":[[[1,2]]]}',
    b'{"sequences":[[[1,2]]]}\x00',
    b'{"sequences":[[[1,2]]]} {}',
    b'{"sequences":[[[1,2]]],"model":"sums","model":"sums"}',
    # tokens of the wrong kind
    b'{"sequences":[[1.0,2]]}',
    b'{"sequences":[[1e0]]}',
    b'{"sequences":[[-0,9]]}',
    b'{"sequences":[[10]]}',
    b'{"sequences":[[18446744073709551615]]}',
    # what is left out, or too much
    b'{"sequences":[[[1,2],]]}',
    b'{"sequences":[[[1,2]]]}}',
    b'{"sequences":[[[1 2,3]]]}',
    b'{"sequences":[[[1,2\x00]]]}',
    b'{"sequence":[[[1,2]]]}',
    b'{"sequencess":[[[1,2]]]}',
    b'{"sequences',
    b"{",
    *(
        b'{"sequences":[{"id":%s,"steps":[[1,2]]}]}' % text
        for text in (b'"\xff"', b'"\\ud800"', b'"\\x"', b'"\n"', b'"')
    ),
]


@compiled
@pytest.mark.parametrize("text", IMITATIONS)
def test_nothing_imitates_an_ordinary_body(text: bytes) -> None:
    for catalog in map(OneModel, MANIFESTS.values()):
        assert outcome(json_body.decode, text, catalog.find) == outcome(validation.read, text, catalog.find)


@compiled
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("refuses missing", b'{"sequences": [[[1, 2.5], [-3e2, 4]], [[5, 6]]]}'),
        ("refuses missing", b'{"sequences": [{"steps": [[1, 2]], "id": "a"}, {"id": "b", "steps": [[3, 4]]}]}'),
        ("refuses missing", b'{"model": "sums", "version": "1", "sequences": [[[1, 2]]], "outputs": ["attention"]}'),
        ("refuses missing", b'{"sequences": [[[1, 2]]], "timeout_ms": 20, "priority": 3}'),
        ("takes missing", b'{"sequences": [[[1, null], [null, null]]]}'),
        ("one feature", b'{"sequences": [[1, 2, null], [3]]}'),
        ("one feature", b'{"sequences": [[[1], [2]], [[3]]]}'),
        ("tokens", b'{"sequences": [[1, 2, 3], [4]]}'),
        ("head", b'{"sequences": [[[1, 2], [3, 4], [5, 6]]]}'),
    ],
)
def test_an_ordinary_body_takes_the_fast_way(kind: str, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    find = OneModel(MANIFESTS[kind]).find
    expected = outcome(validation.read, text, find)
    monkeypatch.setattr(validation, "read", None)
    assert outcome(json_body.decode, text, find) == expected
    assert isinstance(expected[0], list)


@compiled
@pytest.mark.parametrize(
    ("features", "step"), [(1, b"5"), (1, b"[5]"), (2, b"[5,6]"), (None, b"5")], ids=["bare", "of one", "of two", "ids"]
)
def test_a_large_ordinary_body_takes_the_fast_way(
    features: int | None, step: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 300_000
    kind = manifest(vocabulary=10) if features is None else manifest(features=features)
    catalog = OneModel(kind.model_copy(update={"max_length": steps}))
    monkeypatch.setattr(validation, "read", None)
    (item,) = json_body.decode(
        b'{"sequences":[[' + b",".join([step] * steps) + b"]]}", catalog.find, max_sequences=1
    ).items
    assert len(item.steps) == steps


def encoded(item: Item, answer: Answer) -> dict[str, Any]:
    """The one prediction of an answer's bytes."""
    asked = Call(OneModel(manifest()), [item], False)
    document = json.loads(predict.encode(asked, [answer])[0])
    assert list(document) == ["model", "version", "labels", "predictions"]
    (prediction,) = document["predictions"]
    return prediction  # type: ignore[no-any-return]


STEPS = np.zeros((2, 2), dtype=np.float32)
WEIGHTS = np.array([0.25, 0.75], dtype=np.float32)
ROW = np.array([0.1, 0.7, 0.2], dtype=np.float32)
SENT = Item(STEPS, 2)


def test_what_only_a_batch_mate_asked_for_is_not_told() -> None:
    expected = {"label": "b", "score": 0.7, "probabilities": [0.1, 0.7, 0.2], "length": 2}
    assert encoded(SENT, Answer(ROW, 1)) == encoded(SENT, Answer(ROW, 1, WEIGHTS)) == expected


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
def test_probabilities_survive_the_text_bit_for_bit(values: list[float]) -> None:
    row = np.array(values, dtype=np.float32)
    told = np.array(encoded(SENT, Answer(row))["probabilities"], dtype=np.float32)
    assert told.tobytes() == row.tobytes()


@example("\u2028 \x00 \U0001f600")
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=256))
def test_any_id_comes_back_as_it_was_sent(identifier: str) -> None:
    sent = orjson.dumps({"sequences": [{"id": identifier, "steps": [[1, 2]]}]})
    (item,) = json_body.decode(sent, OneModel(manifest()).find, max_sequences=1).items
    assert encoded(item, Answer(ROW, 1))["id"] == identifier


ESCAPES = ("\\ud83d", "\\ude00", "\\uD800", "\\uDFFF", "\\ud7ff", "\\uE000", "\\\\", "\\n", '\\"', "u", "d8", "0", "é")


@given(st.lists(st.sampled_from(ESCAPES), max_size=6).map("".join))
def test_a_lone_surrogate_is_refused_and_a_pair_or_an_escaped_backslash_is_not(text: str) -> None:
    sent = f'["{text}"]'
    (value,) = json.loads(sent)
    if any("\ud800" <= character <= "\udfff" for character in value):
        with pytest.raises(InvalidRequest, match="lone surrogate"):
            json_text.parse(sent.encode())
    else:
        assert json_text.parse(sent.encode()) == [value]


def test_other_threads_can_run_while_many_escapes_are_searched_for_lone_surrogates() -> None:
    calls: list[str] = []  # of Python functions: between two of them another thread can run
    sys.setprofile(lambda frame, event, _: calls.append(event))
    try:
        json_text.parse(b'["%b"]' % (b"\\u0041" * 400_000))
    finally:
        sys.setprofile(None)
    assert calls.count("call") > 40

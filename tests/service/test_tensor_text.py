"""The JSON of tensors without their numbers is, with them, the JSON."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lengthwise.decoding import json_text
from lengthwise.errors import RequestError
from lengthwise.protocols import tensor_text
from lengthwise.protocols.tensor_text import TensorText

BLANK = b" " * 33_000
NUMBERS = st.recursive(st.one_of(st.none(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=5)), st.lists)
ENTRIES = st.dictionaries(st.sampled_from(["data", "name", '"data":']), NUMBERS)
DOCUMENTS = st.one_of(st.fixed_dictionaries({"inputs": st.one_of(st.lists(ENTRIES, max_size=4), NUMBERS)}), NUMBERS)


def whole(value: Any) -> Any:
    """A document with the numbers of its inputs parsed."""
    if isinstance(value, TensorText):
        return value.parsed()
    if isinstance(value, dict):
        return {name: whole(entry) for name, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, list) else value


def outcome(body: bytes, parse: Any) -> Any:
    try:
        return whole(parse(body, "the body"))
    except RequestError as error:
        return type(error), error.detail


@given(DOCUMENTS, st.booleans(), st.data())
def test_what_is_parsed_later_is_what_would_be_parsed_at_once(document: Any, spoilt: bool, data: st.DataObject) -> None:
    body = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode() + BLANK
    if spoilt:
        at = data.draw(st.integers(0, len(body) - len(BLANK)))
        body = body[:at] + data.draw(st.sampled_from([b"", b"[", b"]", b'"', b"\xff", b",", b"NaN"])) + body[at + 1 :]
    assert outcome(body, tensor_text.parse) == outcome(body, json_text.parse)

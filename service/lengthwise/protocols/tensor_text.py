"""The JSON of a request of tensors, whose numbers are not parsed before their shape is known to be right.

The arrays of numbers are most of such a body, and to make Python objects of them is most of the work. So they are read
in C, and the rest is parsed without them.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from lengthwise.decoding import fast_json, json_text
from lengthwise.errors import RequestError

_MOST_TEXTS: Final = 256
# Within a text a quotation mark has a backslash before it, so this can only be a field.
_DATA: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')


class TensorText(NamedTuple):
    """An array of numbers as its text, the JSON of a list."""

    text: bytes
    floats: bytes | None = None  # its numbers as float32, NaN for null; None where it has anything else than numbers
    entries: int | None = None  # how many it has, where all are numbers, or some are not and none is a list

    def parsed(self) -> Any:
        """The list; raises `RequestError` if it has too many parts, or is not text."""
        return json_text.parse(self.text)


class SplitText(NamedTuple):
    """The JSON of a request, with the number of its text instead of each array under `data`."""

    rest: bytes
    texts: tuple[TensorText, ...]


def split(head: bytes) -> SplitText:
    """Takes the arrays of numbers out of the JSON of a request; if one cannot be read by C, takes none out."""
    texts: list[TensorText] = []
    pieces: list[bytes] = []
    at = 0
    while (match := _DATA.search(head, at)) is not None:
        start = match.end()
        text = _text_at(head, start)
        if text is None or len(texts) == _MOST_TEXTS:
            return SplitText(head, ())
        pieces += [head[at:start], b"[%d]" % len(texts)]
        texts.append(text)
        at = start + len(text.text)
    return SplitText(b"".join([*pieces, head[at:]]) if texts else head, tuple(texts))


def _text_at(head: bytes, start: int) -> TensorText | None:
    """The text of the array that begins at a byte; None if no array begins there, or C cannot read it."""
    flat = fast_json.flat(head, start)
    if flat is None:
        return None
    floats, end, others = flat
    text = head[start:end]
    if floats is not None:
        return TensorText(text, floats, len(floats) // 4)
    if not text.isascii():  # it may be no UTF-8, and the error names the byte of the whole
        return None
    return TensorText(text, entries=others if 0 < others < json_text.MAX_PARTS else None)


def parse(head: bytes, name: str, split_text: SplitText | None = None) -> Any:
    """Parses the JSON of a request; the `data` of its inputs are `TensorText`s. Raises as `json_text.parse` does.

    `name` is its name in error messages, and `split_text` what `split` makes of it.
    """
    rest, texts = split_text or split(head)
    if not texts:
        return json_text.parse(head, name)
    try:
        document = json_text.parse(rest)
    except RequestError:
        return json_text.parse(head, name)  # which names the byte of the whole
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for entry in inputs if isinstance(inputs, list) else ():
        data = entry.get("data") if isinstance(entry, dict) else None
        if isinstance(data, list) and len(data) == 1 and type(data[0]) is int and 0 <= data[0] < len(texts):
            entry["data"] = texts[data[0]]
    return document

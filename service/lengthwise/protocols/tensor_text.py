"""The JSON of a request of tensors, whose numbers are not parsed before their shape is known to be right.

The arrays of numbers are most of such a body, and to make Python objects of them is most of the work. So the rest is
parsed without them.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from lengthwise.decoding import fast_json, json_text
from lengthwise.errors import RequestError

_LEAST_BYTES: Final = 32_768
"""A shorter body is parsed as a whole."""
_MOST_TEXTS: Final = 256
_DATA: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')
"""Within a text a quotation mark has a backslash before it, so this can only be a field."""


class TensorText(NamedTuple):
    """An array of numbers as its text.

    Attributes:
        text: The JSON of a list.
    """

    text: bytes

    def parsed(self) -> Any:
        """The list.

        Raises:
            RequestError: It has too many parts, or is not text.
        """
        return json_text.parse(self.text)


def parse(head: bytes, what: str) -> Any:
    """Parses the JSON of a request; the `data` of its inputs are `TensorText`s where it is long.

    Args:
        head: The JSON.
        what: Its name in error messages.

    Raises:
        RequestError: As `json_text.parse`.
    """
    texts: list[TensorText] = []
    pieces: list[bytes] = []
    at = 0
    while len(head) > _LEAST_BYTES and (match := _DATA.search(head, at)) is not None:
        end = fast_json.skip(head, match.end())
        if end is None or len(texts) == _MOST_TEXTS:
            return json_text.parse(head, what)
        pieces += [head[at : match.end()], b"[%d]" % len(texts)]
        texts.append(TensorText(head[match.end() : end]))
        at = end
    if not texts:
        return json_text.parse(head, what)
    try:
        document = json_text.parse(b"".join([*pieces, head[at:]]))
    except RequestError:
        return json_text.parse(head, what)  # which knows the place in the whole
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for entry in inputs if isinstance(inputs, list) else ():
        data = entry.get("data") if isinstance(entry, dict) else None
        if isinstance(data, list) and len(data) == 1 and type(data[0]) is int and 0 <= data[0] < len(texts):
            entry["data"] = texts[data[0]]
    return document

"""The JSON of a request of tensors, whose numbers are not parsed before their shape is known to be right.

The arrays of numbers are most of such a body, and to make Python objects of them is most of the work. So the arrays are
read in C, and the rest is parsed without them:

```
{"inputs": [{"name": "values", "data": [0.5, 1.5]}]}
split ──> rest {"inputs": [{"name": "values", "data": [0]}]}  and texts (TensorText("[0.5, 1.5]"),)
```

`head` is the JSON of a request; the raw bytes of binary tensors, which may follow it, are not this module's.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from lengthwise.decoding import fast_json, json_text
from lengthwise.errors import RequestError

_MOST_TEXTS: Final = 256
# Those clients write NaN into the JSON with `binary_data=False`.
OF_NAN: Final = f"{json_text.OF_NAN} (binary_data=True in the clients of Triton and KServe sends NaN as it is)"
# Within a JSON string a quotation mark has a backslash before it, so this can only be a field.
_DATA: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')


class TensorText(NamedTuple):
    """An array of numbers as its JSON text."""

    text: bytes
    floats: bytes | None = None  # the numbers as float32, NaN for null; None if there is anything else than numbers
    entries: int | None = None  # how many there are; None if it is not known, as where some are lists

    def parsed(self) -> Any:
        """The list that the text describes; raises `RequestError` if it has too many parts, or is not valid JSON."""
        return json_text.parse(self.text)


class SplitText(NamedTuple):
    """The JSON of a request with `[index]` in place of each array of numbers under `data`, and the texts of these."""

    rest: bytes
    texts: tuple[TensorText, ...]


def split(head: bytes) -> SplitText:
    """Cuts the arrays under `data` out of the JSON of a request, in which their indices take their place.

    If C cannot read one of them, or there are too many, it returns the whole JSON without texts.
    """
    texts: list[TensorText] = []
    pieces: list[bytes] = []
    rest_start = 0
    while (match := _DATA.search(head, rest_start)) is not None:
        start = match.end()
        text = _text_at(head, start)
        if text is None or len(texts) == _MOST_TEXTS:
            return SplitText(head, ())
        pieces += [head[rest_start:start], b"[%d]" % len(texts)]
        texts.append(text)
        rest_start = start + len(text.text)
    return SplitText(b"".join([*pieces, head[rest_start:]]) if texts else head, tuple(texts))


def _text_at(head: bytes, start: int) -> TensorText | None:
    """The text of the array that begins at the byte `start`, with what C has read of it.

    None if no array begins there, or only Python's parser can read it.
    """
    flat = fast_json.flat(head, start)
    if flat is None:
        return None
    floats, end, entries = flat
    text = head[start:end]
    if floats is not None:  # a flat array of numbers
        return TensorText(text, floats, len(floats) // 4)
    if not text.isascii():  # it may be invalid UTF-8: the parser of the whole JSON then names the byte
        return None
    # An array with other entries than numbers: their number is known if it is flat.
    return TensorText(text, entries=entries if 0 < entries < json_text.MAX_PARTS else None)


def parse(head: bytes, name: str, split_text: SplitText | None = None) -> Any:
    """Parses the JSON of a request, and returns it; the arrays under `data` of its inputs stay texts (`TensorText`).

    `name` is the JSON's name in error messages; `split_text` is the result of `split(head)`, if the caller has it.
    Raises `InvalidRequest` if the JSON is wrong, and `TooLarge` if it has too many parts.
    """
    rest, texts = split_text or split(head)
    if not texts:
        return json_text.parse(head, name, of_nan=OF_NAN)
    try:
        document = json_text.parse(rest)
    except RequestError:
        return json_text.parse(head, name, of_nan=OF_NAN)  # its error names the byte in the whole JSON
    # Put the texts in place of their indices. Whether the fields have the right types is checked later.
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for entry in inputs if isinstance(inputs, list) else ():
        data = entry.get("data") if isinstance(entry, dict) else None
        if isinstance(data, list) and len(data) == 1 and type(data[0]) is int and 0 <= data[0] < len(texts):
            entry["data"] = texts[data[0]]
    return document

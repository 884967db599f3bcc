"""Records of a JSON Lines file, `{"id": ..., "steps": ..., "label": ...}` a line, as fields whose steps are arrays.

`_fast_json.c` reads the steps of an ordinary line straight to float32; the rest, with null in their place, is a small
JSON object. Any other line is parsed as a whole, and `dataset` checks its steps one by one.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any, Final, Literal

import numpy as np
import orjson

from lengthwise.padding import Steps

try:
    from lengthwise.decoding import _fast_json
except ImportError:  # mypy knows the module from its stub; at run time an installation may be without it
    _fast_json = None  # type: ignore[assignment]

StepKind = Literal["values", "tokens"]  # an array of values, or a token id

_KEY: Final = b'"steps":'
_OPENING: Final = re.compile(rb'"steps":\s*\[\s*(\[)?')
_MOST: Final = (1 << 63) - 1  # steps, and token ids: no limit


class RepeatedKey(ValueError):
    """An object of a line has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def loads(text: bytes) -> Any:
    """The JSON value of a text; raises RepeatedKey where it is unclear which value of a key counts."""
    found = orjson.loads(text)
    if isinstance(found, dict):
        check_keys(text, found, text.count(b":") - len(found))
    return found


def check_keys(text: bytes, found: dict[str, Any], more: int) -> None:
    """Raises RepeatedKey where an object in `text`, parsed to `found`, has a key twice; `more`: colons than keys."""
    # Each key is followed by a colon. Further colons are in strings, or belong to a repeated key that was overwritten
    name = found.get("id")
    if more and type(name) is str and b"\\" not in text:
        more -= name.count(":")  # an id often has some
    if not more:
        return
    with suppress(RecursionError):  # so deep is no record: its steps or its label are refused
        json.loads(text, object_pairs_hook=_once, parse_int=bool, parse_float=bool)


def _once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise RepeatedKey(key)
        seen.add(key)


def plain_fields(line: bytes, kind: StepKind) -> dict[str, Any] | None:
    """The fields of an ordinary line, its steps as an array; None of any other."""
    opening = _OPENING.search(line)
    if opening is None:
        return None
    start = opening.start() + len(_KEY)
    end = line.rfind(b"]]") + 2 if opening[1] else line.find(b"]", start) + 1
    if end <= start or b'"steps"' in line[end:]:
        return None
    text = line[:start] + b"null" + line[end:]
    try:
        fields = orjson.loads(text)
        if not isinstance(fields, dict) or fields.get("steps", "") is not None:
            return None
        more = text.count(b":") - len(fields)
        if more:
            check_keys(text, fields, more)
    except (orjson.JSONDecodeError, RepeatedKey):  # the whole line says what is wrong with it
        return None
    features = line.count(b",", opening.end(), line.find(b"]", opening.end())) + 1 if opening[1] else 1  # of the first
    steps = _array(b"".join((b"[", memoryview(line)[start:end], b"]")), None if kind == "tokens" else features)
    if steps is None:
        return None
    fields["steps"] = steps
    return fields


def _array(sequences: bytes, features: int | None) -> Steps | None:
    """A list of steps within another as an array that can be written to; None if it is not ordinary."""
    if _fast_json is None:
        return None
    if features is None:
        ids = _fast_json.read_tokens(sequences, 0, len(sequences), _MOST, 1, _MOST)
        return np.frombuffer(ids, np.int64).copy() if isinstance(ids, bytes) else None
    values = _fast_json.read_values(sequences, 0, len(sequences), features, 1, _MOST, False)
    return np.frombuffer(values, np.float32).reshape(-1, features).copy() if isinstance(values, bytes) else None

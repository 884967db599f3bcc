"""JSON text to a value: what RFC 8259 calls JSON, within bounds, and nothing that Python's reader takes beside it.

A body may be hostile: millions of empty arrays, a number of ten thousand digits, a key that stands twice. What is read
here costs no more than a body of its size may, and holds no other thread for longer.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from lengthwise.errors import InvalidRequest, Problem, TooLarge

MAX_PARTS: Final = 1 << 20
"""Arrays, objects and strings in one body. Each takes up to twenty times its text, and every thread waits while they
are read and freed: sixteen megabytes of empty arrays would be nearly a gigabyte and a second."""
_LARGE_BYTES: Final = 65_536
_CONSTANT: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|(NaN|-?Infinity)')
"""A string, which is passed over, or as its group one of the literals that Python's reader takes and JSON has not."""


def parse(body: bytes | bytearray) -> Any:
    """The JSON value of a body. NaN and Infinity literals, duplicate keys and absurd nesting are not JSON here.

    Raises:
        InvalidRequest: The text is not UTF-8, not JSON, or has a lone surrogate; its one problem points at the whole.
        TooLarge: It has more than `MAX_PARTS`.
    """
    parts = body.count(b"[") + body.count(b"{") + body.count(b'"') // 2
    if parts > MAX_PARTS:
        raise TooLarge(f"a body may have {MAX_PARTS} arrays, objects and strings, this one has {parts}")
    try:
        text = bytes(body).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"the body is not UTF-8: byte {error.start} cannot be read") from None
    if text.startswith("\ufeff"):
        raise _not_json("the body starts with a byte order mark; send plain UTF-8")
    try:
        with collector_at_rest():
            document = json.loads(
                text,
                object_pairs_hook=_object,
                parse_constant=partial(_no_constant, text),
                parse_int=_int,
                # Between calls of a function the interpreter may turn to other threads, within its own reader never.
                parse_float=_float if len(text) > _LARGE_BYTES else None,
            )
    except RecursionError:
        raise _not_json("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _not_json(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if "\\u" in text and _has_lone_surrogate(document):
        raise _not_json("the body has a lone surrogate, which is no text")
    return document


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Stops the garbage collector while a document lives.

    A document has no cycles, and a hostile one has millions of arrays: the collector would look through them again and
    again while they are read, and holds every thread each time (measured: three quarters of the time).
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _not_json(f"the key {twice[:40]!r} stands twice in one object")
    return made


def kind(value: Any) -> str:
    """What a JSON value is, for a sentence."""
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), (int, "a number"), (float, "a number"), (str, "a string"), (list, "an array"))
    return next((kind for type_, kind in kinds if isinstance(value, type_)), "an object")


def constant(text: str) -> tuple[str, int] | None:
    """The first NaN or Infinity of a text that stands in no string, and where; None where there is none."""
    found = next((found for found in _CONSTANT.finditer(text) if found[1]), None)
    return None if found is None else (found[1], found.start(1))


def no_constant(name: str, where: str) -> str:
    """What is said of a NaN or Infinity."""
    return f"{name} is not JSON, {where}; a missing value is null"


def _no_constant(text: str, name: str) -> None:
    # The reader goes through the text in order, so what stands before the first of them is sound JSON.
    found = constant(text)
    at = 0 if found is None else found[1]
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    raise _not_json(no_constant(name, f"at line {line}, column {column}"))


def _int(digits: str) -> int | float:
    # Python refuses to convert thousands of digits; such a number is beyond float32 anyway.
    return int(digits) if len(digits) <= 400 else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _float(digits: str) -> float:
    return float(digits)


def _has_lone_surrogate(value: Any) -> bool:
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, str):
            if any("\ud800" <= character <= "\udfff" for character in top):
                return True
        elif isinstance(top, dict):
            stack.extend(top.keys())
            stack.extend(top.values())
        elif isinstance(top, list):
            stack.extend(top)
    return False


def _not_json(detail: str) -> InvalidRequest:
    return InvalidRequest([Problem("", detail)])

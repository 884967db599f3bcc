"""Parses JSON text as RFC 8259 defines it, within limits, and without what Python's parser accepts in addition.

A body may be hostile: millions of empty arrays, a number of ten thousand digits, the same key twice. The limits bound
the time and the memory that a body takes, and how long other threads wait for it.
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

MAX_PARTS: Final = 1 << 20  # arrays, objects, strings: 16 MB of empty arrays would stop all threads for a second
OF_NAN: Final = "a missing value is null, where the model takes any"
TOO_MANY_PARTS: Final = f"a body may have {MAX_PARTS} arrays, objects and strings, this one has {{}}"
_LARGE_BYTES: Final = 65_536
_CONSTANT: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|(NaN|-?Infinity)')  # a string, or a constant (group 1)
# A piece of JSON text: no escapes; escapes of one character; `\u` and no surrogate; surrogate pairs. Group 1: the
# beginning of a lone surrogate. A piece is short, because no other thread can run while it is searched.
_PIECES: Final = re.compile(
    r"(?:[^\\]++|\\(?:[^u]|u(?:[^dD]|[dD](?:[0-7]|[89abAB]..\\u[dD][c-fC-F])))){1,10000}+|(\\)", re.DOTALL
)
_ENDS_EARLY: Final = "{} ends in the middle of the JSON text, at byte {}"
# What may be at the end of a text that was cut: spaces, or the beginning of a number or a constant.
_CUT: Final = re.compile(r"\s*|-|t(ru?)?|f(a(ls?)?)?|n(ul?)?|\.|[eE][+-]?")
_CUT_ESCAPE: Final = re.compile(r"\\u?[0-9a-fA-F]{0,4}\Z")


def parse(body: bytes | bytearray, name: str = "the body", *, most_parts: int = MAX_PARTS, of_nan: str = OF_NAN) -> Any:
    """The value of a JSON text. `name` is its name in error messages, `of_nan` what to send in place of NaN.

    NaN, Infinity, duplicate keys, lone surrogates and very deep nesting are errors.

    Raises:
        InvalidRequest: The text is not JSON in UTF-8, or has one of these errors.
        TooLarge: The text has more than `most_parts` arrays, objects and strings.
    """
    parts = body.count(b"[") + body.count(b"{") + body.count(b'"') // 2
    if parts > most_parts:
        raise TooLarge(TOO_MANY_PARTS.format(parts))
    try:
        text = bytes(body).decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise InvalidRequest([Problem("", _ENDS_EARLY.format(name, len(body)))]) from None
        raise InvalidRequest([Problem("", f"{name} is not UTF-8: byte {error.start} cannot be read")]) from None
    if not text or text.isspace():
        raise InvalidRequest([Problem("", f"{name} is empty{', but for white space' if text else ''}")])
    if text.startswith("\ufeff"):
        raise InvalidRequest([Problem("", f"{name} starts with a byte order mark; send plain UTF-8")])
    try:
        with collector_paused():
            # Other threads can run between two calls of a Python function, but not within the parser in C.
            document = _loads(text, of_nan, in_python=len(text) > _LARGE_BYTES)
        if "\\u" in text and any(piece[1] for piece in _PIECES.finditer(text)):
            raise InvalidRequest([Problem("", f"{name} has a lone surrogate, which is no text")])
    except RecursionError:
        raise InvalidRequest([Problem("", f"{name} is nested too deeply")]) from None
    except json.JSONDecodeError as error:
        if _is_cut(text, error):
            raise InvalidRequest([Problem("", _ENDS_EARLY.format(name, len(body)))]) from None
        raise InvalidRequest(
            [Problem("", f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}")]
        ) from None
    return document


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses the garbage collector in the block, because it would visit a hostile body's parts again and again.

    That would take three quarters of the time.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _loads(text: str, of_nan: str, *, in_python: bool) -> Any:
    """Parses a text with Python's JSON module.

    With `in_python` a Python function converts each number, which takes longer, but lets other threads run meanwhile,
    and converts integers of any number of digits; so a text with such an integer is parsed again in this way.

    Raises:
        JSONDecodeError: The text is not JSON.
        ValueError: A number has too many digits.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=partial(_no_constant, text, of_nan),
            parse_int=_int if in_python else None,
            parse_float=(lambda digits: float(digits)) if in_python else None,
        )
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of more digits than Python converts
        if in_python:
            raise
        return _loads(text, of_nan, in_python=True)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object as a dict.

    Raises:
        InvalidRequest: A key is there twice.
    """
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InvalidRequest([Problem("", f"the key {repeated[:40]!r} stands twice in one object")])
    return value


def kind(value: Any) -> str:
    """The JSON type of a value, for a message."""
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), (int, "a number"), (float, "a number"), (str, "a string"), (list, "an array"))
    return next((kind for type_, kind in kinds if isinstance(value, type_)), "an object")


def _no_constant(text: str, of_nan: str, name: str) -> None:
    """Called by the parser for NaN, Infinity or -Infinity (`name`); `of_nan` is what to send in place of NaN.

    Raises:
        InvalidRequest: Always; it says where in the text the first of them is.
    """
    # The parser reads the text in order, so everything before the first of them is valid JSON.
    at = next((match.start(1) for match in _CONSTANT.finditer(text) if match[1]), 0)
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    advice = f"; {of_nan}" if name == "NaN" else ""
    raise InvalidRequest([Problem("", f"{name} is not JSON, at line {line}, column {column}{advice}")])


def _int(digits: str) -> int | float:
    """A JSON integer; infinite if it has more digits than Python converts, as it is beyond float32 anyway."""
    return int(digits) if len(digits) <= 400 else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the parser's error shows that a text was cut off, as a connection that broke would leave it.

    That is so if the text ends within a string, an escape, a number or a constant, or where more has to follow.
    """
    if error.msg.startswith("Invalid \\"):  # an escape
        return _CUT_ESCAPE.search(text, max(0, error.pos - 2)) is not None
    is_within_string = error.msg.startswith("Unterminated string")
    return is_within_string or (error.msg != "Extra data" and _CUT.fullmatch(text, error.pos) is not None)

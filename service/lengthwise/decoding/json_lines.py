"""Records of a JSON Lines file, `{"id": ..., "steps": ..., "label": ...}` a line, as fields whose steps are arrays.

`_fast_json.c` reads the steps of an ordinary line straight to float32; the rest, with null in their place, is a small
JSON object. A line of many megabytes is read in pieces, so that its text is never in memory as a whole. Any other line
is parsed as a whole, and `dataset` checks its steps one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal, Protocol

import numpy as np
import orjson

from lengthwise.padding import Steps

try:
    from lengthwise.decoding import _fast_json
except ImportError:  # mypy knows the module from its stub; at run time an installation may be without it
    _fast_json = None  # type: ignore[assignment]

LONG_LINE_BYTES: Final = 1 << 20  # a longer line is read in pieces of this size

StepKind = Literal["values", "tokens"]  # an array of values, or a token id

_KEY: Final = b'"steps":'
_OPENING: Final = re.compile(rb'"steps":\s*\[\s*(\[)?')
_CLOSING_NESTED: Final = re.compile(rb"\]\s*\]")
_CLOSING: Final = re.compile(rb"\]")
_MOST: Final = (1 << 63) - 1  # steps, and token ids: no limit

CheckSteps = Callable[[list[Any], int, int | None], Steps]
"""Makes an array of a list of steps, or raises: the list, its first index, the number of features if known."""


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


class _File(Protocol):
    def readline(self, size: int, /) -> bytes:
        """The next bytes, up to a newline or up to that size."""


def plain_fields(line: bytes, kind: StepKind, features: int | None) -> dict[str, Any] | None:
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
    steps = _array(line[start:end], kind, features)
    if steps is None:
        return None
    fields["steps"] = steps
    return fields


class LongLine:
    """A line that is read in pieces, from its first piece and the file with the next ones."""

    def __init__(self, first: bytes, file: _File) -> None:
        self._text = first
        self._file = file
        self._has_more = not first.endswith(b"\n")

    def fields(self, kind: StepKind, features: int | None, check: CheckSteps) -> Any:
        """The fields of the line, the steps as an array. Reads to the end of the line even if something is wrong.

        `check` reads a piece that is not ordinary. Raises RecordError, orjson.JSONDecodeError or RepeatedKey.
        """
        try:
            return self._fields(kind, features, check)
        finally:
            while self._has_more:
                self._text = b""
                self._read_on()

    def _fields(self, kind: StepKind, features: int | None, check: CheckSteps) -> Any:
        opening = _OPENING.search(self._text)
        if opening is None:
            self._read_to_the_end()
            return loads(self._text)
        is_nested = opening[1] is not None
        head = self._text[: opening.start() + len(_KEY)]
        self._text = self._text[len(head) :].lstrip()[1:]
        parts: list[Steps] = []
        try:
            rest = self._by_pieces(parts, head, kind, features, check, is_nested=is_nested)
        except orjson.JSONDecodeError:  # not laid out as this class expects: what is left is parsed as a whole
            self._read_to_the_end()
            rest = loads(head + b"[" + self._text)
            if isinstance(rest, dict) and isinstance(rest.get("steps"), list):
                parts.append(check(rest["steps"], sum(map(len, parts)), _features(parts)))
                rest["steps"] = None
        if isinstance(rest, dict) and "steps" in rest and rest["steps"] is None:
            rest["steps"] = np.concatenate(parts)
        return rest

    def _by_pieces(
        self,
        parts: list[Steps],
        head: bytes,
        kind: StepKind,
        features: int | None,
        check: CheckSteps,
        *,
        is_nested: bool,
    ) -> Any:
        """Appends the steps to `parts`; returns the other fields of the line, with null for the steps.

        After an orjson.JSONDecodeError, a piece is not part of a list, and the caller still has to read it.
        """
        closing = _CLOSING_NESTED if is_nested else _CLOSING
        while (end := closing.search(self._text)) is None and self._has_more:
            cut = self._text.rfind(b"],") + 1 if is_nested else self._text.rfind(b",")
            if cut > 0:
                parts.append(_piece(self._text[:cut], kind, features, check, parts))
                self._text = self._text[cut + 1 :]
            self._read_on()
        self._read_to_the_end()  # a label for each step may be long as well
        last = self._text if end is None else self._text[: end.end() - 1]
        rest = loads(head + b"null" + self._text[len(last) + 1 :])
        parts.append(_piece(last, kind, features, check, parts))
        return rest

    def _read_on(self) -> None:
        """Reads the next piece. Doubles a text without a whole step, so that it is not copied for each piece."""
        pieces, wanted = [self._text], len(self._text)
        while self._has_more and (len(pieces) == 1 or wanted > 0):
            pieces.append(self._piece())
            wanted -= len(pieces[-1])
        self._text = b"".join(pieces)

    def _read_to_the_end(self) -> None:
        """Reads the rest of the line; joins the pieces once, because a growing text would be copied for each."""
        pieces = [self._text]
        self._text = b""
        while self._has_more:
            pieces.append(self._piece())
        self._text = b"".join(pieces)

    def _piece(self) -> bytes:
        piece = self._file.readline(LONG_LINE_BYTES)
        self._has_more = bool(piece) and not piece.endswith(b"\n")
        return piece


def _features(parts: list[Steps]) -> int | None:
    return parts[0].shape[1] if parts and parts[0].ndim == 2 else None


def _piece(text: bytes, kind: StepKind, features: int | None, check: CheckSteps, before: list[Steps]) -> Steps:
    """The steps of a part of a list, without brackets; `features` is a guess, and the parts before know better."""
    known = _features(before)
    steps = _array(b"[%s]" % text, kind, known or features)
    return check(orjson.loads(b"[%s]" % text), sum(map(len, before)), known) if steps is None else steps


def _array(steps: bytes, kind: StepKind, features: int | None) -> Steps | None:
    """The steps of an ordinary list, `[length, features]` float32 or `[length]` int64; None of any other list.

    A copy, since NumPy cannot write to the bytes that were read.
    """
    if _fast_json is None or (kind == "values" and features is None):
        return None
    sequences = b"[%s]" % steps
    if features is None or kind == "tokens":
        ids = _fast_json.read_tokens(sequences, 0, len(sequences), _MOST, 1, _MOST)
        return np.frombuffer(ids, np.int64).copy() if isinstance(ids, bytes) else None
    values = _fast_json.read_values(sequences, 0, len(sequences), features, 1, _MOST, False)
    return np.frombuffer(values, np.float32).reshape(-1, features).copy() if isinstance(values, bytes) else None

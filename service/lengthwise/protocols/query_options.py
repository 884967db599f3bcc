"""The options of a request with a binary body: they are in the query, because there is not JSON for them.

The parameters have the names of the fields in JSON, and numbers are written as there. `outputs` has names with commas.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

from lengthwise.decoding import options
from lengthwise.decoding.calls import Problems, id_problem
from lengthwise.errors import InvalidRequest, Problem

OF_BINARY_BODIES: Final = options.FIELDS | {"id"}
"""The parameters of some binary body; `id` is that of one sequence."""
_LONGEST_QUERY: Final = 4096
_LONGEST_CACHED: Final = 256
_NO_OPTIONS: Final = options.CallOptions()


def read(raw: bytes, known: frozenset[str]) -> tuple[options.CallOptions, str | None, Problems]:
    """Reads a query string.

    Args:
        raw: The query string.
        known: The names of its parameters.

    Returns:
        The options, the `id`, and what is wrong with them. The problems have no pointer, since the query is no part of
        the body; each names its parameter.

    Raises:
        InvalidRequest: The query is too long, or not text.
    """
    if not raw:
        return _NO_OPTIONS, None, Problems()
    comes_again = len(raw) <= _LONGEST_CACHED and b"id=" not in raw
    asked, identifier, first, total = (_read_cached if comes_again else _read)(raw, known)
    return asked, identifier, Problems(first=[*first], total=total)


def _read(raw: bytes, known: frozenset[str]) -> tuple[options.CallOptions, str | None, tuple[Problem, ...], int]:
    """What `read` returns, with the first problems and their number."""
    try:
        pairs = parse_qsl(raw[: _LONGEST_QUERY + 1].decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidRequest([Problem("", "the query is no text")]) from None
    if len(raw) > _LONGEST_QUERY:
        raise InvalidRequest([Problem("", f"the query may have {_LONGEST_QUERY} bytes")])
    problems = Problems()
    document: dict[str, Any] = {}
    for name, text in pairs:
        if name not in known:
            problems.add(f"/{name}", f"is not known; known are {', '.join(sorted(known))}")
        elif name in document:
            problems.add(f"/{name}", "stands twice")
        elif name == "outputs":
            document[name] = text.split(",")
        else:
            document[name] = _number(text) if name in ("timeout_ms", "priority") else text
    identifier = document.get("id")
    wrong = None if identifier is None else id_problem(identifier)
    if wrong is not None:
        problems.add("/id", wrong)
    asked = options.read(document, problems)
    return asked, identifier, tuple(_of_parameter(problem) for problem in problems.first), problems.total


_read_cached = lru_cache(maxsize=128)(_read)
"""The same for a query that is likely to come again."""


def check_beside_json(query: bytes) -> None:
    """Rejects an option in the query of a JSON body: it would have no effect, and another model might answer.

    Raises:
        InvalidRequest: There is one.
    """
    problems = Problems()
    for name, _ in parse_qsl(query[:_LONGEST_QUERY].decode("latin-1"), keep_blank_values=True):
        if name in OF_BINARY_BODIES:
            problems.add("", f"query parameter {name}: is for a binary body; in a JSON body it is a field")
    if problems.total:
        raise problems.error()


def _of_parameter(problem: Problem) -> Problem:
    return Problem("", f"query parameter {problem.pointer[1:]}: {problem.detail}")


def _number(text: str) -> int | float | str:
    """A text as a JSON number, or the text itself if it is not one. Python's `float` would also accept "1_000"."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if type(value) in (int, float) else text

"""What is wrong with a key of a spec, a manifest or a configuration, in plain words.

pydantic finds it and names its kind; the sentence is ours, so that whoever reads it at night learns what to write, and
not which kind of Python object was meant.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST_LISTED: Final = 10
_MOST_CHARACTERS: Final = 60

_KINDS: Final[Mapping[str, str]] = {
    "missing": "must be given",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number, and is too large for one",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a string, in quotes",
    "string_unicode": "must be UTF-8",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table of keys",
    "model_type": "must be a table of keys",
    "model_attributes_type": "must be a table of keys",
    "path_type": "must be a path, in quotes",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "literal_error": "must be {expected}",
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
    "string_pattern_mismatch": "must match {pattern}",
}
"""By pydantic's name for what is wrong; the braces are what it tells beside it."""


def sentence(item: ErrorDetails) -> str:
    """What a value must be, as the end of a sentence that begins with its key."""
    said = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    kind = _KINDS.get(item["type"])
    if kind is not None:
        return kind.format_map(item.get("ctx", {}))
    for beginning in ("Input should be ", "Value should be "):
        said = said.replace(beginning, "must be ")
    return said


def all_wrong(
    errors: Sequence[ErrorDetails], known: Callable[[tuple[int | str, ...]], Iterable[str]], *, whole: str
) -> str:
    """Every key that is wrong, with what is wrong and what stands there.

    Args:
        errors: As pydantic found them.
        known: The keys that there are in the table at a place.
        whole: What to call the whole, where no key of it is meant.
    """
    places = [item["loc"] for item in errors]
    told = []
    for item in errors:
        place = item["loc"]
        # Of a list whose entries are wrong none is counted, and pydantic then calls it too short as well.
        if item["type"] == "too_short" and any(place == other[: len(place)] != other for other in places):
            continue
        if item["type"] == "extra_forbidden":
            said = unknown(str(place[-1]), known(place[:-1]))
        else:
            said = sentence(item)
            if item["type"] not in ("missing", "value_error"):
                said = f"{said}, it is {shown(item['input'])}"
        told.append(f"{'.'.join(map(str, place)) or whole}: {said}")
    more = [f"and {len(told) - _MOST_LISTED} more"] if len(told) > _MOST_LISTED else []
    return "; ".join([*told[:_MOST_LISTED], *more])


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said of a key that does not exist: the nearest that does, and all of them."""
    names = list(known)
    return f"unknown key{nearest(name, names)}; known are {', '.join(names)}"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean ...?` with the known name that is most like another, or nothing where none is.

    Args:
        name: What was written.
        known: The names that there are.
        prefix: What stands before both and is not compared.
    """
    names = {each.lower().replace("-", "_"): each for each in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{names[found[0]]}?" if found else ""


def shown(value: Any) -> str:
    """A value as it may stand in a file, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def no_booleans_for_numbers(table: Any, annotations: Mapping[str, Any]) -> Any:
    """Refuses `true` where a number is meant, which Python takes for 1.

    Args:
        table: What a file holds.
        annotations: The type of each key.

    Returns:
        The table.

    Raises:
        ValueError: Names the first.
    """
    for name, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, bool) and name in annotations:
            kinds = set(_types(annotations[name]))
            if bool not in kinds and kinds & {int, float}:
                raise ValueError(f"'{name}' must be a number, it is {shown(value)}")
    return table


def _types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    inside = get_args(annotation)
    if not inside:
        yield annotation
    for part in inside:
        yield from _types(part)

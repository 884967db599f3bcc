"""Error messages for wrong values that pydantic found: they say what to write, not which type Python expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, get_args

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST_LISTED: Final = 10  # wrong keys in a message
_MOST_CHARACTERS: Final = 60  # of a value in a message

_SENTENCES: Final[Mapping[str, str]] = {
    "missing": "must be given",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    "int_parsing_size": "must be a whole number, and is too large for one",
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be a string, in quotes",
    "string_unicode": "must be UTF-8",
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    "sequence_str": "must be a list, not one text",
    "callable_type": "must be a function",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a table of keys"),
    "path_type": "must be a path, in quotes",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "literal_error": "must be {expected}",
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
    "string_pattern_mismatch": "must match {pattern}",
}  # what a value must be, by pydantic's type of error; the braces are filled with the error's details (`ctx`)


def counted(number: int, noun: str, several: str = "") -> str:
    """A number with its noun: `1 feature`, `12 features`; `several` is the plural if it is not the noun with an s."""
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"


def first_of(texts: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Joins the first `most` texts, and adds how many more there are."""
    return separator.join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def sentence(item: ErrorDetails) -> str:
    """Says what a wrong value must be: `must be a whole number`, which follows its key. `item` is pydantic's error."""
    if (template := _SENTENCES.get(item["type"])) is not None:
        return template.format_map(item.get("ctx", {}))
    return (
        str(item["msg"])
        .removeprefix("Value error, ")
        .removeprefix("Assertion failed, ")
        .replace("Input should be ", "must be ")
        .replace("Value should be ", "must be ")
    )


def all_wrong(
    errors: Sequence[ErrorDetails], known: Callable[[tuple[int | str, ...]], Iterable[str]], *, document: str
) -> str:
    """Joins pydantic's errors for a document to one message, which lists the first `_MOST_LISTED` wrong keys.

    Args:
        errors: The errors.
        known: Called with the location of an unknown key, without the key; returns the keys that are valid there.
        document: The name of the document, in the place of the key where an error has none.
    """
    locations = [item["loc"] for item in errors]
    messages = []
    for item in errors:
        location = item["loc"]
        # pydantic does not count the wrong entries of a list, and also reports the list as too short: left out.
        if item["type"] == "too_short" and any(location == other[: len(location)] != other for other in locations):
            continue
        if item["type"] == "extra_forbidden":
            message = unknown(str(location[-1]), known(location[:-1]))
        else:
            message = sentence(item)
            if item["type"] not in ("missing", "value_error"):
                message = f"{message}, got {value_text(item['input'])}"
        messages.append(f"{'.'.join(map(str, location)) or document}: {message}")
    remaining = [f"and {len(messages) - _MOST_LISTED} more"] if len(messages) > _MOST_LISTED else []
    return "; ".join([*messages[:_MOST_LISTED], *remaining])


def unknown(name: str, known: Iterable[str]) -> str:
    """The message for an unknown key: the most similar valid key, and all valid keys."""
    names = list(known)
    return f"unknown key{nearest(name, names)}; known are {', '.join(names)}"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message, `; did you mean ...?`, with the known name that is most similar; '' if none is similar.

    `prefix` stands before the name.
    """
    import difflib  # only a message needs it

    names = {known_name.lower().replace("-", "_"): known_name for known_name in known}
    matches = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{names[matches[0]]}?" if matches else ""


def value_text(value: Any) -> str:
    """Writes a value for a message: as JSON, or by `str` if it has no JSON; cut after `_MOST_CHARACTERS`."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def no_booleans_for_numbers(table: Any, annotations: Mapping[str, Any]) -> Any:
    """Returns the table, after a check that no number in it is `true` or `false`: Python would take these for 1 and 0.

    Raises:
        ValueError: A number is a boolean; the message names the first such key.
    """
    for name, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, bool) and name in annotations:
            types = types_in(annotations[name])
            if bool not in types and (int in types or float in types):
                raise ValueError(f"'{name}' must be a number, got {value_text(value)}")
    return table


def types_in(annotation: Any) -> list[Any]:
    """The types that a type consists of, in order: `[int, NoneType]` of `int | None`; of a `Literal` its values."""
    arguments = get_args(annotation)
    return [*chain.from_iterable(map(types_in, arguments))] if arguments else [annotation]

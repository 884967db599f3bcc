"""The names of a model's features: which texts can be names, and what to say where others come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

from lengthwise.wrong_values import nearest

MOST_CHARACTERS: Final = 256  # of a name
_MOST_LISTED: Final = 8
_MOST_COMPARED: Final = 64  # names among which a similar one is looked for: each takes up to a millisecond
_MOST_SHOWN: Final = 40  # characters of a name in a message


def names_problem(names: Sequence[str]) -> str | None:
    """Why texts cannot be the names of features, as a sentence; None if they can: unique texts that are not blank."""
    name, times = Counter(names).most_common(1)[0] if names else ("", 1)
    if times > 1:
        return f"the name {shown(name)} is there twice"
    for name in names:
        if not name.strip():
            return "a name is empty"
        if len(name) > MOST_CHARACTERS:
            return f"the name {shown(name)} has {len(name)} characters; a name has at most {MOST_CHARACTERS}"
        if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
            return f"the name {name[:_MOST_SHOWN]!a} has a lone surrogate, which is no text"
    return None


def why_other(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Why columns are not the features with these names, as a sentence; None if all are there, in any order."""
    there = set(columns)
    missing = [name for name in names if name not in there]
    if not missing:
        return None
    known = set(names)
    others = [column for column in columns if column not in known]
    hint = similar(missing[0], others)
    if not hint and len(missing) == len(others) == 1:
        hint = f"; did you mean {others[0][:_MOST_SHOWN]}?"
    elif not hint and others:
        hint = f"; there are also {listed(others)}"
    return f"the model takes {listed(names)}; missing: {listed(missing)}{hint}"


def rows_of(steps: Sequence[Any], names: tuple[str, ...] | None) -> tuple[list[list[Any]], tuple[str, ...]]:
    """The values of steps that are objects, in the order of the names, None for each that a step leaves out.

    Args:
        steps: The steps, the first of which is an object.
        names: The names of the model's features; empty: it has none; None: those that the steps have, in their order.

    Returns:
        `[length, features]` values, and the names.

    Raises:
        ValueError: A step is no object, or has another name; or the model has no names.
    """
    if names == ():
        raise ValueError("its steps are objects, and the features of the model have no names: give arrays")
    odd = next((place for place, step in enumerate(steps) if not isinstance(step, Mapping)), None)
    if odd is not None:
        raise ValueError(f"step {odd} is no object, and the first step is one")
    names = names or tuple(dict.fromkeys(chain.from_iterable(steps)))
    known = {*names}
    for place, step in enumerate(steps):
        if not known.issuperset(step):
            name = str(next(name for name in step if name not in known))
            said = f"{similar(name, names)}; the model takes {listed(names)}"
            raise ValueError(f"step {place} has a value of {shown(name)}, which is no name of a feature{said}")
    return [[step.get(name) for name in names] for step in steps], names


def similar(name: str, names: Sequence[str]) -> str:
    """`; did you mean ...?` with the most similar name; empty if none is, or if there are too many to look at."""
    if len(names) > _MOST_COMPARED or len(name) > MOST_CHARACTERS:
        return ""
    return nearest(name, [each for each in names if len(each) <= MOST_CHARACTERS])


def listed(names: Sequence[str]) -> str:
    """`ax, ay, az`; of many names the first ones."""
    more = len(names) - _MOST_LISTED
    return ", ".join(name[:_MOST_SHOWN] for name in islice(names, _MOST_LISTED)) + (
        f" and {more} more" if more > 0 else ""
    )


def shown(name: str) -> str:
    """A name in quotes, cut if it is long."""
    return repr(name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}...")

"""The names of a model's features: which texts can be names, and the messages for wrong or missing names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Final

from pydantic import AfterValidator

from lengthwise.wrong_values import first_of, nearest

MOST_CHARACTERS: Final = 256  # of a name
_MOST_LISTED: Final = 8  # names in a message
_MOST_COMPARED: Final = 64  # names among which a similar one is looked for: each takes up to a millisecond
_MOST_SHOWN: Final = 40  # characters of a name in a message


def are_names(names: Sequence[str]) -> bool:
    """Whether texts can be the names of features: each is unique, not blank, and not too long."""
    return len({*names}) == len(names) and all(name.strip() and len(name) <= MOST_CHARACTERS for name in names)


def _valid_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Checks the names of features for pydantic, and returns them unchanged.

    Raises:
        ValueError: They cannot be names of features.
    """
    if not are_names(names):
        raise ValueError(f"each must be unique, not blank, and have at most {MOST_CHARACTERS} characters")
    return names


FeatureNames = Annotated[tuple[str, ...], AfterValidator(_valid_names)]
"""Names of features as a field of a model; pydantic refuses a text with a lone surrogate."""


def missing_columns_problem(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Describes which features have no column, for an error; None if each feature has one, in any order.

    The text ends with a hint: a column with a similar name, or else the columns that are no feature.

    Args:
        columns: The names of the columns.
        names: The names of the model's features.
    """
    present, expected = {*columns}, {*names}
    missing = [name for name in names if name not in present]
    unknown = [name for name in columns if name not in expected]
    if not missing:
        return None
    is_one_pair = len(missing) == len(unknown) == 1
    other_columns = (
        f"; did you mean {unknown[0][:_MOST_SHOWN]}?" if is_one_pair else f"; there are also {listed(unknown)}"
    )
    hint = similar(missing[0], unknown) or (other_columns if unknown else "")
    return f"the model takes {listed(names)}; missing: {listed(missing)}{hint}"


def values_by_name(steps: Sequence[Any], names: tuple[str, ...] | None) -> tuple[list[list[Any]], tuple[str, ...]]:
    """Reads steps that are objects, `{"name": value}`, as lists of values in the order of the features' names.

    Args:
        steps: The steps, of which the first is an object. A step that is None has no value of any feature.
        names: The names of the model's features; `()` if the model has none; None if there is no model: then the
            names are those in the steps, in the order in which they first occur.

    Returns:
        The values, `[length, features]`, where None is a value that a step does not have; and the names.

    Raises:
        ValueError: A step is not an object, or has another name; or the model has no names.
    """
    if names == ():
        raise ValueError("its steps are objects, and the features of the model have no names: give arrays")
    objects = [{} if step is None else step for step in steps]
    if not all(isinstance(step, Mapping) for step in objects):
        raise ValueError("some of its steps are objects, and others are none")
    names = names or tuple(dict.fromkeys(chain.from_iterable(objects)))
    if unknown_names := {*chain.from_iterable(objects)} - {*names}:
        name = str(min(unknown_names, key=str))  # one of them is enough for a message
        hint = f"{similar(name, names)}; the model takes {listed(names)}"
        raise ValueError(f"{name[:_MOST_SHOWN]!r} is no name of a feature{hint}")
    return [[step.get(name) for name in names] for step in objects], names


def similar(name: str, names: Sequence[str]) -> str:
    """The text `; did you mean ...?` with the most similar of the names; empty if none is similar, or if they are many.

    Names that are too long to be compared are left out.
    """
    are_few = len(names) <= _MOST_COMPARED and len(name) <= MOST_CHARACTERS
    return nearest(name, [candidate for candidate in names if len(candidate) <= MOST_CHARACTERS]) if are_few else ""


def listed(names: Sequence[str]) -> str:
    """`ax, ay, az`; of many names the first ones."""
    return first_of([name[:_MOST_SHOWN] for name in names], _MOST_LISTED)

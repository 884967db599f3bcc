"""What a caller passes as sequences, as NumPy arrays: lists, arrays, tables grouped by pandas, Arrow list columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.arrays import as_array
from lengthwise.decoding.validation import ITEM_FIELDS
from lengthwise.errors import ConfigurationError, InvalidSequences, Problem

_FLOAT32: Final = np.dtype(np.float32)
_INT64: Final = np.iinfo(np.int64)
_MOST_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class GivenSequence:
    """One sequence of a caller.

    Attributes:
        steps: `[length, features]` or `[length]` float32 with NaN for a missing value, or `[length]` int64.
        id: The caller's name for it, or None.
        step_mask: False for each step to leave out, or None.
        feature_mask: False for each feature that is missing in every step, or None.
    """

    steps: NDArray[Any]
    id: str | None = None
    step_mask: list[bool] | None = None
    feature_mask: list[bool] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it has no id and no mask."""
        return self.id is None and self.step_mask is None and self.feature_mask is None


def sequences_of(given: Any) -> list[GivenSequence]:
    """The sequences of a caller, in order.

    Args:
        given: An iterable of array-likes, or of objects as in `POST /predict` (`{"id": ..., "steps": ...}`); a mapping
            of names to array-likes; a pandas table grouped by a column (the names are those of the groups); a pyarrow
            list array; or a pyarrow table with a column `steps`, and perhaps `id`, `step_mask` and `feature_mask`.

    Raises:
        ConfigurationError: It is none of these.
        InvalidSequences: Some are no numbers; names each by its index.
    """
    found: list[GivenSequence] = []
    problems: list[Problem] = []
    for place, one in enumerate(_entries(given)):
        try:
            found.append(_sequence(one))
        except ValueError as error:
            problems.append(Problem(f"/sequences/{place}", str(error)))
            if len(problems) == _MOST_PROBLEMS:
                break
    if problems:
        raise InvalidSequences(problems)
    return found


def _entries(given: Any) -> Iterable[Any]:
    """The entries of what a caller passed, one for each sequence."""
    if _is_of(given, "pandas"):
        return _groups(given)
    if _is_of(given, "pyarrow"):
        from lengthwise.client.arrow_given import sequences_of_arrow

        return sequences_of_arrow(given)
    if isinstance(given, Mapping):
        if "steps" in given and ITEM_FIELDS.issuperset(given):
            raise ConfigurationError("a list of sequences is wanted, this is one sequence; put it in a list")
        return ({"id": str(name), "steps": steps} for name, steps in given.items())
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigurationError(f"a list of arrays is wanted, this is a {type(given).__name__}")
    return given


def _is_of(given: Any, package: str) -> bool:
    """Whether a value has a type of a package, which is not imported for that."""
    return type(given).__module__.partition(".")[0] == package


def _groups(given: Any) -> Iterator[dict[str, Any]]:
    """The groups of a pandas table, without the columns that it is grouped by."""
    if not hasattr(given, "groups"):
        raise ConfigurationError(
            f"a pandas {type(given).__name__} is no list of sequences; group its rows: table.groupby('recording')"
        )
    by: frozenset[Any] = getattr(given, "exclusions", frozenset())
    for name, rows in given:
        if isinstance(name, tuple) and len(name) == 1:
            name = name[0]
        if rows.ndim == 2:
            rows = rows[[column for column in rows.columns if column not in by]]
        yield {"id": str(name), "steps": rows}


def _values_of(rows: Any) -> NDArray[Any]:
    """The numbers of a pandas table or series, with NaN for a missing value; `[length]` of a single column.

    Raises:
        ValueError: A column has no numbers.
    """
    if rows.ndim == 2 and len(rows.columns) == 1:
        rows = rows.iloc[:, 0]
    whole = rows.dtypes if rows.ndim == 2 else [rows.dtype]
    kinds = {getattr(kind, "kind", "O") for kind in whole}
    if kinds <= {"i", "u"} and not rows.isna().to_numpy().any():
        integers: NDArray[Any] = rows.to_numpy(dtype=np.uint64 if kinds == {"u"} else np.int64)
        return integers
    wrong = [str(kind) for kind in whole if getattr(kind, "kind", "O") not in "fiu"]
    if wrong:
        raise ValueError(f"numbers are wanted, a column has the type {wrong[0]}")
    numbers: NDArray[Any] = rows.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _sequence(given: Any) -> GivenSequence:
    """One entry as a sequence.

    Raises:
        ValueError: It has no numbers, another form, or a field that is not known.
    """
    if not isinstance(given, Mapping):
        return GivenSequence(steps_array(given))
    unknown = sorted(str(name) for name in given if name not in ITEM_FIELDS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(ITEM_FIELDS))}")
    if "steps" not in given:
        raise ValueError("'steps' is missing")
    identifier = given.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise ValueError(f"an id must be a string, it is a {type(identifier).__name__}")
    if identifier is not None and not _is_text(identifier):
        raise ValueError("an id must be text, this one has half of a character (a lone surrogate)")
    return GivenSequence(
        steps_array(given["steps"]), identifier, _mask(given, "step_mask"), _mask(given, "feature_mask")
    )


def _is_text(given: str) -> bool:
    """Whether a string can be sent: Python also has strings with half of a character."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mask(given: Mapping[str, Any], name: str) -> list[bool] | None:
    mask = given.get(name)
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.ndim != 1 or (array.size and array.dtype != np.bool_):
        raise ValueError(f"{name} must be a list of booleans")
    flags: list[bool] = array.tolist()
    return flags


def steps_array(given: Any) -> NDArray[Any]:
    """The steps of one sequence as float32, or as int64 where they are a list of whole numbers.

    Numbers are rounded to float32 here as the service rounds those of a JSON body, so the answer has the same bits.

    Raises:
        ValueError: They are no numbers, have another form, or one is not finite as float32.
    """
    if given is None:
        raise ValueError("its steps are missing")
    if type(given) is np.ndarray and given.dtype == _FLOAT32:
        array: NDArray[Any] = given
    else:
        array = as_array(_values_of(given) if _is_of(given, "pandas") else given)
    if array.ndim not in (1, 2):
        raise ValueError(f"[length, features] or [length] is wanted, the shape of this array is {[*array.shape]}")
    if array.dtype.kind not in "fiu":
        if array.size:
            raise ValueError(f"numbers are wanted, the type of this array is {array.dtype}")
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.ndim == 1 and not (array.dtype == np.uint64 and (array > _INT64.max).any()):
        return array.astype(np.int64, copy=False)
    if array.dtype != _FLOAT32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float64, copy=False).astype(np.float32)
    if np.isinf(array).any():
        step = int(np.argwhere(np.isinf(array))[0][0])
        raise ValueError(f"step {step} holds a number that is not finite as float32")
    return np.ascontiguousarray(array)

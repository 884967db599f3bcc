"""A table with one row for each step, as sequences: which column is what, and which rows belong together.

```
id  t  value  label         columns by their names (`roles`)  ->  rows with one id, in the order of the time
a   0  0.1    calm                                             ->  a: [[0.1], [0.3]], calm
a   1  0.3    calm                                                 b: [[0.2]], storm
b   0  0.2    storm
```

Where two columns may be the same thing, or none is left for the values, the error asks, and lists the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets.tables import as_array
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.feature_names import why_other
from lengthwise.wrong_values import nearest

Cells: TypeAlias = "NDArray[Any] | list[Any]"  # numbers, times, `Texts`, or objects with None where one is missing
ColumnRole: TypeAlias = Literal["id", "time", "label"]

MISSING: Final = frozenset(("", "nan", "null", "na", "n/a", "none", "?"))  # in lower case
_NAMES: Final[dict[ColumnRole, frozenset[str]]] = {
    "id": frozenset(("id", "sequence", "series", "recording", "case", "trial", "session", "instance", "episode")),
    "time": frozenset(
        (
            *("t", "ts", "ds", "time", "timestamp", "timestep", "time_step", "step", "date", "datetime", "timepoint"),
            *("time_index", "time_s", "time_ms", "time_us", "time_ns", "t_s", "t_ms"),
        )
    ),
    "label": frozenset(("label", "labels", "class", "class_label", "target", "category")),
}  # that say what a column is; every name that ends in `_id` is one of ids
_INDEX: Final = frozenset(("", "unnamed: 0", "__index_level_0__"))  # what pandas calls an index in a file
_OF_ROWS: Final = frozenset(("index", "level_0", "row", "row_nr"))  # left out if it counts the rows
NO_HEADER: Final = "column "  # begins the names of columns that have none, before their number
_MOST_LISTED: Final = 20
_MOST_SHOWN: Final = 40


class Texts(list[str]):
    """The cells of a file of text: what stands in them may be numbers."""


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns that a caller names; what is None is found by its name, and `values` are all others.

    `inputs` are the names of the model's features: these columns, in this order, are then the values. They are empty
    if the model has no names, and None if no model is known, as in a training.
    `defaults` are columns by their roles, such as those of a training, for tables that have them.
    """

    id: str | None = None
    time: str | None = None
    label: str | None = None
    values: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        """Every column that the caller names."""
        return [name for name in (self.id, self.time, self.label, *(self.values or ())) if name is not None]


@dataclass(frozen=True, slots=True)
class Roles:
    """What each column of a table is; `left_out` are not used."""

    id: str | None
    time: str | None
    label: str | None
    values: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the features; None of a file without a header, whose columns have numbers only."""
        return None if all(map(_is_numbered, self.values)) else self.values

    @property
    def named(self) -> dict[str, str]:
        """The columns with a role, by role."""
        return {role: name for role in _NAMES if (name := getattr(self, role)) is not None}

    def __str__(self) -> str:
        """`id 'run', time 't', label 'state', features 'x', 'y'; ignored: 'note'`."""
        named = [f"{role} {name!r}" for role, name in self.named.items()]
        text = ", ".join([*named, f"feature{'s' * (len(self.values) > 1)} {listed(self.values)}"])
        return f"{text}; ignored: {listed(self.left_out)}" if self.left_out else text


@dataclass(frozen=True, slots=True)
class LongSequence:
    """One sequence of a table."""

    id: str  # `"0"` where the table has no ids
    rows: NDArray[np.intp]  # `[length]`, in the order of their times
    steps: NDArray[Any]  # `[length, features]`, or `[length]` of one; NaN where missing
    label: Any = None  # or one for each step, where those of some sequence differ
    problem: tuple[int, str] | None = None  # the row and why it cannot be read
    roles: Roles | None = None  # of its table


def listed(names: Sequence[str]) -> str:
    """The names of columns, for a message."""
    more = len(names) - _MOST_LISTED
    return ", ".join(map(repr, names[:_MOST_LISTED])) + (f" and {more} more" if more > 0 else "")


def roles(names: Sequence[str], given: ColumnNames) -> Roles:
    """What each column is, by the caller's word or by its name; ConfigurationError where that is not clear."""
    for name in given.all:
        if name not in names:
            raise ConfigurationError(
                f"there is no column {name!r}{nearest(name, names)}; the columns are {listed(names)}"
            )
    inputs = {*(given.inputs or ())}  # these are features, also where their names are those of a role
    of_role = {role: _found(role, [name for name in names if name not in inputs], given) for role in _NAMES}
    taken = {name for name in of_role.values() if name is not None}
    others = [name for name in names if name not in taken]
    values = tuple(others) if given.values is None else given.values
    if not values:
        raise ConfigurationError(
            f"no column is left for the values; the columns are {listed(names)}: name those of the features (values)"
        )
    both = taken.intersection(values)
    if both:
        raise ConfigurationError(f"the column {min(both)!r} cannot be a feature and something else at once")
    values = _of_inputs(values, given)
    return Roles(of_role["id"], of_role["time"], of_role["label"], values, tuple(n for n in others if n not in values))


def _of_inputs(values: tuple[str, ...], given: ColumnNames) -> tuple[str, ...]:
    """The values in the order of the model's features; ConfigurationError where they are others, or no names at all."""
    is_numbered = all(map(_is_numbered, values))
    if not given.inputs or (is_numbered and given.values is not None):  # no header: the caller says the order
        return values
    why = why_other(values, given.inputs)
    if why is not None:
        no_header = "The first line names no columns: say the order of the features (values)"
        hint = no_header if is_numbered else "Rename the columns, or give arrays, which are taken in that order"
        raise ConfigurationError(f"{why}{'' if why.endswith('?') else '.'} {hint}")
    return given.inputs


def _is_numbered(name: str) -> bool:
    return name.startswith(NO_HEADER) and name.removeprefix(NO_HEADER).isdecimal()


def _found(role: ColumnRole, names: Sequence[str], given: ColumnNames) -> str | None:
    own: str | None = getattr(given, role)
    if own is None and given.defaults.get(role) in names:
        own = given.defaults[role]
    if own is not None:
        return own
    alike = [name for name in names if name not in given.all and _may_be(role, name)]
    if len(alike) > 1:
        raise ConfigurationError(
            f"the columns {listed(alike)} may each be the {role}: say which one ({role}), and which are the features "
            f"(values); the columns are {listed(names)}"
        )
    return alike[0] if alike else None


def has_ids(names: Sequence[str]) -> bool:
    """Whether the name of some column says that it holds the ids of sequences."""
    return any(_may_be("id", name) for name in names)


def _may_be(role: ColumnRole, name: str) -> bool:
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    return plain in _NAMES[role] or (role == "id" and plain.endswith("_id"))


def one_sequence(columns: Mapping[str, Cells], given: ColumnNames, key: Sequence[str] = ()) -> LongSequence:
    """A table of one sequence: all rows, in the order of its times. Columns in `key` are left out, as is an id."""
    used = {name: cells for name, cells in columns.items() if name not in key}
    chosen = replace(given, id=given.id if given.id in used else None)
    found = roles([*used], chosen)
    ids = set() if found.id is None else {*map(str, used[found.id])}
    if len(ids) > 1:
        raise ConfigurationError(f"the rows of one sequence have {len(ids)} ids in the column {found.id!r}")
    return _sequences(used, replace(found, id=None), {})[0]


def sequences(
    columns: Mapping[str, Cells],
    given: ColumnNames,
    wrong: Mapping[int, str] | None = None,
    *,
    single: str | None = "put the table of a single sequence in a list",
) -> tuple[list[LongSequence], Roles]:
    """The sequences of a table, by their first rows, and what each column is; `wrong`: why rows cannot be read.

    `single` says what to do with the table of a single sequence; None: a table without ids is one.
    """
    names = [*columns]
    count = len(columns[names[0]]) if names else 0
    if not count:
        raise ConfigurationError("the table has no row")
    counting = [name for name in names if _counts_rows(name, columns[name], given)]
    found = roles([name for name in names if name not in counting], given)
    found = replace(found, left_out=(*counting, *found.left_out))
    if found.id is None and single is not None:
        raise ConfigurationError(
            f"no column names the sequence of a row; the columns are {listed(names)}: say which one does (id), or "
            f"{single}"
        )
    is_guessed = given.id is None and count > 1
    if found.id is not None and is_guessed and len({*_ids(columns[found.id], found.id)}) == count:
        raise ConfigurationError(
            f"every row has its own {found.id!r}: does it number the rows? Say which column is the id (id); the "
            f"columns are {listed(names)}"
        )
    return _sequences(columns, found, wrong or {}), found


def _counts_rows(name: str, cells: Cells, given: ColumnNames) -> bool:
    """Whether a column that the caller does not name counts the rows, as a written index does."""
    plain = name.strip().lower()
    if name in given.all or plain not in _OF_ROWS:
        return name not in given.all and plain in _INDEX
    texts = [str(cell) for cell in cells]
    return any(texts == [str(row) for row in range(first, first + len(texts))] for first in (0, 1))


def _sequences(columns: Mapping[str, Cells], found: Roles, wrong_rows: Mapping[int, str]) -> list[LongSequence]:
    count = len(columns[found.values[0]])
    ids = ["0"] * count if found.id is None else _ids(columns[found.id], found.id)
    places = {name: place for place, name in enumerate(dict.fromkeys(ids))}
    of_row = np.array([places[name] for name in ids], dtype=np.intp)
    order = _order(of_row, None if found.time is None else columns[found.time], found.time or "")
    bounds = np.searchsorted(of_row[order], np.arange(len(places) + 1))
    numbers = [_numbers(columns[name], name) for name in found.values]
    wrong: dict[int, str] = {}
    for _, bad in reversed(numbers):
        wrong |= bad
    wrong |= wrong_rows
    arrays = [array for array, _ in numbers]
    values = arrays[0] if len(arrays) == 1 else np.column_stack(arrays)
    labels = None if found.label is None else _labels(columns[found.label], found.label)
    parts = [order[start:end] for start, end in pairwise(bounds)]
    differ = labels is not None and any(len({labels[row] for row in part} - {None}) > 1 for part in parts)
    made = []
    for name, part in zip(places, parts, strict=True):
        problem = next(((row, wrong[row]) for row in part.tolist() if row in wrong), None) if wrong else None
        of_rows = [] if labels is None else [labels[row] for row in part]
        label = of_rows if differ else next((one for one in of_rows if one is not None), None)
        made.append(LongSequence(name, part, values[part], label, problem, found))
    return made


def _ids(cells: Cells, name: str) -> list[str]:
    plain = cells.tolist() if isinstance(cells, np.ndarray) else cells
    ids = ["" if _is_missing(cell) else str(cell).strip() for cell in plain]
    if "" in ids:
        raise ConfigurationError(f"row {ids.index('')} has no id in the column {name!r}, which names its sequence")
    return ids


def _order(of_row: NDArray[np.intp], times: Cells | None, name: str) -> NDArray[np.intp]:
    """The rows, those of one sequence together and in the order of their times."""
    as_they_stand: NDArray[np.intp] = np.argsort(of_row, kind="stable")
    if times is None:
        return as_they_stand
    keys = _sortable(times, name)
    order: NDArray[np.intp] = np.lexsort((keys, of_row))
    if np.array_equal(order, as_they_stand):
        return order
    together = of_row[order]
    equal = (keys[order][1:] == keys[order][:-1]) & (together[1:] == together[:-1])
    if equal.any():
        row = int(order[1:][equal][0])
        raise ConfigurationError(
            f"rows of one sequence have the same {name!r} (row {row} and another) and are not in its order: which "
            "comes first? Sort the table, or name another column (time)"
        )
    return order


def _sortable(cells: Cells, name: str) -> NDArray[Any]:
    """The times as numbers; each is a number or a date as in ISO 8601."""
    if isinstance(cells, np.ndarray):
        keys = cells.astype(np.int64) if cells.dtype.kind in "Mm" else cells
        missing = np.isnat(cells) if cells.dtype.kind in "Mm" else np.isnan(keys)
        if missing.any():
            raise ConfigurationError(f"row {int(missing.argmax())} has no time in the column {name!r}")
        return keys
    if isinstance(cells, Texts):
        numbers, wrong = _numbers(cells, name)
        odd = np.flatnonzero(np.isnan(numbers))
        if not len(odd):
            return numbers
        if len(wrong) < len(cells):  # numbers, but for some
            raise _no_time(cells[odd[0]], int(odd[0]), name)
    stamps = []
    for row, cell in enumerate(cells):
        try:
            moment = cell if isinstance(cell, datetime) else datetime.fromisoformat(str(cell).strip())
        except ValueError:
            raise _no_time(cell, row, name) from None
        stamps.append((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    return np.array(stamps)


def _no_time(cell: Any, row: int, name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{str(cell)[:_MOST_SHOWN]!r} in the column {name!r} (row {row}) is neither a number nor a date such as "
        "2024-05-31T09:30: name another column (time), or leave this one out of the table to keep the order of the rows"
    )


def _numbers(cells: Cells, name: str) -> tuple[NDArray[Any], dict[int, str]]:
    """The numbers of a column, and why a row of a file of text has none."""
    if not isinstance(cells, Texts):
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiu":
            return cells, {}
        try:
            numbers = as_array(cells)
            if numbers.dtype.kind in "fiu" and numbers.ndim == 1:
                return numbers, {}
        except ValueError:
            pass
        shown = next((cell for cell in cells if not _is_missing(cell)), None)
        raise ConfigurationError(
            f"the column {name!r} holds {str(shown)[:_MOST_SHOWN]!r}, a {type(shown).__name__}, and no numbers: say "
            "which columns are the features (values)"
        )
    found = np.full(len(cells), np.nan)
    wrong: dict[int, str] = {}
    for row, cell in enumerate(cells):
        try:
            found[row] = float(cell)
        except ValueError:
            if cell.strip().lower() not in MISSING:
                wrong[row] = f"{cell.strip()[:_MOST_SHOWN]!r} in the column {name!r} is not a number"
    return found, wrong


def _labels(cells: Cells, name: str) -> list[Any]:
    if not isinstance(cells, np.ndarray):
        return [None if _is_missing(cell) else cell.strip() if isinstance(cell, str) else cell for cell in cells]
    if cells.dtype.kind == "f":  # whole numbers among which some are missing
        if (cells % 1 > 0).any():
            raise ConfigurationError(
                f"the column {name!r} holds numbers with a fraction, which are no labels: say which column is the "
                "label (label), or that it is a feature (values)"
            )
        return [None if np.isnan(cell) else int(cell) for cell in cells]
    return cells.tolist()  # type: ignore[no-any-return]  # NumPy says Any


def _is_missing(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())

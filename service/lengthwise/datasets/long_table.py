"""A table with one row for each step, as sequences: which column is what, and which rows belong together.

```
id  t  value  label         columns by their names (`assign_roles`) ->  rows with one id, in the order of the time
a   0  0.1    calm                                             ->  a: [[0.1], [0.3]], calm
a   1  0.3    calm                                                 b: [[0.2]], storm
b   0  0.2    storm
```

Rows of one sequence at one time are steps that follow each other, unless a column tells them apart: then each is one
value of a step, and the error asks, and shows the `pivot`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets.column_roles import ColumnNames, Roles, assign_roles, listed, names_channel, no_names
from lengthwise.datasets.tables import MISSING, Cells, TableColumns, Texts, as_array, is_number, where
from lengthwise.errors import ConfigurationError

WIDE: Final = "; if a row is a whole sequence, say row=sequence"
_COMMA: Final = (
    "; a decimal comma? pandas.read_csv(FILE, sep=None, engine='python', decimal=',').to_csv(NEW, index=False) "
    "writes points"
)
_AS_TEXT: Final = "; if it is a list that was written as text, write lists of numbers"
_MOST_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class LongSequence:
    """One sequence of a table."""

    id: str  # `"0"` where the table has no ids
    rows: NDArray[np.intp]  # `[length]`, in the order of their times
    steps: NDArray[Any]  # `[length, features]`, or `[length]` of one; NaN where missing
    label: Any = None  # or one for each step, where those of some sequence differ
    problem: tuple[int, str] | None = None  # the row and why it cannot be read
    roles: Roles | None = None  # of its table

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the features; None where they have none, such as those in one column of lists."""
        is_one_list = self.roles is not None and self.roles.row == "sequence" and len(self.roles.values) == 1
        return None if self.roles is None or is_one_list else self.roles.names


def one_sequence(
    columns: TableColumns, chosen: ColumnNames, wrong: Mapping[int, str] = MappingProxyType({})
) -> LongSequence:
    """Reads a table of one sequence: all rows, in the order of their times. A column of ids is left out.

    Raises:
        ConfigurationError: The rows have several ids.
    """
    roles = assign_roles(columns, replace(chosen, id=chosen.id if chosen.id in columns else None))
    ids = set() if roles.id is None or names_channel(roles.id) else {*map(str, columns[roles.id])}
    if len(ids) > 1:
        raise ConfigurationError(f"the rows of one sequence have {len(ids)} ids in the column {roles.id!r}")
    return _sequences(columns, replace(roles, id=None), None, wrong)[0]


def sequences(
    columns: TableColumns,
    chosen: ColumnNames,
    wrong: Mapping[int, str] | None = None,
    *,
    advice_for_single: str | None = "put the table of a single sequence in a list",
    per_step: bool | None = None,
) -> tuple[list[LongSequence], Roles]:
    """The sequences of a table, by their first rows, and what each column is; `wrong`: why rows cannot be read.

    `advice_for_single` tells the caller what to do with the table of a single sequence; None: a table without ids is
    one. `per_step`: whether a step has a label of its own. None: where a sequence has several. False: where most have;
    in the others, a label that is not the usual one of its sequence is a problem.

    Raises:
        ConfigurationError: The table has no row, no column of ids, or each row has an id of its own.
    """
    names = [*columns]
    count = len(columns[names[0]]) if names else 0
    if not count:
        raise ConfigurationError("the table has no row")
    roles = assign_roles(columns, chosen)
    if roles.id is None and advice_for_single is not None:
        raise ConfigurationError(
            f"no column names the sequence of a row; the columns are {listed(names)}: say which one does (id), or "
            f"{advice_for_single}{WIDE}{no_names(names)}"
        )
    if roles.time is None and chosen.values is None and chosen.inputs is None:
        _ask_about_channels(columns, roles)
    is_guessed = chosen.id is None and count > 1
    if roles.id is not None and is_guessed and len({*ids_of(columns[roles.id], roles.id)}) == count:
        raise ConfigurationError(
            f"every row has its own {roles.id!r}: does it number the rows? Say which column is the id (id); the "
            f"columns are {listed(names)}{WIDE}"
        )
    return _sequences(columns, roles, per_step, wrong or {}), roles


def _sequences(
    columns: TableColumns, roles: Roles, per_step: bool | None, wrong_rows: Mapping[int, str]
) -> list[LongSequence]:
    """The sequence of each id, in the order of their first rows; its steps in the order of time."""
    count = len(columns[roles.values[0]])
    ids = ["0"] * count if roles.id is None else ids_of(columns[roles.id], roles.id)
    numbers_of_ids = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    of_row = np.array([numbers_of_ids[name] for name in ids], dtype=np.intp)
    order = _order(of_row, columns, roles)
    bounds = np.searchsorted(of_row[order], np.arange(len(numbers_of_ids) + 1))
    numbers = [feature_of(columns[name], name) for name in roles.values]
    wrong: dict[int, str] = {}
    for _, bad in reversed(numbers):
        wrong |= bad
    wrong |= wrong_rows
    arrays = [array for array, _ in numbers]
    values = arrays[0] if len(arrays) == 1 else np.column_stack(arrays)
    parts = [order[start:end] for start, end in pairwise(bounds)]
    labels = [] if roles.label is None else labels_of(columns[roles.label], roles.label)
    kinds = [Counter(str(labels[row]) for row in part if labels[row] is not None) for part in parts] if labels else []
    several = sum(len(kind) > 1 for kind in kinds)
    each_step = several > 0 if per_step is None else per_step or 2 * several > len(parts)
    result = []
    for number, (name, part) in enumerate(zip(numbers_of_ids, parts, strict=True)):
        problem = next(((row, wrong[row]) for row in part.tolist() if row in wrong), None) if wrong else None
        label: Any = None
        if labels and each_step:
            label = [labels[row] for row in part]
        elif labels and kinds[number]:
            usual = kinds[number].most_common(1)[0][0]  # labels of any type are compared as texts
            label = next(labels[row] for row in part if str(labels[row]) == usual)
            odd = next((row for row in part.tolist() if str(labels[row]) not in ("None", usual)), None)
            if odd is not None and problem is None:
                why = f"sequence {name!r} has the label {labels[odd]!r}, and {label!r} in its other rows: correct it"
                problem = odd, f'{why} (labels of steps are for task = "per-step")'
        result.append(LongSequence(name, part, values[part], label, problem, roles))
    return result


def ids_of(cells: Cells, name: str) -> list[str]:
    """The ids in a column.

    Raises:
        ConfigurationError: A row has none; the message names it.
    """
    plain = cells.tolist() if isinstance(cells, np.ndarray) else cells
    ids = ["" if _is_missing(cell) else str(cell).strip() for cell in plain]
    if "" in ids:
        raise ConfigurationError(
            f"{where(cells, ids.index(''))} has no id in the column {name!r}, which names its sequence"
        )
    return ids


def _order(of_row: NDArray[np.intp], columns: TableColumns, roles: Roles) -> NDArray[np.intp]:
    """The row numbers, sorted by sequence and then by time.

    Raises:
        ConfigurationError: Two rows of a sequence have the same time, and are not in its order.
    """
    as_they_stand: NDArray[np.intp] = np.argsort(of_row, kind="stable")
    if roles.time is None:
        return as_they_stand
    keys = sortable(columns[roles.time], roles.time)
    order: NDArray[np.intp] = np.lexsort((keys, of_row))
    together = of_row[order]
    equal = (keys[order][1:] == keys[order][:-1]) & (together[1:] == together[:-1])
    if equal.any():
        moments = np.empty_like(of_row)
        moments[order] = np.cumsum(np.append(0, ~equal))
        _require_one_row_a_step(columns, roles, moments)
    pairs = (
        [] if np.array_equal(order, as_they_stand) else [order[start : start + 2] for start in np.flatnonzero(equal)]
    )
    row = next((pair[1] for pair in pairs if any(cells[pair[0]] != cells[pair[1]] for cells in columns.values())), None)
    if row is not None:
        raise ConfigurationError(
            f"rows of one sequence have the same {roles.time!r} ({where(columns[roles.time], row)} and another) and "
            "are not in its order: which comes first? Sort the table, or name another column (time)"
        )
    return order


def _require_one_row_a_step(columns: TableColumns, roles: Roles, moments: NDArray[np.intp]) -> None:
    """Checks that a row is a whole step: that no column says which value of a step each row has.

    `moments [rows]` number the pairs of sequence and time. Such a column has few values; and it has the name of a
    channel, or texts, or another value in each row of a moment, where most moments have several rows.

    Raises:
        ConfigurationError: A column does; the message names it, or several together, with the `pivot` that makes a row
            for each step.
    """
    sizes = np.bincount(moments)
    most = int(sizes.max())
    codes = {name: _codes(cells) for name, cells in columns.items() if name not in (roles.id, roles.time)}
    few = [name for name, code in codes.items() if code.max() < max(most, len(sizes) // 2)]
    sure = [name for name in few if names_channel(name) or (name != roles.label and not _has_numbers(columns[name]))]
    maybe = [name for name in few if codes[name].max() == most - 1 and 2 * sizes[sizes > 1].sum() >= len(moments)]
    for telling in [*([name] for name in (*sure, *maybe)), sure]:
        apart = np.column_stack([moments, *(codes[name] for name in telling)])
        if telling and len(np.unique(apart, axis=0)) == len(moments):
            keys = [name for name in (roles.id, roles.time, roles.label) if name is not None and name not in telling]
            values = [name for name in roles.values if name not in telling]
            raise ConfigurationError(
                f"rows of one sequence have the same {roles.time!r} and differ in {listed(telling)}: is a row one "
                f"value of a step? Then make a column of each, in pandas: table = table"
                f"{'.reset_index()' * bool(columns.levels)}.pivot(index={keys}, columns={telling}, "
                f"values={repr(values[0]) if len(values) == 1 else values}).reset_index(). If a row is a step, leave "
                f"{listed(telling)} out of the table"
            )


def _ask_about_channels(columns: TableColumns, roles: Roles) -> None:
    """Looks for a feature that is named as a channel and has each of its values equally often in every sequence.

    Without a time such a table may have a row for each value of a step.

    Raises:
        ConfigurationError: There is one; the message names it, and asks whether a row is one value of a step.
    """
    of_row = np.zeros(len(columns[roles.values[0]]), np.intp) if roles.id is None else _codes(columns[roles.id])
    for name in filter(names_channel, roles.values):
        code = _codes(columns[name])
        counts = np.zeros((of_row.max() + 1, code.max() + 1), np.intp)
        np.add.at(counts, (of_row, code), 1)
        if code.max() and (counts == counts[:, :1]).all() and counts.max() > 1:
            raise ConfigurationError(
                f"the column {name!r} has each of its values equally often in every sequence: is a row one value of a "
                "step? Then say which column is the time (time). If it is a feature, name all features (values)"
            )


def _codes(cells: Cells) -> NDArray[np.intp]:
    """A number from 0 for each row, equal for equal cells."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(str(cell), len(seen)) for cell in cells], dtype=np.intp)


def _has_numbers(cells: Cells) -> bool:
    return isinstance(cells, np.ndarray) or all(is_number(str(cell)) for cell in cells)


def sortable(cells: Cells, name: str) -> NDArray[Any]:
    """The times of `[rows]` cells as numbers `[rows]`; each is a number or a date as in ISO 8601.

    Raises:
        ConfigurationError: A cell is missing, is neither a number nor a date, or only some have a time zone.
    """
    if isinstance(cells, np.ndarray):
        keys = cells.astype(np.int64) if cells.dtype.kind in "Mm" else cells
        missing = np.isnat(cells) if cells.dtype.kind in "Mm" else np.isnan(keys)
        if missing.any():
            raise ConfigurationError(f"row {int(missing.argmax())} has no time in the column {name!r}")
        return keys
    numbers, wrong = numbers_of(cells if isinstance(cells, Texts) else Texts(map(str, cells)), name)
    odd = np.flatnonzero(np.isnan(numbers))
    if not len(odd):
        return numbers
    if len(wrong) < len(cells):  # numbers, but for some
        raise ConfigurationError(_no_time(cells, int(odd[0]), name))
    stamps: list[datetime] = []
    for row, cell in enumerate(cells):
        try:
            stamps.append(cell if isinstance(cell, datetime) else datetime.fromisoformat(str(cell).strip()))
        except ValueError:
            raise ConfigurationError(_no_time(cells, row, name)) from None
        if (stamps[-1].tzinfo is None) != (stamps[0].tzinfo is None):
            raise ConfigurationError(
                f"{str(cell)[:_MOST_SHOWN]!r} in the column {name!r} ({where(cells, row)}) has "
                f"{'no' if stamps[0].tzinfo else 'a'} time zone, unlike the rows before: which comes first?"
            )
    return np.array([(stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp() for stamp in stamps])


def _no_time(cells: Cells, row: int, name: str) -> str:
    return (
        f"{str(cells[row])[:_MOST_SHOWN]!r} in the column {name!r} ({where(cells, row)}) is neither a number nor a "
        "date such as 2024-05-31T09:30: name another column (time), or leave this one out of the table to keep the "
        "order of the rows"
    )


def numbers_of(cells: Cells, name: str) -> tuple[NDArray[Any], dict[int, str]]:
    """The numbers `[rows]` of a column, and for rows of a text file without one the reason.

    Raises:
        ConfigurationError: A column that is not of texts holds no numbers.
    """
    if not isinstance(cells, Texts):
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiu":
            return cells, {}
        try:
            numbers = as_array(cells)
            if numbers.dtype.kind in "fiu" and numbers.ndim == 1:
                return numbers, {}
        except ValueError:
            pass
        present = [cell for cell in cells if not _is_missing(cell)]
        shown = next((cell for cell in present if type(cell) not in (int, float)), next(iter(present), None))
        raise ConfigurationError(no_numbers(name, shown))
    numbers = np.full(len(cells), np.nan)
    wrong: dict[int, str] = {}
    for row, cell in enumerate(cells):
        try:
            numbers[row] = float(cell)
        except ValueError:
            if cell.strip().lower() not in MISSING:
                text = cell.strip()
                wrong[row] = f"{text[:_MOST_SHOWN]!r} in the column {name!r} is not a number{_hint(text)}"
    return numbers, wrong


def _hint(text: str) -> str:
    """How to write a cell that is a number in another form, or a list; empty for any other text."""
    return _COMMA if re.fullmatch(r"-?\d*,\d+", text) else _AS_TEXT if text.startswith("[") else ""


def no_numbers(name: str, cell: Any) -> str:
    """The message for a column without numbers, of which `cell` is one; it may be the label."""
    text, label = str(cell), ""
    if text.startswith("["):
        label = _AS_TEXT
    elif isinstance(cell, str):
        label = f"; if it is the label, say label={name!r} (--column label={name})"
    return (
        f"the column {name!r} holds {text[:_MOST_SHOWN]!r}, a {type(cell).__name__}, and no numbers: say which columns "
        f"are the features (values){label}"
    )


def feature_of(cells: Cells, name: str) -> tuple[NDArray[Any], dict[int, str]]:
    """The numbers `[rows]` of a feature's column, and for rows without one the reason; see `numbers_of`.

    Raises:
        ConfigurationError: A column of a file holds words only.
    """
    numbers, wrong = numbers_of(cells, name)
    if wrong and len(wrong) == sum(cell.strip().lower() not in MISSING for cell in cells):
        text = cells[next(iter(wrong))].strip()
        if not _hint(text):
            raise ConfigurationError(no_numbers(name, text))
    return numbers, wrong


def labels_of(cells: Cells, name: str) -> list[Any]:
    """The labels in a column, None where one is missing.

    Raises:
        ConfigurationError: The column holds numbers with a fraction.
    """
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
    return cell is None or (isinstance(cell, float) and cell != cell) or (isinstance(cell, str) and not cell.strip())

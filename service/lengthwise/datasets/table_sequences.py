"""Reads a table as sequences: a row is a step (`long_table`), or a whole sequence.

```
id  x           y           label       lists in cells: a column for each feature, or one of lists of steps
a   [0.1, 0.2]  [1.0, 2.0]  calm   ->   a: [[0.1, 1.0], [0.2, 2.0]], calm

id  t0   t1   t2   label                a column for each step: `row="sequence"`, or the columns are named as times
a   0.1  0.2       calm            ->   a: [[0.1], [0.2]], calm     cells without a value behind the last are no steps
```

The second form is a *wide* table. `chosen` are the columns that the caller names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets import long_table
from lengthwise.datasets.column_roles import (
    VALUE,
    ColumnNames,
    Roles,
    assign_roles,
    is_named_as,
    is_no_feature,
    quoted,
)
from lengthwise.datasets.tables import MOST_SHOWN, Padding, TableColumns, Texts, is_number, steps_array
from lengthwise.errors import ConfigurationError

_NUMBERED: Final = re.compile(r"(.*?)([ _.-]?)(\d{1,30})")  # name of a step's column: `ax_3` is "ax", "_" and "3"
_MOST_NAMES: Final = 20  # names in a message
_FEWEST_STEPS: Final = 3  # columns of steps by which a wide table is recognised


def sequences(
    columns: TableColumns, chosen: ColumnNames, wrong: Mapping[int, str] | None = None, **options: Any
) -> tuple[list[long_table.LongSequence], Roles]:
    """Reads the sequences of a table, whose rows are steps or sequences.

    Args:
        columns: The table.
        chosen: The columns that the caller names.
        wrong: Why a row cannot be read, by the row's number; its sequence then has this as its `problem`.
        options: `advice_for_single`, `per_step` and `padding` of `long_table.sequences`. If a row is a sequence,
            `per_step` counts: unless it is true, equal labels of all steps become one label of the sequence.

    Returns:
        The sequences, in the order of their first rows, and the role of each column.

    Raises:
        ConfigurationError: It is not clear what the columns are, or a column of a feature holds words.
    """
    wrong = dict(wrong or {})
    chosen = _with_wide_columns(columns, chosen)
    # The columns of lists. The columns of the steps of a wide table are joined to one such column, VALUE.
    lists = [name for name in list_columns(columns) if name not in chosen.all and not is_no_feature(name)]
    if not lists and chosen.row == "sequence":
        roles = assign_roles(columns, replace(chosen, inputs=None))
        step_columns = chosen.values or _sorted_steps(_time_columns(roles.values) or roles.values)
        cells = _join_to_lists(columns, step_columns, wrong)
        columns = TableColumns([*columns.without({*step_columns}).items(), (VALUE, cells)])
        lists, chosen = [VALUE], replace(chosen, values=None)
    if not lists:
        return long_table.sequences(columns, chosen, wrong, **options)
    # From here on, each row is a sequence: the roles of the columns, the ids and the labels
    values = chosen.values or tuple(lists)
    inputs = chosen.inputs if len(values) > 1 else None  # several features in the cells of one column have no names
    roles = assign_roles(columns, replace(chosen, values=values, inputs=inputs))
    has_times = roles.time is not None and any(map(is_list, columns[roles.time]))
    roles = replace(roles, time=roles.time if has_times else None, row="sequence")
    ids = None if roles.id is None else long_table.ids_of(columns[roles.id], roles.id)
    labels = None if roles.label is None else long_table.labels_of(columns[roles.label], roles.label)
    for name in roles.values if len(roles.values) > 1 else ():
        first_value = next((value for cell in columns[name] if is_list(cell) for value in cell), None)
        if isinstance(first_value, str):
            raise ConfigurationError(long_table.no_numbers_message(name, first_value))
    result = [
        _row_sequence(columns, roles, row, str(row) if ids is None else ids[row], labels, wrong, options.get("padding"))
        for row in range(len(columns[lists[0]]))
    ]
    return result if options.get("per_step") else _with_single_labels(result), roles


def _row_sequence(
    columns: TableColumns,
    roles: Roles,
    row: int,
    name: str,
    labels: Sequence[Any] | None,
    wrong: Mapping[int, str],
    padding: Padding | None,
) -> long_table.LongSequence:
    """Makes the sequence of one row, with the id `name`; its problem is that in `wrong`, or why it cannot be read."""
    label = None if labels is None else [*labels[row]] if is_list(labels[row]) else labels[row]
    steps: NDArray[Any] = np.empty((0, 1))
    order: Sequence[int] = ()
    problem = wrong.get(row)
    try:
        cells = {column: columns[column][row] for column in (*roles.values, roles.time) if column}
        steps, order = _steps(cells, roles.time, padding)
    except (ValueError, ConfigurationError) as error:
        problem = problem or str(error)
    if isinstance(label, list) and len(label) == len(order):
        label = [label[step] for step in order]
    problem_of_row = None if problem is None else (row, problem)
    static = long_table.static_cells(columns, roles, row)
    return long_table.LongSequence(name, np.array([row]), steps, label, problem_of_row, roles, order, static)


def _with_single_labels(sequences: Sequence[long_table.LongSequence]) -> list[long_table.LongSequence]:
    """The sequences with one label each, in the place of a list of equal labels, one for each step.

    pandas' `agg(list)` makes such lists. All sequences stay as they are if one of them has another list, or no list.
    """
    has_repeated_labels = all(
        isinstance(sequence.label, list)
        and len(sequence.label) == len(sequence.steps)
        and len({*map(str, sequence.label)}) == 1
        for sequence in sequences
    )
    return [replace(sequence, label=sequence.label[0]) if has_repeated_labels else sequence for sequence in sequences]


def list_columns(columns: TableColumns) -> list[str]:
    """The columns with lists in their cells."""
    return [name for name, cells in columns.items() if type(cells) is list and any(map(is_list, cells))]


def is_list(cell: Any) -> bool:
    """Whether a cell holds several values: a list, a tuple, an array, or a Polars series."""
    return isinstance(cell, list | tuple) or getattr(cell, "ndim", 0) > 0 or hasattr(cell, "to_list")


def _steps(cells: Mapping[str, Any], time: str | None, padding: Padding | None) -> tuple[NDArray[Any], Sequence[int]]:
    """Joins the lists in one row to the steps of a sequence, sorted by time.

    Args:
        cells: The lists of the features, and of the times, by column.
        time: The column of the times; None if there is none.
        padding: What is cut off the steps later.

    Returns:
        The steps `[length, features]`, or `[length]`; and for each of them its index before the sort.

    Raises:
        ValueError: A cell is not a list, a list is empty, or the lists differ in length.
    """
    if (scalar_name := next((name for name, cell in cells.items() if not is_list(cell)), None)) is not None:
        raise ValueError(f"{scalar_name!r} holds {str(cells[scalar_name])[:MOST_SHOWN]!r}, and lists in other rows")
    # All lists are equally long; they are the columns of the steps.
    arrays = [steps_array(cell, padding) for name, cell in cells.items() if name != time]
    first_name, *other_names = cells
    for name in other_names:
        if len(cells[name]) != len(cells[first_name]):
            raise ValueError(
                f"{name!r} has {len(cells[name])} values in its list, and {first_name!r} {len(cells[first_name])}"
            )
    if not len(arrays[0]):
        raise ValueError("a sequence has at least one step")
    steps = np.column_stack(arrays) if len(arrays) > 1 else arrays[0]
    if time is None:
        return steps, range(len(steps))
    order = np.argsort(long_table.sort_keys(Texts(map(str, cells[time])), time), kind="stable")
    return steps[order], order.tolist()


def _with_wide_columns(columns: TableColumns, chosen: ColumnNames) -> ColumnNames:
    """Recognises a wide table: returns `chosen` with `row="sequence"`, and the columns of the steps as `values`.

    Any other table, and one for which the caller says what a row or a feature is, gives `chosen` as it is. A table is
    wide if it has no column of times; it has ids, all different, or labels; and
    - numbered columns are named as times (`t0`, `t1`, ...); or
    - all columns of values are numbered, and it has labels, and ids that are more than row numbers.

    Raises:
        ConfigurationError: The columns of the steps belong to several features: `x_0, x_1, ..., y_0, y_1, ...`.
    """
    numbered = _numbered_names(columns)
    is_left_open = chosen.row is None and chosen.values is None and {*(chosen.inputs or ())}.isdisjoint(columns)
    roles = assign_roles(columns, chosen) if is_left_open and len(numbered) >= _FEWEST_STEPS else None
    if roles is None or roles.time is not None:
        return chosen
    ids = [] if roles.id is None else long_table.ids_of(columns[roles.id], roles.id)
    ids_are_row_numbers = ids in [[*map(str, range(start, start + len(ids)))] for start in (0, 1)]
    # The columns of the steps: those named as times, else all
    steps = _time_columns(roles.values)
    if not steps and ids and roles.label and not ids_are_row_numbers and {*roles.values} <= numbered.keys():
        steps = [*roles.values]
    if len(steps) < _FEWEST_STEPS or len(ids) != len({*ids}) or not (ids or roles.label):
        return chosen
    # Steps of several features are refused, unless the names are bare numbers.
    feature_names = [*dict.fromkeys(numbered[name][1] for name in steps)]
    if len(feature_names) > 1 and not all(map(is_number, steps)):
        names = feature_names if len(feature_names) <= _MOST_NAMES else "NAMES"
        raise ConfigurationError(
            f"every row has columns for steps of several names: {quoted(feature_names)}: are they features? In pandas, "
            f"pandas.wide_to_long(table, {names}, i={roles.id or 'ID'!r}, j='t', sep={numbered[steps[0]][2]!r})"
            ".reset_index() makes a row of each step; if all are steps of one feature, say row=sequence"
        )
    return replace(chosen, row="sequence", values=_sorted_steps(steps))


def _numbered_names(names: Iterable[str]) -> dict[str, re.Match[str]]:
    """Matches the names that end in a number. Groups: the name before the number, the separator, the number."""
    return {name: match for name in names if (match := _NUMBERED.fullmatch(name))}


def _time_columns(names: Iterable[str]) -> list[str]:
    """The columns that are numbered and named as times, such as `t0`; empty if they are fewer than `_FEWEST_STEPS`."""
    steps = [name for name, match in _numbered_names(names).items() if is_named_as("time", match[1])]
    return steps if len(steps) >= _FEWEST_STEPS else []


def _sorted_steps(names: Sequence[str]) -> tuple[str, ...]:
    """Sorts columns of steps by the numbers in their names, such as `3` and `ax_3`.

    They keep their order if a name has no number, or the names before the numbers differ.
    """
    if all(map(is_number, names)):
        return tuple(sorted(names, key=float))
    numbered = _numbered_names(names)
    if len(numbered) < len(names) or len({match[1] for match in numbered.values()}) > 1:
        return tuple(names)
    return tuple(sorted(names, key=lambda name: int(numbered[name][3])))


def _join_to_lists(columns: TableColumns, names: Sequence[str], wrong: dict[int, str]) -> list[NDArray[Any]]:
    """Joins the columns of the steps of a wide table: an array for each row, up to its last value that is not missing.

    Adds each row that cannot be read to `wrong`, with the reason, unless it is there already.
    """
    numbers_and_reasons = [long_table.feature_numbers(columns[name], name) for name in names]
    for _, reasons in numbers_and_reasons:
        wrong.update({row: reason for row, reason in reasons.items() if row not in wrong})
    matrix = np.column_stack([array for array, _ in numbers_and_reasons])
    ends = np.where(np.isnan(matrix), 0, np.arange(1, len(names) + 1))
    return [row[:end] for row, end in zip(matrix, ends.max(axis=1), strict=True)]

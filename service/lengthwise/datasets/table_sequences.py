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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    listed,
)
from lengthwise.datasets.tables import TableColumns, Texts, is_number, steps_array
from lengthwise.errors import ConfigurationError

_NUMBERED: Final = re.compile(r"(.*?)([ _.-]?)(\d{1,30})")  # name of a step's column: `ax_3` is "ax", "_" and "3"
_MOST_SHOWN: Final = 40  # characters of a value in a message
_MOST_NAMES: Final = 20  # names in a message
_FEWEST_STEPS: Final = 3  # columns of steps by which a wide table is recognised


def sequences(
    columns: TableColumns, chosen: ColumnNames, wrong: Mapping[int, str] | None = None, **options: Any
) -> tuple[list[long_table.LongSequence], Roles]:
    """Reads the sequences of a table, and the role of each column; arguments as those of `long_table.sequences`.

    Raises:
        ConfigurationError: It is not clear what the columns are, or one that is a feature holds words.
    """
    wrong = dict(wrong or {})
    chosen = _with_wide_columns(columns, chosen)
    # Columns with lists; those of the steps of a wide table are joined to one.
    lists = [name for name in list_columns(columns) if name not in chosen.all and not is_no_feature(name)]
    if not lists and chosen.row == "sequence":
        roles = assign_roles(columns, replace(chosen, inputs=None))
        step_columns = chosen.values or _sorted_steps(_time_columns(roles.values) or roles.values)
        cells = _join_to_lists(columns, step_columns, wrong)
        columns = TableColumns([*columns.without({*step_columns}).items(), (VALUE, cells)])
        lists, chosen = [VALUE], replace(chosen, values=None)
    if not lists:
        return long_table.sequences(columns, chosen, wrong, **options)
    # Each row is a sequence: roles, ids and labels of its columns
    values = chosen.values or tuple(lists)
    inputs = chosen.inputs if len(values) > 1 else None  # the features in the cells of one column have no names
    roles = assign_roles(columns, replace(chosen, values=values, inputs=inputs))
    has_times = roles.time is not None and any(map(is_list, columns[roles.time]))
    roles = replace(roles, time=roles.time if has_times else None, row="sequence")
    ids = None if roles.id is None else long_table.ids_of(columns[roles.id], roles.id)
    labels = None if roles.label is None else long_table.labels_of(columns[roles.label], roles.label)
    for name in roles.values if len(roles.values) > 1 else ():
        first_value = next((value for cell in columns[name] if is_list(cell) for value in cell), None)
        if isinstance(first_value, str):
            raise ConfigurationError(long_table.no_numbers_message(name, first_value))
    # The sequence of each row, or its problem
    result = []
    for row in range(len(columns[lists[0]])):
        label = None if labels is None else [*labels[row]] if is_list(labels[row]) else labels[row]
        steps: NDArray[Any] = np.empty((0, 1))
        try:
            steps, order = _steps(
                {name: columns[name][row] for name in (*roles.values, roles.time) if name}, roles.time
            )
            if isinstance(label, list) and len(label) == len(order):
                label = [label[step] for step in order]
        except (ValueError, ConfigurationError) as error:
            wrong.setdefault(row, str(error))
        problem = (row, wrong[row]) if row in wrong else None
        name = str(row) if ids is None else ids[row]
        result.append(long_table.LongSequence(name, np.array([row]), steps, label, problem, roles))
    return result if options.get("per_step") else [*_with_single_labels(result)], roles


def _with_single_labels(sequences: Sequence[long_table.LongSequence]) -> Iterator[long_table.LongSequence]:
    """Yields the sequences. If in each of them all steps have one label (as `agg` gives), it becomes the sequence's."""
    has_repeated_labels = all(
        isinstance(sequence.label, list)
        and len(sequence.label) == len(sequence.steps)
        and len({*map(str, sequence.label)}) == 1
        for sequence in sequences
    )
    for sequence in sequences:
        yield replace(sequence, label=sequence.label[0]) if has_repeated_labels else sequence


def list_columns(columns: TableColumns) -> list[str]:
    """The columns with lists in their cells."""
    return [name for name, cells in columns.items() if type(cells) is list and any(map(is_list, cells))]


def is_list(cell: Any) -> bool:
    """Whether a cell holds several values: a list, a tuple, an array, or a Polars series."""
    return isinstance(cell, list | tuple) or getattr(cell, "ndim", 0) > 0 or hasattr(cell, "to_list")


def _steps(cells: Mapping[str, Any], time: str | None) -> tuple[NDArray[Any], Sequence[int]]:
    """The steps of one row, sorted by time, and the order of the sort: indices into the steps before it.

    `cells` are those of the features and of the time, by column; `time` is None if the steps have no times.

    Raises:
        ValueError: A cell is not a list, a list is empty, or the lists differ in length.
    """
    if (scalar_name := next((name for name, cell in cells.items() if not is_list(cell)), None)) is not None:
        raise ValueError(f"{scalar_name!r} holds {str(cells[scalar_name])[:_MOST_SHOWN]!r}, and lists in other rows")
    # All lists are equally long; they are the columns of the steps.
    arrays = [steps_array(cell) for name, cell in cells.items() if name != time]
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
    """The columns that the caller names; if the table is recognised as wide, with `row="sequence"` and its steps.

    It is wide if it has no column of times, it has ids (all different) or labels, and
    - numbered columns are named as times (`t0`, `t1`, ...); or
    - all columns of values are numbered, and it has labels and ids, which are not just row numbers.

    Raises:
        ConfigurationError: The columns are steps of several names.
    """
    numbered = _numbered_names(columns)
    is_left_open = chosen.row is None and chosen.values is None and {*(chosen.inputs or ())}.isdisjoint(columns)
    roles = assign_roles(columns, chosen) if is_left_open and len(numbered) >= _FEWEST_STEPS else None
    if roles is None or roles.time is not None:
        return chosen
    ids = [] if roles.id is None else long_table.ids_of(columns[roles.id], roles.id)
    ids_are_row_numbers = ids in [[*map(str, range(start, start + len(ids)))] for start in (0, 1)]
    # The columns of steps, if there are enough
    steps = _time_columns(roles.values)
    if not steps and ids and roles.label and not ids_are_row_numbers and {*roles.values} <= numbered.keys():
        steps = [*roles.values]
    if len(steps) < _FEWEST_STEPS or len(ids) != len({*ids}) or not (ids or roles.label):
        return chosen
    # Columns `x_0, x_1, ..., y_0, y_1, ...` are steps of several features, which are not read.
    feature_names = [*dict.fromkeys(numbered[name][1] for name in steps)]
    if len(feature_names) > 1 and not all(map(is_number, steps)):
        names = feature_names if len(feature_names) <= _MOST_NAMES else "NAMES"
        raise ConfigurationError(
            f"every row has columns for steps of several names: {listed(feature_names)}: are they features? In pandas, "
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
    """The columns of the steps of one feature (`3`, `ax_3`), sorted by their numbers; other names keep their order."""
    if all(map(is_number, names)):
        return tuple(sorted(names, key=float))
    numbered = _numbered_names(names)
    is_one_feature = len(numbered) == len(names) and len({match[1] for match in numbered.values()}) == 1
    return tuple(sorted(names, key=lambda name: int(numbered[name][3])) if is_one_feature else names)


def _join_to_lists(columns: TableColumns, names: Sequence[str], wrong: dict[int, str]) -> list[NDArray[Any]]:
    """Joins columns to one list for each row: its values, up to the last one that is not missing.

    Adds to `wrong` why a row cannot be read.
    """
    numbers_and_reasons = [long_table.feature_numbers(columns[name], name) for name in names]
    for _, reasons in numbers_and_reasons:
        wrong.update({row: reason for row, reason in reasons.items() if row not in wrong})
    matrix = np.column_stack([array for array, _ in numbers_and_reasons])
    ends = np.where(np.isnan(matrix), 0, np.arange(1, len(names) + 1))
    return [row[:end] for row, end in zip(matrix, ends.max(axis=1), strict=True)]

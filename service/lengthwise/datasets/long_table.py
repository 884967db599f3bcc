"""Reads a table with one row for each step as sequences: which column is what, and which rows belong together.

```
id  t  value  label         columns by their names (`assign_roles`) ->  rows with one id, in the order of the time
a   0  0.1    calm                                             ->  a: [[0.1], [0.3]], calm
a   1  0.3    calm                                                 b: [[0.2]], storm
b   0  0.2    storm
```

Rows of one sequence at one time follow each other as steps. But if a column tells them apart, as in a melted table,
each row is one value of a step: the error asks, and shows the `pivot` that makes a row for each step.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets.column_roles import ColumnNames, Roles, assign_roles, header_hint, is_channel_name, quoted
from lengthwise.datasets.tables import (
    MISSING,
    MOST_SHOWN,
    Cells,
    Padding,
    TableColumns,
    Texts,
    as_array,
    has_float_ids,
    id_text,
    is_missing,
    is_number,
    row_text,
)
from lengthwise.errors import ConfigurationError

WIDE: Final = "; if a row is a whole sequence, say row=sequence"
_COMMA: Final = (
    "; a decimal comma? pandas.read_csv(FILE, sep=None, engine='python', decimal=',').to_csv(NEW, index=False) "
    "writes points"
)
_AS_TEXT: Final = "; if it is a list that was written as text, write lists of numbers"
# `36:15` and `36:15:30.5` are hours, minutes and seconds; pandas and Python write days before them: `1 days 12:15:30`
_DURATION: Final = re.compile(r"(?:(-?\d{1,9}) days?,? )?([+-]?)(\d{1,9}):([0-5]?\d)(?::([0-5]?\d(?:\.\d+)?))?")
_OF_HOURS: Final = "is of hours and minutes"
_OF_SECONDS: Final = "is of hours, minutes and seconds"
_DAY: Final = 86_400  # seconds


@dataclass(frozen=True, slots=True)
class LongSequence:
    """One sequence of a table."""

    id: str  # `"0"` where the table has no ids
    rows: NDArray[np.intp]  # `[length]`: the table's row of each step
    steps: NDArray[Any]  # `[length, features]`, or `[length]` of one feature; NaN for a missing value
    label: Any  # or a list with one for each step; None if there is none
    problem: tuple[int, str] | None  # its first bad row, and why that cannot be read
    roles: Roles  # of the table's columns
    order: Sequence[int]  # `[length]`: the place of each step before the sort by time
    static: Mapping[str, Any] | None = None  # the cells of its static values by column; None without such columns


def one_sequence(columns: TableColumns, chosen: ColumnNames, padding: Padding | None = None) -> LongSequence:
    """Reads a table as one sequence: all its rows, in the order of their times.

    A column of ids is not needed, even if the caller names one. If there is one, all its ids must be equal. With
    `padding` nan, rows without a time and without values come last.

    Raises:
        ConfigurationError: The rows have several ids, or it is not clear what the columns are.
    """
    roles = assign_roles(columns, replace(chosen, id=chosen.id if chosen.id in columns else None))
    ids = set() if roles.id is None or is_channel_name(roles.id) else {*map(str, columns[roles.id])}
    if len(ids) > 1:
        raise ConfigurationError(f"the rows of one sequence have {len(ids)} ids in the column {roles.id!r}")
    return _sequences(columns, chosen, replace(roles, id=None), None, {}, padding)[0]


def id_of(columns: TableColumns, chosen: ColumnNames) -> str | None:
    """The id that all rows of a table have; None if they have none or several, or it is not clear what columns are."""
    with suppress(ConfigurationError):
        roles = assign_roles(columns, replace(chosen, id=chosen.id if chosen.id in columns else None))
        if roles.id is not None and not is_channel_name(roles.id):
            ids = {*ids_of(columns[roles.id], roles.id)}
            return ids.pop() if len(ids) == 1 else None
    return None


def sequences(
    columns: TableColumns,
    chosen: ColumnNames,
    wrong: Mapping[int, str] | None = None,
    *,
    advice_for_single: str | None = "put the table of a single sequence in a list",
    per_step: bool | None = None,
    padding: Padding | None = None,
) -> tuple[list[LongSequence], Roles]:
    """Reads the sequences of a table with a row for each step.

    Args:
        columns: The table.
        chosen: The columns that the caller names.
        wrong: Why a row cannot be read, by the row's number; its sequence then has this as its `problem`.
        advice_for_single: The end of the error for a table without a column of ids: what to do if it is one sequence.
            None: a table without ids is one sequence, and not an error.
        per_step: Whether the sequences get a list of labels, one for each step, instead of one label.
            True: they do. None: they do if some sequence has several labels. False: they do if most sequences have
            several labels; if only a few have, each label that differs from the usual one of its sequence is a problem,
            and so is a row without one.
        padding: What is cut off the end of each sequence later. Where it is nan, rows without a time and without
            values, as pandas' `reindex` makes them, are padding and come last; else such a row is an error.

    Returns:
        The sequences, in the order of their first rows, and the role of each column.

    Raises:
        ConfigurationError: The table has no row, or no column of ids; or each row has an id of its own, or may be one
            value of a step.
    """
    names = [*columns]
    count = len(columns[names[0]]) if names else 0
    if not count:
        raise ConfigurationError("the table has no row")
    # The roles; an error asks where they are doubtful
    roles = assign_roles(columns, chosen)
    if roles.id is None and advice_for_single is not None:
        raise ConfigurationError(
            f"no column names the sequence of a row; the columns are {quoted(names)}: say which one does (id), or "
            f"{advice_for_single}{WIDE}{header_hint(names)}"
        )
    id_is_guessed = chosen.id is None and count > 1
    if roles.id is not None and id_is_guessed and len({*ids_of(columns[roles.id], roles.id)}) == count:
        raise ConfigurationError(
            f"every row has its own {roles.id!r}: does it number the rows? Say which column is the id (id); the "
            f"columns are {quoted(names)}{WIDE}"
        )
    return _sequences(columns, chosen, roles, per_step, wrong or {}, padding), roles


def _sequences(
    columns: TableColumns,
    chosen: ColumnNames,
    roles: Roles,
    per_step: bool | None,
    wrong_rows: Mapping[int, str],
    padding: Padding | None,
) -> list[LongSequence]:
    """Builds a sequence of the rows of each id, in the order of the ids' first rows; its steps are sorted by time.

    Args:
        columns: The table.
        chosen: The columns that the caller names.
        roles: The role of each column.
        per_step: Whether sequences get a list of labels. None: if some have several labels; False: if most have.
        wrong_rows: Why a row cannot be read, by the row's number; its sequence has this as its `problem`.
        padding: As in `sequences`.
    """
    # Which rows a sequence has, in the order of the time
    ids = ["0"] * len(columns[roles.values[0]]) if roles.id is None else ids_of(columns[roles.id], roles.id)
    number_of_id = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    sequence_of_row = np.array([number_of_id[name] for name in ids], dtype=np.intp)
    order = _order(sequence_of_row, columns, roles, padding)
    _refuse_probably_melted(sequence_of_row, columns, roles, chosen)
    bounds = np.searchsorted(sequence_of_row[order], np.arange(len(number_of_id) + 1))
    rows_of_sequence = [order[start:end] for start, end in pairwise(bounds)]
    # The values of each row; and why a row is wrong: the reason of the whole row, else that of its first wrong cell
    arrays, wrong_cells = zip(*(feature_numbers(columns[name], name) for name in roles.values), strict=True)
    values = arrays[0] if len(arrays) == 1 else np.column_stack(arrays)
    wrong = dict(ChainMap(dict(wrong_rows), *wrong_cells, _changing_static(columns, roles, rows_of_sequence)))
    # How often each label is there in each sequence
    labels = [] if roles.label is None else labels_of(columns[roles.label], roles.label)
    label_counts = [
        Counter(str(labels[row]) for row in rows if labels[row] is not None) if labels else Counter[str]()
        for rows in rows_of_sequence
    ]
    mixed_count = sum(len(counts) > 1 for counts in label_counts)
    is_per_step = mixed_count > 0 if per_step is None else per_step or 2 * mixed_count > len(rows_of_sequence)
    # The sequences; the problem of each is its first wrong row, else a row with another label than most
    result = []
    for name, rows, counts in zip(number_of_id, rows_of_sequence, label_counts, strict=True):
        problem = next(((row, wrong[row]) for row in rows.tolist() if row in wrong), None) if wrong else None
        label: Any = None
        if labels and is_per_step:
            label = [labels[row] for row in rows]
        elif counts:
            label, odd_row = _usual_label(labels, rows, counts, () if per_step is None else values)
            if odd_row is not None and problem is None:
                odd_label = "no label" if labels[odd_row] is None else f"the label {labels[odd_row]!r}"
                reason = f"has {odd_label}, and {label!r} in its other rows: correct it"
                problem = odd_row, f'sequence {name!r} {reason} (labels of steps are for task = "per-step")'
        places, static = np.searchsorted(np.sort(rows), rows).tolist(), static_cells(columns, roles, rows[0])
        result.append(LongSequence(name, rows, values[rows], label, problem, roles, places, static))
    return result


def static_cells(columns: TableColumns, roles: Roles, row: int) -> dict[str, Any] | None:
    """The static values in a row, by column, and None for a missing one; None if there are no such columns.

    A text that is a number becomes one, as all cells of a text file are texts; what is written as an integer becomes
    one, because a category may have this name.
    """
    cells = {name: columns[name][row] for name in roles.static}
    for name, cell in cells.items():
        text = str(cell).strip()
        if text.lower() in MISSING:
            cells[name] = None
        elif isinstance(cell, str) and is_number(text):
            number = float(text)
            cells[name] = int(number) if f"{number:.0f}" == text and number.is_integer() else number
    return cells or None


def constant_features(sequences: Sequence[LongSequence], roles: Roles) -> list[str]:
    """The features with one value in all steps of each sequence, and not in all sequences: they may be static values.

    None if no other feature is left, or there are not two sequences of two steps.
    """
    arrays = [one.steps.reshape(len(one.steps), -1) for one in sequences if len(one.steps) > 1]
    if len(arrays) < 2 or roles.row != "step":
        return []
    is_one = np.logical_and.reduce([(array == array[0]).all(axis=0) for array in arrays])
    is_one &= (np.array([array[0] for array in arrays]) != arrays[0][0]).any(axis=0)
    names = [name for name, is_constant in zip(roles.values, is_one, strict=True) if is_constant]
    return names if len(names) < len(roles.values) else []


def _changing_static(
    columns: TableColumns, roles: Roles, rows_of_sequence: Sequence[NDArray[np.intp]]
) -> dict[int, str]:
    """The rows with another static value than the first row of their sequence, each with the reason."""
    wrong: dict[int, str] = {}
    for name in roles.static:
        cells = columns[name]
        for rows in rows_of_sequence:
            first = str(cells[rows[0]])
            reason = f"its static value {name!r} is {{!r}}, and {first!r} in the first row of its sequence"
            wrong |= {int(row): reason.format(str(cells[row])) for row in rows if str(cells[row]) != first}
    return wrong


def _usual_label(
    labels: Sequence[Any], rows: NDArray[np.intp], counts: Counter[str], values: Sequence[Any] | NDArray[Any]
) -> tuple[Any, int | None]:
    """Returns the most frequent label of a sequence, and its first row with another label; None if there is none.

    Args:
        labels: The label of each row of the table, of any type: they are compared as texts.
        rows: The rows of the sequence.
        counts: How often each label is in them, as a text.
        values: The values of each row: one that has values must have a label, too. Empty if the caller does not say
            what labels are for: then any row may lack one.
    """
    usual_label = counts.most_common(1)[0][0]
    label = next(labels[row] for row in rows if str(labels[row]) == usual_label)
    for row in rows.tolist():
        lacks_label = labels[row] is None and len(values) and not np.isnan(values[row]).all()
        if lacks_label or str(labels[row]) not in (usual_label, "None"):
            return label, row
    return label, None


def ids_of(cells: Cells, name: str) -> list[str]:
    """The id in each row of a column, as a text without blanks around it; whole floats as whole numbers.

    Raises:
        ConfigurationError: A row has no id; the message names the first one.
    """
    plain = cells.tolist() if isinstance(cells, np.ndarray) else cells
    end = ".0" if isinstance(cells, Texts) and has_float_ids(cells) else ""
    ids = ["" if is_missing(cell) else id_text(cell).removesuffix(end) for cell in plain]
    if "" in ids:
        raise ConfigurationError(
            f"{row_text(cells, ids.index(''))} has no id in the column {name!r}, which names its sequence"
        )
    return ids


def _order(
    sequence_of_row: NDArray[np.intp], columns: TableColumns, roles: Roles, padding: Padding | None
) -> NDArray[np.intp]:
    """The numbers of the table's rows `[rows]`, sorted by sequence, then by time; equal ones keep the table's order.

    `sequence_of_row [rows]`: the number of each row's sequence. With `padding` nan, rows without a time and without
    values are the last ones of their sequence.

    Raises:
        ConfigurationError: Two different rows of a sequence have the same time, and the table is not sorted by time: it
            is not known which comes first. Or a row may be one value of a step.
    """
    row_order: NDArray[np.intp] = np.argsort(sequence_of_row, kind="stable")
    if roles.time is None:
        return row_order
    # Rows without a time and without values are padding
    is_padding = (
        np.logical_and.reduce([missing_cells(columns[name]) for name in (roles.time, *roles.values)])
        if padding == "nan"
        else np.zeros(len(row_order), dtype=np.bool_)
    )
    keys = sort_keys(columns[roles.time], roles.time, sequence_of_row, is_padding)
    order: NDArray[np.intp] = np.lexsort((keys, is_padding, sequence_of_row))
    is_same_sequence = sequence_of_row[order][1:] == sequence_of_row[order][:-1]
    has_equal_time = (keys[order][1:] == keys[order][:-1]) & is_same_sequence & ~is_padding[order][1:]
    # Are rows with the same time whole steps? `moments` number the pairs of sequence and time.
    if has_equal_time.any():
        moments = np.empty_like(sequence_of_row)
        moments[order] = np.cumsum(np.append(0, ~has_equal_time))
        _require_one_row_a_step(columns, roles, moments)
    # In a table that is sorted by time, rows with the same time are steps in the table's order.
    ties: list[int] = [] if np.array_equal(order, row_order) else np.flatnonzero(has_equal_time).tolist()
    for first_row, second_row in ((order[tie], order[tie + 1]) for tie in ties):
        if any(cells[first_row] != cells[second_row] for cells in columns.values()):
            raise ConfigurationError(
                f"rows of one sequence have the same {roles.time!r} ({row_text(columns[roles.time], second_row)} and "
                "another) and are not in its order: which comes first? Sort the table, or name another column (time)"
            )
    return order


def _require_one_row_a_step(columns: TableColumns, roles: Roles, moments: NDArray[np.intp]) -> None:
    """Refuses a melted table, in which a row is one value of a step, and a column says which feature has the value.

    Called if some moments (pairs of sequence and time) have several rows. The table is melted if one column has another
    value in each row of a moment, or several columns together have. Tried are columns with few different values, which
    - have the name of a channel, or texts (`sure_columns`; also all of them together); or
    - have as many values as a moment has rows, where most rows share their moment (`possible_columns`).

    Args:
        columns: The table.
        roles: The role of each column.
        moments: `[rows]`, the number of each row's moment, from 0.

    Raises:
        ConfigurationError: The table is melted; the message has the `pivot` that makes a row for each step.
    """
    sizes = np.bincount(moments)
    largest = int(sizes.max())
    codes_of_column = {name: _codes(cells) for name, cells in columns.items() if name not in (roles.id, roles.time)}
    few_valued = [name for name, code in codes_of_column.items() if code.max() < max(largest, len(sizes) // 2)]
    texts = {name for name in few_valued if name != roles.label and not _has_numbers(columns[name])}
    sure_columns = [name for name in few_valued if is_channel_name(name) or name in texts]
    most_share_moment = 2 * sizes[sizes > 1].sum() >= len(moments)
    possible_columns = [name for name in few_valued if most_share_moment and codes_of_column[name].max() == largest - 1]
    # The error names the first column, or all sure ones, with another value in each row of a moment.
    for columns_apart in [*([name] for name in (*sure_columns, *possible_columns)), sure_columns]:
        combined = np.column_stack([moments, *(codes_of_column[name] for name in columns_apart)])
        if columns_apart and len(np.unique(combined, axis=0)) == len(moments):
            why = f"rows of one sequence have the same {roles.time!r} and differ in {quoted(columns_apart)}"
            raise ConfigurationError(_melted_message(columns, roles, columns_apart, why))


def _refuse_probably_melted(
    sequence_of_row: NDArray[np.intp], columns: TableColumns, roles: Roles, chosen: ColumnNames
) -> None:
    """Refuses a table where the cells of one column probably name the feature whose value the row has.

    Where the caller names two features or more, only these are looked at: a row is a step of them. A column that has
    several values in some sequence is refused if these are
    - texts, and the column has the name of a channel such as `sensor`, or stands beside one feature alone (`is_sure`);
    - the numbers of a channel, and neither the column's name nor the caller says that it is a feature (`is_sure`);
    - texts, or the numbers of a channel, without times, where every sequence has every value, each equally often
      within a sequence, and in some sequence more than once (`is_even`). The caller may say that such numbers are a
      feature.

    Args:
        sequence_of_row: `[rows]`, the number of each row's sequence, from 0.
        columns: The table.
        roles: The role of each column.
        chosen: The columns that the caller names.

    Raises:
        ConfigurationError: The table may be melted; the message has the `pivot` that makes a row for each step.
    """
    are_chosen = chosen.values is not None or chosen.inputs is not None
    sequence_count = len({*sequence_of_row.tolist()})
    are_several = bool(chosen.values or chosen.inputs) and len(roles.values) > 1
    for index, name in enumerate(roles.values if are_several else (*roles.values, *roles.left_out)):
        texts = [cell for cell in columns[name][:64] if isinstance(cell, str) and cell.strip()]
        is_text = len(texts) > 0 and not any(map(is_number, texts))
        is_channel, is_feature = is_channel_name(name), index < len(roles.values)
        if is_text or (is_channel and not (is_feature and are_chosen)):
            pairs, counts = np.unique(  # of sequence and value
                np.column_stack([sequence_of_row, _codes(columns[name])]), axis=0, return_counts=True
            )
            is_even = (
                roles.time is None
                and len(pairs) == sequence_count * (1 + pairs[:, 1].max())  # every value, in every sequence
                and len({*zip(pairs[:, 0].tolist(), counts.tolist(), strict=True)}) == sequence_count
                and counts.max() > 1  # else each row may have an id of its own
            )
            is_sure = (
                (is_channel or (is_feature and len(roles.values) == 2)) if is_text else not (is_feature or are_chosen)
            )
            if len(pairs) > sequence_count and (is_even or is_sure):
                often = "each of its values equally often in every" if is_even else "several values in a"
                raise ConfigurationError(
                    _melted_message(columns, roles, [name], f"the column {name!r} has {often} sequence")
                    + (f"; if it is the label, say label={name!r} (--column label={name})" if is_text else "")
                )


def _melted_message(columns: TableColumns, roles: Roles, columns_apart: list[str], why: str) -> str:
    """The message for a table in which a row may be one value of a step, with the `pivot` for it.

    Without times, the first values of a sequence in `columns_apart` become its first step, and so on.
    """
    keys = [name for name in (roles.id, roles.time or "t", roles.label) if name and name not in columns_apart]
    values = [name for name in roles.values if name not in columns_apart]
    groups = [name for name in (roles.id, *columns_apart) if name]
    steps = f".assign(t=table.groupby({groups}).cumcount())" if roles.time is None else ""
    return (
        f"{why}: is a row one value of a step? Then make a column of each, in pandas: table = table{steps}"
        f"{'.reset_index()' if columns.levels else ''}.pivot(index={keys}, columns={columns_apart}, "
        f"values={repr(values[0]) if len(values) == 1 else values}).reset_index(). If a row is a step, leave "
        f"{quoted(columns_apart)} out of the table"
    )


def _codes(cells: Cells) -> NDArray[np.intp]:
    """`[rows]`: a number from 0 for each cell; equal cells (as texts) have the same one."""
    code_of_text: dict[str, int] = {}
    return np.array([code_of_text.setdefault(str(cell), len(code_of_text)) for cell in cells], dtype=np.intp)


def _has_numbers(cells: Cells) -> bool:
    """Whether all cells are numbers, texts of numbers, or missing."""
    return isinstance(cells, np.ndarray) or all(is_number(str(cell)) for cell in cells)


def missing_cells(cells: Cells) -> NDArray[np.bool_]:
    """`[rows]`: whether each cell is missing: None, NaN, blank, or one of the texts for it (`MISSING`)."""
    if isinstance(cells, np.ndarray):
        return np.asarray(np.isnat(cells) if cells.dtype.kind in "Mm" else np.isnan(cells))
    return np.array([str(cell).strip().lower() in MISSING for cell in cells], dtype=np.bool_)


def sort_keys(
    cells: Cells,
    name: str,
    sequence_of_row: NDArray[np.intp] | int = 0,
    is_padding: NDArray[np.bool_] | bool = False,
) -> NDArray[Any]:
    """Converts times to numbers `[rows]` that sort like them.

    A time is a number, a date as in ISO 8601, or hours and minutes since the beginning, such as `36:15` or `36:15:30`.

    Args:
        cells: The times.
        name: The name of their column.
        sequence_of_row: `[rows]`, the number of each row's sequence; or one number for all rows.
        is_padding: `[rows]`, whether a row may be without a time; or one answer for all rows.

    Raises:
        ConfigurationError: A cell is missing, or is no time, or not of the kind of most others; or it is not clear what
            hours and minutes mean (`_ask_about_clock`).
    """
    is_absent = missing_cells(cells)
    if (is_wrong := is_absent & np.logical_not(is_padding)).any() or is_absent.all():
        row = int(is_wrong.argmax())
        raise ConfigurationError(
            f"{row_text(cells, row)} has no time in the column {name!r}, but {str(cells[row])!r}; if it has no values "
            "either, it is padding: padding='nan' (--padding nan) cuts it off"
        )
    if isinstance(cells, np.ndarray):  # numbers, dates or durations
        return cells.astype(np.int64) if cells.dtype.kind in "Mm" else cells
    # Texts or objects, all of the kind that most are of
    rows = np.flatnonzero(~is_absent).tolist()
    kinds, numbers = zip(*(_moment(str(cells[row]).strip()) for row in rows), strict=True)
    _ask_about_clock(cells, name, np.array(rows), kinds, np.array(numbers), sequence_of_row)
    usual_kind = Counter(kinds).most_common(1)[0][0]
    odd = [(row, kind) for row, kind in zip(rows, kinds, strict=True) if kind != usual_kind or not kind]
    if odd:
        row, kind = odd[0]
        no_time = "is neither a number nor a date such as 2024-05-31T09:30, nor of hours and minutes such as 36:15"
        raise ConfigurationError(
            f"{str(cells[row])[:MOST_SHOWN]!r} in the column {name!r} ({row_text(cells, row)}) {kind or no_time}"
            f"{', unlike most other rows' if kind else ''}: correct it, name another column (time), or leave this one "
            "out of the table to keep the order of the rows"
        )
    keys = np.zeros(len(cells))
    keys[rows] = numbers
    return keys


def _ask_about_clock(
    cells: Cells,
    name: str,
    rows: NDArray[np.intp],
    kinds: Sequence[str],
    numbers: NDArray[np.float64],
    sequence_of_row: NDArray[np.intp] | int,
) -> None:
    """Refuses times of hours and minutes that may mean something else, because sorting by them would be a guess.

    Some with seconds and some without may be minutes and seconds that run into hours: `59:30`, `1:00:30`. Where all are
    below 24 h, one that is less than the one before it in its sequence may be of the next day: `23:50`, `00:10`.

    Args:
        cells: The times.
        name: The name of their column.
        rows: The rows that have a time.
        kinds: The kinds of their times, as of `_moment`.
        numbers: The numbers by which these are sorted.
        sequence_of_row: As in `sort_keys`.

    Raises:
        ConfigurationError: They may mean something else; the message names two cells, and says what to write.
    """
    if {_OF_HOURS, _OF_SECONDS}.issubset(kinds):
        short, long = (
            f"{str(cells[row])[:MOST_SHOWN]!r} ({row_text(cells, row)})"
            for row in (rows[kinds.index(kind)] for kind in (_OF_HOURS, _OF_SECONDS))
        )
        raise ConfigurationError(
            f"the column {name!r} holds {short}, which is read as hours and minutes, and {long}, which has seconds: "
            "write three parts in each row, 0:36:15 for minutes and seconds, 36:15:00 for hours and minutes"
        )
    are_of_a_day = {*kinds} <= {_OF_HOURS, _OF_SECONDS} and numbers.min() >= 0 and numbers.max() < _DAY
    if not are_of_a_day or "day" in str(cells[rows[0]]):  # a time that states its days is a duration
        return
    sequence = np.broadcast_to(sequence_of_row, len(cells))[rows]
    order = np.argsort(sequence, kind="stable")
    falls = np.where(np.diff(sequence[order]) == 0, -np.diff(numbers[order]), 0)
    if (falls > 0).any():
        before, after = rows[order][falls.argmax()], rows[order][falls.argmax() + 1]
        raise ConfigurationError(
            f"{cells[after]!s} in the column {name!r} ({row_text(cells, after)}) comes after {cells[before]!s}: is it "
            "the next day? Write dates, or hours from 24 on; if these are durations, sort the table by them"
        )


def _moment(text: str) -> tuple[str, float]:
    """The kind of a time, and the number by which it is sorted; the kind is empty if the text is no time.

    Dates without a time zone are taken as if in UTC, to be compared with each other.
    """
    with suppress(ValueError):
        return "is a number", float(text)
    if match := _DURATION.fullmatch(text):
        days, sign, *clock = match.groups(default="0")
        kind = _OF_HOURS if match[5] is None else _OF_SECONDS
        return kind, _DAY * int(days) + float(f"{sign}1") * float(np.dot([3600, 60, 1], [*map(float, clock)]))
    with suppress(ValueError):
        stamp = datetime.fromisoformat(text)
        key = stamp.replace(tzinfo=stamp.tzinfo or UTC).timestamp()
        return f"has {'no' if stamp.tzinfo is None else 'a'} time zone", key
    return "", 0.0


def numbers_of(cells: Cells, name: str) -> tuple[NDArray[Any], dict[int, str]]:
    """Converts a column to numbers.

    Returns:
        The numbers `[rows]`, with NaN where a cell is missing or wrong; and for a column of a text file, the reason for
        each wrong cell, by its row.

    Raises:
        ConfigurationError: The column is not of a text file, and a cell is no number.
    """
    if not isinstance(cells, Texts):
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiu":
            return cells, {}
        with suppress(ValueError):
            numbers = as_array(cells)
            if numbers.dtype.kind in "fiu" and numbers.ndim == 1:
                return numbers, {}
        # The message shows the first cell that is no number.
        present = [cell for cell in cells if not is_missing(cell)]
        example = next((cell for cell in present if type(cell) not in (int, float)), next(iter(present), None))
        raise ConfigurationError(no_numbers_message(name, example))
    numbers = np.full(len(cells), np.nan)
    wrong: dict[int, str] = {}
    for row, cell in enumerate(cells):
        try:
            numbers[row] = float(cell)
        except ValueError:
            if cell.strip().lower() not in MISSING:
                text = cell.strip()
                wrong[row] = f"{text[:MOST_SHOWN]!r} in the column {name!r} is not a number{_hint(text)}"
    return numbers, wrong


def _hint(text: str) -> str:
    """How to write a cell that is a number in another form, or a list; empty for any other text."""
    return _COMMA if re.fullmatch(r"-?\d*,\d+", text) else _AS_TEXT if text.startswith("[") else ""


def no_numbers_message(name: str, cell: Any) -> str:
    """The message for a column that should be a feature, and holds no numbers; `cell` is one of its cells.

    It has advice where the cell may be a label, a number with a decimal comma, or a list that was written as text.
    """
    text = str(cell)
    of_label = f"; if it is the label, say label={name!r} (--column label={name})" if isinstance(cell, str) else ""
    return (
        f"the column {name!r} holds {text[:MOST_SHOWN]!r}, a {type(cell).__name__}, and no numbers: say which columns "
        f"are the features (values){_hint(text) or of_label}"
    )


def feature_numbers(cells: Cells, name: str) -> tuple[NDArray[Any], dict[int, str]]:
    """Converts the column of a feature to numbers.

    Returns:
        The numbers `[rows]`, with NaN where a cell is missing or wrong; and the reason for each wrong cell, by its row.

    Raises:
        ConfigurationError: No cell is a number, so the column is probably no feature. Numbers with a decimal comma, and
            lists that were written as text, are wrong cells instead, with advice in their reasons.
    """
    numbers, wrong = numbers_of(cells, name)  # only cells of a file of texts can be wrong
    if wrong and len(wrong) == sum(cell.strip().lower() not in MISSING for cell in cells):
        text = cells[next(iter(wrong))].strip()
        if not _hint(text):
            raise ConfigurationError(no_numbers_message(name, text))
    return numbers, wrong


def labels_of(cells: Cells, name: str) -> list[Any]:
    """The labels in a column, each a text, a number or what the table has; None where one is missing.

    Raises:
        ConfigurationError: The column holds numbers with a fraction.
    """
    if not isinstance(cells, np.ndarray):
        return [None if is_missing(cell) else cell.strip() if isinstance(cell, str) else cell for cell in cells]
    if cells.dtype.kind == "f":  # whole numbers among which some are missing
        if (cells % 1 > 0).any():
            raise ConfigurationError(
                f"the column {name!r} holds numbers with a fraction, which are no labels: say which column is the "
                "label (label), or that it is a feature (values)"
            )
        return [None if np.isnan(cell) else int(cell) for cell in cells]
    return cells.tolist()  # type: ignore[no-any-return]  # NumPy says Any

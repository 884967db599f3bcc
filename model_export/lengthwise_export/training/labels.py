"""Assigns the labels that a Python caller gives to the sequences: by ids if both have some, else by position.

| labels | which is whose |
|---|---|
| a dict, a pandas Series with the ids as its index, a table with a column of ids | by the ids, in any order |
| a list, an array, a Series with the index 0, 1, 2, ...; any Series if the sequences have no ids | by position |
| a Series with other whole numbers as its index, none of them an id, beside a list, as of a fold | by position |

All other labels are refused, and the error has the ids of both sides. Where a row of a pandas table is a sequence, the
index of the table is its ids, too; where a table is a sequence, its one id is that of the sequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lengthwise.exporter_api.data import (
    InputSequences,
    columns_of,
    id_text,
    ids_of,
    input_sequences,
    is_named_as,
    is_of,
    labels_of,
    quoted,
)
from lengthwise_export.errors import InvalidSequences, Problem, first_of


def in_order(labels: Any, sequences: InputSequences, data: Any) -> Any:
    """Brings labels into the order of the sequences; logs this order if it is by position, and not that of the ids.

    Args:
        labels: What the caller gives, of any type.
        sequences: The sequences that were read.
        data: What they were read from.

    Raises:
        InvalidSequences: The labels are no list, or their ids and those of the sequences differ.
    """
    ids: list[Any] = [sequence.id for sequence in sequences]
    rows, is_series = _index(data), _index(labels) is not None and labels.shape[1:] in ((), (1,))
    has_rows = rows is not None and len(rows) == len(ids)  # a row is a sequence
    if has_rows and (None in ids or data.ndim == 1) and type(rows).__name__ != "RangeIndex":
        ids = [*map(id_text, rows)]
    id_name = None if sequences.roles is None else sequences.roles.id
    keys, values = _with_ids(labels, id_name)
    is_count = is_series and keys == [*map(str, range(len(values)))]
    # By the ids
    is_list = type(data) in (list, tuple, np.ndarray) or (has_rows and data.ndim == 1)  # a Series of sequences, too
    if keys not in (None, ids) and not (is_series and _are_positions(keys, ids, is_list)):
        problem = _mismatch(ids, keys)
        if not problem and not (is_count and (has_rows or is_list)):
            return [*map(dict(zip(keys, values, strict=True)).__getitem__, ids)]
        if not problem or not is_count:
            problem = (
                f"{problem or '0, 1, 2, ... are ids and numbers of rows'}. They are matched by id; give a list of "
            )
            raise InvalidSequences(
                [Problem("/labels", f"{problem}labels in the order of the sequences, or a column of labels")]
            )
    # By position
    names = [*map(str, dict.fromkeys(ids))]
    has_order = id_name is None and not type(data).__name__.endswith("GroupBy")  # as a list and a dict have
    is_explicit = keys == ids or has_order or isinstance(data, InputSequences)
    if not is_explicit and names != sorted(names, key=int if all(map(str.isdecimal, names)) else None):
        input_sequences.log.warning(
            "the labels are taken in the order in which the ids first stand in the table: %s", first_of(names)
        )
    return values


def by_time(labels: Iterable[Any], sequences: InputSequences) -> list[Any]:
    """Sorts labels of steps as the steps of their sequence were sorted: they come in the order of the table's rows."""
    result = [*labels]
    for index, (label, sequence) in enumerate(zip(result, sequences, strict=False)):
        if sequence.order is not None and isinstance(label, np.ndarray | list | tuple):
            places = np.argsort(np.argsort(sequence.order[: len(sequence.steps)]))  # some steps may be cut off
            if len(places) == len(label):
                result[index] = [label[place] for place in places]
    return result


def _index(value: Any) -> Any:
    """The index of a pandas Series or DataFrame; None for any other value."""
    return value.index if is_of(value, "pandas") and hasattr(value, "iloc") else None


def _are_positions(keys: list[str], ids: list[Any], is_list: bool) -> bool:
    """Whether the index of a Series says nothing on the ids: no sequence has one, or it numbers the rows of a split.

    A split, as that of a cross-validation, is a list of sequences.
    """
    are_numbers = is_list and all(map(str.isdecimal, keys))
    return {*ids} == {None} or (are_numbers and {*keys}.isdisjoint(ids))


def _mismatch(ids: list[Any], keys: list[str]) -> str:
    """Says which sequences have no label, or several, and which labels no sequence; '' if each has its counterpart."""
    names, counts = {*ids}, Counter(keys)
    groups = {
        "sequences without a label": [name for name in dict.fromkeys(ids) if name not in counts],
        "labels without a sequence": [key for key in counts if key not in names],
        "ids with several labels": [key for key, count in counts.items() if count > 1],
    }
    return "; ".join(f"{title}: {first_of([*map(repr, group)])}" for title, group in groups.items() if group)


def _keys_of(labels: Any, id_name: str | None) -> list[Any]:
    """The keys of a mapping or a Series. Of several levels of an index, the one that is the id.

    That is the level with the name of the column of ids, else with a name of ids, else the only one with several
    values; where there are several such levels, a key is a tuple, as the name of a group is.
    """
    index = _index(labels)
    if index is None or index.nlevels == 1:
        keys = labels if index is None else index
        return [key[0] if isinstance(key, tuple) and len(key) == 1 else key for key in keys]
    names, levels = [*map(str, index.names)], range(index.nlevels)
    of_column = [level for level in levels if names[level] == id_name]
    named = [level for level in levels if is_named_as("id", names[level])]
    varied = [level for level in levels if index.get_level_values(level).nunique() > 1]
    found = of_column or named or varied or [0]
    return [*(index if len(found) > 1 else index.get_level_values(found[0]))]


def _with_ids(labels: Any, id_name: str | None) -> tuple[list[str] | None, Any]:
    """The ids of labels, None if they have none; and the labels.

    `id_name` is the column of ids in the table of the sequences; None if there is none.

    Raises:
        InvalidSequences: The labels are no list, or a table that has not just one column of labels.
    """
    series = labels.iloc[:, 0] if _index(labels) is not None and labels.shape[1:] == (1,) else labels
    if isinstance(series, Mapping) or (_index(series) is not None and series.ndim == 1):
        return [*map(id_text, _keys_of(series, id_name))], [label for _, label in series.items()]
    # sklearn's tests of estimators give an array that cannot be iterated
    is_list = isinstance(labels, Iterable) or hasattr(labels, "__array__")
    if (table := columns_of(labels)) is None and is_list and not isinstance(labels, str | bytes):
        return None, labels
    id_names = [name for name in table or () if name == id_name or is_named_as("id", name)]
    label_names = [name for name in table or () if name not in id_names]
    if table is None or len(id_names) > 1 or len(label_names) != 1:
        form = f"a {type(labels).__name__}" if table is None else f"a table with the columns {quoted(table)}"
        raise InvalidSequences([Problem("/labels", f"must be a list, or a table with ids and labels, got {form}")])
    ids = ids_of(table[id_names[0]], id_names[0]) if id_names else None
    return ids, labels_of(table[label_names[0]], label_names[0])

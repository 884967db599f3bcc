"""What a Python caller may pass as sequences, as NumPy arrays: every function that takes sequences takes these forms.

| form | a sequence is |
|---|---|
| a list, a generator, an array `[sequences, ...]` | an entry: an array-like, a table, an object as in `POST /predict` |
| a mapping, a table grouped by a column | a value; its key is the id |
| a table of pandas, Polars or Arrow with a column `steps` | a row |
| such a table with a row for each step | the rows with one id (`long_table`) |
| a list column of Arrow or Polars | a row |

Reading goes in two stages. `_entries` splits the data to *entries*, one for each sequence: an array-like, a table, or
an object such as `{"id": "a", "steps": [[0.1], [0.2]]}`. `_sequence` makes an `InputSequence` of each.
"""

from __future__ import annotations

import logging
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets import long_table, table_sequences, tails
from lengthwise.datasets.column_roles import ColumnNames, Roles, RowKind, assign_roles
from lengthwise.datasets.long_table import LongSequence
from lengthwise.datasets.tables import (
    Cells,
    TableColumns,
    arrow_cells,
    columns_of,
    id_text,
    input_steps,
    is_of,
    steps_array,
    with_null_steps,
)
from lengthwise.datasets.tables import Padding as Padding
from lengthwise.decoding.chunks import NO_OFFSET
from lengthwise.decoding.validation import ITEM_FIELDS
from lengthwise.errors import ConfigurationError, InvalidSequences, Problem
from lengthwise.runtime.feature_names import missing_columns_problem, values_by_name

log = logging.getLogger("lengthwise.data")

T = TypeVar("T")

_FEWEST_KEYS: Final = 5  # groups from which on a column with one value for each group counts as the group key
_HOW_TO_NAME: Final = (
    ': lengthwise.sequences(table, id="trip", time="when", label="kind", values=["x", "y"]) names columns'
)

Layout = Literal["steps-first", "channels-first"]  # `[length, features]`, or `[features, length]` as in aeon

_FIELDS: Final = ITEM_FIELDS | {"label", "static", "inputs"}
_COLUMNS: Final = _FIELDS - {"state", "offset"}  # of a table: a column of one of these names may be anything
_PLURALS: Final = {"static": "static values", "state": "states", "offset": "offsets"}


@dataclass(frozen=True, slots=True)
class InputSequence:
    """One sequence of a caller, as arrays; not yet checked against a model."""

    steps: NDArray[Any]  # float32 with NaN for a missing value, or `[length]` whole numbers
    id: str | None = None
    step_mask: list[bool] | None = None  # False for each step to leave out
    feature_mask: list[bool] | None = None  # False for each feature that is missing in every step
    label: Any = None  # or a list with one for each step
    names: tuple[str, ...] | None = None  # of the features, in their order, if it came with names
    order: Sequence[int] | None = None  # the place of each step in a table, before the sort by time
    static: Any = None  # the values beside it: a list, or a mapping by name; None without them
    inputs: Mapping[str, NDArray[Any]] | None = None  # of several sequences the steps of each, by name
    state: str | None = None  # what came with the answer to the steps before these; None where it begins
    offset: int | None = None  # how many steps the caller believes the state has seen

    def in_order(self, names: tuple[str, ...] | None) -> InputSequence:
        """Picks the features with these names, in their order; returns a new sequence.

        The sequence is returned as it is if it has no names, or `names` is None or empty.

        Raises:
            ValueError: Some of the names are missing in the sequence.
        """
        if not names or self.names is None or names == self.names:
            return self
        if (problem := missing_columns_problem(self.names, names)) is not None:
            raise ValueError(problem)
        column_of_name = dict(zip(self.names, self.steps.reshape(len(self.steps), len(self.names)).T, strict=True))
        return replace(self, steps=np.stack([column_of_name[name] for name in names], axis=1), names=names)


class InputSequences(list[InputSequence]):
    """Sequences that were read; `taken` says as a line which role each column of a table got, `roles` as data."""

    def __init__(self, sequences: Iterable[InputSequence] = (), roles: Roles | None = None) -> None:
        super().__init__(sequences)
        self.roles = roles

    @property
    def taken(self) -> str:
        """The role that each column of the table got, as a line for the user; '' if the data was no table."""
        return "" if self.roles is None else str(self.roles)

    @property
    def labels(self) -> list[Any]:
        """The label of each sequence; None where a sequence has no label.

        If some sequence has a label for each step, all have a list: a single label is repeated for each step.
        """
        if not any(isinstance(sequence.label, list) for sequence in self):
            return [sequence.label for sequence in self]
        return [
            sequence.label if isinstance(sequence.label, list | None) else [sequence.label] * len(sequence.steps)
            for sequence in self
        ]

    def __repr__(self) -> str:
        """`<lengthwise.InputSequences: 80 of 7 to 29 steps; id 'run', time 't', label 'state', features 'x', 'y'>`."""
        lengths = [len(sequence.steps) for sequence in self]
        steps = f" of {min(lengths)} to {max(lengths)} steps" if lengths else ""
        return f"<lengthwise.InputSequences: {len(self)}{steps}{self.taken and '; '}{self.taken}>"


def sequences(
    data: Any,
    *,
    layout: Layout = "steps-first",
    id: str | None = None,
    time: str | None = None,
    label: str | None = None,
    values: str | Iterable[str] | None = None,
    padding: Padding | None = None,
    row: RowKind | None = None,
    static: Any = None,
) -> InputSequences:
    """Reads sequences from data in any form, such as a table; the arguments name columns that do not say their role.

    `predict`, `train` and the others read their data in the same way. So this is needed only to name columns, or to see
    which role each column got.

    Args:
        data: The sequences: a list of array-likes, a mapping of ids to them, a pandas or Polars table with a row for
            each step, a grouped table, a table with a column `steps`, or a list column of Arrow.
        layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.
        id: The column that names the sequence of a row.
        time: The column that orders the rows of a sequence.
        label: The column of the label.
        values: The columns of the features; default: all others.
        padding: `zeros` or `nan` cuts steps of zeros, or without values, off the end of each sequence.
        row: What a row of the table is: `step`, or a whole `sequence` whose steps are its columns; default: the names
            of the columns show it.
        static: The columns of the static values, which are the same in all rows of a sequence; or the static values
            of each sequence.

    Returns:
        The sequences; `taken` says which role each column got, and `labels` are their labels.

    Raises:
        InvalidSequences: The data is not a collection of sequences, or some sequences have no numbers; the error names
            each by its index. It is a ValueError.
        ConfigurationError: A column is missing, or it is not clear what the columns are.

    Example:
        >>> import pandas
        >>> table = pandas.DataFrame({"run": ["a", "a", "b"], "second": [0, 1, 0], "x": [0.1, 0.3, 0.2]})
        >>> data = lengthwise.sequences(table, id="run", time="second")
        >>> data.taken, [one.steps.tolist() for one in data][1]
        ("id 'run', time 'second', feature 'x'", [0.20000000298023224])
    """  # noqa: DOC502 - what it calls raises them
    names = (values,) if isinstance(values, str) else None if values is None else tuple(values)
    return sequences_of(data, layout, ColumnNames(id, time, label, names, row=row), padding=padding, static=static)


def sequences_of(
    data: Any,
    layout: Layout = "steps-first",
    columns: ColumnNames | None = None,
    *,
    padding: Padding | None = None,
    per_step: bool | None = None,
    ask: bool = True,
    static: Any = None,
    inputs: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
) -> InputSequences:
    """Reads a caller's sequences, in their order.

    Args:
        data: The sequences, in a form of the module's table.
        layout: The order of the axes of an array.
        columns: The columns of a table that the caller names; None: their names say what they are.
        padding: What is cut off the end of each sequence; None: nothing.
        per_step: Whether each step of a table has a label of its own; None: the labels show it.
        ask: Whether to warn of what looks like padding, and to refuse plain numbers that may be one sequence or many.
        static: The static values of each sequence, or columns of a table that are static values: see `read`.
        inputs: The sequences of each name, for a model that takes several.
        before: What came before each sequence: `state` and `offset`, each a list with an entry, which may be None, for
            every sequence; or None.

    Raises:
        InvalidSequences: Some sequences are wrong, and the error names each of them; or `data` is not a collection of
            sequences at all.
        ConfigurationError: `layout` or `padding` is no value of these options, or it is not clear what the columns are.
    """  # noqa: DOC502 - what it calls raises them
    options: Any = {"padding": padding, "per_step": per_step, "ask": ask, "static": static, "inputs": inputs}
    entries, roles = read(data, layout, columns, **options, before=before)
    return InputSequences(require_valid(entries), roles)


def require_valid(results: Iterable[T | str], name: Callable[[int], str] = lambda _index: "") -> list[T]:
    """Makes sure that all results, one of each sequence, are valid, and returns them.

    A result that is a text is not valid: it is the reason why the sequence is wrong. `name` is called with the index of
    such a sequence, and returns a text to put before the reason.

    Raises:
        InvalidSequences: Some results are a text; the error names all of these sequences by their indices.
    """
    entries = [*results]
    problems = [
        Problem(f"/sequences/{index}", name(index) + entry)
        for index, entry in enumerate(entries)
        if isinstance(entry, str)
    ]
    if problems:
        raise InvalidSequences(problems)
    return [entry for entry in entries if not isinstance(entry, str)]


def read(
    data: Any,
    layout: Layout = "steps-first",
    columns: ColumnNames | None = None,
    *,
    features: int | None = None,
    padding: Padding | None = None,
    is_cut: bool = True,
    per_step: bool | None = None,
    ask: bool = True,
    static: Any = None,
    inputs: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
) -> tuple[list[InputSequence | str], Roles | None]:
    """Reads a caller's sequences, and collects what is wrong with them.

    Args:
        data: The sequences, in a form of the module's table.
        layout: The order of the axes of an array: steps first, or features (channels) first.
        columns: The columns that the caller names. Without `ColumnNames.inputs`, the names of the features are those of
            the first sequence that has some, and the others are brought to its order.
        features: How many features a step has; 0 for token ids, None if it is not known.
        padding: What is cut off the end of each sequence: steps of zeros, or without values (nan); None: nothing.
        is_cut: Whether it is cut off here; False: by the caller, with labels that are not in the data.
        per_step: Whether each step of a table has a label of its own; None: the labels show it.
        ask: Whether to log a warning about steps that look like padding, and to refuse plain numbers that may be one
            sequence or many; False for data that was read before.
        static: The static values of each sequence, where they are not in `data`; or the names of the columns of a
            table that have them.
        inputs: Of a model that takes several sequences: the sequences of each, by its name, and no `data`.
        before: What came before each sequence: `state` and `offset`, each a list with an entry, which may be None, for
            every sequence; or None.

    Returns:
        For each sequence an `InputSequence`, or a text: the reason why it cannot be read. And the roles of the columns:
        of the table that has all sequences, or of the first sequence that is a table; None if nothing is a table.

    Raises:
        InvalidSequences: `data` is not a collection of sequences at all, such as a single number or a path.
        ConfigurationError: `layout` or `padding` is no value of these options, or it is not clear what the columns are.
    """  # noqa: DOC502 - what it calls raises one of them
    for name, word, words in (("layout", layout, get_args(Layout)), ("padding", padding, (*get_args(Padding), None))):
        if word not in words:
            raise ConfigurationError(f"{name} must be one of {', '.join(map(str, words))}, got {word!r}")
    columns = columns or ColumnNames()
    static_names = (static,) if isinstance(static, str) else static
    if isinstance(static_names, list | tuple) and static_names and all(isinstance(name, str) for name in static_names):
        columns, static = replace(columns, static=tuple(static_names)), None
    # 1. Entries
    data = data if inputs is None else _of_inputs(data, inputs)
    entries: Iterable[Any]
    if (table := columns_of(data)) is None:
        entries, roles = _entries(data, columns), data.roles if isinstance(data, InputSequences) else None
    else:
        entries, roles = _entries_of_table(table, columns, per_step=per_step, padding=padding)
    # 2. Sequences, one of each entry
    results: list[InputSequence | str] = []
    for entry in entries:
        try:
            sequence, entry_roles = _sequence(entry, layout, columns, padding)
            roles = roles or entry_roles
            columns = replace(columns, inputs=columns.inputs or sequence.names)
            result = tails.without_padding(sequence.in_order(columns.inputs), padding if is_cut else None)
        except (ValueError, ConfigurationError) as error:
            result = str(error)
        results.append(result)
    if ask and not isinstance(data, InputSequences):
        _warn_or_refuse_doubtful(data, results, features)
    return _with_fields(results, {"static": static, **(before or {})}), roles


def _of_inputs(data: Any, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of a model that takes several sequences: those of each name, in one order.

    Raises:
        InvalidSequences: There are not as many of each name; or there are sequences without a name, `data`, too.
    """
    if data is not None or len({len(rows) for rows in inputs.values()}) != 1:
        reason = "must have the sequences of each name, as many of each; and there are no others then"
        raise InvalidSequences([Problem("/inputs", reason)])
    return [{"inputs": dict(zip(inputs, row, strict=True))} for row in zip(*inputs.values(), strict=True)]


def _with_fields(results: list[InputSequence | str], fields: Mapping[str, Any]) -> list[InputSequence | str]:
    """The sequences with further fields: each a table with a row, or a list with an entry, for each of them, or None.

    What a sequence says of the steps before is checked (`_with_past`), in its own fields too.

    Raises:
        InvalidSequences: There are not as many entries as sequences, or no entries at all.
    """
    for name, values in fields.items():
        if values is None:
            continue
        table = columns_of(values)
        is_list = isinstance(values, Iterable) and not isinstance(values, Mapping | str)
        if table is None and (not is_list or getattr(values, "ndim", 1) == 0):
            detail = "must be a list with an entry for each sequence, or a table with a row for each"
            raise InvalidSequences([Problem(f"/{name}", detail)])
        cells_of_rows = () if table is None else zip(*table.values(), strict=True)
        rows = [*values] if table is None else [dict(zip(table, cells, strict=True)) for cells in cells_of_rows]
        if len(rows) != len(results):
            detail = f"{len(rows)} {_PLURALS[name]} for {len(results)} sequences"
            raise InvalidSequences([Problem(f"/{name}", detail)])
        further: list[dict[str, Any]] = [{name: row} for row in rows]
        results = [
            result if isinstance(result, str) else replace(result, **more)
            for result, more in zip(results, further, strict=True)
        ]
    return [result if isinstance(result, str) else _with_past(result) for result in results]


def _with_past(sequence: InputSequence) -> InputSequence | str:
    """The sequence with its offset as an int; a text if its state is no text, or its offset no whole number from 0."""
    state, offset = sequence.state, sequence.offset
    if not isinstance(state, str | None):
        return f"state: must be a string, got {type(state).__name__}"
    if offset is None:
        return sequence
    try:
        count = -1 if isinstance(offset, bool) else operator.index(offset)
    except TypeError:
        count = -1
    return f"offset: {NO_OFFSET}" if count < 0 else replace(sequence, offset=count)


def _warn_or_refuse_doubtful(data: Any, results: list[InputSequence | str], features: int | None) -> None:
    """Logs a warning about steps that look like padding; refuses plain numbers, such as `[0.1, 0.2, 0.3]`.

    These may be one sequence, or many sequences of one step each.

    Args:
        data: What the caller passed.
        results: What was read from it: a sequence, or a text with the reason, for each entry.
        features: How many features a step has; 0 for token ids, None if it is not known.

    Raises:
        InvalidSequences: The data is plain numbers; the message says how to write one sequence, and how to write many.
    """
    for doubt in tails.doubts([sequence.steps for sequence in results if isinstance(sequence, InputSequence)]):
        log.warning("%s", doubt)
    if len(results) < 2 or features not in (None, 1) or isinstance(data, Mapping):
        return
    plain_numbers = [
        sequence.steps
        for sequence in results
        if isinstance(sequence, InputSequence) and sequence.id is None and sequence.steps.shape == (1,)
    ]
    # Whole numbers in a list may be token ids, which have no features.
    may_be_tokens = (
        features is None and not hasattr(data, "ndim") and any(number.dtype.kind != "f" for number in plain_numbers)
    )
    if len(plain_numbers) < len(results) or may_be_tokens:
        return
    raise InvalidSequences(
        [
            Problem(
                "/sequences",
                f"is this one sequence of {len(results)} steps, or are these {len(results)} sequences of one step? Put "
                "one sequence in a list: [x]; give many the shape [sequences, 1, 1]: np.reshape(x, (-1, 1, 1))",
            )
        ]
    )


def _entries(data: Any, columns: ColumnNames) -> Iterable[Any]:
    """Splits what a caller passed, which is no table, to entries: one for each sequence.

    Raises:
        InvalidSequences: It has no entries, or is itself one sequence.
    """
    if isinstance(data, Mapping):
        if "steps" in data and _FIELDS.issuperset(data):
            raise InvalidSequences([Problem("/sequences", "must be a list, got one sequence: put it in a list")])
        return _groups(data.items(), columns)
    if hasattr(type(data), "groups") and is_of(data, "pandas"):  # pandas' GroupBy; `exclusions` are its keys
        return _groups(data, columns, map(str, getattr(data, "exclusions", ())))
    if type(data).__name__ == "GroupBy" and is_of(data, "polars"):
        # `data.by` has names, expressions, and lists of them.
        keys = chain.from_iterable(key if isinstance(key, list | tuple) else [key] for key in data.by)
        key_names = [key if isinstance(key, str) else key.meta.output_name() for key in keys]
        return _groups(data, columns, key_names)
    if is_of(data, "pyarrow") and hasattr(data, "to_pylist"):
        return arrow_cells(data)
    if type(data).__name__ == "LazyFrame":
        raise InvalidSequences([Problem("/sequences", "must be a computed table, got a LazyFrame: collect() it")])
    # A list, an iterable or an array: a single array, number, text or path is refused.
    axes = getattr(data, "ndim", None)
    is_numbers = getattr(getattr(data, "dtype", None), "kind", "f") != "O"
    if isinstance(data, str | bytes) or not isinstance(data, Iterable) or axes == 0:
        of_files = f"; of a file, such as {data!s:.60}, read pandas.read_csv(FILE), or use lengthwise train and score"
        is_path = isinstance(data, str | os.PathLike)
        raise InvalidSequences(
            [
                Problem(
                    "/sequences", f"must be a list of arrays, got a {type(data).__name__}{of_files if is_path else ''}"
                )
            ]
        )
    if axes == 1 and is_numbers and hasattr(data, "__array__") and np.asarray(data).dtype.kind in "fiub":
        raise InvalidSequences(
            [
                Problem(
                    "/sequences",
                    "must be a list of arrays, got an array of numbers. Reshape your data: one sequence is [x]",
                )
            ]
        )
    return _tables(data, columns) or data


def _entries_of_table(
    table: TableColumns, columns: ColumnNames, **options: Any
) -> tuple[Iterator[dict[str, Any]], Roles]:
    """Splits a table to entries: with a column `steps` of lists each row, without it as `table_sequences` reads it.

    `options` are `per_step` and `padding` of `read`.

    Returns:
        The entries, and the roles of the columns.

    Raises:
        ConfigurationError: It is not clear what the columns are.
    """
    if "steps" in table and not isinstance(table["steps"], np.ndarray):
        fields = TableColumns((name, table[name]) for name in table if name in ("id", "label", "steps"))
        roles = replace(
            assign_roles(fields, ColumnNames(values=("steps",))),
            row="sequence",
            left_out=tuple(name for name in table if name not in _COLUMNS),
        )
        ids = {"id": long_table.ids_of(table["id"], "id")} if roles.float_ids else {}
        entries = _rows({name: cells for name, cells in (table | ids).items() if name in _COLUMNS})
    else:
        try:
            sequences, roles = table_sequences.sequences(table, columns, **options)
        except ConfigurationError as error:
            advice = _HOW_TO_NAME if re.search(r"\((id|time|label|values)\)", str(error)) else ""
            raise ConfigurationError(f"{error}{advice}") from error
        entries = ({"id": sequence.id if roles.id else None, "steps": sequence} for sequence in sequences)
    if roles.float_ids:
        log.warning("the ids in the column %r are whole numbers that became floats: 1.0 is read as 1", roles.id)
    return entries, roles


def _tables(data: Iterable[Any], columns: ColumnNames) -> Iterator[dict[str, Any]] | None:
    """The entries of a list of tables, or of `(name, table)` pairs; None for any other data, and for a single table."""
    if type(data) is not list:
        return None
    pairs = [entry if type(entry) is tuple and len(entry) == 2 else (None, entry) for entry in data]
    are_tables = len(pairs) > 1 and all(columns_of(table) is not None for _, table in pairs)
    return _groups(pairs, columns) if are_tables else None


def _groups(
    groups: Iterable[tuple[Any, Any]], columns: ColumnNames, key_names: Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yields an entry for each group, with the group's name as its id, else that in the columns of its table.

    A table loses its columns of group keys, which are no features.

    Args:
        groups: The name of each group, and its content: a table, or what else may be a sequence.
        columns: The columns that the caller names; these stay.
        key_names: The columns that are known to be group keys; others are recognised by `_is_key`.
    """
    triples = [(name, content, columns_of(content)) for name, content in groups]  # the columns; None without a table
    tables = [(name, table) for name, _, table in triples if table is not None]
    candidates = tables[0][1] if len(tables) > 1 else ()
    keys = {*key_names, *(column for column in candidates if _is_key(column, tables))}
    keys -= {*columns.all, *(columns.inputs or ())}
    one_key = replace(columns, id=min(keys)) if len(keys) == 1 else None
    for name, content, table in triples:
        key_value = name[0] if isinstance(name, tuple) and len(name) == 1 else name  # pandas: by=["a"] gives tuples
        if name is None and table is not None:
            key_value = long_table.id_of(table, columns) or (long_table.id_of(table, one_key) if one_key else None)
        steps = content if table is None else table.without(keys - table.levels)  # levels are no features anyway
        yield {"id": None if key_value is None else id_text(key_value), "steps": steps}


def _is_key(column: str, groups: Sequence[tuple[Any, TableColumns]]) -> bool:
    """Whether a column is a group key, by one of two rules.

    - In every group, the column has only the group's name, or a part of it.
    - In each of at least `_FEWEST_KEYS` groups, the column has one value, which no other group has. Values with
      fractions are rather those of a feature.
    """
    values_of_group = [{*map(str, table.get(column, ()))} for _, table in groups]
    names_of_group = [{*map(str, name if isinstance(name, tuple) else (name,))} for name, _ in groups]
    if all(values <= name for values, name in zip(values_of_group, names_of_group, strict=True)):
        return True
    texts = [text for values in values_of_group for text in values]
    is_one_for_each = len(texts) == len({*texts}) == len(values_of_group)
    has_fractions = any("." in text for text in texts)
    return is_one_for_each and len(values_of_group) >= _FEWEST_KEYS and not has_fractions


def _rows(table: Mapping[str, Cells]) -> Iterator[dict[str, Any]]:
    """Yields each row of a table with a column `steps`; a mask, a label or an id that is None is left out."""
    for cells in zip(*table.values(), strict=True):
        yield {name: cell for name, cell in zip(table, cells, strict=True) if name == "steps" or cell is not None}


def _sequence(
    data: Any, layout: Layout, columns: ColumnNames, padding: Padding | None
) -> tuple[InputSequence, Roles | None]:
    """Makes a sequence of one entry. Nothing is cut off yet; `padding` says which steps may be empty.

    Returns:
        The sequence; and the roles of its columns if its steps are a table, else None.

    Raises:
        ValueError: The entry has no numbers, another form, or a field that is not known.
    """
    if isinstance(data, InputSequence):
        return data, None
    fields = data if isinstance(data, Mapping) else {"steps": data}
    if unknown := sorted(str(name) for name in fields if name not in _FIELDS):
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    inputs = fields.get("inputs")
    if inputs is not None:
        inputs = {str(name): input_steps(str(name), steps) for name, steps in dict(inputs).items()}
        fields = {**fields, "steps": next(iter(inputs.values()), None)}
    if "steps" not in fields:
        raise ValueError("'steps' is missing")
    steps, label, roles, names = fields["steps"], fields.get("label"), None, None
    order: Sequence[int] | None = None
    name, static = fields.get("id"), fields.get("static")
    if not isinstance(steps, np.ndarray | list) and (table := columns_of(steps)) is not None:
        steps = long_table.one_sequence(table, columns, padding)
        name = long_table.id_of(table, columns) if name is None else name
    # The array of the steps: of a sequence of a table, of objects by the names of features, or of an array-like
    if isinstance(steps, LongSequence):
        if steps.problem is not None:
            raise ValueError(steps.problem[1])
        array, roles, names, order = steps_array(steps.steps), steps.roles, steps.roles.names, steps.order
        label, static = steps.label if label is None else label, steps.static if static is None else static
    elif isinstance(steps, list | tuple) and any(isinstance(step, Mapping) for step in steps):
        rows, names = values_by_name(with_null_steps(steps, padding), columns.inputs)
        array = steps_array(rows)
    else:
        array = steps_array(steps, padding)
        array = np.ascontiguousarray(array.T) if layout == "channels-first" and array.ndim == 2 else array
    masks = _mask(fields, "step_mask"), _mask(fields, "feature_mask")
    before = fields.get("state"), fields.get("offset")
    return InputSequence(array, _identifier(name), *masks, label, names, order, static, inputs, *before), roles


def _identifier(value: Any) -> str | None:
    """Converts the id of a sequence to a string: a whole number to its digits; None stays None.

    Raises:
        ValueError: The id is of another type, or cannot be written as UTF-8.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"an id must be a string, got a {type(value).__name__}")
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise ValueError("an id must be text, this one has half of a character (a lone surrogate)") from None
    return value


def _mask(fields: Mapping[str, Any], name: str) -> list[bool] | None:
    """The mask in the field `name` as a list of booleans; None if there is no mask.

    Raises:
        ValueError: The field holds something else than a list of booleans.
    """
    mask = fields.get(name)
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.ndim != 1 or (array.size and array.dtype != np.bool_):
        raise ValueError(f"{name} must be a list of booleans")
    return list(array.tolist())

"""Assigns a role to each column of a table: id of the sequence, time, label, or feature.

The caller names a column, or the column's own name says what it is (`trip_id`, `timestamp`, `class`). Keys are no
features: neither the levels of a pandas index, nor columns that are named as ids or times. Where two columns fit one
role, or no column is left for the features, the error asks the caller. `values` are the columns of the features.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from typing import Final, Literal, TypeAlias

from lengthwise.datasets.tables import MISSING, TableColumns, has_float_ids, is_number
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.feature_names import missing_columns_problem
from lengthwise.wrong_values import first_of, nearest

ColumnRole: TypeAlias = Literal["id", "time", "label"]
RowKind: TypeAlias = Literal["step", "sequence"]


_NAMES: Final[dict[ColumnRole, frozenset[str]]] = {
    "id": frozenset(
        (
            *("id", "sequence", "series", "recording", "case", "trial", "session", "instance", "episode"),
            *("ids", "sequences", "recordings", "cases", "trials", "sessions", "instances", "episodes"),
        )
    ),
    "time": frozenset(
        (
            *("t", "ts", "ds", "time", "timestamp", "timestep", "time_step", "step", "date", "datetime", "timepoint"),
            *("times", "timestamps", "timesteps", "time_steps", "timepoints", "time_point", "time_points", "reading"),
            *("time_index", "time_idx", "time_s", "time_ms", "time_us", "time_ns", "t_s", "t_ms", "step_index"),
            *("time_id", "reading_id", "timepoint_id", "timestep_id", "step_id", "tick", "tick_id", "date_time"),
        )
    ),
    "label": frozenset(("label", "labels", "class", "class_label", "target", "category")),
}  # by role, the column names that say it (in the form of `_plain`); any other name that ends in `_id` says id
# Names of labels with more before or behind them: `label_0`, `target1`, `coarse_label`
_MORE_LABELS: Final = re.compile(rf"({'|'.join(_NAMES['label'])})([_.].*|\d+)|.*_labels?")
_MOST_LABELS: Final = 20  # different whole numbers in a column that may hold labels
# Columns whose cells name a feature, as in a melted table
_CHANNEL: Final = re.compile(
    r"(dim|dimension|kind|channel|variable|sensor|feature|signal|axis|param|parameter|attribute|analyte)"
    r"(_id|_name|_type)?|(measure|measurement|metric|quantity|var)_(name|type)"
)
_LEVEL: Final = re.compile(r"|unnamed:_[01]|level_0|__index_level_\d__")  # how pandas names an index level in a file
_COUNT: Final = re.compile(r"index|unnamed:_[\d.]+|row(_(nr|id|index|number|no))?")  # columns that number the rows
NO_HEADER: Final = "column "  # a file without a header has columns `column 1`, `column 2`, ...
VALUE: Final = "value"  # the feature of a table with a column for each step
_MOST_LISTED: Final = 20  # names in a message


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns that a caller names.

    A role that is None goes to the column whose name says it. `values` None: all columns without a role are features.
    """

    id: str | None = None
    time: str | None = None
    label: str | None = None
    values: tuple[str, ...] | None = None  # the features
    # The names of the model's features: these columns, in this order, are then the values. Empty if the model has no
    # names for features, None if no model is known, as in a training.
    inputs: tuple[str, ...] | None = None
    row: RowKind | None = None  # what a row of the table is; None: the names of the columns show it
    static: tuple[str, ...] = ()  # the static values: one value in all rows of a sequence
    # Columns by role, such as those of a training: they have the role in each table that has them
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        """Every column that the caller names."""
        names = (self.id, self.time, self.label, *(self.values or ()), *self.static)
        return [name for name in names if name is not None]


@dataclass(frozen=True, slots=True)
class Roles:
    """Which column of a table has each role; None where no column has it. `left_out` are the unused columns."""

    id: str | None
    time: str | None
    label: str | None
    values: tuple[str, ...]  # the features; in a table with a column for each step, the steps
    left_out: tuple[str, ...] = ()
    row: RowKind = "step"  # what a row of the table is
    float_ids: bool = False  # whether the ids are whole numbers that became floats: 1.0 is the id 1
    static: tuple[str, ...] = ()  # the static values

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the features; None if the file has no header, or all features are in the cells of one column."""
        in_cells = self.row == "sequence" and len(self.values) == 1
        return None if in_cells or has_no_header(self.values) else self.values

    @property
    def named(self) -> dict[str, str]:
        """The options `--column ROLE=NAME` that read a table like this one: `{"id": "run", "time": "t"}`.

        A role without a column is absent. A table with a column for each step also has `"row": "sequence"`.
        """
        # `table_sequences` joins the columns of the steps to one column of lists, which it names VALUE.
        is_wide = self.row == "sequence" and self.values == (VALUE,)
        columns = {role: name for role in _NAMES if (name := getattr(self, role)) is not None}
        return columns | ({"row": "sequence"} if is_wide else {})

    def __str__(self) -> str:
        """`id 'run', time 't', label 'state', features 'x', 'y'; ignored: 'note'`."""
        row = "a row is a sequence: " if self.row == "sequence" else ""
        columns = [f"{role} {name!r}" for role, name in self.named.items() if role != "row"]
        features = f"{'features' if len(self.values) > 1 else 'feature'} {quoted(self.values)}"
        static = f", static {quoted(self.static)}" if self.static else ""
        ignored = f"; ignored: {quoted(self.left_out)}" if self.left_out else ""
        return (
            row
            + ", ".join([*columns, features])
            + static
            + ignored
            + ("; ids such as 1.0 are read as 1" if self.float_ids else "")
        )


def quoted(names: Collection[str]) -> str:
    """The names of columns as one text for a message, quoted; of many, the first `_MOST_LISTED` and the number left."""
    return first_of([*map(repr, names)], _MOST_LISTED)


def header_hint(names: Collection[str]) -> str:
    """The end of an error's message, if the names of a file's columns look like data: it may lack a header; else ''."""
    numbers = [float(name) for name in names if is_number(name) and name.strip().lower() not in MISSING]
    # Several numbers that rise are names of steps: `0,1,2`. Any other number is data.
    are_steps = len(numbers) > 1 and numbers == sorted({*numbers})
    is_data = len(numbers) > 0 and not are_steps
    return "; the first line looks like data: put names above it, such as id,t,value,label" if is_data else ""


def assign_roles(names: Collection[str], chosen: ColumnNames) -> Roles:
    """Assigns the roles in four steps.

    1. The columns of id, time and label are those that the caller names, otherwise those whose names say a role. The
       model's features have no other role, whatever their names say.
    2. The levels of a pandas index take the roles id and time if these are still free. Of several levels, the first is
       the id and the last the time; a single level is the time, if it holds dates.
    3. The features are the columns that the caller names as values, otherwise all that have no role, are no level, and
       have not the name of an id, a time or a label.
    4. All other columns are left out.

    Args:
        names: The names of the columns; a `TableColumns` also says which are levels, and which levels hold dates.
        chosen: The columns that the caller names.

    Raises:
        ConfigurationError: A column that the caller names is missing; no column is left for the features; or a column
            would be a feature and have a role, too.
    """
    if (missing := next((name for name in chosen.all if name not in names), None)) is not None:
        raise ConfigurationError(
            f"there is no column {missing!r}{nearest(missing, names)}; the columns are {quoted(names)}"
        )
    # 1. Roles by names
    input_names = {*(chosen.inputs or ()), *chosen.static}
    other_names = [name for name in names if name not in input_names]
    column_of_role = {role: _column_for(role, other_names, chosen) for role in _NAMES}
    # 2. Levels of an index for the roles that are free
    levels = _assign_levels(column_of_role, names, {*chosen.all, *input_names})
    # 3. Features
    role_columns = {name for name in column_of_role.values() if name is not None}
    values = chosen.values
    if values is None:
        no_features = {name for name in names if name in levels or is_no_feature(name)} - input_names
        no_features |= role_columns | {*chosen.static}
        values = tuple(name for name in names if name not in no_features)
        if not chosen.inputs and (other_labels := _more_labels(values, names)):
            raise ConfigurationError(
                f"{quoted(other_labels)} may be labels by their names, and a table has one column of them: for several "
                'labels of a sequence write JSON Lines, "label": ["a", "b"] (task = "multi-label" in a spec); for one, '
                "say which column it is (label) and leave the others out; if they are features, name all (values)"
            )
    if not values:
        raise ConfigurationError(
            f"no column is left for the values; the columns are {quoted(names)}: name those of the features (values)"
        )
    role_columns |= {*chosen.static}
    if shared := role_columns.intersection(values):
        raise ConfigurationError(f"the column {min(shared)!r} cannot be a feature and something else at once")
    values = _in_order_of_inputs(values, chosen)
    # 4. The rest
    left_out = tuple(filterfalse(role_columns.union(values).__contains__, names))
    float_ids = isinstance(names, TableColumns) and has_float_ids(names.get(column_of_role["id"] or "", []))
    return Roles(
        column_of_role["id"],
        column_of_role["time"],
        column_of_role["label"],
        values,
        left_out,
        float_ids=float_ids,
        static=chosen.static,
    )


def _assign_levels(
    column_of_role: dict[ColumnRole, str | None], names: Collection[str], used_names: set[str]
) -> list[str]:
    """Gives the roles id and time, where they are free, to levels of a pandas index without another use.

    `used_names`: columns that the caller names, or the model's features. Returns all levels.
    """
    index_levels: Collection[str] = getattr(names, "levels", ())
    date_levels: Collection[str] = getattr(names, "date_levels", ())
    levels = [name for name in names if name in index_levels or _is_level(name, names)]
    unused_levels = [name for name in levels if name not in {*used_names, *column_of_role.values()}]
    if len(levels) > 1 and unused_levels and column_of_role["id"] is None:
        column_of_role["id"] = unused_levels.pop(0)
    may_be_time = len(levels) > 1 or {*unused_levels}.issubset(date_levels)
    if unused_levels and column_of_role["time"] is None and may_be_time:
        column_of_role["time"] = unused_levels.pop()
    return levels


def _more_labels(values: Sequence[str], columns: Collection[str]) -> list[str]:
    """Those of the features that may be labels, by their names and cells.

    They have a name such as `label_0`, `target_a` or `coarse_label`, and hold texts, or a few whole numbers that come
    again; or several such names end in a number. Measured values, as in `target_temp`, are no labels.
    """
    named = [name for name in values if _MORE_LABELS.fullmatch(_plain(name))]
    numbered = [name for name in named if name[-1].isdecimal()]
    labels = {*(numbered if len(numbered) > 1 else [])}
    for name in named:
        cells = columns[name] if isinstance(columns, TableColumns) else []
        present = {text for text in map(str, cells) if text.strip().lower() not in MISSING}
        are_numbers = all(map(is_number, present))
        if not are_numbers or (
            len(present) <= min(_MOST_LABELS, max(len(cells) - 1, 0)) and not any(float(text) % 1 for text in present)
        ):
            labels.add(name)
    return [name for name in named if name in labels]


def is_no_feature(name: str) -> bool:
    """Whether a column's name says that it is an index, an id, a time or a label; it may still have no role."""
    return bool(_COUNT.fullmatch(_plain(name))) or any(is_named_as(role, name) for role in _NAMES)


def _is_level(name: str, names: Collection[str]) -> bool:
    """Whether pandas gives this name to a level of an index that it writes to a file without a name."""
    normalized = _plain(name)
    return _LEVEL.fullmatch(normalized) is not None or (normalized == "level_1" and "level_0" in names)


def _in_order_of_inputs(values: tuple[str, ...], chosen: ColumnNames) -> tuple[str, ...]:
    """The columns of the features in the order of the model's features, which must have the same names.

    Returns `values` as they are if the model has no names for features, or if the file has no header and the caller
    says the order of its columns.

    Raises:
        ConfigurationError: A feature of the model has no column. The message says how to name the columns.
    """
    is_unnamed = has_no_header(values)
    if not chosen.inputs or (is_unnamed and chosen.values is not None):
        return values
    if (problem := missing_columns_problem(values, chosen.inputs)) is not None:
        no_header = "The first line names no columns: say the order of the features (values)"
        hint = no_header if is_unnamed else "Rename the columns, or give arrays, which are taken in that order"
        raise ConfigurationError(f"{problem}{'' if problem.endswith('?') else '.'} {hint}")
    return chosen.inputs


def has_no_header(names: Collection[str]) -> bool:
    """Whether all names were made for the columns of a file without a header: `column 3`."""
    return all(name.startswith(NO_HEADER) and name.removeprefix(NO_HEADER).isdecimal() for name in names)


def _column_for(role: ColumnRole, names: Sequence[str], chosen: ColumnNames) -> str | None:
    """The column of a role, by the first of these rules that gives one; None if none does.

    1. The column that the caller names for the role.
    2. The default column of the role (`ColumnNames.defaults`), if it is one of `names`.
    3. The only one of `names` that says the role, as `timestamp` does, unless the caller uses it for something else.

    Raises:
        ConfigurationError: Several names say the role.
    """
    chosen_name: str | None = getattr(chosen, role)
    if chosen_name is not None:
        return chosen_name
    if chosen.defaults.get(role) in names:
        return chosen.defaults[role]
    chosen_names = {*chosen.all}
    candidates = [name for name in names if name not in chosen_names and is_named_as(role, name)]
    if role == "id":  # a name such as `sensor_id` rather names a feature: it is the id only if no other column is
        candidates = [name for name in candidates if not is_channel_name(name)] or candidates
    if len(candidates) > 1:
        raise ConfigurationError(
            f"the columns {quoted(candidates)} may each be the {role}: say which one ({role}), and which are the "
            f"features (values); the columns are {quoted(names)}"
        )
    return candidates[0] if candidates else None


def has_ids(names: Sequence[str]) -> bool:
    """Whether the name of some column says that it holds the ids of sequences."""
    return any(is_named_as("id", name) for name in names)


def is_channel_name(name: str) -> bool:
    """Whether a column's name says that its cells name the feature of the row, as `sensor` in a melted table."""
    return _CHANNEL.fullmatch(_plain(name)) is not None


def is_named_as(role: ColumnRole, name: str) -> bool:
    """Whether the name of a column says that the column has this role: it stands in `_NAMES`, or ends in `_id`."""
    normalized = _plain(name)
    is_id = (
        role == "id"
        and normalized.endswith("_id")
        and normalized not in _NAMES["time"]
        and not _COUNT.fullmatch(normalized)
    )
    return normalized in _NAMES[role] or is_id


def _plain(name: str) -> str:
    """A column name in lower case, with underscores for blanks and hyphens."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")

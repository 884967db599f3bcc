"""Assigns a role to each column of a table: id of the sequence, time, label, or feature.

The caller names a column, or the column's own name says what it is (`trip_id`, `timestamp`, `class`). Keys are no
features: neither the levels of a pandas index, nor columns that are named as ids or times. Where two columns fit one
role, or no column is left for the features, the error asks the caller. `values` are the columns of the features.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from lengthwise.datasets.tables import MISSING, is_number
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
}  # column names (see `_plain`) by the role that they say; any other name that ends in `_id` is one of ids
# Columns whose cells name a feature, as in a melted table
_CHANNEL: Final = re.compile(r"(dim|dimension|kind|channel|variable|sensor|feature|signal|axis)(_id|_name|_type)?")
_LEVEL: Final = re.compile(r"|unnamed:_[01]|level_0|__index_level_\d__")  # how pandas names an index level in a file
_COUNT: Final = re.compile(r"index|unnamed:_[\d.]+|row(_(nr|id|index|number|no))?")  # columns that number the rows
NO_HEADER: Final = "column "  # a file without a header has columns `column 1`, `column 2`, ...
VALUE: Final = "value"  # the feature of a table with a column for each step
_MOST_LISTED: Final = 20  # names in a message


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns that a caller names. A role of None is found by the names; `values` None are all other columns."""

    id: str | None = None
    time: str | None = None
    label: str | None = None
    values: tuple[str, ...] | None = None  # the features
    # The names of the model's features: these columns, in this order, are then the values. Empty if the model has no
    # names for features, None if no model is known, as in a training.
    inputs: tuple[str, ...] | None = None
    row: RowKind | None = None  # what a row of the table is; None: found out
    # Columns by role, such as those of a training: used for tables that have them
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        """Every column that the caller names."""
        return [name for name in (self.id, self.time, self.label, *(self.values or ())) if name is not None]


@dataclass(frozen=True, slots=True)
class Roles:
    """What each column of a table is: the column of each role, or None; `left_out` are the unused columns."""

    id: str | None
    time: str | None
    label: str | None
    values: tuple[str, ...]  # the features; in a table with a column for each step, the steps
    left_out: tuple[str, ...] = ()
    row: RowKind = "step"  # what a row of the table is

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the features; None if the file has no header, or all features are in the cells of one column."""
        in_cells = self.row == "sequence" and len(self.values) == 1
        return None if in_cells or all(map(_is_numbered, self.values)) else self.values

    @property
    def named(self) -> dict[str, str]:
        """The columns of id, time and label by role, without absent ones.

        If the table has a column for each step, also `{"row": "sequence"}`.
        """
        # `table_sequences` joins the columns of the steps to one column of lists, which it names VALUE.
        row = {"row": "sequence"} if self.row == "sequence" and self.values == (VALUE,) else {}
        return {role: name for role in _NAMES if (name := getattr(self, role)) is not None} | row

    def __str__(self) -> str:
        """`id 'run', time 't', label 'state', features 'x', 'y'; ignored: 'note'`."""
        row = "a row is a sequence: " if self.row == "sequence" else ""
        columns = [f"{role} {name!r}" for role, name in self.named.items() if role != "row"]
        features = f"{'features' if len(self.values) > 1 else 'feature'} {listed(self.values)}"
        ignored = f"; ignored: {listed(self.left_out)}" if self.left_out else ""
        return row + ", ".join([*columns, features]) + ignored


def listed(names: Collection[str]) -> str:
    """The names of columns as one text for a message, quoted; of many, the first `_MOST_LISTED` and the number left."""
    return first_of([*map(repr, names)], _MOST_LISTED)


def header_hint(names: Collection[str]) -> str:
    """A hint for an error that the file may have no header, if its "names" look like a row of data; otherwise ''."""
    numbers = [float(name) for name in names if is_number(name) and name.strip().lower() not in MISSING]
    is_data = numbers != sorted({*numbers}) or len(numbers) == 1  # numbers that rise are names of steps: `0,1,2`
    return "; the first line looks like data: put names above it, such as id,t,value,label" if is_data else ""


def assign_roles(names: Collection[str], chosen: ColumnNames) -> Roles:
    """The role of each column: as the caller says, or as the column's name says.

    `names` are plain names, or a `TableColumns`. Its levels, and columns with the name of an id, a time or a label, are
    no features unless the caller says so. Levels of an index take roles that no other column has:
    - of several levels, the first is the id and the last the time;
    - a single level of dates is the time.

    Raises:
        ConfigurationError: A named column is missing, no column is left for the values, or one would be two things.
    """
    index_levels: Collection[str] = getattr(names, "levels", ())
    for name in chosen.all:
        if name not in names:
            raise ConfigurationError(
                f"there is no column {name!r}{nearest(name, names)}; the columns are {listed(names)}"
            )
    # Roles by names; the model's features are features, even if their names say a role.
    chosen_names, input_names = {*chosen.all}, {*(chosen.inputs or ())}
    other_names = [name for name in names if name not in input_names]
    column_of_role = {role: _column_for(role, other_names, chosen_names, chosen) for role in _NAMES}
    # Levels of an index for the roles that are free
    levels = [name for name in names if name in index_levels or _is_level(name, names)]
    unused_levels = [name for name in levels if name not in {*column_of_role.values(), *chosen_names, *input_names}]
    if len(levels) > 1 and unused_levels and column_of_role["id"] is None:
        column_of_role["id"] = unused_levels.pop(0)
    may_be_time = len(levels) > 1 or {*unused_levels}.issubset(getattr(names, "moments", ()))
    if unused_levels and column_of_role["time"] is None and may_be_time:
        column_of_role["time"] = unused_levels.pop()
    # Features: the columns that the caller names as values, otherwise those that are nothing else
    role_columns = {name for name in column_of_role.values() if name is not None}
    values = chosen.values
    if values is None:
        no_features = role_columns | ({name for name in names if name in levels or is_no_feature(name)} - input_names)
        values = tuple(name for name in names if name not in no_features)
    if not values:
        raise ConfigurationError(
            f"no column is left for the values; the columns are {listed(names)}: name those of the features (values)"
        )
    if shared := role_columns.intersection(values):
        raise ConfigurationError(f"the column {min(shared)!r} cannot be a feature and something else at once")
    values = _in_order_of_inputs(values, chosen)
    used = role_columns.union(values)
    left_out = tuple(name for name in names if name not in used)
    return Roles(column_of_role["id"], column_of_role["time"], column_of_role["label"], values, left_out)


def is_no_feature(name: str) -> bool:
    """Whether a column's name says that it is an index, an id, a time or a label; it may still have no role."""
    return bool(_COUNT.fullmatch(_plain(name))) or any(is_named_as(role, name) for role in _NAMES)


def _is_level(name: str, names: Collection[str]) -> bool:
    """Whether pandas gives this name to a level of an index that it writes to a file without a name."""
    normalized = _plain(name)
    return _LEVEL.fullmatch(normalized) is not None or (normalized == "level_1" and "level_0" in names)


def _in_order_of_inputs(values: tuple[str, ...], chosen: ColumnNames) -> tuple[str, ...]:
    """The columns of the features in the order of the model's, after a check of their names.

    Raises:
        ConfigurationError: The columns have other names than the features, or no names at all.
    """
    is_numbered = all(map(_is_numbered, values))
    if not chosen.inputs or (is_numbered and chosen.values is not None):  # no header: the caller says the order
        return values
    if (problem := missing_columns_problem(values, chosen.inputs)) is not None:
        no_header = "The first line names no columns: say the order of the features (values)"
        hint = no_header if is_numbered else "Rename the columns, or give arrays, which are taken in that order"
        raise ConfigurationError(f"{problem}{'' if problem.endswith('?') else '.'} {hint}")
    return chosen.inputs


def _is_numbered(name: str) -> bool:
    """Whether a name was made for a column of a file without a header: `column 3`."""
    return name.startswith(NO_HEADER) and name.removeprefix(NO_HEADER).isdecimal()


def _column_for(role: ColumnRole, names: Sequence[str], chosen_names: Set[str], chosen: ColumnNames) -> str | None:
    """The column of a role; None if there is none.

    The first of these: the one that the caller chose, a default that is there, the only one whose name says the role.

    Raises:
        ConfigurationError: The names of several columns say so.
    """
    chosen_name: str | None = getattr(chosen, role)
    if chosen_name is None and chosen.defaults.get(role) in names:
        chosen_name = chosen.defaults[role]
    if chosen_name is not None:
        return chosen_name
    candidates = [name for name in names if name not in chosen_names and is_named_as(role, name)]
    if role == "id":  # a channel's id names a feature: only if there is no other id
        candidates = [name for name in candidates if not is_channel_name(name)] or candidates
    if len(candidates) > 1:
        raise ConfigurationError(
            f"the columns {listed(candidates)} may each be the {role}: say which one ({role}), and which are the "
            f"features (values); the columns are {listed(names)}"
        )
    return candidates[0] if candidates else None


def has_ids(names: Sequence[str]) -> bool:
    """Whether the name of some column says that it holds the ids of sequences."""
    return any(is_named_as("id", name) for name in names)


def is_channel_name(name: str) -> bool:
    """Whether a column's name says that its cells name the feature of the row, as `sensor` in a melted table."""
    return _CHANNEL.fullmatch(_plain(name)) is not None


def is_named_as(role: ColumnRole, name: str) -> bool:
    """Whether a name says that its column has a role."""
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

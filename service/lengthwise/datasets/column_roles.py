"""Which column of a table is what: the id of a sequence, the time, the label, and the features.

A column is what the caller names it, or what its own name says. Keys are no features: neither levels of an index nor
names of ids and times. Where two columns may be the same thing, or none is left for the values, the error asks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from lengthwise.datasets.tables import MISSING, is_number
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.feature_names import why_other
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
}  # that say what a column is; every other name that ends in `_id` is one of ids
_CHANNEL: Final = re.compile(r"(dim|dimension|kind|channel|variable|sensor|feature|signal|axis)(_id|_name|_type)?")
_LEVEL: Final = re.compile(r"|unnamed:_[01]|level_0|__index_level_\d__")  # of an index, as pandas writes it
_COUNT: Final = re.compile(r"index|unnamed:_[\d.]+|row(_(nr|id|index|number|no))?")  # of the rows, as tools write it
NO_HEADER: Final = "column "  # begins the names of columns that have none, before their number
VALUE: Final = "value"  # the feature of a table with a column for each step
_MOST_LISTED: Final = 20


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
    row: RowKind | None = None  # None: it is found out
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
    row: RowKind = "step"

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the features; None of a file without a header, and of features in the cells of one column."""
        in_cells = self.row == "sequence" and len(self.values) == 1
        return None if in_cells or all(map(_is_numbered, self.values)) else self.values

    @property
    def named(self) -> dict[str, str]:
        """The columns with a role, by role; and that a row is a sequence, if it has a column for each step."""
        # `table_sequences` joins a column for each step to one column of lists, which it names VALUE.
        row = {"row": "sequence"} if self.row == "sequence" and self.values == (VALUE,) else {}
        return {role: name for role in _NAMES if (name := getattr(self, role)) is not None} | row

    def __str__(self) -> str:
        """`id 'run', time 't', label 'state', features 'x', 'y'; ignored: 'note'`."""
        named = [f"{role} {name!r}" for role, name in self.named.items() if role != "row"]
        text = "a row is a sequence: " * (self.row == "sequence") + ", ".join(
            [*named, f"feature{'s' * (len(self.values) > 1)} {listed(self.values)}"]
        )
        return f"{text}; ignored: {listed(self.left_out)}" if self.left_out else text


def listed(names: Collection[str]) -> str:
    """The names of columns, for a message."""
    return first_of([*map(repr, names)], _MOST_LISTED)


def no_names(names: Collection[str]) -> str:
    """A hint that the file may have no header, where names look like values of a first row; otherwise empty."""
    numbers = [float(name) for name in names if is_number(name) and name.strip().lower() not in MISSING]
    is_data = numbers != sorted({*numbers}) or len(numbers) == 1  # those of the steps of a wide table rise
    return "; the first line looks like data: put names above it, such as id,t,value,label" if is_data else ""


def assign_roles(names: Collection[str], chosen: ColumnNames) -> Roles:
    """The role of each column: as the caller says, or by its name.

    What was in the index of `TableColumns`, or is named as an id, a time or a label, is no feature unless the caller
    says so. Of an index with several levels the first is the id, and the last the time, where no name says otherwise;
    of one with dates, the time.

    Raises:
        ConfigurationError: A named column is missing, no column is left for the values, or one would be two things.
    """
    index: Collection[str] = getattr(names, "levels", ())
    for name in chosen.all:
        if name not in names:
            raise ConfigurationError(
                f"there is no column {name!r}{nearest(name, names)}; the columns are {listed(names)}"
            )
    named, inputs = {*chosen.all}, {*(chosen.inputs or ())}  # inputs are features, also where they are named as a role
    of_role = {
        role: _column_for(role, [name for name in names if name not in inputs], named, chosen) for role in _NAMES
    }
    levels = [name for name in names if name in index or _is_level(name, names)]
    unused = [name for name in levels if name not in {*of_role.values(), *named, *inputs}]
    if len(levels) > 1 and unused and of_role["id"] is None:
        of_role["id"] = unused.pop(0)
    if unused and of_role["time"] is None and (len(levels) > 1 or unused[0] in getattr(names, "moments", ())):
        of_role["time"] = unused.pop()
    taken = {name for name in of_role.values() if name is not None}
    values = chosen.values
    if values is None:
        no_features = taken | ({name for name in names if name in levels or is_no_feature(name)} - inputs)
        values = tuple(name for name in names if name not in no_features)
    if not values:
        raise ConfigurationError(
            f"no column is left for the values; the columns are {listed(names)}: name those of the features (values)"
        )
    if both := taken.intersection(values):
        raise ConfigurationError(f"the column {min(both)!r} cannot be a feature and something else at once")
    values = _of_inputs(values, chosen)
    used = taken.union(values)
    left_out = tuple(name for name in names if name not in used)
    return Roles(of_role["id"], of_role["time"], of_role["label"], values, left_out)


def is_no_feature(name: str) -> bool:
    """Whether a column has a name for an index, an id, a time or a label, even where another column has that role."""
    return bool(_COUNT.fullmatch(_plain(name))) or any(may_be(role, name) for role in _NAMES)


def _is_level(name: str, names: Collection[str]) -> bool:
    """Whether a name is one that pandas gives a level of an index."""
    plain = _plain(name)
    return _LEVEL.fullmatch(plain) is not None or (plain == "level_1" and "level_0" in names)


def _of_inputs(values: tuple[str, ...], chosen: ColumnNames) -> tuple[str, ...]:
    """The columns of values in the order of the model's features.

    Raises:
        ConfigurationError: The columns have other names than the features, or no names at all.
    """
    is_numbered = all(map(_is_numbered, values))
    if not chosen.inputs or (is_numbered and chosen.values is not None):  # no header: the caller says the order
        return values
    if (why := why_other(values, chosen.inputs)) is not None:
        no_header = "The first line names no columns: say the order of the features (values)"
        hint = no_header if is_numbered else "Rename the columns, or give arrays, which are taken in that order"
        raise ConfigurationError(f"{why}{'' if why.endswith('?') else '.'} {hint}")
    return chosen.inputs


def _is_numbered(name: str) -> bool:
    return name.startswith(NO_HEADER) and name.removeprefix(NO_HEADER).isdecimal()


def _column_for(role: ColumnRole, names: Sequence[str], named: Set[str], chosen: ColumnNames) -> str | None:
    """The column of a role: as the caller chose, or the only one whose name says so; None if none does.

    Raises:
        ConfigurationError: The names of several columns say so.
    """
    own: str | None = getattr(chosen, role)
    if own is None and chosen.defaults.get(role) in names:
        own = chosen.defaults[role]
    if own is not None:
        return own
    alike = [name for name in names if name not in named and may_be(role, name)]
    if role == "id":
        alike = [name for name in alike if not names_channel(name)] or alike
    if len(alike) > 1:
        raise ConfigurationError(
            f"the columns {listed(alike)} may each be the {role}: say which one ({role}), and which are the features "
            f"(values); the columns are {listed(names)}"
        )
    return alike[0] if alike else None


def has_ids(names: Sequence[str]) -> bool:
    """Whether the name of some column says that it holds the ids of sequences."""
    return any(may_be("id", name) for name in names)


def names_channel(name: str) -> bool:
    """Whether a column of this name says what the value in each row is, as in a melted table."""
    return _CHANNEL.fullmatch(_plain(name)) is not None


def may_be(role: ColumnRole, name: str) -> bool:
    """Whether a name says that its column has a role."""
    plain = _plain(name)
    is_id = role == "id" and plain.endswith("_id") and plain not in _NAMES["time"] and not _COUNT.fullmatch(plain)
    return plain in _NAMES[role] or is_id


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")

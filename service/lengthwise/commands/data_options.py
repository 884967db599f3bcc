"""The options of the commands that read files of sequences: which column is what, and the order of the axes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import click
from pydantic import AfterValidator, Field

from lengthwise.commands.options import Flag, Options, pairs
from lengthwise.datasets.column_roles import ColumnNames, RowKind
from lengthwise.datasets.tables import Padding

if TYPE_CHECKING:
    from lengthwise.datasets.dataset import Reading

_ROLES: Final = ("id", "time", "label", "values", "row")
_HOW: Final = (
    " (--column id=NAME, time=NAME, label=NAME or values=NAME,... name columns; row=sequence: a row is a sequence)"
)


def _check_roles(columns: dict[str, str]) -> dict[str, str]:
    """Checks the values of `--column`, by role; returns them.

    Raises:
        ValueError: A role is unknown, or `row` has another value than those of `RowKind`.
    """
    if wrong := columns.keys() - {*_ROLES}:
        raise ValueError(f"must name a column that is one of {', '.join(_ROLES)}, not {', '.join(sorted(wrong))}")
    if columns.get("row", "step") not in get_args(RowKind):
        raise ValueError(f"row must be one of {', '.join(get_args(RowKind))}, got {columns['row']!r}")
    return columns


def _names(text: str) -> tuple[str, ...]:
    """The names in a text with commas between them."""
    return tuple(name.strip() for name in text.split(","))


Columns = Annotated[dict[str, str], AfterValidator(_check_roles), Flag("--column", "ROLE=NAME", pairs, several=True)]
ABOUT_COLUMNS: Final = (
    "Of a file with a row for each step: the column that is its id, time, label or values (values=x,y in this order), "
    "where its name does not say so; row=sequence: a row is a sequence, with a column for each step. May be repeated."
)
StaticColumns = Annotated[tuple[str, ...], Flag("--static", "NAME,...", _names)]
ABOUT_STATIC: Final = (
    "The columns of static values, which are the same in all rows of a sequence. Default: those with the names of the "
    "model's static values."
)
PaddingCut = Padding | None
ABOUT_PADDING: Final = "Cut steps of zeros, or steps without values (nan), off the end of each sequence of the data."


class DataOptions(Options):
    """How a file of sequences is read."""

    columns: Columns = Field(default={}, description=ABOUT_COLUMNS)
    static: StaticColumns = Field(default=(), description=ABOUT_STATIC)
    channels_first: bool = Field(default=False, description="The steps of a record are [features, length].")
    padding: PaddingCut = Field(default=None, description=ABOUT_PADDING)

    @property
    def reading(self) -> Reading:
        """How the file is read; the role of each column is reported on stderr."""
        return reading_of(self.columns, channels_first=self.channels_first, padding=self.padding, static=self.static)


def reading_of(
    columns: Mapping[str, str], *, channels_first: bool = False, padding: Padding | None = None, **more: Any
) -> Reading:
    """Makes the `Reading` of a file from the values of `--column` by role; its reports and warnings go to stderr.

    `more` are other fields of `ColumnNames`, such as `inputs`.
    """
    from lengthwise.datasets.dataset import Reading  # help needs no reader of files

    chosen: dict[str, Any] = {role: _names(name) if role == "values" else name for role, name in columns.items()}
    say = functools.partial(click.echo, err=True)
    return Reading(
        ColumnNames(**chosen, **more),
        channels_first,
        padding=padding,
        say=say,
        warn=functools.cache(lambda line: say(f"warning: {line}")),
        how_to_name=_HOW,
    )

"""The options of the commands that read files of sequences: which column is what, and the order of the axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import click
from pydantic import Field

from lengthwise.commands.options import Flag, Options, add_flags, pairs
from lengthwise.datasets.dataset import Reading
from lengthwise.datasets.long_table import ColumnNames

_ROLES: Final = ("id", "time", "label", "values")
_HOW: Final = " (--column id=NAME, time=NAME, label=NAME or values=NAME,... name columns)"


def _columns(texts: Sequence[str]) -> dict[str, str]:
    named = pairs(texts)
    wrong = named.keys() - {*_ROLES}
    if wrong:
        raise ValueError(f"a column must be one of {', '.join(_ROLES)}, got {', '.join(sorted(wrong))}")
    return named


class DataOptions(Options):
    """How a file of sequences is read."""

    columns: Annotated[dict[str, str], Flag("--column", "ROLE=NAME", _columns, several=True)] = Field(
        default={},
        description="Of a file with a row for each step: the column that is its id, time, label or values (values=x,y "
        "in this order), where its name does not say so. May be repeated.",
    )
    channels_first: bool = Field(default=False, description="The steps of a record are [features, length].")

    @property
    def reading(self) -> Reading:
        """How the file is read; what is taken as what is told on stderr."""
        values = self.columns.get("values")
        columns = ColumnNames(
            self.columns.get("id"),
            self.columns.get("time"),
            self.columns.get("label"),
            None if values is None else tuple(name.strip() for name in values.split(",")),
        )
        say = functools.partial(click.echo, err=True)
        return Reading(columns, self.channels_first, say=say, how_to_name=_HOW)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds these flags to a command, which gets what they say as the argument `reading`."""

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        chosen = DataOptions(**{name: given.pop(name) for name in DataOptions.model_fields})
        return command(reading=chosen.reading, **given)

    return add_flags(DataOptions.model_fields)(run)

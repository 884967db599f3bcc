"""The options of the commands that read files of sequences: which column is what, and the order of the axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from lengthwise.decoding.dataset import Reading
from lengthwise.decoding.long_table import ColumnNames


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which gets them as the argument `reading`."""

    @click.option("--id", "column_id", metavar="COLUMN", help="Of a file with a row for each step: names its sequence.")
    @click.option("--time", "column_time", metavar="COLUMN", help="Of such a file: orders the steps of a sequence.")
    @click.option("--label", "column_label", metavar="COLUMN", help="Of such a file: the label.")
    @click.option(
        "--values", "column_values", metavar="COLUMN,...", help="Of such a file: the features, in this order."
    )
    @click.option("--channels-first", is_flag=True, help="The steps of a record are [features, length].")
    @functools.wraps(command)
    def reading_files(
        *args: Any,
        column_id: str | None,
        column_time: str | None,
        column_label: str | None,
        column_values: str | None,
        channels_first: bool,
        **others: Any,
    ) -> Any:
        values = None if column_values is None else tuple(name.strip() for name in column_values.split(","))
        columns = ColumnNames(column_id, column_time, column_label, values)
        how = " (--id, --time, --label and --values name columns)"
        reading = Reading(columns, channels_first, say=functools.partial(click.echo, err=True), how_to_name=how)
        return command(*args, reading=reading, **others)

    return reading_files

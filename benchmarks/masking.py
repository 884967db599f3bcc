"""Writes the tables of docs/masking.md. `python -m benchmarks.masking`, or `make docs`.

The table of layers is measured each time, in seconds. The others are copied from pages in benchmarks/results, which
`benchmarks.masks` and `benchmarks.missing_values` measure.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import layer_table, masks, missing_values, pages
from benchmarks.layer_table import Row
from lengthwise.commands.command import Command

DOCUMENT = Path("docs/masking.md")


def layers(rows: Sequence[Row]) -> str:
    """A table for each group of layers."""
    parts = []
    for group, members in itertools.groupby(rows, key=lambda row: row.case.group):
        heads = (
            "layer",
            "written",
            "verdict",
            "zeros",
            "junk",
            "NaN",
            "a padded 0 becomes",
            "write instead",
            "then",
            "Keras",
        )
        parts.append(f"**{group[0].upper()}{group[1:]}**\n\n{pages.table(heads, map(layer_table.cells, members))}")
    return "\n\n".join(parts)


def written_into(document: str, name: str, table: str) -> str:
    """The document with the table between the markers of a name replaced."""
    begin, end = f"<!-- begin: {name} -->", "<!-- end -->"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    if not found.search(document):
        raise click.UsageError(f"the document has no place for a table: {begin} ... {end}")
    return found.sub(lambda _: f"{begin}\n\n{table}\n\n{end}", document)


def from_results() -> dict[str, str]:
    """The tables of committed pages, by their markers' names."""
    return {"masks": pages.first_table(masks.PAGE), "missing values": pages.first_table(missing_values.PAGE)}


@click.command(cls=Command)
def main() -> None:
    """Writes the tables of docs/masking.md."""
    torch.set_num_threads(1)
    bar = track(layer_table.cases(), "layers measured", console=Console(stderr=True), transient=True)
    tables = from_results() | {"layers": layers([layer_table.measure(case) for case in bar])}
    document = DOCUMENT.read_text()
    for name, table in tables.items():
        document = written_into(document, name, table)
    DOCUMENT.write_text(document)


if __name__ == "__main__":
    main()

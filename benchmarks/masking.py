"""Writes the tables of docs/masking.md. `python -m benchmarks.masking`, or `make masking`.

The table of layers is measured anew, in seconds. The others are those of the results that stand in the repository: each
is measured by its own command (`benchmarks.masks`, `benchmarks.missing_values`, `benchmarks.exported_models`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import exported_models, layer_table, masks, missing_values
from benchmarks.layer_table import Row
from lengthwise.command import Command

DOCUMENT = Path("docs/masking.md")


def layers(rows: Sequence[Row]) -> str:
    """A table for each group of layers."""
    parts = []
    for group, members in itertools.groupby(rows, key=lambda row: row.case.group):
        heads = ("layer", "written", "", "zeros", "junk", "NaN", "a padded 0 becomes", "write instead", "then")
        parts.append(f"**{group[0].upper()}{group[1:]}**\n\n{_table(heads, map(layer_table.cells, members))}")
    return "\n\n".join(parts)


def with_and_without_masks(models: Sequence[dict[str, Any]]) -> str:
    """A line for each training."""
    heads = ("model", "seed", "accuracy alone", "in batches", "padded", "labels changed in batches", "padded")
    lines = [
        (
            model["model"],
            str(model["seed"]),
            f"{model['accuracy_alone']:.4f}",
            *(f"{accuracy:.4f}" for accuracy in model["accuracy"].values()),
            *map(str, model["labels_changed"].values()),
            f"{max(model['largest_change'].values()):.2g}",
        )
        for model in models
    ]
    return _table((*heads, "largest change of a probability"), lines)


def policies(models: Sequence[dict[str, Any]]) -> str:
    """Mean accuracy over the seeds by what the policy does, with the least and the most."""
    lines = []
    for way, rnn in itertools.product(missing_values.WAYS, missing_values.MODELS):
        line = [way, "MLP" if rnn == "none" else "LSTM"]
        for policy in missing_values.POLICIES:
            found = [
                model["accuracy"]
                for model in models
                if (model["way"], model["rnn"], model["policy"]) == (way, rnn, policy)
            ]
            line.append(f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
        lines.append(line)
    return _table(("values are missing", "model", *missing_values.POLICIES), lines)


def beside_torch(models: Sequence[dict[str, Any]]) -> str:
    """A line for each model of the gallery, and one for all of the built-in architecture."""
    lines = []
    for model in models:
        if model["built_in"]:
            continue
        if model["refused"] is None:
            lines.append((model["model"], *_figures([model])))
        else:
            # The line of the model's own code stands before it.
            reason = model["refused"].rpartition("`: ")[2].split(". ")[0]
            lines.append((model["model"], f"no graph: {reason}", "", ""))
    built_in = [model for model in models if model["built_in"]]
    lines.append((f"built-in, {len(built_in)} specs that cover all pairs of choices", *_figures(built_in)))
    return _table(("model", "from torch", "in company from alone", "the same bits"), lines)


def _figures(models: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return (
        *(f"{max(model[name] for model in models):.2g}" for name in ("from_torch", "from_alone")),
        f"{sum(model['same_bits'] for model in models):,} of {sum(model['sequences'] for model in models):,}",
    )


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines))


def written_into(document: str, name: str, table: str) -> str:
    """The document with the table between the markers of a name replaced."""
    begin, end = f"<!-- begin: {name} -->", "<!-- end -->"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    if not found.search(document):
        raise click.UsageError(f"the document has no place for a table: {begin} ... {end}")
    return found.sub(lambda _: f"{begin}\n\n{table}\n\n{end}", document)


def from_results() -> dict[str, str]:
    """The tables that are made of committed results, by their markers' names."""
    return {
        "masks": with_and_without_masks(_models(masks.RESULTS)),
        "missing values": policies(_models(missing_values.RESULTS)),
        "exported models": beside_torch(_models(exported_models.RESULTS)),
    }


def _models(results: Path) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads(results.read_text())["models"]
    return models


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

"""The report of a training as a self-contained HTML page, made from what `metrics.json` holds."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lengthwise.reports import look
from lengthwise_export.training import charts

SPLITS: Final = ("training", "validation", "left_out", "test")
"""The splits that a report may have, the most meaningful last."""

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{look}
:root {{ --one: var(--accent); --other: var(--second); }}
td, th {{ text-align: right; padding: .25rem .9rem .25rem 0; }}
td:first-child, th:first-child {{ text-align: left; }}
.heat td, .heat th {{ text-align: center; padding: .3rem .6rem; border: 1px solid var(--line); }}
section div {{ overflow-x: auto; }}
svg text {{ font-size: 12px; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


HELD_BACK: Final = "of records that were held back for the choice of the layers"
"""What the accuracy of layers in folds is."""


def page(report: Mapping[str, Any], title: str) -> str:
    """The report of one training as a page.

    Args:
        report: The content of `metrics.json`.
        title: The name of the run.
    """
    splits = splits_of(report)
    parts = [_table(["split", *FIGURES], [[name, *figures(scores)] for name, scores in splits.items()])]
    if report.get("held_back") is not None:
        parts.append(f"<p>{html.escape(HELD_BACK.capitalize())}: accuracy {_number(report['held_back'])}.</p>")
    if report.get("made"):
        parts.insert(0, f"<p>{html.escape(origin(report['made']))}</p>")
    if report.get("seconds") is not None:
        parts.append(f"<p>Trained in {float(report['seconds']):.1f} s.</p>")
    if report.get("chosen"):
        parts.append(_section("What was chosen from the data", _list(report["chosen"])))
    if report.get("warnings"):
        parts.append(_section("Warnings", _list(report["warnings"])))
    if report.get("runs"):
        rows = [[str(run["seed"]), *(_number(run.get(name)) for name in SPLITS)] for run in report["runs"]]
        parts.append(_section("Accuracy by seed", _table(["seed", *SPLITS], rows)))
    if splits:
        name, scores = list(splits.items())[-1]
        parts += _details(report, name, scores)
    if report.get("epochs"):
        parts.append(_section("Learning curves", charts.losses(report["epochs"])))
    if report.get("spec"):
        parts.append(_spec(report["spec"]))
    return _PAGE.format(look=look.style(), title=html.escape(title), body="\n".join(parts))


FIGURES: Final = ("answers", "accuracy", "macro F1", "log loss", "calibration error")
"""The figures of a split, in the order of `figures`."""


def splits_of(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The splits of a report with their scores, the most meaningful last."""
    return {name: report[name] for name in SPLITS if isinstance(report.get(name), dict)}


def figures(scores: Mapping[str, Any]) -> list[str]:
    """The figures of a split as text; see `FIGURES`."""
    numbers = [scores.get("accuracy"), scores.get("macro_f1"), scores.get("loss"), scores.get("ece")]
    return [str(scores.get("answers", "")), *map(_number, numbers)]


def _details(report: Mapping[str, Any], name: str, scores: Mapping[str, Any]) -> list[str]:
    parts = []
    if scores.get("reliability"):
        parts.append(
            _section(
                f"Calibration ({name}): the number of answers above each bar", charts.reliability(scores["reliability"])
            )
        )
    for key, what in (("by_length", "steps"), ("by_missing", "share of missing values")):
        groups = scores.get(key)
        if groups:
            rows = [
                [f"{group['from']:g} to {group['to']:g}", str(group["sequences"]), _number(group["accuracy"])]
                for group in groups
            ]
            parts.append(_section(f"Accuracy by {what} ({name})", _table([what, "sequences", "accuracy"], rows)))
    confusion = scores.get("confusion")
    if confusion:
        labels = [str(label) for label in report.get("labels", range(len(confusion)))]
        columns = labels if len(confusion[0]) == len(labels) else ["hit", "false alarm", "miss", "rightly not"]
        if len(columns) < 2 or report.get("task") == "multi-label":
            columns = ["hit", "false alarm", "miss", "rightly not"]
        parts.append(_section(f"Confusion ({name}): true labels in rows", _confusion(labels, columns, confusion)))
    return parts


def _confusion(labels: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The counts, each cell the darker the larger its share of its row."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in ("label", *columns))
    body = ""
    for label, row in zip(labels, counts, strict=False):
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--one) {45 * count / max(sum(row), 1):.0f}%, transparent)">'
            f"{count}</td>"
            for count in row
        )
        body += f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>'
    return f'<table class="heat"><tr>{head}</tr>{body}</table>'


def origin(made: Mapping[str, Any]) -> str:
    """When and from what a training was made, as a line; see `session.origin`."""
    tested = f", tested with {made['test_records']} of {made['test_data']}" if made.get("test_records") else ""
    return (
        f"Trained {made['date']} with lengthwise {made['version']}, seed {made['seed']}: {made['records']} records of "
        f"{made['data']}{tested}."
    )


def _spec(spec: Mapping[str, Any]) -> str:
    """The spec, as in a TOML file."""
    lines = []
    for table, keys in spec.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    return f"<details><summary>The spec</summary><pre>{html.escape(chr(10).join(lines))}</pre></details>"


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n<div>{content}</div>\n</section>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{body}</table>"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"  # noqa: RUF001 - a dash

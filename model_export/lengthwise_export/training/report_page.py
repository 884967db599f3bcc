"""The report of a training as a self-contained HTML page, made from what `metrics.json` holds."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lengthwise import look

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
        parts.append(_section("Learning curves", _curves(report["epochs"])))
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
        parts.append(_section(f"Calibration ({name})", _reliability(scores["reliability"])))
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
        rows = [[label, *map(str, row)] for label, row in zip(labels, confusion, strict=False)]
        parts.append(_section(f"Confusion ({name}): true labels in rows", _table(["label", *columns], rows)))
    return parts


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


def _reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """A picture: a bar for each bin at its accuracy, and the diagonal on which a calibrated model lies."""
    size, edge = 240, 30
    bars = "".join(
        f'<rect x="{edge + one["from"] * size:.1f}" y="{10 + (1 - one["accuracy"]) * size:.1f}" '
        f'width="{(one["to"] - one["from"]) * size - 1:.1f}" height="{one["accuracy"] * size:.1f}" fill="var(--one)">'
        f"<title>{one['answers']} answers, {one['confidence']:.3f} sure, {one['accuracy']:.3f} right</title></rect>"
        for one in bins
    )
    return (
        f'<svg width="{size + 2 * edge}" height="{size + 60}" role="img" '
        f'aria-label="Share of right answers by probability">{bars}'
        f'<line x1="{edge}" y1="{10 + size}" x2="{edge + size}" y2="10" stroke="currentColor"/>'
        f'<text x="{edge}" y="{size + 40}">probability of the answer; height: share of right answers</text></svg>'
    )


def _curves(epochs: Sequence[Mapping[str, Any]]) -> str:
    """A picture of the losses over the epochs."""
    wide, high, edge = 560, 220, 40
    lines = {
        name: [float(epoch[key]) for epoch in epochs if epoch.get(key) is not None]
        for name, key in (("training", "training_loss"), ("validation", "validation_loss"))
    }
    top = max((max(values) for values in lines.values() if values), default=1.0) or 1.0
    drawn = ""
    for (name, values), color in zip(lines.items(), ("var(--one)", "var(--other)"), strict=True):
        if values:
            across = max(len(values) - 1, 1)
            points = " ".join(
                f"{edge + index / across * wide:.1f},{10 + (1 - value / top) * high:.1f}"
                for index, value in enumerate(values)
            )
            drawn += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
            drawn += f'<text x="{edge + wide - 80}" y="{25 if name == "training" else 42}">{name}</text>'
            top_of = 16 if name == "training" else 33
            drawn += f'<rect x="{edge + wide - 95}" y="{top_of}" width="10" height="10" fill="{color}"/>'
    return (
        f'<svg width="{wide + 2 * edge}" height="{high + 50}" role="img" aria-label="Losses by epoch">{drawn}'
        f'<text x="{edge}" y="{high + 35}">{len(epochs)} epochs; loss from 0 to {top:.3g}</text></svg>'
    )

"""The report of a training as a self-contained HTML page, made from what `metrics.json` holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lengthwise.reports.page import Html, bullets, element, joined, section, table
from lengthwise.reports.page import page as whole_page
from lengthwise_export.training import charts

SPLITS: Final = ("training", "validation", "left_out", "test")
"""The splits that a report may have, the most meaningful last."""

_STYLE: Final = """
td + td, th + th { text-align: right; }
.heat td, .heat th { text-align: center; padding: .3rem .6rem; border: 1px solid var(--line); }
svg text { font-size: 12px; }
"""
HELD_BACK: Final = "in cross-validation, for the choice of the layers"
"""What the accuracy of layers in folds is."""


def page(report: Mapping[str, Any], title: str) -> str:
    """The report of one training as a page.

    Args:
        report: The content of `metrics.json`.
        title: The name of the run.
    """
    splits = splits_of(report)
    parts: list[object] = []
    if report.get("made"):
        parts.append(element("p", origin(report["made"])))
    parts.append(table([[name, *figures(scores)] for name, scores in splits.items()], ["split", *FIGURES]))
    if report.get("held_back") is not None:
        parts.append(element("p", f"{HELD_BACK.capitalize()}: accuracy {_number(report['held_back'])}."))
    if report.get("seconds") is not None:
        parts.append(element("p", f"Trained in {float(report['seconds']):.1f} s."))
    for name, key in (("What was chosen from the data", "chosen"), ("Warnings", "warnings")):
        if report.get(key):
            parts.append(section(name, bullets(report[key])))
    if report.get("runs"):
        rows = [[run["seed"], *(_number(run.get(name)) for name in SPLITS)] for run in report["runs"]]
        parts.append(section("Accuracy by seed", table(rows, ["seed", *SPLITS])))
    if splits:
        parts += _details(report, *list(splits.items())[-1])
    if report.get("epochs"):
        parts.append(section("Learning curves", charts.losses(report["epochs"])))
    if report.get("spec"):
        parts.append(element("details", element("summary", "The spec"), element("pre", _toml(report["spec"]))))
    return whole_page(title, *parts, style=_STYLE)


FIGURES: Final = ("answers", "accuracy", "macro F1", "log loss", "calibration error")
"""The figures of a split, in the order of `figures`."""


def splits_of(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The splits of a report with their scores, the most meaningful last."""
    return {name: report[name] for name in SPLITS if isinstance(report.get(name), dict)}


def figures(scores: Mapping[str, Any]) -> list[str]:
    """The figures of a split as text; see `FIGURES`."""
    numbers = [scores.get("accuracy"), scores.get("macro_f1"), scores.get("loss"), scores.get("ece")]
    return [str(scores.get("answers", "")), *map(_number, numbers)]


def _details(report: Mapping[str, Any], name: str, scores: Mapping[str, Any]) -> list[Html]:
    parts = []
    if scores.get("reliability"):
        title = f"Calibration ({name}): the number of answers above each bar"
        parts.append(section(title, charts.reliability(scores["reliability"])))
    for key, what in (("by_length", "steps"), ("by_missing", "share of missing values")):
        rows = [
            [f"{group['from']:g} to {group['to']:g}", group["sequences"], _number(group["accuracy"])]
            for group in scores.get(key) or ()
        ]
        if rows:
            parts.append(section(f"Accuracy by {what} ({name})", table(rows, [what, "sequences", "accuracy"])))
    counts = scores.get("confusion")
    if counts:
        labels = [str(label) for label in report.get("labels", range(len(counts)))]
        is_square = len(counts[0]) == len(labels) >= 2 and report.get("task") != "multi-label"
        columns = labels if is_square else ["hit", "false alarm", "miss", "rightly not"]
        parts.append(section(f"Confusion ({name}): true labels in rows", _confusion(labels, columns, counts)))
    return parts


def _confusion(labels: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """The counts, each cell the darker the larger its share of its row."""
    rows = [element("tr", *(element("th", cell, scope="col") for cell in ("label", *columns)))]
    for label, row in zip(labels, counts, strict=False):
        shares = [f"{45 * count / max(sum(row), 1):.0f}%" for count in row]
        styles = [f"background: color-mix(in srgb, var(--accent) {share}, transparent)" for share in shares]
        cells = [element("td", count, style=style) for count, style in zip(row, styles, strict=True)]
        rows.append(element("tr", element("th", label, scope="row"), *cells))
    return element("table", joined(*rows), class_="heat")


def origin(made: Mapping[str, Any]) -> str:
    """When and from what a training was made, as a line; see `session.origin`."""
    tested = f", tested with {made['test_records']} of {made['test_data']}" if made.get("test_records") else ""
    return (
        f"Trained {made['date']} with lengthwise {made['version']}, seed {made['seed']}: {made['records']} records of "
        f"{made['data']}{tested}."
    )


def _toml(spec: Mapping[str, Any]) -> str:
    lines = []
    for name, keys in spec.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"  # noqa: RUF001 - a dash

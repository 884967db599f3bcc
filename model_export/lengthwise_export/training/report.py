"""The report of a training: what `metrics.json` holds, as a table and as a self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lengthwise.reports import notebook
from lengthwise.reports.chart import Chart
from lengthwise.reports.page import Html, bullets, element, joined, section, table
from lengthwise.reports.page import page as whole_page
from lengthwise_export.architecture.spec import as_toml
from lengthwise_export.training.options import ROCKET_OPTIONS

if TYPE_CHECKING:
    from lengthwise.datasets.dataset import Record
    from lengthwise_export.training.choice import Plan
    from lengthwise_export.training.scores import EvaluationScores
    from lengthwise_export.training.train import TrainingResult

METRICS_FILE: Final = "metrics.json"
SPLITS: Final = ("training", "validation", "left_out", "test")  # of a report, the most meaningful last
_FIGURES: Final = {"accuracy": "accuracy", "macro_f1": "macro F1", "loss": "log loss", "ece": "calibration error"}
_STYLE: Final = """
td + td, th + th { text-align: right; }
.heat td, .heat th { text-align: center; padding: .3rem .6rem; border: 1px solid var(--line); }
svg text { font-size: 12px; }
"""


class RunReport(dict[str, Any]):
    """What `metrics.json` of a run holds, which a notebook shows as the page `report.html`."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        result: TrainingResult,
        splits: Mapping[str, EvaluationScores],
        records: Sequence[Record],
        test: Sequence[Record],
    ) -> RunReport:
        """The report of a result, and when and from what it was trained."""
        options = asdict(plan.options)
        if plan.spec.model.kind == "rocket":
            options = {name: value for name, value in options.items() if name in ROCKET_OPTIONS}
        return cls(
            labels=list(plan.spec.output.labels),
            task=plan.spec.output.task,
            temperature=result.temperature,
            seconds=result.seconds,
            options=options,
            **result.details,
            **{name: scores.as_json() for name, scores in splits.items()},
            made={
                "date": datetime.now(UTC).date().isoformat(),
                "version": metadata.version("lengthwise"),
                "seed": plan.options.seed,
                "data": _source(records),
                "records": len(records),
                "test_data": _source(test) if test else None,
                "test_records": len(test),
            },
            spec=plan.spec.resolved(),
            chosen=list(plan.reasons),
        )

    def table(self, title: str) -> Group:
        """The scores of each split as a table for the terminal, and below how the training ended."""
        table = Table("split", "answers", "loss", "accuracy", "macro F1", title=title)
        for name, scores in splits_of(self).items():
            figures = (f"{scores[figure]:.4f}" for figure in ("loss", "accuracy", "macro_f1"))
            table.add_row(name.replace("_", " "), str(scores["answers"]), *figures)
        return Group(table, Text(self._ending()))

    def _ending(self) -> str:
        if self.get("kind") == "rocket":
            calibrated = "" if self["temperature"] is None else f", temperature {self['temperature']:.3g}"
            return (
                f"{self['seconds']:.1f} s, ridge penalty {self['penalty']:.3g}{calibrated}; left out: leave-one-out "
                "predictions"
            )
        done, most = len(self["epochs"]), self["options"]["epochs"]
        if "validation" not in self:
            return f"all {done} epochs, the last one used"
        ended = f"all {done} epochs" if done == most else f"stopped early at epoch {done} of {most}"
        return f"{ended}, best epoch {self['best_epoch']}"

    def _repr_html_(self) -> str:
        """The page, in a frame."""
        return notebook.in_frame(page(self, "training"))


def _source(records: Sequence[Record]) -> str:
    """The names of the files that records were read from; they say `file:line`."""
    names = dict.fromkeys(Path(record.place.rpartition(":")[0]).name for record in records)
    return ", ".join(names) or "a Python program"


def page(report: Mapping[str, Any], title: str) -> str:
    """The report of one training, as `metrics.json` holds it, as a page."""
    splits = splits_of(report)
    made = report["made"]
    tested = f", tested with {made['test_records']} of {made['test_data']}" if made.get("test_records") else ""
    said = (
        f"Trained {made['date']} with lengthwise {made['version']}, seed {made['seed']}: {made['records']} records of "
        f"{made['data']}{tested}."
    )
    parts: list[object] = [element("p", said)]
    rows = [
        [name, scores.get("answers", ""), *(_number(scores.get(figure)) for figure in _FIGURES)]
        for name, scores in splits.items()
    ]
    parts.append(section("Scores", table(rows, ["split", "answers", *_FIGURES.values()])))
    parts.append(element("p", f"Trained in {float(report['seconds']):.1f} s."))
    for name, key in (("What was chosen from the data", "chosen"), ("Warnings", "warnings")):
        if report.get(key):
            parts.append(section(name, bullets(report[key])))
    parts += _details(report, *list(splits.items())[-1])
    if report.get("epochs"):
        parts.append(section("Learning curves", _losses(report["epochs"])))
    parts.append(element("details", element("summary", "The spec"), element("pre", as_toml(report["spec"]))))
    return whole_page(title, *parts, style=_STYLE)


def splits_of(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The splits of a report with their scores, the most meaningful last."""
    return {name: report[name] for name in SPLITS if isinstance(report.get(name), dict)}


def _details(report: Mapping[str, Any], name: str, scores: Mapping[str, Any]) -> list[Html]:
    parts = []
    if scores.get("reliability"):
        title = f"Calibration ({name}): the number of answers above each bar"
        parts.append(section(title, _reliability(scores["reliability"])))
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


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Html:
    """Accuracy against probability: a bar for each bin, the darker the more answers it has; their number above it."""
    most = max(one["answers"] for one in bins)
    shares = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    chart = Chart(300, 300, ("predicted probability", shares), ("accuracy", shares))
    for one in bins:
        strength = 0.15 + 0.85 * math.sqrt(one["answers"] / most)
        said = f"{one['answers']} predictions, probability {one['confidence']:.3f}, accuracy {one['accuracy']:.3f}"
        look = {"fill": "var(--accent)", "fill_opacity": f"{strength:.2f}"}
        chart.bar(one["from"], one["to"] - 0.003, one["accuracy"], element("title", said), **look)
        chart.text((one["from"] + one["to"]) / 2, one["accuracy"], one["answers"], down=-3)
    chart.line([(0, 0), (1, 1)], "currentColor", stroke_width=1)
    return chart.figure("Accuracy by predicted probability, with the number of predictions in each bar")


def _losses(epochs: Sequence[Mapping[str, Any]]) -> Html:
    """The losses of training and, where there is any, of validation, over the epochs."""
    lines = {
        name: [float(epoch[key]) for epoch in epochs if epoch.get(key) is not None]
        for name, key in (("training", "training_loss"), ("validation", "validation_loss"))
    }
    marks = _marks(max((max(values) for values in lines.values() if values), default=1.0))
    every = max(1, math.ceil(len(epochs) / 8))
    numbers = [(place / max(len(epochs) - 1, 1), str(place + 1)) for place in range(0, len(epochs), every)]
    chart = Chart(560, 240, ("epoch", numbers), ("loss", [(mark / marks[-1], f"{mark:g}") for mark in marks]))
    colors = ("var(--accent)", "var(--second)")
    for place, ((name, values), color) in enumerate(zip(lines.items(), colors, strict=True)):
        if values:
            last = max(len(values) - 1, 1)
            chart.line([(index / last, value / marks[-1]) for index, value in enumerate(values)], color)
            chart.line([(0.82, 0.95 - 0.07 * place), (0.85, 0.95 - 0.07 * place)], color)
            chart.text(0.86, 0.95 - 0.07 * place, name, "start", down=4)
    return chart.figure("Losses by epoch")


def _marks(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`."""
    rough = (top if top > 0 and math.isfinite(top) else 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(number * step, 12) for number in range(math.ceil(top / step) + 1 if math.isfinite(top) else 5)]


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"  # noqa: RUF001 - a dash

"""The report of a training: what `metrics.json` holds, as a table and as a self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lengthwise.exporter_api.reports import as_text, notebook, render
from lengthwise_export.architecture.spec import as_toml
from lengthwise_export.training.options import ROCKET_OPTIONS

if TYPE_CHECKING:
    from lengthwise_export.training.choice import Plan
    from lengthwise_export.training.record_checks import Record
    from lengthwise_export.training.scores import EvaluationScores
    from lengthwise_export.training.train import TrainingResult
__all__ = ["FIGURES", "METRICS_FILE", "SPLITS", "RunReport", "as_text", "notebook", "page", "splits_of"]

METRICS_FILE: Final = "metrics.json"
SPLITS: Final = ("training", "validation", "left_out", "test")  # of a report, the most meaningful last
_JUDGED: Final = ("left_out", "validation", "training")  # the splits by which static values are judged, the first first
FIGURES: Final = {"accuracy": "accuracy", "macro_f1": "macro F1", "loss": "log loss", "ece": "calibration error"}
_TEMPLATE: Final = Path(__file__).with_name("report.html")


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
        """Makes the report of a run.

        Args:
            plan: What was trained, and why.
            result: The trained model, its temperature and its duration.
            splits: The scores of each split, by its name.
            records: The training records.
            test: The records of the test split, empty without one.
        """
        options = plan.options.model_dump(include=None if plan.spec.model.kind == "layers" else {*ROCKET_OPTIONS})
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
        """The scores of each split as a table for the terminal, with a line below on how the training ended."""
        table = Table("split", "answers", "loss", "accuracy", "macro F1", title=title)
        for name, scores in splits_of(self).items():
            figures = (f"{scores[figure]:.4f}" for figure in ("loss", "accuracy", "macro_f1"))
            table.add_row(name.replace("_", " "), str(scores["answers"]), *figures)
        return Group(table, Text(self._ending()), *map(Text, self._about_static()))

    def _about_static(self) -> Iterator[str]:
        """Yields what static values add, as a line for the terminal; nothing for a model without them."""
        without = self.get("accuracy_without_static")
        if without is not None:
            name, scores = next((name, self[name]) for name in _JUDGED if isinstance(self.get(name), dict))
            how = "fitted without them" if self.get("kind") == "rocket" else "with those of other sequences"
            yield f"static values: accuracy {scores['accuracy']:.4f} ({name.replace('_', ' ')}), {without:.4f} {how}"

    def _ending(self) -> str:
        """How the training ended, as a line for the terminal."""
        if self.get("kind") is not None:
            calibrated = "" if self["temperature"] is None else f", temperature {self['temperature']:.3g}"
            fitted, left_out = f"{self.get('summaries')} summaries", "records that were not fitted to"
            if self["kind"] == "rocket":
                fitted, left_out = f"ridge penalty {self['penalty']:.3g}", "leave-one-out predictions"
            return f"{self['seconds']:.1f} s, {fitted}{calibrated}; left out: {left_out}"
        epochs, most_epochs = len(self["epochs"]), self["options"]["epochs"]
        if "validation" not in self:
            return f"all {epochs} epochs, the last one used"
        ended = f"all {epochs} epochs" if epochs == most_epochs else f"stopped early at epoch {epochs} of {most_epochs}"
        return f"{ended}, best epoch {self['best_epoch']}"

    def _repr_html_(self) -> str:
        """The page, in a frame."""
        return notebook.in_frame(page(self, "training"))


def _source(records: Sequence[Record]) -> str:
    """The names of the files that records were read from, from their `source_line`, which is `file:line`."""
    names = dict.fromkeys(Path(record.source_line.rpartition(":")[0]).name for record in records)
    return ", ".join(names) or "a Python program"


def page(report: Mapping[str, Any], title: str) -> str:
    """The HTML page of a training's report; `report` is what `metrics.json` holds."""
    splits = splits_of(report)
    name, scores = list(splits.items())[-1]  # the most meaningful split
    return render(
        _TEMPLATE,
        title=title,
        report={
            "warnings": (),
            "chosen": (),
            "epochs": (),
            "task": None,
            "earliness": None,
            "importance": (),
            **report,
        },
        splits=splits,
        name=name,
        scores=scores,
        figures=FIGURES,
        spec=as_toml(report["spec"]),
        curves=_curves,
    )


def splits_of(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The splits of a report with their scores, the most meaningful last."""
    return {name: report[name] for name in SPLITS if isinstance(report.get(name), dict)}


def _curves(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The chart of the losses by epoch: its curves, and the marks of its axes, as shares 0..1 of the axes.

    Returns:
        `marks`: (share, text) on the axis of losses. `numbers`: (share, text) on the axis of epochs. `losses`: the
        points (share of the epochs, share of the losses) of "training" and "validation"; no points without validation.
    """
    losses = {
        name: [float(epoch[f"{name}_loss"]) for epoch in epochs if epoch.get(f"{name}_loss") is not None]
        for name in ("training", "validation")
    }
    top = max((value for values in losses.values() for value in values if 0 < value < math.inf), default=1.0)
    last = max(len(epochs) - 1, 1)
    return {
        "marks": [(share, f"{share * top:.2g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "numbers": [(index / last, str(index + 1)) for index in range(0, len(epochs), math.ceil(len(epochs) / 8))],
        "losses": {
            name: [(index / max(len(values) - 1, 1), value / top) for index, value in enumerate(values)]
            for name, values in losses.items()
        },
    }

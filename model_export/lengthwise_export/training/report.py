"""The report of a training: what `metrics.json` holds, as a table and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from lengthwise.decoding.dataset import Record
from lengthwise.reports import notebook
from lengthwise_export.training import report_page
from lengthwise_export.training.recipe import Plan
from lengthwise_export.training.scores import EvaluationScores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lengthwise_export.training.rocket import RocketResult
    from lengthwise_export.training.train import TrainingResult

METRICS_FILE: Final = "metrics.json"


class RunReport(dict[str, Any]):
    """What `metrics.json` of a run holds, which a notebook shows as the page `report.html`."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        result: TrainingResult | RocketResult,
        splits: Mapping[str, EvaluationScores],
        made: Mapping[str, Any],
    ) -> RunReport:
        """The report of a result.

        Args:
            plan: What was trained, and why.
            result: The result.
            splits: The scores by split, the most meaningful last.
            made: See `origin`.
        """
        output = plan.spec.output
        return cls(
            labels=list(output.labels),
            task=output.task,
            temperature=result.temperature,
            held_back=plan.held_back,
            seconds=result.seconds,
            **result.details(plan.options),
            **{name: scores.as_json() for name, scores in splits.items()},
            made=made,
            spec=plan.spec.resolved(),
            chosen=list(plan.reasons),
        )

    def table(self, title: str) -> Table:
        """The scores of each split as a table for the terminal, with how the training ended."""
        table = Table("split", "answers", "loss", "accuracy", "macro F1", title=title, caption=self._ending())
        for name, scores in report_page.splits_of(self).items():
            figures = (f"{scores[figure]:.4f}" for figure in ("loss", "accuracy", "macro_f1"))
            table.add_row(name.replace("_", " "), str(scores["answers"]), *figures)
        return table

    def _ending(self) -> str:
        if self.get("kind") == "rocket":
            calibrated = "" if self["temperature"] is None else f", temperature {self['temperature']:.3g}"
            return (
                f"{self['seconds']:.1f} s, ridge penalty {self['penalty']:.3g}{calibrated}; left out: leave-one-out "
                "predictions"
            )
        done, most = len(self["epochs"]), self["options"]["epochs"]
        if "validation" not in self:
            held = self["held_back"]
            return f"all {done} epochs, the last one used" + (
                "" if held is None else f"; {report_page.HELD_BACK}: accuracy {held:.4f}"
            )
        ended = f"all {done} epochs" if done == most else f"stopped early at epoch {done} of {most}"
        return f"{ended}, best epoch {self['best_epoch']}"

    def _repr_html_(self) -> str:
        """The page, in a frame."""
        return notebook.in_frame(report_page.page(self, "training"))


def origin(plan: Plan, records: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """When and from what a model is trained, for `metrics.json` and the page."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "version": metadata.version("lengthwise"),
        "seed": plan.options.seed,
        "data": _source(records),
        "records": len(records),
        "test_data": _source(test) if test else None,
        "test_records": len(test),
    }


def _source(records: Sequence[Record]) -> str:
    """The name of the file that records were read from; they say `file:line`."""
    return Path(records[0].place.rpartition(":")[0]).name or "a Python program"

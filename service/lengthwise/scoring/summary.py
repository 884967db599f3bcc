"""The summary of a scored file: records, speed, accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lengthwise.datasets.dataset import Label
from lengthwise.runtime.manifest import Task

if TYPE_CHECKING:
    from lengthwise.scoring.offline import ScoredBatch

PARTS: Final = {
    "reading": "reading the file",
    "planning": "planning batches",
    "running": "running the model",
    "writing": "writing answers",
}  # of a run's processor time


_TOLD: Final = (
    *("model", "records", "errors", "resumed", "seconds", "cpu_seconds", "sequences_per_second", "padding_share"),
    *("computed_padding_share", "answers", "right", "accuracy"),
)  # figures in the summary as JSON


@dataclass(slots=True)
class Summary:
    """The figures of a run, including the run that it resumes unless stated otherwise."""

    model: str  # `name/version`
    records: int = 0
    errors: int = 0  # records without an answer
    resumed: int = 0  # scored by an earlier run
    seconds: float = 0.0  # of this run, without loading the model
    cpu_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    rows: int = 0  # sequences or windows that this run computed
    cost_steps: int = 0
    valid_steps: int = 0
    computed_padding_steps: int = 0  # none where kernels skip it
    answers: int = 0  # with a label: one a record, a label (multi-label) or a step (per-step)
    right: int = 0  # answers that equal the label

    @property
    def sequences_per_second(self) -> float:
        """Of this run."""
        return (self.records - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def padding_share(self) -> float:
        """Padding over padded steps, of this run."""
        return 1 - self.valid_steps / self.cost_steps if self.cost_steps else 0.0

    @property
    def computed_padding_share(self) -> float:
        """Computed padding over all computed steps, of this run."""
        computed = self.valid_steps + self.computed_padding_steps
        return self.computed_padding_steps / computed if computed else 0.0

    @property
    def accuracy(self) -> float | None:
        """Right answers over all, or None where the input has no labels."""
        return self.right / self.answers if self.answers else None

    def count(self, label: Label, prediction: dict[str, Any], labels: Sequence[str], task: Task) -> None:
        """Counts one line."""
        self.records += 1
        if "error" in prediction:
            self.errors += 1
        elif label is not None:
            hits = right(label, prediction, labels, task)
            self.answers += len(hits)
            self.right += sum(hits)

    def ran(self, batch: ScoredBatch) -> None:
        """Counts one batch."""
        self.rows += batch.rows
        self.cost_steps += batch.cost_steps
        self.valid_steps += batch.valid_steps
        self.computed_padding_steps += batch.computed_padding_steps
        self.cpu_seconds["running"] += batch.cpu_seconds

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {name: getattr(self, name) for name in _TOLD}

    def note(self) -> str:
        """The text beside a progress bar."""
        speed = self.rows / max(self.seconds, 1e-9)
        return f"{self.rows:,} sequences, {speed:,.0f}/s, {self.computed_padding_share:.1%} computed as padding"

    def lines(self) -> Iterator[str]:
        """The figures for people."""
        yield (
            f"{self.records:,} records by {self.model}: {self.seconds:.1f} s, "
            f"{self.sequences_per_second:,.0f} a second, {self.computed_padding_share:.1%} computed as padding "
            f"({self.padding_share:.1%} of rows x width)"
        )
        spent = sum(self.cpu_seconds.values())
        if spent:
            shares = ", ".join(f"{self.cpu_seconds[part] / spent:.0%} {what}" for part, what in PARTS.items())
            yield f"processor time {spent:.1f} s: {shares}"
        if self.errors:
            yield f'without an answer: {self.errors:,} of them; their lines have the reason in "error"'
        if self.accuracy is not None:
            yield f"accuracy {self.accuracy:.4f}: {self.right:,} of {self.answers:,} answers are the label"


def right(label: Label, prediction: dict[str, Any], labels: Sequence[str], task: Task) -> list[bool]:
    """Which answers of a prediction equal the record's label; see `Summary.answers`."""
    if task == "single-label":
        return [prediction["label"] == label]
    several = label if isinstance(label, tuple) else ()
    if task == "multi-label":
        return [(one in several) == (one in prediction["assigned"]) for one in labels]
    pairs = zip(several, prediction["step_labels"], strict=True)
    return [wanted == found for wanted, found in pairs if found is not None]

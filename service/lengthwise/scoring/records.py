"""The records of a file to score: validated against a model's manifest, grouped into chunks, and summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lengthwise.datasets import arrays
from lengthwise.datasets.input_sequences import InputSequence
from lengthwise.datasets.record_fields import BadRecord, Label, Record, label_mismatch, unknown_labels
from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Item
from lengthwise.errors import IS_TRANSPOSED, RecordError
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest, Task
from lengthwise.scoring.opened import CHUNK_SEQUENCES

if TYPE_CHECKING:
    from lengthwise.scoring.offline import ScoredBatch, ScoringResult

CHUNK_RECORDS: Final = CHUNK_SEQUENCES
CHUNK_BYTES: Final = 33_554_432  # of steps at which a chunk is full
_TRANSPOSED: Final = f"{IS_TRANSPOSED} (--channels-first)"


@dataclass(frozen=True, slots=True)
class ValidRecord:
    """A record that the model accepts."""

    id: str  # the record's own, or its number in the file
    item: Item  # the sequence for the model
    label: Label  # the correct answer; None if the file has none
    source_line: str  # `file:line`


InputRecord = ValidRecord | BadRecord


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records that are scored together, valid and bad ones."""

    entries: list[InputRecord]
    read: float  # the share 0..1 of the file that was read up to here

    @property
    def items(self) -> list[Item]:
        """The sequences of the valid records, for the model."""
        return [entry.item for entry in self.entries if isinstance(entry, ValidRecord)]


def validated(records: Iterable[Record | BadRecord], manifest: Manifest) -> Iterator[InputRecord]:
    """Checks records against the model's input: yields each as a ValidRecord, or as a BadRecord with the reason."""
    for record in records:
        if isinstance(record, BadRecord):
            yield record
            continue
        item = item_of(record, manifest)
        reason = item if isinstance(item, str) else label_mismatch(record, manifest.task)
        if isinstance(item, str) or reason is not None:
            yield BadRecord(record.id, RecordError(f"{record.source_line}: {reason}"))
            continue
        yield ValidRecord(record.id, item, record.label, record.source_line)


def item_of(record: Record, manifest: Manifest) -> Item | str:
    """The item of a record; a text with the reason if the model refuses it."""
    sequence = InputSequence(record.steps, record.id, static=record.static, inputs=record.inputs)
    return arrays.item(sequence, manifest, transposed=_TRANSPOSED)


def chunked(entries: Iterable[InputRecord], read: Callable[[], float], *, stop_at_bad: bool) -> Iterator[Chunk]:
    """Groups entries into chunks of at most `CHUNK_RECORDS` records or about `CHUNK_BYTES` bytes, in their order.

    Args:
        entries: The records of the file.
        read: Gives the share of the file that was read so far.
        stop_at_bad: Whether to end after the first bad record, which is then the last entry of the last chunk.
    """
    pending: list[InputRecord] = []
    size = 0
    for entry in entries:
        pending.append(entry)
        is_last = stop_at_bad and isinstance(entry, BadRecord)
        if isinstance(entry, ValidRecord):
            size += entry.item.steps.nbytes
        if is_last or len(pending) == CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield Chunk(pending, read())
            pending, size = [], 0
        if is_last:
            return
    if pending:
        yield Chunk(pending, read())


def prediction_of(
    entry: InputRecord, result: ScoringResult | None, manifest: Manifest, *, attention: bool
) -> dict[str, Any] | RecordError:
    """The prediction of a record, in the form of `POST /predict`; or its error, which names the file and the line.

    `result` is the model's answer to a valid record, or a text: why there is none. It is None for a bad record.
    """
    if isinstance(entry, BadRecord):
        return entry.error
    if isinstance(result, Answer):
        return json_body.prediction(manifest, entry.item, result, attention=attention)
    return RecordError(f"{entry.source_line}: {result}")


PARTS: Final = {
    "reading": "reading the file",
    "planning": "planning batches",
    "running": "running the model",
    "writing": "writing answers",
}  # of a run's processor time


_FIGURES: Final = (
    *("model", "records", "errors", "resumed", "seconds", "cpu_seconds", "sequences_per_second", "padding_share"),
    *("computed_padding_share", "answers", "right", "accuracy"),
)  # figures in the summary as JSON


_ENOUGH_ANSWERS: Final = 10  # if none of so many is right, something may be wrong with the labels


@dataclass(slots=True)
class Summary:
    """The figures of a run, counted while it runs; including the run that it resumes unless stated otherwise."""

    model: str  # `name/version`
    records: int = 0
    errors: int = 0  # records without an answer
    resumed: int = 0  # records that an earlier run scored
    seconds: float = 0.0  # of this run, without loading the model
    cpu_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))  # of this run, by part
    rows: int = 0  # sequences or windows that this run computed
    cost_steps: int = 0  # padded steps that this run computed
    valid_steps: int = 0  # of them, those within the lengths
    computed_padding_steps: int = 0  # as many valid steps cost what the padding of this run cost
    answers: int = 0  # compared with a label: one for each record; multi-label: each class; per-step: each step
    right: int = 0  # answers that equal the label
    unknown: int = 0  # records with a label that the model does not have; nothing is compared with such a label
    first_unknown: str = ""  # the first of these labels, and those of the model, as a text

    @property
    def sequences_per_second(self) -> float:
        """Records that this run scored, by its seconds."""
        return (self.records - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def padding_share(self) -> float:
        """The share of padding in the padded steps (rows x width) of this run."""
        return 1 - self.valid_steps / self.cost_steps if self.cost_steps else 0.0

    @property
    def computed_padding_share(self) -> float:
        """The share of padding in what the kernels computed in this run, by its measured cost."""
        computed = self.valid_steps + self.computed_padding_steps
        return self.computed_padding_steps / computed if computed else 0.0

    @property
    def accuracy(self) -> float | None:
        """The share of correct answers; None if the input has no labels."""
        return self.right / self.answers if self.answers else None

    def count(self, label: Label, prediction: dict[str, Any], labels: Sequence[str], task: Task) -> None:
        """Counts one line of the file of predictions, and compares it with the record's label, if there is one."""
        self.records += 1
        if "error" in prediction:
            self.errors += 1
        elif label is not None:
            unknown = unknown_labels(label, labels) or ""
            self.unknown, self.first_unknown = self.unknown + (unknown != ""), self.first_unknown or unknown
            hits = [] if unknown and task == "single-label" else correct_answers(label, prediction, labels, task)
            self.answers += len(hits)
            self.right += sum(hits)

    def count_batch(self, batch: ScoredBatch) -> None:
        """Adds the figures of one batch."""
        self.rows += batch.rows
        self.cost_steps += batch.cost_steps
        self.valid_steps += batch.valid_steps
        self.computed_padding_steps += batch.computed_padding_steps
        self.cpu_seconds["running"] += batch.cpu_seconds

    def to_json(self) -> dict[str, Any]:
        """The figures of the summary as JSON, by name."""
        return {name: getattr(self, name) for name in _FIGURES}

    def note(self) -> str:
        """The text beside a progress bar. It has no speed at first: the longest sequences run first."""
        speed = f"{self.sequences_per_second:,.0f}/s, " if self.records > self.resumed else ""
        return f"{self.rows:,} sequences, {speed}{self.computed_padding_share:.1%} computed as padding"

    def lines(self) -> Iterator[str]:
        """Yields the lines of the summary for people."""
        yield (
            f"{self.records:,} records by {self.model}: {self.seconds:.1f} s, "
            f"{self.sequences_per_second:,.0f} a second, {self.computed_padding_share:.1%} computed as padding "
            f"({self.padding_share:.1%} of rows x width)"
        )
        if spent := sum(self.cpu_seconds.values()):
            shares = ", ".join(f"{self.cpu_seconds[part] / spent:.0%} {part_name}" for part, part_name in PARTS.items())
            yield f"processor time {spent:.1f} s: {shares}"
        if self.errors:
            yield f'without an answer: {self.errors:,} of them; their lines have the reason in "error"'
        if self.unknown:
            yield f"{self.unknown:,} of {self.records:,} records are not compared: {self.first_unknown}"
        if self.accuracy is not None:
            is_doubtful = self.answers >= _ENOUGH_ANSWERS and not self.right
            doubt = ": are the labels of the data written as those of the model?" if is_doubtful else ""
            yield f"accuracy {self.accuracy:.4f}: {self.right:,} of {self.answers:,} answers are the label{doubt}"


def correct_answers(label: Label, prediction: dict[str, Any], labels: Sequence[str], task: Task) -> list[bool]:
    """Compares the answers of a prediction with the record's label: True for each answer that is right.

    The answers are, by the task:
    - single-label: one, the predicted label;
    - multi-label: one for each of the model's `labels`, whether the sequence has it;
    - per-step: one for each step, without those that the model left out, and those without a label of the model.
    """
    if task == "single-label":
        return [prediction["label"] == label]
    labels_of_record = label if isinstance(label, tuple) else ()
    if task == "multi-label":
        return [(name in labels_of_record) == (name in prediction["assigned"]) for name in labels]
    pairs = zip(labels_of_record, prediction["step_labels"], strict=True)
    return [step_label == answer for step_label, answer in pairs if answer is not None and step_label in labels]

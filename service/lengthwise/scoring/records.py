"""The records of a file: validated against a model's manifest, and grouped into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lengthwise.batching.pending import HORIZON
from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Item, make_item, why_rejected
from lengthwise.decoding.dataset import BadRecord, Label, Record
from lengthwise.errors import RecordError
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest, Task

if TYPE_CHECKING:
    from lengthwise.scoring.offline import ScoringResult

CHUNK_RECORDS: Final = HORIZON
"""Maximum of records in a chunk: the number that the planner considers together."""
CHUNK_BYTES: Final = 33_554_432
"""Bytes of steps at which a chunk is full."""

MOST_LISTED: Final = 10
"""Labels that a message lists."""


@dataclass(frozen=True, slots=True)
class ValidRecord:
    """A record that the model accepts.

    Attributes:
        id: Its own, or its number in the file.
        item: The sequence for the model.
        label: The right answer, where the file has it.
        place: `file:line`.
    """

    id: str
    item: Item
    label: Label
    place: str


InputRecord = ValidRecord | BadRecord


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records that are scored together.

    Attributes:
        entries: The records, good and bad, in the order of the file.
        read: The share of the file that was read up to here.
    """

    entries: list[InputRecord]
    read: float

    @property
    def items(self) -> list[Item]:
        """The sequences for the model."""
        return [entry.item for entry in self.entries if isinstance(entry, ValidRecord)]


def validated(records: Iterable[Record | BadRecord], manifest: Manifest) -> Iterator[InputRecord]:
    """The records that the model accepts, and the others with their error."""
    for record in records:
        if isinstance(record, BadRecord):
            yield record
            continue
        reason = why_rejected(record.steps, manifest) or label_mismatch(record, manifest.task)
        if reason is not None:
            yield BadRecord(record.id, RecordError(f"{record.place}: {reason}"))
            continue
        item = make_item(record.steps, manifest, sent_steps=len(record.steps), id=record.id)
        yield ValidRecord(record.id, item, record.label, record.place)


def label_mismatch(record: Record, task: Task) -> str | None:
    """Why a record's label cannot be compared with an answer; None if it can, or if there is no label."""
    label = record.label
    if label is None:
        return None
    if (task == "single-label") == isinstance(label, tuple):
        wanted = {"single-label": "one label", "multi-label": "a list of labels", "per-step": "one label a step"}[task]
        return f"a {task} model wants {wanted}"
    if task == "per-step" and len(label) != len(record.steps):
        return f"{len(label)} labels for {len(record.steps)} steps"
    return None


def unknown_labels(record: Record, labels: Sequence[str], whose: str = "the model's labels") -> str | None:
    """The message for a label of a record that the model does not have; None if it has all of them.

    Args:
        record: A record with one label, several or none.
        labels: The labels of the model.
        whose: The name of the model's labels in the message.
    """
    several = record.label if isinstance(record.label, tuple) else (record.label,)
    unknown = next((label for label in several if label is not None and label not in labels), None)
    if unknown is None:
        return None
    some = f"these {len(labels)} are" if len(labels) <= MOST_LISTED else f"of these {len(labels)} the first are"
    return f"label {unknown[:40]!r} is none of {whose}; {some} {', '.join(map(repr, labels[:MOST_LISTED]))}"


def chunked(entries: Iterable[InputRecord], read: Callable[[], float], *, stop: bool) -> Iterator[Chunk]:
    """Chunks of entries.

    Args:
        entries: In the order of the file.
        read: The share of the file that was read so far.
        stop: Whether the first bad record ends the chunks; it is then the last one of the last chunk.
    """
    held: list[InputRecord] = []
    size = 0
    for entry in entries:
        held.append(entry)
        is_last = stop and isinstance(entry, BadRecord)
        if isinstance(entry, ValidRecord):
            size += entry.item.steps.nbytes
        if is_last or len(held) == CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield Chunk(held, read())
            held, size = [], 0
        if is_last:
            return
    if held:
        yield Chunk(held, read())


def prediction_of(
    entry: InputRecord, result: ScoringResult | None, manifest: Manifest, *, attention: bool
) -> dict[str, Any] | RecordError:
    """The prediction of a record, as `POST /predict` has it, or the error.

    Args:
        entry: The record.
        result: The answer or the error, if the model accepts the record.
        manifest: The manifest of the model.
        attention: Whether to return the attention weights.
    """
    if isinstance(entry, BadRecord):
        return entry.error
    if isinstance(result, Answer):
        return json_body.prediction(manifest, entry.item, result, attention=attention)
    return RecordError(f"{entry.place}: {result}")
